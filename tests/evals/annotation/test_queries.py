"""evals/annotation/queries.py: what a waiting query is kept in, and under which name the browser keeps its labels."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from common.files import read_json, write_json
from evals.annotation.label_csv import QueriedImage
from evals.annotation.queries import AnnotationQuery, read_query, write_query
from utils import InputError


@pytest.fixture
def query(tmp_path: Path) -> AnnotationQuery:
    images = [QueriedImage(f"unlabeled/{n}.png", f"{n}", "cat", 0.5, 0.25, None) for n in range(3)]
    return AnnotationQuery(tmp_path / "cycle_2", 2, "before", ["cat", "dog"], "ccal", {"t": 0.9}, 1.5, images)


def test_a_query_is_read_as_it_was_written(query, tmp_path):
    assert read_query(tmp_path, 2) is None
    write_query(query, "<html>")
    assert read_query(tmp_path, 2) == query
    assert {path.name for path in query.folder.iterdir()} == {"label.html", "to_label.csv", "query.json"}
    assert (query.page.read_text(), query.labels_file) == ("<html>", "labels_cycle_2.csv")


def test_filled_tables_of_earlier_queries_are_all_kept(query, capsys):
    write_query(query, "")
    for name in ("to_label.replaced.csv", "to_label.replaced1.csv"):
        assert not query.is_filled()
        query.table.write_text(f"labels for {name}")
        assert query.is_filled()
        write_query(query, "")
        assert (query.folder / name).read_text() == f"labels for {name}"
        assert f"is kept as {query.folder / name}" in capsys.readouterr().out


def test_the_browser_keeps_labels_by_position_and_class_number(query, tmp_path):
    """What changes neither leaves the key as it is; all that changes one of them changes it."""
    images = query.images
    scored_anew = [dataclasses.replace(image, suggestion="dog", joint=1, semantic=0, distinctive=1) for image in images]
    for same in ({"after": "other"}, {"seconds": 2.5}, {"images": scored_anew}):
        assert dataclasses.replace(query, **same).storage_key == query.storage_key
    for other in (
        {"cycle": 3},
        {"class_names": ["dog", "cat"]},
        {"images": images[::-1]},
        {"images": images[:2]},
        {"images": [dataclasses.replace(images[0], digest="9"), *images[1:]]},
        {"images": [dataclasses.replace(images[0], path="unlabeled/9.png"), *images[1:]]},
        {"folder": tmp_path / "elsewhere" / "cycle_2"},
    ):
        assert dataclasses.replace(query, **other).storage_key != query.storage_key
    # As it was in November 2026: an update of the program must not hide what a browser has kept.
    elsewhere = dataclasses.replace(query, folder=Path("/runs/query/cycle_2"))
    assert elsewhere.storage_key == "ccal-e804c8a3d60ed2ba47810ba070be5325"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format_version": 1}'])
def test_a_record_that_is_no_record(query, tmp_path, text):
    write_query(query, "")
    (query.folder / "query.json").write_text(text)
    with pytest.raises(InputError, match=r"query\.json"):
        read_query(tmp_path, 2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("format_version", 2), ("cycle", 3), ("after", None), ("class_names", "cat"), ("class_names", [1])],
        *[("settings", []), ("seconds", "1"), ("images", 3), ("images", [{"path": "unlabeled/0.png"}])],
        *(
            ("images", [{**dataclasses.asdict(QueriedImage("a", "b", "cat", 1, 1, None)), **wrong}])
            for wrong in ({"path": 3}, {"digest": None}, {"suggestion": "bird"}, {"semantic": [1]}, {"more": 1})
        ),
    ],
)
def test_a_record_with_a_wrong_field(query, tmp_path, field, value):
    write_query(query, "")
    path = query.folder / "query.json"
    write_json(path, {**read_json(path), field: value})
    with pytest.raises(InputError, match=rf"query\.json: {field} .*move the folder"):
        read_query(tmp_path, 2)
