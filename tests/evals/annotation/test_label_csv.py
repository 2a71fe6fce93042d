"""evals/label_csv.py: what a query's table looks like, what of it comes back, and what each wrong line is told."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from evals.annotation.label_csv import (
    BYTE_ORDER_MARK,
    Asked,
    check_class_names,
    finite_or_none,
    format_row,
    format_table,
    guarded,
    read_labels,
    write_table,
)
from utils import InputError

CLASSES = ("cat", "Hot Dog")
PATHS = ("unlabeled/a.png", "unlabeled/b.png", "unlabeled/c.png")
GOOD = "path,label\nunlabeled/a.png,cat\nunlabeled/b.png,other\nunlabeled/c.png,Hot Dog\n"
GOOD_LABELS = {"unlabeled/a.png": "cat", "unlabeled/b.png": None, "unlabeled/c.png": "Hot Dog"}


def asked(path: str = "unlabeled/a.png", suggestion: str | None = "cat", joint: float | None = 1.25) -> Asked:
    return Asked(path, "0" * 64, suggestion, joint, -0.5, None)


@pytest.fixture
def table(tmp_path: Path):
    """Writes text or bytes to a file and returns its path."""

    def write(content: str | bytes) -> Path:
        path = tmp_path / "to_label.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def problem(path: Path, *, partial: bool = False) -> str:
    with pytest.raises(InputError) as error:
        read_labels(path, PATHS, CLASSES, partial=partial)
    return str(error.value).removeprefix(str(path))


# The table


def test_the_table_as_it_lies_on_disk(tmp_path):
    write_table(tmp_path / "to_label.csv", [asked(), asked("unlabeled/x, y.png", "=1+1", None)])
    assert (tmp_path / "to_label.csv").read_bytes().decode() == (
        "\ufeffpath,suggested_class,joint_score,semantic_score,distinctive_score,label\r\n"
        "unlabeled/a.png,cat,1.250000,-0.500000,,\r\n"
        '"unlabeled/x, y.png",\'=1+1,,-0.500000,,\r\n'
    )


def test_a_strategy_without_a_notion_of_classes_suggests_none():
    assert format_table([asked(suggestion=None)]).splitlines()[1] == "unlabeled/a.png,,1.250000,-0.500000,,"


def test_scores_that_are_not_finite_are_left_empty():
    assert [finite_or_none(value) for value in (0.5, float("nan"), float("inf"))] == [0.5, None, None]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "'"])
def test_no_cell_of_text_is_a_formula(start):
    assert guarded(f"{start}cmd") == f"'{start}cmd"
    [row] = csv.reader(io.StringIO(format_row([f"{start}cmd", "a"]), newline=""))
    assert row == [f"'{start}cmd", "a"]


def test_a_class_may_not_be_called_other():
    check_class_names(["another", "others"])
    with pytest.raises(InputError, match="a class is named ' OTHER'.*rename its folder"):
        check_class_names(["cat", " OTHER"])


# What comes back


def test_labels_come_back_in_the_order_of_the_query(table):
    lines = GOOD.splitlines(keepends=True)
    path = table(lines[0] + "".join(reversed(lines[1:])))
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
        pytest.param('"path","label"\n' + GOOD.split("\n", 1)[1], id="quotes"),
        pytest.param(
            "label,score,path\ncat,1,unlabeled/a.png\nother,2,unlabeled/b.png\nhot dog,,unlabeled/c.png", id="order"
        ),
    ],
)
def test_what_spreadsheets_do_to_a_table_changes_nothing(table, content):
    assert read_labels(table(content), PATHS, CLASSES) == GOOD_LABELS


def test_a_name_is_found_whatever_the_form_of_its_accents(table):
    composed, decomposed = "unlabeled/\u00e9.png", "unlabeled/e\u0301.png"
    assert read_labels(table(f"path,label\n{decomposed},CAT\n"), [composed], CLASSES) == {composed: "cat"}


def test_names_that_differ_in_case_only_must_be_written_exactly(table):
    exact = table("path,label\nunlabeled/a.png,Cat\n")
    assert read_labels(exact, PATHS[:1], ("cat", "Cat")) == {"unlabeled/a.png": "Cat"}
    with pytest.raises(InputError, match="line 2: 'CAT' may be 'cat', 'Cat'; write it exactly"):
        read_labels(table("path,label\nunlabeled/a.png,CAT\n"), PATHS[:1], ("cat", "Cat"))


def test_a_guarded_name_and_the_bare_one_mean_the_same(table):
    classes = ("=x", "'=x", "-5 °C")
    for cell, meant in (("'=x", "=x"), ("=x", "=x"), ("''=x", "'=x"), ("-5 °c", "-5 °C"), ("'-5 °C", "-5 °C")):
        assert read_labels(table(f"path,label\nunlabeled/a.png,{cell}\n"), PATHS[:1], classes) == {PATHS[0]: meant}


def test_partial_takes_what_is_there(table):
    rows = "path,label\nunlabeled/a.png,\nunlabeled/b.png,other\n"
    assert read_labels(table(rows), PATHS, CLASSES, partial=True) == {"unlabeled/b.png": None}
    assert read_labels(table(GOOD), PATHS, CLASSES, partial=True) == GOOD_LABELS


# What is refused


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(
            GOOD.replace("b.png", "z.png"),
            ", line 3: 'unlabeled/z.png' is not among the images of this query; remove the line",
            id="unknown path",
        ),
        pytest.param(
            GOOD.replace("cat", "catt"),
            ", line 2: label 'catt' is no class here; write 'cat', 'Hot Dog' or other",
            id="unknown class",
        ),
        pytest.param(
            GOOD + "unlabeled/a.png,cat\n",
            ", line 5: 'unlabeled/a.png' stands in line 2 already; keep one of the two lines",
            id="twice",
        ),
        pytest.param(
            GOOD.replace(",cat", ",") + "unlabeled/a.png,cat\n",
            ", line 5: 'unlabeled/a.png' stands in line 2 already; keep one of the two lines",
            id="twice, once without a label",
        ),
        pytest.param(
            GOOD.replace("cat", "catt").replace("other", "oter"),
            ", line 2: label 'catt' is no class here; write 'cat', 'Hot Dog' or other (1 more line(s) have a problem)",
            id="two problems",
        ),
        pytest.param(
            GOOD.replace(",cat", ",  "),
            ": 1 of 3 images have no label (the first: 'unlabeled/a.png', line 2); label them, or give --partial to "
            "take the labels that are there and return the other images to the pool",
            id="no label",
        ),
        pytest.param(
            "path,label\nunlabeled/a.png\nunlabeled/b.png,other\n",
            ": 2 of 3 images have no label (the first: 'unlabeled/a.png', line 2); label them, or give --partial to "
            "take the labels that are there and return the other images to the pool",
            id="short line",
        ),
        pytest.param(
            'path,label\n"unlabeled/a\n.png",cat\nunlabeled/b.png,oter\n',
            ", line 2: 'unlabeled/a\\n.png' is not among the images of this query; remove the line (1 more line(s) "
            "have a problem)",
            id="a line end within a cell",
        ),
        pytest.param(
            'path,label\nunlabeled/a.png,"cat\nunlabeled/b.png,other\n',
            ", line 2: this is no line of a csv file (unexpected end of data); mend it",
            id="open quote",
        ),
        pytest.param(
            "file;label\nx;cat\n",
            ", line 1: the heading must have one column path, and has 0 ('file;label'); keep the heading of "
            "to_label.csv",
            id="no path column",
        ),
        pytest.param(
            "path,label,Label\nx,cat,cat\n",
            ", line 1: the heading must have one column label, and has 2 ('path, label, Label'); keep the heading of "
            "to_label.csv",
            id="two label columns",
        ),
        pytest.param("", " is empty; fill in the to_label.csv of the query", id="empty"),
        pytest.param("\n\n", " is empty; fill in the to_label.csv of the query", id="blank"),
        pytest.param(
            "path,label\n",
            " has no label in it; fill the column label, or save the file from the labeling page",
            id="heading only",
        ),
        pytest.param(
            "path,label\nunlabeled/a.png,caf\u00e9\n".encode("cp1252"),
            ', line 2: this is no UTF-8 text; save the table as "CSV UTF-8"',
            id="Latin-1",
        ),
        pytest.param(
            b"PK\x03\x04\xff\xff",
            ', line 1: this is no UTF-8 text; save the table as "CSV UTF-8"',
            id="a workbook",
        ),
    ],
)
def test_a_wrong_file_is_told_where_and_what_to_do(table, content, message):
    assert problem(table(content)) == message


def test_a_table_without_labels_is_refused_even_in_part(table):
    assert "has no label in it" in problem(table(GOOD.split("\n", 1)[0] + "\nunlabeled/a.png,\n"), partial=True)


def test_a_file_of_gigabytes_is_not_read(tmp_path):
    with open(tmp_path / "huge.csv", "wb") as file:
        file.truncate(2**28 + 1)
    with pytest.raises(InputError, match="huge.csv has 268435457 bytes, which is no filled csv"):
        read_labels(tmp_path / "huge.csv", PATHS, CLASSES)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="--labels .*nothing.csv does not exist"):
        read_labels(tmp_path / "nothing.csv", PATHS, CLASSES)


# Whatever the names, and whatever the bytes

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
    text = format_table([asked(path, classes[0]) for path in paths], labels)
    file = tmp_path / "filled.csv"
    file.write_bytes(text.encode())
    expected = {path: None if label == "other" else label for path, label in zip(paths, labels)}
    assert read_labels(file, paths, classes) == expected


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=60)
    | st.lists(
        st.sampled_from(
            ["path", "label", ",", ";", "\n", "\r", '"', "'", "\0", "=", *PATHS, "cat", "other", " ", "\ufeff"]
        ),
        max_size=20,
    ).map(lambda parts: "".join(parts).encode())
)
def test_any_bytes_are_labels_or_one_line_of_reason(tmp_path, content):
    file = tmp_path / "any.csv"
    file.write_bytes(content)
    try:
        found = read_labels(file, PATHS, CLASSES, partial=True)
    except InputError as error:
        assert str(error).startswith(str(file)) and "\n" not in str(error)
    else:
        assert found and set(found) <= set(PATHS) and set(found.values()) <= {None, *CLASSES}
