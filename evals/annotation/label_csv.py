"""to_label.csv: the table of a query that people fill in, written and read back with every line checked.

Spreadsheets take a cell that starts with = + - @ for a formula. Such a path or class name is written with an apostrophe
in front, which the reader removes; one that starts with an apostrophe gets another. They also write 1 for 01, and sort
one column without the others: a number finds its class, and what stands beside a path must belong to it.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

from common.console import shown
from common.files import read_regular
from datasets.base import spreadsheet_name, twins
from utils import InputError

SCORES = ("joint_score", "semantic_score", "distinctive_score")
COLUMNS = ("path", "image", "suggested_class", *SCORES, "label")
OTHER_LABEL = "other"  # the label of an image that belongs to none of the target classes
GUARDED = tuple("=+-@\t\r'")  # first characters of cells that get an apostrophe in front
BYTE_ORDER_MARK = "\ufeff"
MAX_BYTES = 2**28  # of a filled table: room for a million long paths
MAX_QUOTED = 60  # characters of a cell that a message repeats
MAX_LISTED = 12  # names that a message lists


@dataclass(frozen=True)
class QueriedImage:
    """One image that people are asked to label.

    Attributes:
        path: Relative to the data folder, with forward slashes.
        digest: SHA-256 of the file.
        suggestion: Name of the class for which it was queried; None where the strategy does not look at classes.
        joint: The score by which it was queried; likewise.
        semantic: S(u); None where the strategy has none.
        distinctive: D_i(u) for the suggested class; likewise.
    """

    path: str
    digest: str
    suggestion: str | None
    joint: float | None
    semantic: float | None
    distinctive: float | None

    def format_scores(self, digits: int) -> list[str]:
        """The three scores as text, empty where there is none."""
        scores = (self.joint, self.semantic, self.distinctive)
        return ["" if score is None else f"{score:.{digits}f}" for score in scores]

    @property
    def mark(self) -> str:
        """What names the image beside its path, by its content; with the letter no spreadsheet makes it a number."""
        return f"x{self.digest[:9]}"


def check_class_names(names: Sequence[str]) -> None:
    """Raises InputError for class names that a table cannot hold or tell apart, or that read like the label "other"."""
    for name in names:
        if not is_unicode(name):
            raise InputError(f"labeled/{shown(name)}: the name is not valid UTF-8; rename the folder")
        if _normalized(name) == OTHER_LABEL:
            raise InputError(f"a class is named {name!r}, a label that means none of the classes: rename its folder")
    if pair := twins(names, spreadsheet_name):
        raise InputError(f"classes {_listing(pair)}: a spreadsheet makes them one name; rename one, to class_1 say")


def is_unicode(name: str) -> bool:
    """Whether a file's name is text; bytes that are not UTF-8 reach Python as surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def format_row(cells: Sequence[str]) -> str:
    """One line of the table, without its end."""
    text = io.StringIO(newline="")
    guarded = [f"'{cell}" if cell.startswith(GUARDED) else cell for cell in cells]
    csv.writer(text, lineterminator="\r\n").writerow(guarded)
    return text.getvalue().removesuffix("\r\n")


def row_without_label(image: QueriedImage) -> str:
    """The line of an image up to its label, which follows as ``format_row([label])``."""
    # Negative scores are not guarded: a spreadsheet reads them as numbers and can sort by them.
    return ",".join([format_row([image.path, image.mark, image.suggestion or ""]), *image.format_scores(6), ""])


def format_table(images: Sequence[QueriedImage]) -> str:
    """The table with an empty label for each image; spreadsheets recognize UTF-8 by the byte order mark."""
    return BYTE_ORDER_MARK + "".join(f"{line}\r\n" for line in [format_row(COLUMNS), *map(row_without_label, images)])


def read_labels(
    file: Path,
    queried: Sequence[str],
    class_names: Sequence[str],
    *,
    partial: bool = False,
    images: Sequence[QueriedImage] = (),
) -> dict[str, str | None]:
    """Reads a filled table and checks it line by line.

    The separator (comma, semicolon or tab), line ends, a byte order mark, the order of columns, additional columns,
    and the case and surrounding spaces of labels do not matter.

    Args:
        file: The table.
        queried: Paths of the query.
        class_names: What a label may be, besides "other".
        partial: Accept images without a label.
        images: Of the query: where the file has their columns, each line is compared with its image.

    Returns:
        By path, in the order of ``queried``: a class name, or None for an image of no target class.

    Raises:
        InputError: The file cannot be read or a line is wrong; the message names the file, the first such line and
            what to do.
    """
    paths, classes = NameFinder(queried), NameFinder(class_names)
    known = {image.path: image for image in images}
    lines: dict[str, int] = {}
    labels: dict[str, str | None] = {}
    problems: list[str] = []
    for line, row in _cells(file):
        path_cell, label_cell = row["path"], row["label"]
        try:
            path = paths.find(path_cell) or paths.find(path_cell.replace("\\", "/"))  # as Windows writes paths
            if path is None:
                raise InputError(f"{_quoted(path_cell)} is not among the images of this query; remove the line")
            if path in lines:
                raise InputError(f"{_quoted(path_cell)} is in line {lines[path]} already; keep one of the two lines")
            lines[path] = line
            if column := path in known and _foreign(row, known[path]):
                raise InputError(
                    f"{column} {_quoted(row[column])} is not that of {_quoted(path)}; was one column sorted without "
                    "the others? Sort the whole table, or save it again"
                )
            if label_cell.strip() or label_cell in classes.names:  # a name may consist of spaces
                labels[path] = _class_name(label_cell, classes)
        except InputError as error:
            problems.append(f"{file}, line {line}: {error}")
    if problems:
        more = f" ({len(problems) - 1} more line(s) have a problem)" if len(problems) > 1 else ""
        raise InputError(problems[0] + more)
    if not labels:
        raise InputError(f"{file} has no label in it; fill in the column label, or save the csv from the labeling page")
    missing = [path for path in queried if path not in labels]
    if missing and not partial:
        first, where = missing[0], f"line {lines[missing[0]]}" if missing[0] in lines else "not in the file"
        raise InputError(
            f"{file}: {len(missing)} of {len(queried)} images have no label (the first: {_quoted(first)}, {where}); "
            "label them, or add --partial to take the labels that are there and return the other images to the pool"
        )
    return {path: labels[path] for path in queried if path in labels}


def lists_only(file: Path, queried: Sequence[str]) -> bool:
    """Whether a table has images and all of them are among those of a query, whatever their labels.

    Raises:
        InputError: The file cannot be read.
    """
    paths, cells = NameFinder(queried), [row["path"].replace("\\", "/") for _, row in _cells(file)]
    try:
        return bool(cells) and all(paths.find(cell) is not None for cell in cells)
    except InputError:  # ambiguous
        return False


def _foreign(row: dict[str, str], image: QueriedImage) -> str:
    """The first column of a line whose value is not the image's; empty where all are, as far as they are there.

    A spreadsheet may have rounded the scores, and written them with a comma.
    """
    for column, own in (("image", image.mark), ("suggested_class", image.suggestion)):
        cell = _unguarded(row.get(column, ""))
        if own and cell.strip() and spreadsheet_name(_normalized(cell)) != spreadsheet_name(_normalized(own)):
            return column
    for column, own in zip(SCORES, image.format_scores(6)):
        try:
            value = Decimal(row.get(column, "").strip().replace(",", "."))
            if own and abs(value - Decimal(own)) > Decimal(5).scaleb(value.as_tuple().exponent - 1):
                return column
        except (InvalidOperation, TypeError):  # empty, or no number any more
            continue
    return ""


def _class_name(cell: str, classes: NameFinder) -> str | None:
    if _normalized(cell) == OTHER_LABEL:
        return None
    name = classes.find(cell)
    if name is None:  # 1 stands for 01 if no other class does
        name = next((name for name in classes.names if spreadsheet_name(name) == spreadsheet_name(cell.strip())), None)
    if name is None:
        names = _listing(list(classes.names))
        raise InputError(f"label {_quoted(cell)} is not a class here; write {names} or {OTHER_LABEL}")
    return name


def _cells(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells, by column, of each line that is not empty; those of path and label are always there.

    Raises:
        InputError: The file is not a table with these two columns.
    """
    text = _decode(file)
    first_separator = re.search(r"(?:^|[\r\n])(?!sep=)[^,;\t\r\n]*([,;\t])", text)
    delimiter = first_separator[1] if first_separator else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: dict[str, int] = {}
    line, next_line = 1, 1
    try:
        for row in reader:
            line, next_line = next_line, reader.line_num + 1
            if not any(cell.strip() for cell in row) or (not columns and row[0].startswith("sep=")):
                continue
            if columns:
                yield line, {name: row[column] if column < len(row) else "" for name, column in columns.items()}
                continue
            names = [_normalized(cell) for cell in row]
            if not names.count("path") == names.count("label") == 1:
                raise InputError(
                    f"{file}, line {line}: the heading must have one column path and one column label, and is "
                    f"{_quoted(', '.join(row))}; keep the heading of to_label.csv"
                )
            columns = {name: names.index(name) for name in COLUMNS if names.count(name) == 1}
    except csv.Error as error:
        raise InputError(f"{file}, line {next_line}: this is not a line of a csv file ({error}); correct it") from None
    if not columns:
        raise InputError(f"{file} is empty; fill in the to_label.csv of the query")


def _decode(file: Path) -> str:
    content = read_regular(file, limit=MAX_BYTES)
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(f'{file}, line {line}: this is not UTF-8 text; save the table as "CSV UTF-8"') from None


class NameFinder:
    """Finds the name that a cell means: written exactly, guarded, or in another case, spacing or form of accents."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = dict.fromkeys(names)
        self._similar: dict[str, list[str]] = {}
        for name in names:
            self._similar.setdefault(_normalized(name), []).append(name)

    def find(self, cell: str) -> str | None:
        """The name that the cell means, or None.

        Raises:
            InputError: It may be several.
        """
        for text in (_unguarded(cell), cell):  # in this order: a name "'=a" was written as "''=a", "'=a" means "=a"
            if text in self.names:
                return text
        for text in (_unguarded(cell.strip()), cell):
            if names := self._similar.get(_normalized(text)):
                if len(names) > 1:
                    raise InputError(f"{_quoted(cell)} may be {_listing(names)}; write it exactly")
                return names[0]
        return None


def _unguarded(cell: str) -> str:
    return cell[1:] if cell[:1] == "'" and cell[1:].startswith(GUARDED) else cell


def _normalized(text: str) -> str:
    """The text without what people and spreadsheets change: case, number of spaces, form of accents."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def _listing(names: Sequence[str]) -> str:
    more = f" ... ({len(names)} in all)" if len(names) > MAX_LISTED else ""
    return ", ".join(map(_quoted, names[:MAX_LISTED])) + more


def _quoted(text: str) -> str:
    return repr(text if len(text) <= MAX_QUOTED else text[: MAX_QUOTED - 3] + "...")
