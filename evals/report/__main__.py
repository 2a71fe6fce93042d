"""Makes one self-contained HTML page of finished runs: what queries found and why, accuracy, training and settings.

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
from evals.report.page import page_html
from evals.report.runs import Run, find_runs, read_pool
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
    runs = find_runs(folders)
    figures = write_report(page, runs)
    log(f"report of {len(runs)} run(s) in {time.perf_counter() - start:.1f} s: {page}\nfigures {figures}")


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
    figures = page.with_name(f"{page.stem}_figures")
    files = {figures / name: content for section in sections for name, content in section.pictures.items()}
    for path, content in {**files, page: text.encode()}.items():
        with atomic_write(path) as file:
            file.write(content)
    return figures


if __name__ == "__main__":
    sys.exit(run_command(main))
