"""results.csv: one row per trained classifier, and mean and deviation over seeds."""

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
from common.settings import ClassifierSettings, identity_names
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
# Rows that differ in none of these, nor in their images, are seeds of one mean.
SETTINGS = ("dataset", "mismatch", *identity_names(ClassifierSettings))


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
    return f"{path} is damaged ({why}); repair it or move it away"


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


def latest_rows(rows: Sequence[Row], strategy: str) -> dict[str, list[Row]]:
    """The rows of a strategy that a table shows, by digest of the labeled list, one per seed.

    Of several settings, those of the last row count; of one seed's rows, the last; and of one labeled list's rows,
    those of the same images and labels as its last, as labels may be corrected.
    """
    rows = [row for row in rows if row.strategy == strategy]
    rows = [row for row in rows if all(getattr(row, name) == getattr(rows[-1], name) for name in SETTINGS)]
    data = {row.index_digest: row.data_digest for row in rows}
    chosen: dict[str, dict[int, Row]] = {}
    for row in rows:
        if row.data_digest == data[row.index_digest]:
            chosen.setdefault(row.index_digest, {})[row.seed] = row
    return {digest: list(by_seed.values()) for digest, by_seed in chosen.items()}


@dataclass(frozen=True)
class Accuracy:
    """Test accuracy of the classifiers of one labeled set, in percent.

    Attributes:
        seeds: Number of classifiers.
        mean: After the last epoch.
        deviation: Its standard deviation over the seeds (ddof = 1); None for a single one.
        best_mean: Mean of the best epochs' accuracies.
    """

    seeds: int
    mean: float
    deviation: float | None
    best_mean: float

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Accuracy:
        """Of one row per seed, at least one."""
        values = [row.accuracy for row in rows]
        return cls(
            seeds=len(rows),
            mean=statistics.fmean(values),
            deviation=statistics.stdev(values) if len(values) > 1 else None,
            best_mean=statistics.fmean(row.best_epoch_accuracy for row in rows),
        )


def mean_text(mean: float | None, deviation: float | None) -> str:
    """Mean and deviation of accuracies, such as ``95.20 ± 0.31 %``; ``-`` without a mean."""
    if mean is None:
        return "-"
    return f"{mean:.2f} %" if deviation is None else f"{mean:.2f} ± {deviation:.2f} %"


def plain_table(cells: Sequence[Sequence[str]]) -> str:
    """Rows of text, the heading first, in right-aligned columns."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.rjust, line, widths)) for line in cells)
