"""results.csv: rows to the bit, damage by name, which rows a table shows, and the mean over seeds by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from datasets.results_file import (
    COLUMNS,
    Accuracy,
    Row,
    append_row,
    find_row,
    latest_rows,
    mean_text,
    plain_table,
    read_rows,
)
from utils import InputError

ROW = Row("npz", 0.5, "ccal", "proper", 1, 4, 5e-4, 3, 900, 0, 90.0, 95.0, "a", "b", 1.0)


def rows_of(*changes: dict) -> list[Row]:
    return [dataclasses.replace(ROW, **change) for change in changes]


def test_rows_survive_writing_to_the_bit(tmp_path: Path) -> None:
    path, rows = tmp_path / "results.csv", rows_of({"accuracy": 100 / 3, "mismatch": None}, {"seed": 1, "lr": 1e-30})
    assert read_rows(path) == []
    for row in rows:
        append_row(path, row)
    assert read_rows(path) == rows
    assert find_row(rows, {"seed": 1, "labeled": 900}) == rows[1]
    assert find_row(rows, {"seed": 1, "labeled": 901}) is None


def test_files_of_earlier_versions_and_of_spreadsheets_are_read(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    append_row(path, ROW)
    earlier = [",".join(line.split(",")[: COLUMNS.index("seconds") + 1]) for line in path.read_text().splitlines()]
    assert earlier[0].endswith("data_digest,seconds")
    path.write_text("\ufeff" + "\r\n".join(earlier) + "\r\n")
    assert read_rows(path) == [ROW]
    append_row(path, dataclasses.replace(ROW, seed=1, balanced_accuracy=50.0, class_accuracies="100.00 0.00 -"))
    assert [row.balanced_accuracy for row in read_rows(path)] == [None, 50.0]
    assert path.read_text().splitlines()[0] == ",".join(COLUMNS)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"b,1.0,drop,scratch,,,,,\n", b"b,1.0,drop,scratch,,,,,"),  # cut short
        (b"scratch,,,,,", b"scratch,,,,1e3 -,"),
        (b"scratch,,,,,", b"scratch,,,,high,"),
        (b"scratch,,,,,", b"scratch,,,101,,"),
        (b"accuracy", b"score"),
        (b"900", b"many"),
        (b"900,", b"900,7,"),
        (b"90.0", b"inf"),
        (b"90.0", b"100.5"),
        (b"npz", b"\xff\xfe"),
        (b"npz", b'"npz'),
        (None, b""),
    ],
)
def test_a_damaged_file_is_named_and_left_alone(tmp_path: Path, old: bytes | None, new: bytes) -> None:
    path = tmp_path / "results.csv"
    append_row(path, ROW)
    damaged = new if old is None else path.read_bytes().replace(old, new, 1)
    path.write_bytes(damaged)
    for use in (read_rows, lambda path: append_row(path, ROW)):
        with pytest.raises(InputError, match=r"results\.csv is damaged"):
            use(path)
    assert path.read_bytes() == damaged


def test_of_several_settings_the_last_count_and_of_a_seed_its_last_row() -> None:
    rows = rows_of(
        {"epochs": 5, "accuracy": 1.0},
        {"accuracy": 2.0},
        {"seed": 1},
        {"strategy": "random", "accuracy": 3.0},
        {"index_digest": "later"},
        {"accuracy": 4.0},
    )
    assert latest_rows(rows, "ccal", "split") == {"a": [rows[5], rows[2]], "later": [rows[4]]}
    assert latest_rows(rows, "semantic", "split") == {}


def test_rows_of_labels_that_were_corrected_since_do_not_count() -> None:
    """The labeled list "a" got other labels after its first two seeds; that of "b" was not touched."""
    columns = [("a", "before", 0), ("a", "before", 1), ("b", "same", 0), ("a", "after", 0), ("b", "same", 1)]
    rows = rows_of(*({"index_digest": index, "data_digest": data, "seed": seed} for index, data, seed in columns))
    assert latest_rows(rows, "ccal", "split") == {"a": [rows[3]], "b": [rows[2], rows[4]]}


def test_rows_of_another_split_do_not_count_and_those_that_name_none_do() -> None:
    """With the classes in another order the labeled list, and so its digest, is the same."""
    rows = rows_of({"split_digest": "there"}, {"split_digest": "here", "seed": 1}, {"seed": 2})
    assert latest_rows(rows, "ccal", "here") == {"a": rows[1:]}


def test_mean_and_deviation_by_hand() -> None:
    three = rows_of(
        {"accuracy": 90.0, "class_accuracies": "100.00 - -", "balanced_accuracy": 80.0},
        {"accuracy": 92.0, "class_accuracies": "50.00 10.00 -", "rejection": 60.0, "balanced_accuracy": 70.0},
        {"accuracy": 97.0, "best_epoch_accuracy": 98.0},
    )
    # deviation: the root of (9 + 1 + 16) / (3 - 1)
    all_of = {"seeds": 3, "mean": 93.0, "deviation": pytest.approx(13**0.5), "best_mean": 96.0}
    assert Accuracy.of(three) == Accuracy(**all_of, balanced=75.0, by_class=(75.0, 10.0, None), rejection=60.0)
    one = {"seeds": 1, "mean": 97.0, "deviation": None, "best_mean": 98.0}
    assert Accuracy.of(three[2:]) == Accuracy(**one, balanced=None, by_class=(), rejection=None)
    assert [mean_text(93.0, 13**0.5), mean_text(93.0, None), mean_text(None, None)] == [
        "93.00 ± 3.61 %",
        "93.00 %",
        "-",
    ]


def test_a_plain_table_is_right_aligned() -> None:
    assert plain_table([["a", "long"], ["100", "1"]]) == "  a  long\n100     1"
