"""datasets/index_files.py: round trip, places, every refusal, and the authors' own query lists."""

import dataclasses
import json
import re

import numpy as np
import pytest

from datasets.index_files import IndexFile, default_index_dir, index_path, read_index_file, write_index_file
from datasets.split import make_split
from utils import InputError

CONTENT = IndexFile(
    dataset="cifar10",
    mismatch=0.8,
    split_digest="d896584df08687d3",
    target_classes=[0, 1],
    strategy="ccal",
    cycle=2,
    labeled=[7, 3, 11],
    queried=[11, 20],
    set_aside=[20],
    settings={"k": 100.0, "target": 750, "seed": 0},
    metrics={"precision": 50.0, "found": 1, "found_per_class": [1, 0]},
    seconds=1.25,
)


@pytest.fixture(scope="module")
def published(shared):
    with np.load(shared / "data" / "published_queries_cifar10_mismatch80.npz") as lists:
        return [lists[f"cycle_{cycle}"].astype(np.int64) for cycle in range(8)]


@pytest.fixture(scope="module")
def labels(shared):
    return np.load(shared / "data" / "labels_cifar10_train.npy")


@pytest.fixture(scope="module")
def cifar_split(labels):
    return make_split(labels, labels[:100], target_classes=(0, 1), mismatch=0.8, initial_budget=800)


@pytest.fixture
def written(tmp_path):
    """Writes CONTENT with some raw JSON fields changed (None: left out) and returns the path."""

    def write(**changes):
        path = tmp_path / "cycle_2.json"
        raw = {"format_version": 1, **dataclasses.asdict(CONTENT), **changes}
        path.write_text(json.dumps({name: value for name, value in raw.items() if value is not None}))
        return path

    return write


# Writing and reading


def test_round_trip(tmp_path):
    path = write_index_file(tmp_path / "new" / "folder", CONTENT)
    assert path == tmp_path / "new" / "folder" / "cycle_2.json"
    assert read_index_file(path) == CONTENT
    assert read_index_file(path, split_digest="d896584df08687d3", n_images=21) == CONTENT
    assert json.loads(path.read_text())["format_version"] == 1


def test_round_trip_of_arrays_and_defaults(tmp_path):
    content = dataclasses.replace(
        CONTENT,
        cycle=0,
        target_classes=(0, 1),
        labeled=np.asarray([5, 2]),
        queried=np.asarray([], dtype=np.int64),
        set_aside=[],
        mismatch=np.float64(0.25),
        settings={},
        metrics={"auroc": np.float32(0.5)},
        seconds=0.0,
    )
    read = read_index_file(write_index_file(tmp_path, content))
    assert (read.cycle, read.target_classes, read.labeled, read.queried) == (0, [0, 1], [5, 2], [])
    assert (read.mismatch, read.metrics, read.seconds) == (0.25, {"auroc": 0.5}, 0.0)


@pytest.mark.parametrize(
    ("dataset", "mismatch", "strategy", "place"),
    [
        ("cifar10", 0.8, "ccal", "get_index_80/cifar10"),
        ("cifar10", 0, "ccal", "get_index_0/cifar10"),
        ("cifar10", 0.07, "ccal", "get_index_7/cifar10"),  # 0.07 * 100 is 7.000000000000001
        ("cifar10", 0.57, "ccal", "get_index_57/cifar10"),  # 56.99999999999999
        ("cifar10", 0.125, "ccal", "get_index_12.5/cifar10"),
        ("cifar10", 0.8, "random", "get_index_80/cifar10/random"),
        ("digits", 0.6, "semantic", "get_index_60/digits/semantic"),
    ],
)
def test_default_place(tmp_path, dataset, mismatch, strategy, place):
    folder = default_index_dir(tmp_path, dataset, mismatch, strategy)
    assert folder == tmp_path / "train_classifier" / place
    assert index_path(folder, 3) == tmp_path / "train_classifier" / place / "cycle_3.json"


# Refusals


@pytest.mark.parametrize(
    "text", ["[]", "null", '"cycle"', "{}", '{"format_version": 3}', '{"format_version": "1"}', '{"labeled": [1, 2]}']
)
def test_something_else_than_an_index_file(tmp_path, text):
    path = tmp_path / "cycle_0.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"cycle_0.json is not an index file of format version 1 or 2"):
        read_index_file(path)


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(InputError, match=r"cycle_9.json does not exist"):
        read_index_file(tmp_path / "cycle_9.json")
    path = write_index_file(tmp_path, CONTENT)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(InputError, match=r"cycle_2.json is not valid JSON"):
        read_index_file(path)


@pytest.mark.parametrize("name", [entry.name for entry in dataclasses.fields(IndexFile)][:-3])
def test_every_field_must_be_there(written, name):
    with pytest.raises(InputError, match=re.escape(f"wrong fields ['{name}']")):
        read_index_file(written(**{name: None}))


NO_INDEX = [-1, 1.0, 0.5, "3", True, [1], 2**62, float("nan")]
NO_NUMBER = ["0.8", True, [0.8], {}, float("nan"), float("inf"), 10**400]


NO_NAME = [3, ["ccal"], True, "", "../../etc", "/etc/passwd", "..", "a/b", "a\\b", "a\n", "a\x1b[2J", "x" * 101]
NO_LIST = [3, "7", {"0": 7}, *([7, bad] for bad in NO_INDEX)]
NO_METRICS = [
    [], 0.9, {"found": "3"}, {"found": -1}, {"found": 1.5}, {"queried": None}, {"labeled": [1]}, {"pool": True},
    {"precision": "90 %"}, {"precision": 101}, {"precision": -0.1}, {"precision": float("nan")}, {"recall": [5]},
    {"auroc_semantic": 1.1}, {"auroc_utility": "0.5"}, {"found_per_class": 3}, {"found_per_class": [1, -1]},
]  # fmt: skip
BAD_VALUES = {
    "dataset": NO_NAME, "strategy": NO_NAME, "mismatch": [*NO_NUMBER, -0.1, 1, 1.0, 80], "split_digest": [12, ["d8"]],
    "cycle": NO_INDEX, "settings": [[], "k=100", 3], "metrics": NO_METRICS, "seconds": NO_NUMBER,
    "target_classes": NO_LIST, "labeled": NO_LIST, "queried": NO_LIST, "set_aside": NO_LIST,
}  # fmt: skip


@pytest.mark.parametrize(("name", "values"), BAD_VALUES.items())
def test_wrong_types_and_values(written, name, values):
    for value in values:
        with pytest.raises(InputError, match=rf"cycle_2.json: {name} has a wrong type or value"):
            read_index_file(written(**{name: value}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labeled": [4, 9, 4]}, "labeled holds an index twice"),
        ({"set_aside": [4, 9, 4]}, "set_aside holds an index twice"),
        ({"labeled": []}, "no labeled image, nothing to train on"),
        ({"target_classes": []}, "no target class"),
        ({"labeled": [7, 20]}, "image 20 is both labeled and set aside"),
        ({"precision": 1.0}, r"wrong fields \['precision'\]"),
        ({"format_version": 2}, r"wrong fields \['class_names', 'files', 'labels'\]"),
    ],
)
def test_contents_that_contradict_themselves(written, changes, message):
    with pytest.raises(InputError, match=message):
        read_index_file(written(**changes))


@pytest.mark.parametrize("name", ["labeled", "queried", "set_aside"])
def test_an_index_beyond_the_data_set(written, name):
    path = written(**{name: [1, 50, 49]})
    with pytest.raises(InputError, match=rf"{name} holds index 50, but the data set has 50 images"):
        read_index_file(path, n_images=50)
    assert getattr(read_index_file(path, n_images=51), name) == [1, 50, 49]
    assert getattr(read_index_file(path), name) == [1, 50, 49]


def test_another_split(written):
    with pytest.raises(InputError, match=r"another split \(digest d896584df086, here 0000feedbeef\); give the same"):
        read_index_file(written(), split_digest="0000feedbeef0000")


# The authors' own query lists (METHOD.md, section 7)


def test_the_published_queries_are_annotations_of_our_split(published, cifar_split, labels):
    assert published[0].tolist() == cifar_split.labeled.tolist()
    found = [len(after) - len(before) for before, after in zip(published, published[1:], strict=False)]
    assert found == [1421, 1395, 1395, 1422, 1390, 1171, 439]
    split = cifar_split
    for before, after in zip(published, published[1:], strict=False):
        split = split.annotate(after[len(before) :], labels)
        assert split.labeled.tolist() == after.tolist()
        assert split.set_aside.tolist() == []  # the lists hold the target images only
    assert np.sum(labels[split.unlabeled] < 2) == 9200 - 8633
    assert split.digest == cifar_split.digest


def test_metrics_that_were_not_measured_or_are_a_strategys_own(written):
    metrics = {"precision": None, "recall": None, "auroc_semantic": None, "auroc_utility": 1, "entropy": {"mean": -3.5}}
    assert read_index_file(written(metrics=metrics)).metrics == metrics


def test_a_file_larger_than_every_list_of_the_data_set_is_not_read(tmp_path):
    path = tmp_path / "cycle_2.json"
    with open(path, "wb") as file:
        file.truncate(2**24 + 1024 * 50 + 1)
    with pytest.raises(
        InputError, match=rf"has {2**24 + 1024 * 50 + 1} bytes and such a file has {2**24 + 1024 * 50} at"
    ):
        read_index_file(path, n_images=50)


# Version 2: labels that people gave

ANNOTATED = dataclasses.replace(
    CONTENT,
    dataset="folder",
    mismatch=None,
    class_names=["cat", "dog"],
    labels=[0, 1, 1],
    files={
        "labeled": [["unlabeled/a.png", "aa"], ["labeled/dog/b.png", "bb"], ["unlabeled/c \udcff.png", "cc"]],
        "queried": [["unlabeled/c.png", "cc"], ["unlabeled/d.png", "dd"]],
        "set_aside": [["unlabeled/d.png", "dd"]],
    },
)


def test_version_2_round_trip(tmp_path):
    path = write_index_file(tmp_path, ANNOTATED)
    assert json.loads(path.read_text())["format_version"] == 2
    assert read_index_file(path) == ANNOTATED


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("class_names", ["cat"]),
        ("class_names", ["cat", "cat"]),
        ("class_names", ["cat", 1]),
        ("labels", [0, 1]),
        ("labels", [0, 1, 2]),
        ("labels", [0, 1, -1]),
        ("labels", [0, 1, True]),
        ("files", {}),
        ("files", [["unlabeled/a.png", "aa"]]),
        ("files", {**ANNOTATED.files, "set_aside": []}),
        ("files", {**ANNOTATED.files, "set_aside": [["unlabeled/d.png"]]}),
        ("files", {**ANNOTATED.files, "set_aside": [["unlabeled/d.png", 3]]}),
        ("files", {**ANNOTATED.files, "more": []}),
    ],
)
def test_version_2_with_a_wrong_field(tmp_path, field, value):
    raw = {"format_version": 2, **dataclasses.asdict(ANNOTATED), field: value}
    path = tmp_path / "cycle_2.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(InputError, match=f"cycle_2.json: {field} has a wrong type or value"):
        read_index_file(path)
