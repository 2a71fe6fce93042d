"""evals/annotation/label_csv.py: the table as written, what comes back from it, and what is refused."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from evals.annotation.label_csv import (
    BYTE_ORDER_MARK,
    QueriedImage,
    check_class_names,
    format_row,
    format_table,
    lists_only,
    read_labels,
    row_without_label,
)
from utils import InputError

CLASSES = ("cat", "Hot Dog")
PATHS = ("unlabeled/a.png", "unlabeled/b.png", "unlabeled/c.png")
GOOD = "path,label\nunlabeled/a.png,cat\nunlabeled/b.png,other\nunlabeled/c.png,Hot Dog\n"
GOOD_LABELS = {"unlabeled/a.png": "cat", "unlabeled/b.png": None, "unlabeled/c.png": "Hot Dog"}


def queried(path: str = "unlabeled/a.png", suggestion: str | None = "cat", joint: float | None = 1.25) -> QueriedImage:
    return QueriedImage(path, "0" * 64, suggestion, joint, -0.5, None)


@pytest.fixture
def table(tmp_path: Path):
    """Writes text or bytes to a file and returns its path."""

    def write(content: str | bytes) -> Path:
        path = tmp_path / "to_label.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


# The table as written


def test_the_table_byte_by_byte():
    images = [queried(), queried("unlabeled/x, y.png", "=1+1", None), queried(suggestion=None)]
    assert format_table(images) == (
        "\ufeffpath,image,suggested_class,joint_score,semantic_score,distinctive_score,label\r\n"
        "unlabeled/a.png,x000000000,cat,1.250000,-0.500000,,\r\n"
        '"unlabeled/x, y.png",x000000000,\'=1+1,,-0.500000,,\r\n'
        "unlabeled/a.png,x000000000,,1.250000,-0.500000,,\r\n"
    )


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "'"])
def test_no_cell_of_text_is_a_formula(start):
    [row] = csv.reader(io.StringIO(format_row([f"{start}cmd", "a"]), newline=""))
    assert row == [f"'{start}cmd", "a"]


@pytest.mark.parametrize(
    ("name", "message"), [(" OTHER", "a class is named ' OTHER'"), ("caf\udce9", "labeled/caf.*not valid UTF-8")]
)
def test_class_names_that_a_table_cannot_hold(name, message):
    check_class_names(["another", "others"])
    with pytest.raises(InputError, match=message):
        check_class_names(["cat", name])


# What comes back


def test_labels_come_back_in_the_order_of_the_query(table):
    heading, *lines = GOOD.splitlines(keepends=True)
    path = table(heading + "".join(reversed(lines)))
    assert list(read_labels(path, PATHS, CLASSES).items()) == list(GOOD_LABELS.items())


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(BYTE_ORDER_MARK + GOOD, id="byte order mark"),
        pytest.param(GOOD.replace("\n", "\r\n"), id="CRLF"),
        pytest.param(GOOD.replace("\n", "\r"), id="CR"),
        pytest.param(GOOD.rstrip("\n"), id="no end of the last line"),
        pytest.param(GOOD.replace(",", ";"), id="semicolons"),
        pytest.param("sep=;\r\n" + GOOD.replace(",", ";"), id="semicolons, named"),
        pytest.param(GOOD.replace(",", "\t"), id="tabs"),
        pytest.param(GOOD.encode("utf-16"), id="UTF-16"),
        pytest.param(GOOD.replace("cat", " CAT ").replace("Hot Dog", "hot  dog"), id="case and spaces"),
        pytest.param(GOOD.replace("other", "Other "), id="case of other"),
        pytest.param(GOOD.replace("path,label", " Path , LABEL"), id="heading"),
        pytest.param("\n,\n" + GOOD.replace("\n", "\n\n ,  \n"), id="blank lines"),
        pytest.param(GOOD.replace("path,label", "path,label,notes").replace("cat", "cat,nice one"), id="notes"),
        pytest.param('"path";"label"\n' + GOOD.split("\n", 1)[1].replace(",", ";"), id="quotes"),
        pytest.param(
            "label,score,path\ncat,1,unlabeled/a.png\nother,2,unlabeled/b.png\nhot dog,,unlabeled/c.png", id="order"
        ),
    ],
)
def test_what_spreadsheets_do_to_a_table_changes_nothing(table, content):
    assert read_labels(table(content), PATHS, CLASSES) == GOOD_LABELS


def test_a_name_is_found_in_any_form_of_its_accents(table):
    composed, decomposed = "unlabeled/\u00e9.png", "unlabeled/e\u0301.png"
    assert read_labels(table(f"path,label\n{decomposed},CAT\n"), [composed], CLASSES) == {composed: "cat"}


def test_names_that_differ_in_case_alone_must_be_written_exactly(table):
    exact = table("path,label\nunlabeled/a.png,Cat\n")
    assert read_labels(exact, PATHS[:1], ("cat", "Cat")) == {"unlabeled/a.png": "Cat"}
    with pytest.raises(InputError, match="line 2: 'CAT' may be 'cat', 'Cat'"):
        read_labels(table("path,label\nunlabeled/a.png,CAT\n"), PATHS[:1], ("cat", "Cat"))


def test_a_guarded_name_and_the_bare_one_mean_the_same(table):
    classes = ("=x", "'=x", "-5 °C")
    for cell, name in (("'=x", "=x"), ("=x", "=x"), ("''=x", "'=x"), ("-5 °c", "-5 °C"), ("'-5 °C", "-5 °C")):
        assert read_labels(table(f"path,label\nunlabeled/a.png,{cell}\n"), PATHS[:1], classes) == {PATHS[0]: name}


def test_partial_takes_the_labels_that_are_there(table):
    rows = "path,label\nunlabeled/a.png,\nunlabeled/b.png,other\n"
    assert read_labels(table(rows), PATHS, CLASSES, partial=True) == {"unlabeled/b.png": None}
    assert read_labels(table(GOOD), PATHS, CLASSES, partial=True) == GOOD_LABELS
    with pytest.raises(InputError, match="has no label in it"):
        read_labels(table("path,label\nunlabeled/a.png,\n"), PATHS, CLASSES, partial=True)


@pytest.mark.parametrize(
    ("content", "paths", "expected"),
    [
        (GOOD, PATHS, True),
        ("path,label\nunlabeled/b.png,\n", PATHS, True),
        (GOOD, PATHS[:2], False),
        ("path,label\n", PATHS, False),
        ("path,label\nunlabeled/A.png,cat\n", ("unlabeled/a.png", "unlabeled/a.PNG"), False),
    ],
)
def test_to_which_query_a_table_belongs(table, content, paths, expected):
    assert lists_only(table(content), paths) is expected


# What is refused


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD.replace("b.png", "z.png"), ", line 3: 'unlabeled/z.png' is not among the images"),
        (GOOD.replace("cat", "catt"), ", line 2: label 'catt' is not a class here; write 'cat', 'Hot Dog' or other"),
        (GOOD + "unlabeled/a.png,cat\n", ", line 5: 'unlabeled/a.png' is in line 2 already"),
        (GOOD.replace(",cat", ",") + "unlabeled/a.png,cat\n", ", line 5: 'unlabeled/a.png' is in line 2 already"),
        (GOOD.replace("cat", "catt").replace("other", "oter"), " (1 more line(s) have a problem)"),
        (GOOD.replace(",cat", ",  "), ": 1 of 3 images have no label (the first: 'unlabeled/a.png', line 2)"),
        ("path,label\nunlabeled/a.png\nunlabeled/b.png,other\n", ": 2 of 3 images have no label"),
        ("path,label\nunlabeled/b.png,other\n", "(the first: 'unlabeled/a.png', not in the file)"),
        ('path,label\n"unlabeled/a\n.png",cat\nunlabeled/b.png,oter\n', ", line 2: 'unlabeled/a\\n.png' is not among"),
        ('path,label\nunlabeled/a.png,cat\nunlabeled/b.png,"cat\n', ", line 3: this is not a line of a csv file"),
        ("file;label\nx;cat\n", ", line 1: the heading must have one column path and one column label"),
        ("\npath,label,Label\nx,cat,cat\n", ", line 2: the heading must have one column path and one column label"),
        ("", " is empty"),
        ("\n\n", " is empty"),
        ("path,label\n", " has no label in it"),
        ("path,label\nunlabeled/a.png,caf\u00e9\n".encode("cp1252"), ", line 2: this is not UTF-8 text"),
        (b"PK\x03\x04\xff\xff", ", line 1: this is not UTF-8 text"),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(table, tmp_path, content, message):
    with pytest.raises(InputError) as error:
        read_labels(table(content), PATHS, CLASSES)
    assert message in str(error.value).removeprefix(str(tmp_path)) and "\n" not in str(error.value)


def test_a_file_of_gigabytes_is_not_read(tmp_path):
    with open(tmp_path / "huge.csv", "wb") as file:
        file.truncate(2**28 + 1)
    with pytest.raises(InputError, match="huge.csv has 268435457 bytes"):
        read_labels(tmp_path / "huge.csv", PATHS, CLASSES)


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1, max_size=12)
awkward = st.sampled_from(
    ["=x", "'=x", "''=x", "-1", "@", "'", "a,b", 'a"b', " a ", "a\nb", "a\r\nb", "\ufeffa", ";", "é"]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    paths=st.lists(names | awkward, min_size=1, max_size=6, unique=True),
    classes=st.lists(names | awkward, min_size=1, max_size=4, unique=True),
    data=st.data(),
)
def test_every_name_makes_the_round_trip(tmp_path, paths, classes, data):
    try:
        check_class_names(classes)
    except InputError:
        assume(False)
    labels = data.draw(st.lists(st.sampled_from(["other", *classes]), min_size=len(paths), max_size=len(paths)))
    heading = format_table([]).removesuffix("\r\n")
    rows = [row_without_label(queried(path, classes[0])) + format_row([label]) for path, label in zip(paths, labels)]
    file = tmp_path / "filled.csv"
    file.write_bytes("\r\n".join([heading, *rows]).encode())
    expected = {path: None if label == "other" else label for path, label in zip(paths, labels)}
    assert read_labels(file, paths, classes) == expected


# What stands beside a path belongs to it


def asked() -> list[QueriedImage]:
    """Three images of one suggestion, whose scores differ in the third digit."""
    return [QueriedImage(path, f"{number}abcdef012" * 6, "cat", 0.912 + number / 1000, -0.5, None)
            for number, path in enumerate(PATHS, start=1)]  # fmt: skip


def filled(images, label="cat") -> list[list[str]]:
    rows = list(csv.reader(io.StringIO(format_table(images).removeprefix(BYTE_ORDER_MARK))))
    return [rows[0], *([*row[:-1], label] for row in rows[1:])]


def text_of(rows, delimiter=",") -> str:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows(rows)
    return file.getvalue()


@pytest.mark.parametrize(
    ("column", "value"),
    [("path", None), ("image", None), ("joint_score", None), ("suggested_class", "Hot Dog"), ("joint_score", "0.92")],
)
def test_a_column_that_was_sorted_alone_is_refused(table, column, value):
    rows = filled(asked())
    place = rows[0].index(column)
    # The last two lines change places in one column, or one line says something else.
    rows[2][place], rows[3][place] = (value, rows[3][place]) if value else (rows[3][place], rows[2][place])
    with pytest.raises(InputError, match=r"line 3: (image|suggested_class|joint_score) .* is not that of"):
        read_labels(table(text_of(rows)), PATHS, CLASSES, images=asked())


def test_a_table_sorted_as_a_whole_and_scores_that_a_spreadsheet_rounds_are_taken(table):
    heading, *rows = filled(asked())
    kept = {"unlabeled/a.png": "cat", "unlabeled/b.png": "cat", "unlabeled/c.png": "cat"}
    assert read_labels(table(text_of([heading, *reversed(rows)])), PATHS, CLASSES, images=asked()) == kept
    place = heading.index("joint_score")
    for row, score in zip(rows, ("0,913", "0,91", "9,2E-01")):
        row[place] = score
    assert read_labels(table(text_of([heading, *rows], ";")), PATHS, CLASSES, images=asked()) == kept
    without = [[row[0], row[-1]] for row in (heading, *rows)]
    assert read_labels(table(text_of(without)), PATHS, CLASSES, images=asked()) == kept


def test_a_path_as_windows_writes_it(table):
    rows = "path,label\nunlabeled\\a.png,cat\nunlabeled\\b.png,other\nunlabeled\\c.png,Hot Dog\n"
    assert read_labels(table(rows), PATHS, CLASSES) == GOOD_LABELS
    assert lists_only(table(rows), PATHS)


def test_names_that_a_spreadsheet_changes(table):
    """A class alone is found under what is left of its name; two that become one are refused."""
    for name, cell in (("01", "1"), ("1e1", "10"), ("1e1", "1.00E+01"), ("true", "TRUE")):
        rows = f"path,label\n{PATHS[0]},{cell}\n"
        assert read_labels(table(rows), PATHS[:1], (name, "cat")) == {PATHS[0]: name}
    for names in (("01", "1"), ("1e1", "10"), ("1.0", "cat", "1")):
        with pytest.raises(InputError, match="a spreadsheet makes them one name"):
            check_class_names(names)
    check_class_names(("01", "2", "a1", "1e1"))
