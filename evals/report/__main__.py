"""Makes one self-contained HTML page of finished runs: what queries found and why, accuracy, training and settings.

Of a benchmark's folder: its strategies side by side.

Usage: python -m evals.report RUN_DIR [RUN_DIR ...] [--out FILE.html]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from common.flags import Parser, setting


@dataclass(frozen=True)
class ReportSettings:
    """What to show, and where."""

    title: ClassVar[str] = "report"
    runs: tuple[str, ...] = setting(
        help="folder with a run's encoders, index files and results, however they are laid out; several are compared",
        metavar="RUN_DIR",
        several=True,
        positional=True,
    )
    out: str | None = setting(
        None,
        "the page, with its figures in FILE_figures/ (default: report.html in RUN_DIR; for several runs, here)",
        metavar="FILE.html",
    )


def build_parser() -> Parser:
    """The command's flags."""
    return Parser(__doc__, report=ReportSettings)


if __name__ == "__main__":
    build_parser().parse()  # --help and a mistyped flag end here, before torch is imported, which takes seconds

from common.console import log
from common.files import atomic_write, require_writable
from common.session import run_command
from evals.report import comparison
from evals.report.page import Section, page_html
from evals.report.runs import RESULTS_FILE, Run, find_runs, read_pool
from evals.report.sections import headlines, make_sections
from utils import InputError

PAGE = "report.html"
COMMANDS = {
    "encoder": "contrast_main.py",
    "query": "active_main.py",
    "classifier": "python -m train_classifier.main --index_dir DIR --out_path DIR",
}


def main(argv: Sequence[str] | None = None) -> None:
    given = build_parser().parse(argv).report
    start, folders = time.perf_counter(), [Path(folder) for folder in given.runs]
    page = page_path(given.out, folders)
    if any((folder / comparison.BENCHMARK).is_file() for folder in folders):
        if len(folders) > 1:
            raise InputError("a benchmark's page is of it alone; give its folder and no other")
        figures = write_comparison(page, folders[0])
    else:
        figures = write_report(page, find_runs(folders))
    log(f"report of {len(folders)} run(s) in {time.perf_counter() - start:.1f} s: {page}\nfigures {figures}")


def page_path(out: str | None, folders: Sequence[Path]) -> Path:
    """Where the page goes: into the run's folder, for several runs into the working folder; InputError if it cannot."""
    page = Path(out) if out else (folders[0] / PAGE if len(folders) == 1 else Path(PAGE))
    if page.suffix.lower() not in (".html", ".htm") or page.is_dir():
        raise InputError(f"--out {page} must be the name of an html file, such as {PAGE}")
    if out or len(folders) > 1:
        require_writable(page.parent, "--out")
    return page


def write_report(page: Path, runs: Sequence[Run]) -> Path:
    """Writes the page, and its figures as png files into the folder that is returned."""
    pools = [read_pool(run, f"run{number}") for number, run in enumerate(runs, start=1) if run.queries]
    sections = make_sections(runs, pools, commands=COMMANDS)
    lead = f"{len(runs)} runs side by side; " if len(runs) > 1 else ""
    lead += "contrastive coding for active learning under class distribution mismatch"
    text = page_html(f"CCAL report: {', '.join(run.name for run in runs)}", lead, sections, first=headlines(runs))
    return write_files({page: text}, sections)


def write_comparison(page: Path, folder: Path) -> Path:
    """Writes a benchmark's page, the figures, and its tables as table.md beside it; see write_report."""
    content, rows = comparison.read_benchmark(folder), comparison.read_rows(folder / RESULTS_FILE)
    if not rows:
        raise InputError(f"{folder / RESULTS_FILE} has no rows yet; make them with {content['command']}")
    title, about, command = f"Benchmark: {folder.resolve().name}", content["about"], content["command"]
    shown = {name: value for name, value in content["settings"].items() if not isinstance(value, (dict, bool))}
    shown.pop("data_digest", None)
    given = {name.replace("_", " "): value for name, value in shown.items() if value is not None}
    words = [f"{name} {', '.join(map(str, v)) if isinstance(v, list) else v}" for name, v in given.items()]
    found = comparison.standings(rows)
    sections = comparison.make_sections(found, command)
    text = f"# {title}\n\n{about}\n\n"
    for classifier, own in comparison.by_classifier(found).items():
        log(f"classifier {classifier}:\n{comparison.text_table(own)}")
        text += f"Classifier {classifier}:\n\n{comparison.markdown_table(own)}\n"
    text += f"{comparison.WORDS}\n\n```\n{command}\n```\n"
    files = {page.with_name("table.md"): text, page: page_html(title, "; ".join(words), sections, first=[about])}
    return write_files(files, sections)


def write_files(texts: dict[Path, str], sections: Sequence[Section]) -> Path:
    """Writes the sections' figures into the folder that is returned, then the texts, of which the last is the page."""
    page = [*texts][-1]
    figures = page.with_name(f"{page.stem}_figures")
    files = {figures / name: content for section in sections for name, content in section.pictures.items()}
    for path, content in {**files, **{path: text.encode() for path, text in texts.items()}}.items():
        with atomic_write(path) as file:
            file.write(content)
    return figures


if __name__ == "__main__":
    sys.exit(run_command(main))
