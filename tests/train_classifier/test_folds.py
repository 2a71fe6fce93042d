"""train_classifier/folds.py: each image is measured once, and each class is divided evenly."""

from __future__ import annotations

import numpy as np
import pytest

from train_classifier.folds import FOLDS, held_out
from utils import InputError

CLASSES = np.repeat([0, 1, 2], [10, 7, 1])


def test_five_seeds_in_a_row_hold_out_each_image_once_but_the_only_one_of_a_class():
    times = sum(held_out(CLASSES, seed=seed).astype(int) for seed in range(3, 3 + FOLDS))
    assert times.tolist() == [1] * 17 + [0]


def test_each_class_is_divided_evenly():
    for seed in range(FOLDS):
        chosen = held_out(CLASSES, seed=seed)
        assert chosen[:10].sum() == 2 and chosen[10:17].sum() in (1, 2)


def test_a_seed_always_has_the_same_fold():
    assert (held_out(CLASSES, seed=1) == held_out(CLASSES, seed=1)).all()
    assert (held_out(CLASSES, seed=1) == held_out(CLASSES, seed=1 + FOLDS)).all()


def test_small_classes_share_the_folds():
    # Two images of each of three classes: six images, and no fold is without one.
    assert [int(held_out(np.repeat([0, 1, 2], 2), seed=seed).sum()) for seed in range(FOLDS)] == [2, 1, 1, 1, 1]


def test_too_few_images_for_a_fold():
    with pytest.raises(InputError, match="3 labeled images are too few for 5 folds"):
        held_out(np.array([0, 0, 1]), seed=4)
