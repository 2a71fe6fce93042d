"""to_label.csv: the query as a table to fill in, and the checked way back.

Spreadsheets take a cell that starts with = + - @ for a formula. Such a path or name is written with an apostrophe in
front, which the reader takes off again; one that starts with an apostrophe gets another.
"""

from __future__ import annotations

import csv
import io
import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.files import atomic_write
from utils import InputError

COLUMNS = ("path", "suggested_class", "joint_score", "semantic_score", "distinctive_score", "label")
OTHER = "other"  # the label of an image that is of none of the target classes
FORMULA_STARTS = "=+-@\t\r"
BYTE_ORDER_MARK = "\ufeff"
MAX_BYTES = 2**28  # of a filled table: that is room for a million long paths
SHOWN = 60  # characters of a cell that a message repeats


@dataclass(frozen=True)
class Asked:
    """One queried image.

    Attributes:
        path: Relative to the data folder, with forward slashes.
        digest: SHA-256 of the file.
        suggestion: Name of the class for which it was queried; None where the strategy has no notion of it.
        joint: The score by which it was queried.
        semantic: S(u); None where the strategy has none.
        distinctive: D_i(u) for the suggested class; likewise.
    """

    path: str
    digest: str
    suggestion: str | None
    joint: float | None
    semantic: float | None
    distinctive: float | None


def check_class_names(names: Sequence[str]) -> None:
    """Refuses class names that a label could not tell from "other".

    Raises:
        InputError: A class is called so.
    """
    for name in names:
        if _plain(name) == OTHER:
            raise InputError(
                f"a class is named {name!r}, and as a label {OTHER!r} means none of the classes: rename its folder"
            )


def format_row(cells: Sequence[str]) -> str:
    """One line of the table, without its end."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerow([guarded(cell) for cell in cells])
    return text.getvalue().removesuffix("\r\n")


def row_without_label(item: Asked) -> str:
    """The line of an image up to its label, which is to follow as ``format_row([label])``."""
    scores = ["" if value is None else f"{value:.6f}" for value in (item.joint, item.semantic, item.distinctive)]
    # A negative number is no formula: it stays as it is, so that a spreadsheet can sort by it.
    return ",".join([format_row([item.path, item.suggestion or ""]), *scores, ""])


def format_table(items: Sequence[Asked], labels: Sequence[str | None] = ()) -> str:
    """The whole file: a byte order mark, by which spreadsheets know UTF-8, the heading, and a line per image.

    Args:
        items: In the order of the lines.
        labels: One per image; without them (or with None) the column is empty.
    """
    filled = [label or "" for label in labels] or [""] * len(items)
    lines = [row_without_label(item) + (format_row([label]) if label else "") for item, label in zip(items, filled)]
    return BYTE_ORDER_MARK + "".join(f"{line}\r\n" for line in [format_row(COLUMNS), *lines])


def write_table(path: Path, items: Sequence[Asked]) -> None:
    """Writes the table with empty labels."""
    with atomic_write(path) as file:
        file.write(format_table(items).encode())


def guarded(cell: str) -> str:
    """The cell as a spreadsheet may see it: never a formula."""
    return f"'{cell}" if cell[:1] and cell[0] in FORMULA_STARTS + "'" else cell


def _unguarded(cell: str) -> str:
    return cell[1:] if cell[:1] == "'" and cell[1:2] and cell[1] in FORMULA_STARTS + "'" else cell


def read_labels(
    path: Path, asked: Sequence[str], classes: Sequence[str], *, partial: bool = False
) -> dict[str, str | None]:
    """Reads a filled table and checks it line by line.

    Separators (comma, semicolon, tab), ends of lines, a byte order mark, the order of columns and further columns, and
    the case and outer spaces of labels do not matter.

    Args:
        path: The file.
        asked: Paths that were queried.
        classes: Class names.
        partial: Take what has a label; otherwise each image needs one.

    Returns:
        By path, in the order of ``asked``: a class name, or None for an image of no target class.

    Raises:
        InputError: The file cannot be read, or a line is wrong: the message names the file, the first such line and
            what to do.
    """
    paths, names = Lookup(asked), Lookup(classes)
    found: dict[str, tuple[int, str | None]] = {}
    blank: dict[str, int] = {}
    problems: list[tuple[int, str]] = []
    for line, place, label in _cells(path):
        try:
            image = paths.find(place)
            if image is None:
                raise InputError(f"{_shown(place)} is not among the images of this query; remove the line")
            if image in found or image in blank:
                first = found[image][0] if image in found else blank[image]
                raise InputError(f"{_shown(place)} stands in line {first} already; keep one of the two lines")
            if names.exact(label) is None and not label.strip():
                blank[image] = line
            else:
                found[image] = line, _class_of(label, names, classes)
        except InputError as error:
            problems.append((line, str(error)))
    if problems:
        more = f" ({len(problems) - 1} more line(s) have a problem)" if len(problems) > 1 else ""
        raise InputError(f"{path}, line {problems[0][0]}: {problems[0][1]}{more}")
    _check_complete(path, asked, found, blank, partial=partial)
    return {image: found[image][1] for image in asked if image in found}


def is_about(path: Path, asked: Sequence[str]) -> bool:
    """Whether all images of a table are among those of a query, whatever their labels.

    Raises:
        InputError: The file cannot be read.
    """
    names = Lookup(asked)
    try:
        found = [names.find(place) for _, place, _ in _cells(path)]
    except AmbiguousName:
        return False
    return bool(found) and None not in found


class AmbiguousName(InputError):
    """A cell may mean several names."""


def _class_of(label: str, names: Lookup, classes: Sequence[str]) -> str | None:
    if names.exact(label) is None and _plain(label) == OTHER:
        return None
    name = names.find(label)
    if name is None:
        raise InputError(f"label {_shown(label)} is no class here; write {_listing(classes)} or {OTHER}")
    return name


def _check_complete(
    path: Path, asked: Sequence[str], found: dict[str, tuple[int, str | None]], blank: dict[str, int], *, partial: bool
) -> None:
    missing = [image for image in asked if image not in found]
    if not found:
        raise InputError(f"{path} has no label in it; fill the column label, or save the file from the labeling page")
    if missing and not partial:
        first = missing[0]
        where = f"line {blank[first]}" if first in blank else "no line of its own"
        raise InputError(
            f"{path}: {len(missing)} of {len(asked)} images have no label (the first: {_shown(first)}, {where}); label "
            "them, or give --partial to take the labels that are there and return the other images to the pool"
        )


def _cells(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line number, path and label of each line that is not empty.

    Raises:
        InputError: The file is no table with these two columns.
    """
    text = _decoded(path)
    rows = _rows(path, text, _separator(text))
    header: dict[str, int] = {}
    for line, row in rows:
        if not any(cell.strip() for cell in row):
            continue
        if not header:
            if row[0].startswith("sep="):  # by which some spreadsheets name the separator
                continue
            header = _header(path, line, row)
            continue
        place, label = (row[header[name]] if header[name] < len(row) else "" for name in ("path", "label"))
        yield line, place, label
    if not header:
        raise InputError(f"{path} is empty; fill in the to_label.csv of the query")


def _header(path: Path, line: int, row: Sequence[str]) -> dict[str, int]:
    names = [_plain(cell) for cell in row]
    for name in ("path", "label"):
        if names.count(name) != 1:
            raise InputError(
                f"{path}, line {line}: the heading must have one column {name}, and has {names.count(name)} "
                f"({_shown(', '.join(row))}); keep the heading of to_label.csv"
            )
    return {name: names.index(name) for name in ("path", "label")}


def _decoded(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"--labels {path} does not exist; name the filled csv of the query")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise InputError(f"{path} has {size} bytes, which is no filled csv of a query (at most {MAX_BYTES})")
    content = path.read_bytes()
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(f'{path}, line {line}: this is no UTF-8 text; save the table as "CSV UTF-8"') from None


def _separator(text: str) -> str:
    """The one of comma, semicolon and tab that splits the heading into the columns that are needed."""
    for separator in ",;\t":
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        try:
            for row in lines:
                if {"path", "label"} <= {_plain(cell) for cell in row}:
                    return separator
                if any(cell.strip() for cell in row) and not row[0].startswith("sep="):
                    break
        except csv.Error:
            continue
    return ","


def _rows(path: Path, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The number of the line in which each row begins, and its cells."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(f"{path}, line {line}: this is no line of a csv file ({error}); mend it") from None
        if row:
            yield line, row


class Lookup:
    """Finds a name by a cell: as it is, else guarded, else whatever its case, spaces and form of accents.

    Args:
        names: What can be found.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = set(names)
        self._plain: dict[str, list[str]] = {}
        for name in names:
            self._plain.setdefault(_plain(name), []).append(name)

    def exact(self, cell: str) -> str | None:
        """The name that the cell gives, letter by letter."""
        # The guard first: beside "=a" there may be a name "'=a", which was written as "''=a".
        return next((text for text in (_unguarded(cell), cell) if text in self._names), None)

    def find(self, cell: str) -> str | None:
        """The name that the cell means, or None.

        Raises:
            AmbiguousName: It may be several.
        """
        if (name := self.exact(cell)) is not None:
            return name
        for text in (_unguarded(cell.strip()), cell):
            if meant := self._plain.get(_plain(text)):
                if len(meant) > 1:
                    raise AmbiguousName(f"{_shown(cell)} may be {_listing(meant)}; write it exactly as it is")
                return meant[0]
        return None


def _plain(text: str) -> str:
    """Without what people and spreadsheets change: case, spaces around and their number within, form of accents."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def _listing(names: Sequence[str]) -> str:
    more = f" ... ({len(names)} in all)" if len(names) > 12 else ""
    return ", ".join(_shown(name) for name in names[:12]) + more


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else text[: SHOWN - 3] + "...")


def finite_or_none(value: float) -> float | None:
    """A score as it goes into the table: None where the strategy has none."""
    return float(value) if math.isfinite(value) else None
