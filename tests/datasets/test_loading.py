"""The front door of the data sets: by name, with the split of their protocol or of the flags."""

import numpy as np
import pytest

from common.paper import DEFAULT_BUDGET
from datasets import class_numbers, load_dataset
from datasets.base import spreadsheet_name, twins
from tests.runs import load_split
from utils import InputError


def test_the_protocol_of_a_data_set_and_flags_instead():
    data, split = load_split("digits", "~/nowhere", mismatch=0.5)
    assert split.target_classes == (0, 1) and len(split.labeled) == 20
    # 143 zeros and 146 ones, 20 of them labeled: 269 targets in the pool and as many others.
    assert np.bincount(data.train_labels[split.unlabeled] < 2).tolist() == [269, 269]
    assert split.test.tolist() == np.flatnonzero(data.test_labels < 2).tolist()
    _, split = load_split("digits", "~/nowhere", mismatch=0.25, target_classes=[7, 3], initial_budget=30, split_seed=5)
    assert (split.target_classes, len(split.labeled), split.mismatch, split.seed) == ((7, 3), 30, 0.25, 5)


@pytest.mark.parametrize("name", ["svhn", "mnist", "fashion_mnist", "npz"])
def test_without_a_protocol_target_classes_are_needed(name, tmp_path):
    with pytest.raises(InputError, match=f"--dataset {name} needs --target_classes"):  # before any file is looked for
        load_split(name, tmp_path, mismatch=0.5)


def test_the_default_budget_and_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    labels, images = np.arange(3000) % 3, np.zeros((3000, 2, 2), dtype=np.uint8)
    images[1] = 1
    np.savez(
        tmp_path / "a.npz", train_images=images, train_labels=labels, test_images=images[:9], test_labels=labels[:9]
    )
    data, split = load_split("npz", "~/a.npz", mismatch=0.5, target_classes=(2,))
    assert len(split.labeled) == DEFAULT_BUDGET == 800 and len(split.unlabeled) == 400
    assert (split.test.tolist(), data.num_classes) == ([2, 5, 8], 3)


@pytest.mark.parametrize(
    ("given", "meant"), [(["fox"], [2]), ([2], [1]), ([10, "fox"], [0, 2]), ([0], [0]), ([7, "2"], [7, 1])]
)
def test_target_classes_by_name_and_number(given, meant):
    """A name that looks like a number is the name: the class 2 is the second one here."""
    assert class_numbers(given, ("10", "2", "fox")) == meant
    with pytest.raises(InputError, match="there is no class 'wolf'; the data set has 10, 2, fox"):
        class_numbers([*given, "wolf"], ("10", "2", "fox"))


def test_what_was_taken_by_position_is_said(capsys):
    names = ("01", "02", "03", "04")
    assert class_numbers([1, 2], names) == [1, 2] and class_numbers(["01", "02"], names) == [0, 1]
    said = "warning: target classes by position, from 0: 1 is 02, 2 is 03; for the class named 01 give that name"
    assert capsys.readouterr().out == said + "\n"
    assert class_numbers([1, 0], ("Cat", "caf\u00e9")) == class_numbers(["cafe\u0301", "cat"], ("Cat", "caf\u00e9"))
    assert capsys.readouterr().out == "target classes by position, from 0: 1 is caf\u00e9, 0 is Cat\n"
    assert class_numbers([2, 1], ("1", "2")) == [1, 0] and capsys.readouterr().out == ""


def test_copies_in_an_npz_are_counted_and_stay(tmp_path, capsys):
    """The split of a published benchmark must not change for the few copies in it."""
    generator = np.random.default_rng(0)
    images, labels = generator.integers(0, 256, (40, 4, 4, 3), dtype=np.uint8), np.arange(40) % 4
    test = generator.integers(0, 256, (8, 4, 4, 3), dtype=np.uint8)

    def printed(**changes):
        arrays = {"train_images": images, "train_labels": labels, "test_images": test, "test_labels": np.arange(8) % 4}
        np.savez(tmp_path / "a.npz", **arrays | changes)
        data, split = load_split("npz", tmp_path / "a.npz", mismatch=0.5, target_classes=[0, 1], initial_budget=8)
        return split, capsys.readouterr().out

    split, said = printed()
    assert said == ""
    seen, images_with_copies = split.labeled.tolist() + split.unlabeled.tolist(), images.copy()
    leaked = test.copy()
    leaked[[0, 1, 4]], leaked[2] = images[seen[:3]], images[seen[3]]  # image 2 is of no target class
    found, said = printed(test_images=leaked)
    assert "3 of 4 test images are, pixel by pixel, among the labeled images and the pool" in said
    assert said.count("warning") == 1 and found.digest == split.digest
    first = split.labeled[0]
    same = next(image for image in split.unlabeled if labels[image] == labels[first])
    other = next(image for image in split.unlabeled if labels[image] != labels[first])
    images_with_copies[[same, other]] = images[first]
    found, said = printed(train_images=images_with_copies)
    assert "2 image(s) of the pool are, pixel by pixel, labeled already" in said
    assert f"1 picture(s) stand under two classes: training images {first} and {other}" in said
    assert found.unlabeled.tolist() == split.unlabeled.tolist()


def test_a_target_class_without_test_images_is_warned_of(tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)
    test = {"test_images": images[:3] // 2, "test_labels": np.asarray([0, 0, 2])}
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=np.arange(40) % 4, **test)
    flags = {"mismatch": 0.5, "initial_budget": 8}
    data, split = load_split("npz", tmp_path / "a.npz", target_classes=[0, 1], **flags)
    assert split.untested(data.test_labels) == [1]
    assert "the test set has no image of 1: an accuracy is of the other target" in capsys.readouterr().out
    data, split = load_split("npz", tmp_path / "a.npz", target_classes=[0, 2], **flags)
    assert split.untested(data.test_labels) == [] and capsys.readouterr().out == ""


@pytest.mark.parametrize("names", [["01", "1"], ["1", "2", "1.0"], ["1e1", "10"], ["True", "true"], ["Cat", "cat"]])
def test_names_that_a_spreadsheet_makes_one(names):
    assert twins(names, spreadsheet_name) == [names[0], names[-1]]
    assert twins([*names[:-1], "01a", "1-1", "e1", "."], spreadsheet_name) == []


@pytest.mark.parametrize("flag", [{"target_classes": ["cat"]}, {"initial_budget": 3}, {"mismatch": 0.5}])
def test_flags_that_draw_a_split_are_refused_where_people_have_made_it(tmp_path, flag):
    (tmp_path / "labeled").mkdir()
    (tmp_path / "unlabeled").mkdir()
    with pytest.raises(InputError, match=f"--{[*flag][0]} draws a split"):
        load_split("folder", tmp_path, **{**flag})


@pytest.mark.parametrize("name", ["cifar", "CIFAR10", ""])
def test_unknown_data_sets_and_flags_of_others_are_refused(name):
    with pytest.raises(InputError, match=f"--dataset {name} is unknown; choose from cifar10, cifar100, svhn, mnist"):
        load_dataset(name)
    for flag in ("image_size", "cache_dir"):
        with pytest.raises(InputError, match=f"--{flag} 64 is for --dataset folder"):
            load_dataset("digits", **{flag: 64})


@pytest.mark.parametrize("value", [0, 255])
def test_images_that_are_all_the_same_are_refused_and_one_other_is_enough(tmp_path, value):
    images = np.full((6, 5, 4, 3), value, dtype=np.uint8)
    arrays = {"train_labels": np.arange(6), "test_images": images, "test_labels": np.arange(6)}
    np.savez(tmp_path / "a.npz", train_images=images, **arrays)
    with pytest.raises(InputError, match="all 6 training images are the same, so nothing can be learned"):
        load_dataset("npz", tmp_path / "a.npz")
    images[5, 4, 3, 2] = 7
    np.savez(tmp_path / "a.npz", train_images=images, **arrays)
    assert np.array_equal(load_dataset("npz", tmp_path / "a.npz").train_images, images)
