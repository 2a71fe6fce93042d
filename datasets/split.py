"""The split protocol of CCAL: which images are labeled, which form the pool, and which are targets."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.console import listed
from datasets.base import UNKNOWN
from utils import InputError


@dataclass(frozen=True)
class Split:
    """Who is who at one moment of the active learning loop; all indices point into the train images.

    Attributes:
        labeled: Labeled target images, in the order in which they were labeled, int64 (L,).
        unlabeled: The pool, int64 (U,).
        set_aside: Known images of other classes: queried ones cost budget, and none is ever trained on, int64 (A,).
        test: Target-class images of the test set, int64 (T,).
        target_classes: Data set classes that matter; the position in the list is the classifier's class number.
        mismatch: Share of other-class images in the initial pool; None where nobody knows it.
        seed: Seed of every draw.
        digest: SHA-256 of the initial split; it stays the same as images get annotated.
        history: Of each annotation so far, how many images were annotated and how many of them are targets.
    """

    labeled: np.ndarray
    unlabeled: np.ndarray
    set_aside: np.ndarray
    test: np.ndarray
    target_classes: tuple[int, ...]
    mismatch: float | None
    seed: int
    digest: str
    history: tuple[tuple[int, int], ...] = ()

    def annotate(self, indices: np.ndarray, labels: np.ndarray) -> Split:
        """Returns the split after the oracle labeled ``indices``: targets join ``labeled``, others are set aside.

        Args:
            indices: Queried pool images, (Q,).
            labels: Labels of all train images, (N,).

        Raises:
            InputError: An index is not in the pool or stands there twice, or nobody knows its label.
        """
        indices = np.asarray(indices, dtype=np.int64)
        if len(np.unique(indices)) != len(indices):
            raise InputError("an image was queried twice in one cycle; each may be annotated once")
        strangers = np.setdiff1d(indices, self.unlabeled)
        if len(strangers):
            raise InputError(f"image {strangers[0]} is not in the pool and cannot be annotated")
        unknown = indices[labels[indices] == UNKNOWN]
        if len(unknown):
            raise InputError(f"nobody has labeled image {unknown[0]} yet, so it cannot be annotated")
        found = np.isin(labels[indices], self.target_classes)
        return dataclasses.replace(
            self,
            labeled=np.concatenate([self.labeled, indices[found]]),
            unlabeled=self.unlabeled[~np.isin(self.unlabeled, indices)],
            set_aside=np.concatenate([self.set_aside, indices[~found]]),
            history=self.history + ((len(indices), int(found.sum())),) * bool(len(indices)),
        )

    def contrast(self) -> np.ndarray:
        """What both encoders train on: all images of the split, shuffled (seeded), int64 (U + L + A,)."""
        indices = self.unlabeled.tolist() + self.labeled.tolist() + self.set_aside.tolist()
        random.Random(self.seed).shuffle(indices)
        return np.asarray(indices, dtype=np.int64)

    def untested(self, test_labels: np.ndarray) -> list[int]:
        """Target classes without a test image, though others have one; ``test_labels``: of all test images, (M,)."""
        tested = set(test_labels[self.test].tolist())
        return [label for label in self.target_classes if tested and label not in tested]

    def class_numbers(self, labels: np.ndarray) -> np.ndarray:
        """Maps data set labels of target images to the classifier's 0 .. n - 1."""
        position = {label: number for number, label in enumerate(self.target_classes)}
        return np.asarray([position[int(label)] for label in labels], dtype=np.int64)


def make_split(
    train_labels: np.ndarray,
    test_labels: np.ndarray,
    *,
    target_classes: Sequence[int],
    mismatch: float | str,
    initial_budget: int,
    initial_others: int = 0,
    seed: int = 0,
    others: np.ndarray | None = None,
    content: str | None = None,
) -> Split:
    """Draws the initial split, index for index as the original protocol does.

    Each draw starts from the same seed: ``initial_budget`` target images are labeled; the remaining targets T and
    ceil(mismatch |T| / (1 - mismatch)) images of other classes form the pool; ``initial_others`` more are set aside.

    Args:
        train_labels: (N,).
        test_labels: (M,).
        target_classes: Data set classes, in the classifier's order.
        mismatch: Share of other-class images in the pool, in [0, 1), or ``all`` for as many as there are.
        initial_budget: Number of labeled target images at the start.
        initial_others: Number of images known to be of other classes at the start.
        seed: Seed of every draw; the protocol's is 0.
        others: Images that the other-class ones are drawn from, (M,); None for all of other classes.
        content: Digest of the images, where the split's digest has to change with them.

    Raises:
        InputError: A class does not exist or stands there twice, or a number is out of range or of what there is.
    """
    classes, present = tuple(int(label) for label in target_classes), set(np.unique(train_labels).tolist())
    if not classes:
        raise InputError("--target_classes is empty; name at least one class")
    if len(set(classes)) != len(classes):
        raise InputError(f"--target_classes names a class twice: {' '.join(map(str, classes))}")
    if unknown := [label for label in classes if label not in present]:
        there = f"classes {listed(sorted(present), 20)}"
        raise InputError(f"--target_classes: class {unknown[0]} has no images; the data set has {there}")
    if mismatch != "all" and not 0 <= mismatch < 1:
        raise InputError(f"--mismatch must be in [0, 1), got {mismatch}")
    targets = np.flatnonzero(np.isin(train_labels, classes)).tolist()
    if not 1 <= initial_budget < len(targets):
        raise InputError(
            f"--initial_budget must be from 1 to {len(targets) - 1} (target images less one), got {initial_budget}"
        )
    initial = random.Random(seed).sample(targets, initial_budget)
    if absent := [label for label in classes if label not in set(np.asarray(train_labels)[initial].tolist())]:
        raise InputError(
            f"--initial_budget {initial_budget} leaves class {absent[0]} without a labeled image; "
            "raise it, or take another --split_seed"
        )
    labeled = set(initial)
    pool_targets = [index for index in targets if index not in labeled]
    others = (np.flatnonzero(~np.isin(train_labels, classes)) if others is None else others).tolist()
    left = len(others) - initial_others
    if left < 0:
        raise InputError(f"--initial_others {initial_others}: there are {len(others)} images of other classes")
    n_others = left if mismatch == "all" else _others_asked_for(mismatch, len(pool_targets))
    if n_others > left:
        raise InputError(
            f"--mismatch {mismatch} asks for {n_others} images of other classes and {left} exist; "
            f"the largest possible here is {_largest_mismatch(len(pool_targets), left):.4f}"
        )
    drawn = random.Random(seed).sample(others, n_others + initial_others)
    unlabeled, aside = pool_targets + drawn[:n_others], np.asarray(drawn[n_others:], dtype=np.int64)
    test = np.flatnonzero(np.isin(test_labels, classes))
    if not len(test):
        raise InputError("the test set has no image of a target class; the accuracy could not be measured")
    parts = [np.asarray(part, dtype=np.int64) for part in (initial, unlabeled, test, classes)]
    return Split(
        labeled=parts[0],
        unlabeled=parts[1],
        set_aside=aside,
        test=parts[2],
        target_classes=classes,
        mismatch=n_others / len(unlabeled) if mismatch == "all" else mismatch,
        seed=seed,
        digest=_digest(parts + [aside] * bool(initial_others), content),
    )


def given_split(
    train_labels: np.ndarray, test_labels: np.ndarray, *, num_classes: int, seed: int = 0, content: str | None = None
) -> Split:
    """The split of images that nobody but their owner has labeled: what has a label is labeled, the rest is the pool.

    All classes are targets. The share of other images in the pool is unknown.

    Args:
        train_labels: (N,), UNKNOWN for the pool.
        test_labels: (M,).
        num_classes: Labels are 0 .. num_classes - 1.
        seed: Of the order in which the encoders see the images.
        content: Digest of the images.
    """
    known = train_labels != UNKNOWN
    parts = [np.flatnonzero(known), np.flatnonzero(~known), np.arange(len(test_labels)), np.arange(num_classes)]
    labeled, unlabeled, test, classes = (part.astype(np.int64) for part in parts)
    return Split(
        labeled=labeled,
        unlabeled=unlabeled,
        set_aside=np.empty(0, dtype=np.int64),
        test=test,
        target_classes=tuple(range(num_classes)),
        mismatch=None,
        seed=seed,
        digest=_digest([labeled, unlabeled, train_labels[labeled], classes], content),
    )


def _digest(parts: Sequence[np.ndarray], content: str | None) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part.astype("<i8").tobytes())
    if content is not None:
        digest.update(content.encode())
    return digest.hexdigest()


def _others_asked_for(mismatch: float, n_targets: int) -> int:
    # In exactly this form: in double precision it gives 36801 for CIFAR at 0.8, and so does the protocol.
    return math.ceil((mismatch * n_targets) / (1 - mismatch))


def _largest_mismatch(n_targets: int, n_others: int) -> float:
    """The largest mismatch of four decimals for which enough other-class images exist."""
    steps = math.floor(n_others / (n_others + n_targets) * 1e4)
    # In double precision 0.8 asks for 401 images beside 100 targets, where exactly 400 would do.
    while _others_asked_for(steps / 1e4, n_targets) > n_others:
        steps -= 1
    return steps / 1e4
