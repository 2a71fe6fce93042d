"""npz data sets: what is loaded from them, and which arrays are refused (damaged files: tests/common/test_files.py)."""

import numpy as np
import pytest

from common.settings import DataSettings
from datasets import load_data_and_split
from datasets.base import MAX_CLASSES
from datasets.npz import load_npz
from utils import InputError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
LABELS = np.asarray([0, 1, 2, 0, 1, 2])
GOOD = {"train_images": IMAGES, "train_labels": LABELS, "test_images": IMAGES[:3], "test_labels": np.asarray([2, 1, 4])}


@pytest.fixture
def load(tmp_path):
    def load(**changes):
        """A good file with some arrays replaced; what is None is left out."""
        np.savez(tmp_path / "a.npz", **{name: value for name, value in (GOOD | changes).items() if value is not None})
        return load_npz("npz", tmp_path / "a.npz")

    return load


def test_it_holds_what_the_file_holds(load):
    data = load(extra=np.asarray([{}], dtype=object))  # other arrays are left alone
    for name, expected in GOOD.items():
        assert np.array_equal(getattr(data, name), expected)
    assert data.train_images.dtype == np.uint8 and data.train_labels.dtype == data.test_labels.dtype == np.int64
    assert (data.name, data.num_classes, data.class_names) == ("npz", 5, ("0", "1", "2", "3", "4"))
    assert data.image_size == (5, 4) and data.has_oracle


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train_images": IMAGES[..., 0]}, np.repeat(IMAGES[..., :1], 3, axis=3)),
        ({"train_images": np.asfortranarray(IMAGES)}, IMAGES),
        *(({"train_labels": LABELS.astype(dtype)}, IMAGES) for dtype in ("u1", "<i4", ">i8", "u8")),
    ],
)
def test_other_forms_of_arrays(load, changes, expected):
    data = load(**changes)
    assert np.array_equal(data.train_images, expected) and data.train_images.flags.c_contiguous
    assert np.array_equal(data.train_labels, LABELS) and data.train_labels.dtype == np.dtype("=i8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_labels": None}, r"lacks test_labels"),
        ({"train_images": IMAGES.astype(np.float32)}, r"train_images in .* must be uint8 \(0 to 255\), got float32"),
        ({"test_images": IMAGES[:3].astype(np.int64)}, r"test_images in .* must be uint8 \(0 to 255\), got int64"),
        ({"train_images": IMAGES.transpose(0, 3, 1, 2)}, r"train_images in .* must have shape .*, got \(6, 3, 5, 4\)"),
        ({"train_images": IMAGES[:, 0, :, 0]}, r"must have shape .*, got \(6, 4\)"),
        ({"train_images": IMAGES[:0], "train_labels": LABELS[:0]}, r"got \(0, 5, 4, 3\)"),
        ({"train_images": IMAGES[:, :0]}, r"got \(6, 0, 4, 3\)"),
        ({"test_images": np.zeros((3, 4, 5, 3), np.uint8)}, r"must have one size, got \(5, 4\) and \(4, 5\)"),
        ({"train_labels": LABELS[:5]}, r"train_labels in .* one label per image: 5 labels for 6 images"),
        ({"test_labels": np.arange(4)}, r"test_labels in .* one label per image: 4 labels for 3 images"),
        ({"train_labels": LABELS - 1}, r"train_labels in .* must lie in 0 .. 99999, got -1 .. 1"),
        ({"train_labels": LABELS * MAX_CLASSES}, r"must lie in 0 .. 99999, got 0 .. 200000"),
        ({"train_labels": np.asarray([2**64 - 1] * 6, dtype=np.uint64)}, r"must lie in 0 .. 99999"),
        ({"train_labels": LABELS * 1.0}, r"train_labels in .* whole numbers, got float64"),
        ({"train_labels": LABELS > 0}, r"whole numbers, got bool"),
        ({"train_labels": np.asarray(list("abcdef"))}, r"whole numbers, got <U1"),
        ({"train_labels": np.eye(6, dtype=int)}, r"whole numbers, got int64 of shape \(6, 6\)"),
        ({"train_labels": np.asarray([{}] * 6, dtype=object)}, "without pickle"),
    ],
)
def test_arrays_that_are_refused(load, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        load(**changes)
    assert "a.npz" in str(caught.value)


def test_an_array_in_another_range_and_images_of_one_colour_are_warned_of(load, capsys):
    load()
    assert capsys.readouterr().out == ""
    flat = IMAGES.copy()
    flat[[1, 4]] = (5, 6, 7)
    flat[2, 0] = (5, 6, 7)  # its first row alone
    load(train_images=flat, test_images=IMAGES[:3] // 128)
    one, other = capsys.readouterr().out.splitlines()
    assert "train_images in" in one and one.endswith("2 image(s) are of one colour everywhere (number 1, 4)")
    assert "test_images in" in other and "nearly black: the largest value is 1 of 255" in other


def test_without_a_file(tmp_path):
    for path in (tmp_path / "absent.npz", tmp_path):
        with pytest.raises(InputError, match=f"needs --data_path FILE.npz, and {path} is not a file"):
            load_npz("npz", path)


def test_labels_in_the_ten_thousands_make_no_head_of_their_size(load, capsys):
    """They are names of the classes that are there, in order; lower ones stay numbers, gaps and all."""
    codes = np.asarray([7, 99_999, 5_000])
    data = load(train_labels=codes[LABELS], test_labels=np.asarray([99_999, 7, 12]))
    assert (data.num_classes, data.class_names) == (4, ("7", "12", "5000", "99999"))
    assert data.train_labels.tolist() == [0, 3, 2, 0, 3, 2] and data.test_labels.tolist() == [3, 0, 1]
    assert "labels up to 99999 name 4 classes" in capsys.readouterr().out
    assert load(train_labels=np.asarray([0, 999, 2, 0, 1, 2])).num_classes == 1000


def test_such_a_class_is_named_as_in_the_file(load, tmp_path):
    codes = np.asarray([7, 99_999, 5_000])
    load(train_labels=codes[LABELS], test_labels=np.asarray([99_999, 7, 5_000]))
    settings = {"dataset": "npz", "data_path": str(tmp_path / "a.npz"), "initial_budget": 3, "mismatch": 0.4}
    _, split = load_data_and_split(DataSettings(target_classes=(99_999, 7), **settings))
    assert split.target_classes == (2, 0) and set(codes[LABELS[split.labeled]]) == {99_999, 7}
