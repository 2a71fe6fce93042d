"""results.csv: one row per trained classifier, and mean and deviation over seeds; reading of such tables."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import statistics
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from common.files import atomic_write, read_regular
from common.settings import ClassifierSettings, identity_names
from utils import InputError


@dataclass(frozen=True)
class Row:
    """One trained classifier; the fields are the columns of results.csv.

    Accuracies are on the target-class test images, in percent. The best epoch is picked on the test set: no result of
    its own.
    """

    dataset: str
    mismatch: float | None  # share of other-class images in the initial pool; None (an empty field) where nobody knows
    strategy: str
    recipe: str
    epochs: int
    batch_size: int
    lr: float
    cycle: int
    labeled: int
    seed: int
    accuracy: float  # after the last epoch
    best_epoch_accuracy: float
    index_digest: str  # SHA-256 of the labeled list as little-endian int64; the index file's would differ by seconds
    data_digest: str  # SHA-256 of the train and test images and labels: the same indices may point into other data
    seconds: float  # of training; of seeds trained together, their time divided by their number
    # Files of earlier versions end here.
    other: str = "drop"  # what becomes of queried images of other classes: an output of their own (class), or nothing
    start: str = "scratch"  # or from an encoder: head (a linear head on its features), all (fine-tuned)
    init_digest: str = ""  # SHA-256 of the encoder's file
    split_digest: str = ""  # of the index files
    balanced_accuracy: float | None = None  # mean of the classes' accuracies, in percent
    class_accuracies: str = ""  # those, in the order of the outputs, and - for a class without images to measure
    rejection: float | None = None  # percent of other images below the threshold that 95 % of the targets pass

    # From the lowest to the highest value of the columns that hold numbers.
    bounds: ClassVar[dict[str, tuple[float, float]]] = {
        "mismatch": (0, 1),
        **dict.fromkeys(("accuracy", "best_epoch_accuracy", "balanced_accuracy", "rejection"), (0, 100)),
        **dict.fromkeys(("epochs", "batch_size", "labeled"), (1, math.inf)),
        **dict.fromkeys(("cycle", "seed", "lr", "seconds"), (0, math.inf)),
    }

    def __post_init__(self) -> None:
        if not all(value is None or 0 <= value <= 100 for value in class_accuracies(self)):
            raise ValueError(f"class_accuracies must lie in 0 .. 100, got {self.class_accuracies}")


AnyRow = TypeVar("AnyRow")
COLUMNS = tuple(field.name for field in dataclasses.fields(Row))
# Rows that differ in none of these, nor in their images, are seeds of one mean.
SETTINGS = ("dataset", "mismatch", *identity_names(ClassifierSettings), "other", "init_digest")


def find_row(rows: Sequence[Row], identity: dict[str, Any]) -> Row | None:
    """The first row whose columns have the values of ``identity``."""
    return next((row for row in rows if all(getattr(row, key) == value for key, value in identity.items())), None)


def read_rows(path: Path, kind: type[AnyRow] = Row) -> list[AnyRow]:
    """Reads a table of such dataclass objects, of which a missing file has none; InputError where it is damaged.

    The class has ``bounds`` of its numbers, and fields with defaults may be missing from the file.
    """
    if not path.exists():
        return []
    content, fields = read_regular(path), dataclasses.fields(kind)
    columns = tuple(field.name for field in fields)
    required = sum(field.default is dataclasses.MISSING for field in fields)
    parsers = {
        name: (lambda text: float(text) if text else None) if parser == float | None else parser
        for name, parser in typing.get_type_hints(kind).items()
    }
    try:
        text = content.decode("utf-8-sig")
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
        names = tuple(lines[0]) if lines else ()
        if len(names) < required or names != columns[: len(names)] or not text.endswith("\n"):
            raise ValueError(f"the first line must be {','.join(columns)} and the last one complete")
        return [_parse_row(kind, parsers, names, line, number) for number, line in enumerate(lines[1:], start=2)]
    except (ValueError, csv.Error) as error:  # a decoding error is a ValueError
        raise InputError(f"{path} is damaged ({error}); repair it or move it away") from None


def _parse_row(kind: type[AnyRow], parsers: dict, names: Sequence[str], line: list[str], number: int) -> AnyRow:
    if len(line) != len(names):
        raise ValueError(f"row {number} has {len(line)} columns, not {len(names)}")
    try:
        row = kind(**{name: parsers[name](text) for name, text in zip(names, line)})
    except ValueError as error:
        raise ValueError(f"row {number}: {error}") from None
    for name, (low, high) in kind.bounds.items():
        value = getattr(row, name)
        if value is not None and not (low <= value <= high and value < math.inf):
            raise ValueError(f"row {number}: {name} must be a finite number from {low} to {high}, got {value}")
    return row


def append_row(path: Path, row: Row) -> None:
    """Adds a row to results.csv, beside those that other commands have added; InputError as for read_rows."""
    write_csv(path, [*read_rows(path), row])


def write_csv(path: Path, rows: Sequence[Any]) -> None:
    """Writes dataclass objects of one kind, at least one, as the lines of a table; None is an empty field."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in dataclasses.fields(rows[0]))
    writer.writerows(map(dataclasses.astuple, rows))
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def latest_rows(rows: Sequence[Row], strategy: str, split_digest: str) -> dict[str, list[Row]]:
    """The rows of a query that a table shows, by digest of the labeled list, one per seed.

    Rows of another split, such as one with the classes in another order, do not count. Of several settings, those of
    the last row count; of one seed's rows, the last; and of one labeled list's rows, those of the same images and
    labels as its last, as labels may be corrected.
    """
    rows = [row for row in rows if row.strategy == strategy and row.split_digest in ("", split_digest)]
    rows = [row for row in rows if all(getattr(row, name) == getattr(rows[-1], name) for name in SETTINGS)]
    data = {row.index_digest: row.data_digest for row in rows}
    chosen: dict[str, dict[int, Row]] = {}
    for row in rows:
        if row.data_digest == data[row.index_digest]:
            chosen.setdefault(row.index_digest, {})[row.seed] = row
    return {digest: list(by_seed.values()) for digest, by_seed in chosen.items()}


@dataclass(frozen=True)
class Accuracy:
    """Test accuracy of the classifiers of one labeled set, in percent."""

    seeds: int  # number of classifiers
    mean: float  # after the last epoch
    deviation: float | None  # its standard deviation over the seeds (ddof = 1); None for a single one
    best_mean: float  # of the best epochs
    balanced: float | None  # means of what Row has by these names; None where no row has any
    by_class: tuple[float | None, ...]
    rejection: float | None

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Accuracy:
        """Of one row per seed, at least one."""
        values = [row.accuracy for row in rows]
        return cls(
            seeds=len(rows),
            mean=statistics.fmean(values),
            deviation=statistics.stdev(values) if len(values) > 1 else None,
            best_mean=statistics.fmean(row.best_epoch_accuracy for row in rows),
            balanced=_mean(row.balanced_accuracy for row in rows),
            by_class=tuple(map(_mean, zip(*filter(None, map(class_accuracies, rows))))),
            rejection=_mean(row.rejection for row in rows),
        )


def class_accuracies(row: Row) -> list[float | None]:
    """The accuracy of each class in percent, None for one without images to measure; empty in older rows."""
    return [None if text == "-" else float(text) for text in row.class_accuracies.split()]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def mean_text(mean: float | None, deviation: float | None) -> str:
    """Mean and deviation of accuracies, such as ``95.20 ± 0.31 %``; ``-`` without a mean."""
    if mean is None:
        return "-"
    return f"{mean:.2f} %" if deviation is None else f"{mean:.2f} ± {deviation:.2f} %"


def plain_table(cells: Sequence[Sequence[str]]) -> str:
    """Rows of text, the heading first, in right-aligned columns."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.rjust, line, widths)) for line in cells)
