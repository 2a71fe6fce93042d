"""Makes one self-contained HTML page of finished runs: what queries found and why, accuracy, training and settings.

Usage: python -m evals.report RUN_DIR [RUN_DIR ...] [--out FILE.html]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from common import arguments, distributed
from common.cli import run_cli
from common.console import log
from common.files import atomic_write, require_writable
from evals.report.curves import accuracy_section, found_section, named_queries, overview, training_section
from evals.report.images import histogram_section, image_section, scatter_section
from evals.report.maps import map_section
from evals.report.page import Section, page_html
from evals.report.pool import gather
from evals.report.runs import Run, find_runs
from evals.report.settings import difference_section, record_section
from evals.report.view import Pool
from utils import InputError

PAGE = "report.html"


def build_parser() -> arguments.Parser:
    """The command's flags."""
    parser = arguments.Parser(__doc__.splitlines()[0])
    arguments.add_report_args(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    start = time.perf_counter()
    folders = [Path(folder) for folder in args.runs]
    page = page_path(args.out, folders)
    runs = find_runs(folders)
    device = distributed.setup(args.device)
    write_report(page, runs, data_path=args.data_path, features=args.features, device=device)
    log(f"report of {len(runs)} run(s) in {time.perf_counter() - start:.1f} s: {page}\nfigures {figure_folder(page)}")


def page_path(out: str | None, folders: Sequence[Path]) -> Path:
    """Where the page goes: into the run's folder, for several runs into the working folder.

    Raises:
        InputError: It is not called .html, or cannot be written there.
    """
    page = Path(out) if out else (folders[0] / PAGE if len(folders) == 1 else Path(PAGE))
    if page.suffix.lower() not in (".html", ".htm") or page.is_dir():
        raise InputError(f"--out {page} must be the name of an html file, such as {PAGE}")
    if out or len(folders) > 1:
        require_writable(page.parent, "--out")
    return page


def figure_folder(page: Path) -> Path:
    """Where the figures go as png files."""
    return page.with_name(f"{page.stem}_figures")


def write_report(
    page: Path, runs: Sequence[Run], *, data_path: str | None, features: str, device: torch.device
) -> None:
    """Gathers, draws and writes everything.

    Args:
        page: The html file.
        runs: At least one.
        data_path: See report_pool.gather, and the next two.
        features: ``auto``, ``kept`` or ``extract``.
        device: For features and scores.
    """
    pools = []
    for number, run in enumerate(runs, start=1):
        if query := run.main_query:
            material = gather(run, query, data_path=data_path, features=features, device=device)
            pools.append(Pool(f"run{number}", run, material.query or query, material))
    sections = make_sections(runs, pools)
    names = ", ".join(run.name for run in runs)
    text = page_html(f"CCAL report: {names}", lead(runs), sections)
    for section in sections:
        for name, content in section.pictures.items():
            with atomic_write(figure_folder(page) / name) as file:
                file.write(content)
    with atomic_write(page) as file:
        file.write(text.encode())


def lead(runs: Sequence[Run]) -> str:
    """What the page is about, in a line."""
    data = sorted({query.files[0].dataset for run in runs for query in run.queries})
    parts = [f"{len(runs)} runs side by side"] if len(runs) > 1 else []
    parts += [f"data set {', '.join(data)}"] if data else []
    return "; ".join([*parts, "contrastive coding for active learning under class distribution mismatch"])


def make_sections(runs: Sequence[Run], pools: Sequence[Pool]) -> list[Section]:
    """The page's parts, in order."""
    queries = named_queries(runs)
    first = Section("Overview")
    if queries:
        first.table(overview(queries))
    else:
        first.miss("No index files are in what was given: active_main.py queries the pool and writes them.")
    sections = [first, *([difference_section(runs)] if len(runs) > 1 else []), found_section(queries)]
    sections.append(accuracy_section(queries))
    if pools:
        sections += [make(pools) for make in (histogram_section, scatter_section, map_section, image_section)]
    return [*sections, training_section(runs), record_section(runs)]


if __name__ == "__main__":
    sys.exit(run_cli(main))
