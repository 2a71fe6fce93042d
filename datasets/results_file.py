"""results.csv: one row per trained classifier, and the table made of it."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import statistics
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.files import atomic_write, read_regular
from utils import InputError


@dataclass(frozen=True)
class Row:
    """One trained classifier; the fields are the columns of results.csv.

    Attributes:
        mismatch: Share of other-class images in the initial pool; None (an empty field) where nobody knows it.
        accuracy: After the last epoch, on the target-class test images, in percent.
        best_epoch_accuracy: The best epoch's, in percent. The epoch is picked on the test set: no result of its own.
        index_digest: SHA-256 of the labeled list as little-endian int64 (of its content: the index file also holds
            seconds, which vary from run to run).
        data_digest: SHA-256 of the train and test images and labels used: the same indices may point into other data.
        seconds: Time that the training took; of seeds trained together, their time divided by their number.
    """

    dataset: str
    mismatch: float | None
    strategy: str
    recipe: str
    epochs: int
    batch_size: int
    lr: float
    cycle: int
    labeled: int
    seed: int
    accuracy: float
    best_epoch_accuracy: float
    index_digest: str
    data_digest: str
    seconds: float


COLUMNS = tuple(field.name for field in dataclasses.fields(Row))
TYPES = typing.get_type_hints(Row)
# From the lowest to the highest value of the columns that hold numbers.
BOUNDS = dict.fromkeys(("accuracy", "best_epoch_accuracy"), (0, 100)) | {"mismatch": (0, 1)}
BOUNDS |= dict.fromkeys(("epochs", "batch_size", "labeled"), (1, math.inf))
BOUNDS |= dict.fromkeys(("cycle", "seed", "lr", "seconds"), (0, math.inf))
OPTIONAL = "mismatch"  # the one column that may be empty


def find_row(rows: Sequence[Row], identity: dict[str, Any]) -> Row | None:
    """The first row whose columns have the values of ``identity``."""
    for row in rows:
        if all(getattr(row, name) == value for name, value in identity.items()):
            return row
    return None


def read_rows(path: Path) -> list[Row]:
    """Reads results.csv; a missing file has no rows.

    Raises:
        InputError: The file is damaged or has other columns.
    """
    try:
        if not path.exists():
            return []
        text = read_regular(path).decode()
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(_damaged(path, str(error))) from None
    if not lines or tuple(lines[0]) != COLUMNS or not text.endswith("\n"):
        raise InputError(_damaged(path, f"the first line must be {','.join(COLUMNS)} and the last one complete"))
    return [_parse_row(line, path, number) for number, line in enumerate(lines[1:], start=2)]


def _parse_row(line: list[str], path: Path, number: int) -> Row:
    if len(line) != len(COLUMNS):
        raise InputError(_damaged(path, f"row {number} has {len(line)} columns, not {len(COLUMNS)}"))
    try:
        row = Row(**{name: _parse(name, text) for name, text in zip(COLUMNS, line, strict=True)})
    except ValueError as error:
        raise InputError(_damaged(path, f"row {number}: {error}")) from None
    if not all(math.isfinite(value) for value in dataclasses.astuple(row) if isinstance(value, float)):
        raise InputError(_damaged(path, f"row {number} holds a number that is not finite"))
    for name, (low, high) in BOUNDS.items():
        value = getattr(row, name)
        if value is not None and not low <= value <= high:
            raise InputError(_damaged(path, f"row {number}: {name} must be from {low} to {high:g}, got {value}"))
    return row


def _parse(name: str, text: str) -> str | int | float | None:
    if name == OPTIONAL:
        return float(text) if text else None
    return TYPES[name](text)


def _damaged(path: Path, why: str) -> str:
    return f"{path} is damaged ({why}); repair it, move it away or give another --out_path"


def append_row(path: Path, row: Row) -> None:
    """Adds a row to results.csv, atomically; rows that another command has added since are kept.

    Raises:
        InputError: The file is damaged; it is left as it is.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(dataclasses.astuple(entry) for entry in [*read_rows(path), row])
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


@dataclass(frozen=True)
class Summary:
    """The runs of one cycle.

    Attributes:
        mean: Of the last epoch's accuracy, in percent.
        std: Its standard deviation (ddof = 1), in percentage points; None for a single run.
        best_mean: Mean accuracy of the best epochs, in percent.
    """

    cycle: int
    labeled: int
    runs: int
    mean: float
    std: float | None
    best_mean: float


def summarize(rows: Sequence[Row]) -> Summary:
    """Mean and deviation over the runs of one cycle, at least one."""
    accuracies = [row.accuracy for row in rows]
    return Summary(
        cycle=rows[0].cycle,
        labeled=rows[0].labeled,
        runs=len(rows),
        mean=statistics.fmean(accuracies),
        std=statistics.stdev(accuracies) if len(rows) > 1 else None,
        best_mean=statistics.fmean(row.best_epoch_accuracy for row in rows),
    )


def format_table(summaries: Sequence[Summary]) -> str:
    """The table that the command prints, one line per cycle."""
    lines = [f"{'cycle':>5} {'labeled':>8} {'runs':>5}  {'accuracy %, last epoch':<22}"]
    for summary in summaries:
        deviation = "-" if summary.std is None else f"{summary.std:.2f}"
        lines.append(
            f"{summary.cycle:>5} {summary.labeled:>8} {summary.runs:>5}  "
            f"{f'{summary.mean:.2f} +- {deviation}':<22} "
            f"{summary.best_mean:.2f} (best epoch, picked on the test set)"
        )
    return "\n".join(lines)
