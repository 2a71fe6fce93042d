"""What classifiers are trained and measured on: index files that fit, and folds that measure each image once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from common.provenance import int64_digest
from datasets import Dataset, Split
from datasets.index_files import IndexFile, index_path, write_index_file
from datasets.split import make_split
from train_classifier import training_sets
from train_classifier.engine import LabeledImages
from train_classifier.training_sets import (
    FOLDS,
    Measured,
    TrainingSet,
    check,
    held_out,
    measured_part,
    read_training_sets,
    readable_sets,
)
from utils import InputError

CLASSES = np.repeat([0, 1, 2], [10, 7, 1])


@pytest.fixture
def data() -> Dataset:
    """36 train images, whose pixels are their numbers, and 6 test images, of three classes."""
    images, labels = np.arange(36, dtype=np.uint8), np.arange(36) % 3
    images = np.broadcast_to(images[:, None, None, None], (36, 8, 8, 3)).copy()
    return Dataset("npz", images, labels, images[:6], labels[:6], 3, class_names=("a", "b", "c"))


@pytest.fixture
def split(data: Dataset) -> Split:
    return make_split(data.train_labels, data.test_labels, target_classes=(2, 0), mismatch=0.25, initial_budget=6)


def write(folder: Path, split: Split, number: int, labeled: list[int], **changes: object) -> None:
    content = IndexFile("npz", 0.25, split.digest, [2, 0], "ccal", number, labeled, [], [])
    write_index_file(folder, dataclasses.replace(content, **changes)).rename(index_path(folder, number))


def test_images_and_classes_are_those_of_the_labeled_list(tmp_path: Path, data: Dataset, split: Split) -> None:
    write(tmp_path, split, 0, [5, 9, 0])
    write(tmp_path, split, 2, [3, 2], strategy="random")
    [found] = read_training_sets(tmp_path, [0], data=data, split=split)
    assert found.images[:, 0, 0, 0].tolist() == [5, 9, 0]
    assert found.classes.tolist() == [0, 1, 1]  # class 2 is named first
    assert training_sets.test_set(data, split)[1].tolist() == [1, 0, 1, 0]
    assert found.columns["index_digest"] == int64_digest([5, 9, 0]) and found.columns["labeled"] == 3
    assert readable_sets(tmp_path, [1, 2], like=found, data=data, split=split) == []  # missing; of another strategy


@pytest.mark.parametrize(
    ("labeled", "changes", "message"),
    [
        ([0, 2], {"split_digest": "0" * 64}, "belongs to another split"),
        ([0, 2], {"dataset": "digits"}, "is of digits, cycle 1; expected npz, cycle 1"),
        ([0, 2], {"cycle": 5}, "is of npz, cycle 5; expected npz, cycle 1"),
        ([0, 2], {"strategy": "random"}, "mixes the index files of ccal and random"),
        ([0, 2, 36], {}, "holds index 36"),
        ([0, 2, 4], {}, "labeled image 4 is of class 1, which is not a target class"),
        ([0], {}, "has 1 labeled image"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    tmp_path: Path, data: Dataset, split: Split, labeled: list[int], changes: dict, message: str
) -> None:
    write(tmp_path, split, 0, [0, 2])
    write(tmp_path, split, 1, labeled, **changes)
    with pytest.raises(InputError, match=message):
        read_training_sets(tmp_path, [0, 1], data=data, split=split)


def test_others_follow_the_targets_where_they_are_trained(tmp_path: Path, data: Dataset, split: Split) -> None:
    write(tmp_path, split, 0, [5, 9, 0], set_aside=[4, 1])
    [dropped] = read_training_sets(tmp_path, [0], data=data, split=split)
    [found] = read_training_sets(tmp_path, [0], data=data, split=split, other="class")
    assert found.images[:, 0, 0, 0].tolist() == [5, 9, 0, 4, 1] and found.classes.tolist() == [0, 1, 1, 2, 2]
    assert found.has_others and not dropped.has_others and found.columns["labeled"] == 3
    assert found.columns["data_digest"] != dropped.columns["data_digest"]
    write(tmp_path, split, 0, [5, 9, 0], set_aside=[4, 3])
    with pytest.raises(InputError, match="image 3 is set aside, and of a target class"):
        read_training_sets(tmp_path, [0], data=data, split=split, other="class")


def test_one_class_is_trained_against_others_alone(tmp_path: Path, data: Dataset, capsys) -> None:
    split = make_split(data.train_labels, data.test_labels, target_classes=(2,), mismatch=0.25, initial_budget=6)
    for cycle, aside in enumerate([[], [4, 1]]):
        write(tmp_path, split, cycle, [5, 8], target_classes=[2], set_aside=aside)
    for cycles, other in ([0], "class"), ([0, 1], "drop"):
        with pytest.raises(InputError, match="c is the only target class: a classifier needs a second one"):
            read_training_sets(tmp_path, cycles, data=data, split=split, other=other)
    [found] = read_training_sets(tmp_path, [0, 1], data=data, split=split, other="class")
    assert found.columns["cycle"] == 1 and found.classes.tolist() == [0, 0, 1, 1]
    assert "warning: cycle 0 is left out: nothing but c is labeled there" in capsys.readouterr().out


def a_set(*counts: int, others: int = 0) -> TrainingSet:
    """As many images of each class as ``counts`` says, and then others."""
    classes = np.repeat(np.arange(len(counts) + 1), [*counts, others])
    images = np.broadcast_to(
        (np.arange(len(classes)) % 256).astype(np.uint8)[:, None, None, None], (len(classes), 4, 4, 3)
    )
    return TrainingSet(images, classes, {"labeled": sum(counts), "cycle": 3})


def some(*labels: int) -> LabeledImages:
    return LabeledImages(torch.zeros(len(labels), 3, 4, 4, dtype=torch.uint8), torch.tensor(labels))


NOTHING = Measured(None, None)


def test_what_has_no_test_images_is_measured_on_its_fold() -> None:
    images = a_set(10, 7, 1, others=10)
    measured = {
        (targets, others): measured_part(images, Measured(targets and some(0, 1, 2), others and some(3)), seed=1)
        for targets in (None, True)
        for others in (None, True)
    }
    fold, of_others = held_out(CLASSES, seed=1), held_out(np.zeros(10), seed=1)
    for (targets, others), chosen in measured.items():
        assert (chosen[:18] == (fold if targets is None else False)).all()
        assert (chosen[18:] == (of_others if others is None else False)).all()
    assert not measured_part(a_set(5, 5, others=1), Measured(some(0, 1), None), seed=0).any()  # too few to hold out


def test_too_few_images_for_a_later_seed_are_refused_at_once() -> None:
    check([a_set(2, 2)], NOTHING, names=("a", "b"), seeds=range(4))
    with pytest.raises(InputError, match="4 labeled images are too few for 5 folds"):
        check([a_set(2, 2)], NOTHING, names=("a", "b"), seeds=range(5))
    with pytest.raises(InputError, match="one labeled image is left to train on"):
        check([a_set(2)], NOTHING, names=("a",), seeds=range(1))


def test_classes_that_the_accuracy_hides_are_named(capsys) -> None:
    check([a_set(9, 1, 3), a_set(30, 3, 4)], Measured(some(0, 0, 2), None), names=("a", "b", "c"), seeds=[0])
    assert capsys.readouterr().out.splitlines() == [
        "warning: no test image of b: the accuracy is that of the other classes alone",
        "warning: cycle 3: the labeled images are unbalanced (30 of a, 3 of b): look at the balanced accuracy",
    ]
    check([a_set(9, 1), a_set(9, 0)], NOTHING, names=("a", "b"), seeds=[0])
    assert "(9 of a, 0 of b)" in capsys.readouterr().out


def test_five_seeds_in_a_row_hold_out_each_image_once_but_the_only_one_of_a_class() -> None:
    times = sum(held_out(CLASSES, seed=seed).astype(int) for seed in range(3, 3 + FOLDS))
    assert times.tolist() == [1] * 17 + [0]
    assert (held_out(CLASSES, seed=1) == held_out(CLASSES, seed=1 + FOLDS)).all()


def test_each_class_is_divided_evenly_and_small_ones_share_the_folds() -> None:
    for seed in range(FOLDS):
        chosen = held_out(CLASSES, seed=seed)
        assert chosen[:10].sum() == 2 and chosen[10:17].sum() in (1, 2)
    # Two images of each of three classes: six images, and no fold is without one.
    assert [int(held_out(np.repeat([0, 1, 2], 2), seed=seed).sum()) for seed in range(FOLDS)] == [2, 1, 1, 1, 1]


def test_too_few_images_for_a_fold() -> None:
    with pytest.raises(InputError, match="3 labeled images are too few for 5 folds"):
        held_out(np.array([0, 0, 1]), seed=4)
