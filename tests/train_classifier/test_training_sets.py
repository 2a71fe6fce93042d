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
from train_classifier.training_sets import FOLDS, TrainingSet, held_out, images_of, read_training_sets, readable_sets
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


def test_without_test_images_a_seed_is_measured_on_its_fold() -> None:
    images = np.broadcast_to(np.arange(18, dtype=np.uint8)[:, None, None, None], (18, 4, 4, 3)).copy()
    train, held = images_of(TrainingSet(images, CLASSES, {}), None, seed=1, device=torch.device("cpu"))
    chosen = held_out(CLASSES, seed=1)
    assert held.images[:, 0, 0, 0].tolist() == np.flatnonzero(chosen).tolist()
    assert train.images[:, 0, 0, 0].tolist() == np.flatnonzero(~chosen).tolist()
    assert held.labels.tolist() == CLASSES[chosen].tolist()


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
