"""The table and the figure of a finished run: what each cycle's query found, and what the classifier made of it.

Usage: python -m evals.summary --index_dir DIR [--random_dir DIR] [--results results.csv] [--out_path DIR]
"""

from __future__ import annotations

import csv
import io
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common import arguments, plots
from common.cli import run_cli
from common.console import finish, log, set_quiet
from common.files import atomic_write, require_writable
from common.provenance import int64_digest
from datasets.index_files import IndexFile, index_path, read_index_file
from utils import InputError

CLASSIFIER_SETTINGS = ("dataset", "mismatch", "recipe", "epochs", "batch_size", "lr")


@dataclass(frozen=True)
class CycleSummary:
    """One row of the table; None is what was not measured.

    Attributes:
        cycle: 0 for the initial set.
        labeled: Labeled target images after the cycle.
        queried: Images queried in it.
        found: Targets among them.
        precision: In percent.
        random_precision: Of the random strategy's same cycle, in percent.
        accuracy: Mean test accuracy of the classifier over its seeds, in percent.
        deviation: Standard deviation (ddof = 1) of it, in percentage points.
    """

    cycle: int
    labeled: int
    queried: int
    found: int
    precision: float | None
    random_precision: float | None
    accuracy: float | None
    deviation: float | None


def build_parser() -> arguments.Parser:
    """The command's flags."""
    parser = arguments.Parser(__doc__.splitlines()[0])
    arguments.add_summary_args(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    set_quiet(args.quiet)
    require_writable(args.out_path or args.index_dir, "--out_path")
    queried = read_run(Path(args.index_dir))
    random = read_run(Path(args.random_dir)) if args.random_dir else []
    if random and random[0].split_digest != queried[0].split_digest:
        raise InputError(f"{args.random_dir} and {args.index_dir} are of different splits and cannot be compared")
    accuracies = read_accuracies(Path(args.results), queried[0].strategy) if args.results else {}
    rows = [summarize(content, random, accuracies) for content in queried]
    log(format_table(rows))
    folder = Path(args.out_path or args.index_dir)
    table, figure = folder / "summary.csv", folder / "summary.png"
    write_table(table, rows)
    plots.plot_summary(
        figure,
        precision={
            queried[0].strategy: [(row.cycle, row.precision) for row in rows if row.precision is not None],
            "random": [(row.cycle, row.random_precision) for row in rows if row.random_precision is not None],
        },
        accuracy=[(row.labeled, row.accuracy, row.deviation) for row in rows if row.accuracy is not None],
    )
    finish([table, figure])


def read_run(folder: Path) -> list[IndexFile]:
    """All index files of a folder, in the order of cycles.

    Raises:
        InputError: There is no cycle_0.json, or a file is damaged.
    """
    if not index_path(folder, 0).is_file():
        raise InputError(f"{folder} holds no cycle_0.json; name a folder that active_main.py wrote")
    files = []
    while index_path(folder, len(files)).is_file():
        files.append(read_index_file(index_path(folder, len(files))))
    return files


def read_accuracies(path: Path, strategy: str) -> dict[str, list[float]]:
    """Last-epoch accuracies of a strategy by digest of the labeled list, one per seed, from results.csv.

    Where the file holds runs of several settings, those of its last row count; of one seed's runs, the last. Of one
    labeled list's rows only those count that are of the same images and labels as its last: labels may be corrected.

    Raises:
        InputError: The file is missing or has other columns.
    """
    if not path.is_file():
        raise InputError(f"--results {path} does not exist; it is written by train_classifier/main.py")
    accuracies: dict[str, dict[str, float]] = {}
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_bytes().decode(), newline=""), strict=True))
        rows = [row for row in rows if row["strategy"] == strategy]
        rows = [row for row in rows if all(row[name] == rows[-1][name] for name in CLASSIFIER_SETTINGS)]
        data = {row["index_digest"]: row.get("data_digest") for row in rows}  # of each list, its last row's
        for row in rows:
            if row.get("data_digest") == data[row["index_digest"]]:
                accuracies.setdefault(row["index_digest"], {})[row["seed"]] = _accuracy(row["accuracy"])
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(
            f"--results {path} is no results.csv of the classifier ({error}); give the file that it wrote"
        ) from None
    return {digest: list(by_seed.values()) for digest, by_seed in accuracies.items()}


def _accuracy(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 100:
        raise ValueError(f"an accuracy of {text}")
    return value


def summarize(content: IndexFile, random: list[IndexFile], accuracies: dict[str, list[float]]) -> CycleSummary:
    """Puts together what is known of one cycle."""
    values = accuracies.get(int64_digest(content.labeled), [])
    beside = random[content.cycle].metrics if content.cycle < len(random) else {}
    return CycleSummary(
        cycle=content.cycle,
        labeled=len(content.labeled),
        queried=len(content.queried),
        found=content.metrics.get("found", 0),
        precision=content.metrics.get("precision"),
        random_precision=beside.get("precision"),
        accuracy=statistics.fmean(values) if values else None,
        deviation=statistics.stdev(values) if len(values) > 1 else None,
    )


def format_table(rows: list[CycleSummary]) -> str:
    """The rows as a table of plain text."""
    lines = ["cycle  queried  target found  precision  random query  labeled  accuracy (last epoch)"]
    for row in rows:
        accuracy = _percent(row.accuracy, ".2f") + (f" ± {row.deviation:.2f}" if row.deviation is not None else "")
        lines.append(
            f"{row.cycle:5}  {row.queried:7}  {row.found:12}  {_percent(row.precision):>9}  "
            f"{_percent(row.random_precision):>12}  {row.labeled:7}  {accuracy}"
        )
    return "\n".join(lines)


def _percent(value: float | None, form: str = ".1f") -> str:
    return "-" if value is None else f"{value:{form}} %"


def write_table(path: Path, rows: list[CycleSummary]) -> None:
    """Writes the rows as csv; what was not measured is empty."""
    columns = list(CycleSummary.__dataclass_fields__)
    lines = [",".join(columns)]
    for row in rows:
        values = [getattr(row, column) for column in columns]
        lines.append(",".join("" if value is None else f"{value:.6g}" for value in values))
    with atomic_write(path) as file:
        file.write(("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    sys.exit(run_cli(main))
