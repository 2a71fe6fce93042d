"""A person's folder of images: its two forms, what is left out, and bad folders."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import load_data_and_split, load_dataset
from datasets.base import UNKNOWN
from utils import InputError

SIZE = 32


def picture(value, size=(SIZE, SIZE)):
    """A picture of its own bytes for each value."""
    generator = np.random.default_rng(value)
    return Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def put(path, value, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(value).save(path, **options)


@pytest.fixture
def root(tmp_path):
    """The annotation form: classes cat (3) and dog (2), 6 in the pool, 2 test images."""
    place = tmp_path / "mine"
    for number in range(3):
        put(place / f"labeled/cat/c{number}.png", number)
    for number in range(2):
        put(place / f"labeled/dog/d{number}.png", 10 + number)
    for number in range(4):
        put(place / f"unlabeled/u{number}.png", 20 + number)
    for number in range(2):
        put(place / f"unlabeled/dog/deep/{number}.png", 30 + number)
    put(place / "test/cat/t.png", 40)
    put(place / "test/dog/t.png", 41)
    return place


def load(place, **options):
    return load_dataset("folder", place, **options)


def report(place, size=SIZE):
    with open(place / f".ccal_cache/{size}/report.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["path", "reason"]
    return dict(rows[1:])


def test_annotation_form(root):
    data = load(root)
    assert data.paths == (
        "labeled/cat/c0.png", "labeled/cat/c1.png", "labeled/cat/c2.png", "labeled/dog/d0.png", "labeled/dog/d1.png",
        "unlabeled/dog/deep/0.png", "unlabeled/dog/deep/1.png",
        "unlabeled/u0.png", "unlabeled/u1.png", "unlabeled/u2.png", "unlabeled/u3.png",
    )  # fmt: skip
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1] + 6 * [UNKNOWN]
    assert (data.num_classes, data.class_names, data.image_size) == (2, ("cat", "dog"), (32, 32))
    assert data.test_labels.tolist() == [0, 1]
    assert isinstance(data.train_images, np.memmap)
    assert data.train_images.dtype == np.uint8
    for images, values in (
        (data.train_images, [0, 1, 2, 10, 11, 30, 31, 20, 21, 22, 23]),
        (data.test_images, [40, 41]),
    ):
        assert images.shape == (len(values), 32, 32, 3)
        for image, value in zip(images, values):
            assert (image == np.asarray(picture(value))).all()


def test_annotation_split(root):
    data, split = load_data_and_split("folder", root, mismatch=0.8, split_seed=3)
    assert split.labeled.tolist() == [0, 1, 2, 3, 4]
    assert split.unlabeled.tolist() == [5, 6, 7, 8, 9, 10]
    assert split.test.tolist() == [0, 1]
    assert (split.target_classes, split.mismatch, split.seed) == ((0, 1), None, 3)
    assert not data.has_oracle
    with pytest.raises(InputError, match="nobody has labeled image 7"):
        split.annotate(np.asarray([7]), data.train_labels)


def test_without_a_test_folder(root):
    for path in (root / "test").rglob("*.png"):
        path.unlink()
    for name in ("test/cat", "test/dog", "test"):
        os.rmdir(root / name)
    data, split = load_data_and_split("folder", root, mismatch=0.8)
    assert data.test_images.shape == (0, 32, 32, 3)
    assert data.test_labels.tolist() == split.test.tolist() == []


def test_class_names_below_unlabeled_are_never_read(root):
    before = load(root)
    os.rename(root / "unlabeled/dog", root / "unlabeled/wolf")
    after = load(root)
    assert before.train_labels.tolist() == after.train_labels.tolist()
    assert after.class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"target_classes": ["cat"]}, "--target_classes draws a split"),
        ({"initial_budget": 3}, "--initial_budget draws a split"),
        ({"mismatch": 0.5}, "--mismatch draws a split"),
    ],
)
def test_flags_that_draw_a_split_are_refused(root, flags, message):
    with pytest.raises(InputError, match=message):
        load_data_and_split("folder", root, **{"mismatch": 0.8, **flags})


@pytest.fixture
def benchmark(tmp_path):
    """The benchmark form: three classes with 6 train and 2 test images each."""
    place = tmp_path / "bench"
    for number, name in enumerate(("10", "2", "fox")):
        for image in range(6):
            put(place / f"train/{name}/{image}.png", 100 * number + image)
        for image in range(2):
            put(place / f"test/{name}/{image}.png", 100 * number + 50 + image)
    return place


def test_benchmark_form(benchmark):
    data = load(benchmark)
    assert data.class_names == ("10", "2", "fox")
    assert data.train_labels.tolist() == 6 * [0] + 6 * [1] + 6 * [2]
    assert data.test_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.paths[6] == "train/2/0.png"
    assert data.has_oracle


@pytest.mark.parametrize(
    ("given", "meant"), [(["fox"], (2,)), ([2], (1,)), ([10, "fox"], (0, 2)), ([0], (0,)), (["fox", 2], (2, 1))]
)
def test_target_classes_by_name_and_number(benchmark, given, meant):
    """A name that looks like a number is the name: the class 2 is the second folder here."""
    _, split = load_data_and_split(
        "folder", benchmark, mismatch=0.5, target_classes=given, initial_budget=4 * len(meant)
    )
    assert split.target_classes == meant


def test_unknown_class_name(benchmark):
    with pytest.raises(InputError, match="there is no class 'wolf'; the data set has 10, 2, fox"):
        load_data_and_split("folder", benchmark, mismatch=0.5, target_classes=["wolf"])


def test_names_work_for_other_data_sets():
    _, by_name = load_data_and_split("digits", "", mismatch=0.5, target_classes=["7", "3"])
    _, by_number = load_data_and_split("digits", "", mismatch=0.5, target_classes=[7, 3])
    assert by_name.digest == by_number.digest


def digest(place, **options):
    flags = {"mismatch": 0.8, **options}
    return load_data_and_split("folder", place, **flags)[1].digest


def test_digest_of_a_folder_to_which_nothing_happened(root, benchmark):
    drawing = {"mismatch": 0.5, "target_classes": ["fox"], "initial_budget": 2}
    for place, flags in ((root, {}), (benchmark, drawing)):
        first = digest(place, **flags)
        assert digest(place, **flags) == first
        path = next(place.rglob("*.png"))
        os.utime(path, ns=(1, 1))  # read again, and found to be the same
        assert digest(place, **flags) == first
        assert digest(place, image_size=48, **flags) != first


@pytest.mark.parametrize("path", ["labeled/cat/c1.png", "unlabeled/u2.png"])
def test_digest_of_a_changed_folder(root, path):
    first = digest(root)
    put(root / path, 999)
    changed = digest(root)
    os.rename(root / path, root / path.replace(".png", "x.png"))
    renamed = digest(root)
    (root / path.replace(".png", "x.png")).unlink()
    assert len({first, changed, renamed, digest(root)}) == 4


def test_test_images_may_come_later(root):
    first = digest(root)
    put(root / "test/cat/more.png", 99)
    assert digest(root) == first
    assert len(load(root).test_images) == 3


def test_digest_of_a_changed_benchmark(benchmark):
    flags = {"mismatch": 0.5, "target_classes": ["fox"], "initial_budget": 2}
    first = digest(benchmark, **flags)
    put(benchmark / "train/2/3.png", 999)
    assert digest(benchmark, **flags) != first


def test_missing_folder(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load(tmp_path / "absent")


def test_copies(root):
    content = (root / "labeled/cat/c0.png").read_bytes()
    (root / "unlabeled/a copy.png").write_bytes(content)
    (root / "unlabeled/u9.png").write_bytes((root / "unlabeled/u0.png").read_bytes())
    (root / "test/cat/leak.png").write_bytes(content)
    data = load(root)
    assert "labeled/cat/c0.png" in data.paths
    assert len(data.paths) == 11
    assert len(data.test_images) == 2
    assert report(root) == {
        "unlabeled/a copy.png": "left out, duplicate: of labeled/cat/c0.png",
        "test/cat/leak.png": "left out, duplicate: of labeled/cat/c0.png",
        "unlabeled/u9.png": "left out, duplicate: of unlabeled/u0.png",
    }


def test_a_copy_in_two_classes_is_a_contradiction(root):
    content = (root / "labeled/cat/c0.png").read_bytes()
    (root / "labeled/dog/same.png").write_bytes(content)
    (root / "unlabeled/again.png").write_bytes(content)
    data = load(root)
    assert "labeled/cat/c0.png" not in data.paths
    assert "labeled/dog/same.png" not in data.paths
    assert "unlabeled/again.png" in data.paths
    both = "left out, contradiction: labeled/cat/c0.png and labeled/dog/same.png"
    assert report(root) == {"labeled/cat/c0.png": both, "labeled/dog/same.png": both}


def test_the_cache_holds_the_pixels_of_the_path(root):
    """Files come, change and go: every image stays the one of its path."""
    load(root)
    values = dict(zip(load(root).paths, [0, 1, 2, 10, 11, 30, 31, 20, 21, 22, 23]))
    put(root / "labeled/cat/b.png", 70)
    put(root / "unlabeled/u1.png", 71)
    (root / "unlabeled/dog/deep/0.png").unlink()
    values |= {"labeled/cat/b.png": 70, "unlabeled/u1.png": 71}
    del values["unlabeled/dog/deep/0.png"]
    data = load(root)
    assert sorted(data.paths) == sorted(values)
    for path, image in zip(data.paths, data.train_images):
        assert (image == np.asarray(picture(values[path]))).all(), path
    assert Path(root / ".ccal_cache/32/images.npy").stat().st_size == 128 + 13 * 32 * 32 * 3
