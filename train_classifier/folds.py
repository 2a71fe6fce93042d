"""Measuring without a test set: each seed's classifier is trained without one fold of the labeled images."""

from __future__ import annotations

import numpy as np

from utils import InputError

FOLDS = 5


def held_out(classes: np.ndarray, *, seed: int) -> np.ndarray:
    """Which labeled images the classifier of a seed is measured on, bool (L,): fold ``seed`` mod FOLDS.

    The folds divide each class evenly and are the same for all seeds, so FOLDS seeds in a row measure each image once.
    The only image of a class is always trained on.

    Args:
        classes: Class numbers of the labeled images, (L,).
        seed: Of the classifier.

    Raises:
        InputError: There are too few images for the fold to hold one.
    """
    fold = np.full(len(classes), -1)
    generator = np.random.default_rng(0)
    start = 0
    for number in np.unique(classes):
        images = generator.permutation(np.flatnonzero(classes == number))
        if len(images) > 1:
            # Going on where the class before has ended keeps the folds of small classes from being all the first ones.
            fold[images] = (start + np.arange(len(images))) % FOLDS
            start += len(images)
    chosen = fold == seed % FOLDS
    if not chosen.any():
        raise InputError(
            f"{len(classes)} labeled images are too few for {FOLDS} folds, and there are no test images: put some of "
            "each class into test/<class>/, or label more"
        )
    return chosen
