"""What the classifiers of each cycle are trained and measured on: index files, test images, or folds without these."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.console import shown, warn
from common.provenance import image_digest, int64_digest
from common.settings import require_same
from datasets import Dataset, Split
from datasets.folder.labels import locate
from datasets.index_files import index_path, read_index_file
from train_classifier.engine import LabeledImages
from utils import InputError

FOLDS = 5  # of the labeled images, where there are no test images
IMBALANCE = 10  # times as many labeled images of one class as of another, from where a warning is due


@dataclass(frozen=True)
class TrainingSet:
    """The labeled images of one cycle.

    Attributes:
        images: uint8, (L, H, W, 3); where others are trained, those that are set aside follow.
        classes: The classifier's class numbers, int64, (L,); of others that of the output after the last class.
        columns: What identifies the set in results.csv: the values of some of its columns.
        settings: What the index file's query was made with.
    """

    images: np.ndarray
    classes: np.ndarray
    columns: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def has_others(self) -> bool:
        """Whether there is an output for them."""
        return len(self.classes) > self.columns["labeled"]


@dataclass(frozen=True)
class Measured:
    """What classifiers are measured on, as far as the data set has such images."""

    targets: LabeledImages | None
    others: LabeledImages | None  # of other classes


def read_training_sets(
    folder: Path, numbers: Iterable[int], *, data: Dataset, split: Split, other: str = "drop"
) -> list[TrainingSet]:
    """Reads and checks the index files of some cycles; those with a single class and no image of others are left out.

    Raises:
        InputError: See read_training_set; the files come from several strategies; or no cycle is left.
    """
    training_sets = [read_training_set(folder, number, data=data, split=split, other=other) for number in numbers]
    strategies = sorted({training_set.columns["strategy"] for training_set in training_sets})
    if len(strategies) > 1:
        raise InputError(f"{folder} mixes the index files of {' and '.join(strategies)}; write them again")
    if len(split.target_classes) > 1:
        return training_sets
    usable = [training_set for training_set in training_sets if training_set.has_others]
    name = data.class_names[split.target_classes[0]]
    if not usable:
        raise InputError(
            f"{shown(name)} is the only target class: a classifier needs a second one, or images of other classes that "
            "a query has set aside (a later cycle, and not --other drop)"
        )
    for training_set in training_sets:
        if not training_set.has_others:
            warn(f"cycle {training_set.columns['cycle']} is left out: nothing but {shown(name)} is labeled there")
    return usable


def read_training_set(folder: Path, number: int, *, data: Dataset, split: Split, other: str = "drop") -> TrainingSet:
    """Reads and checks one cycle's index file; with ``other`` "class", images that are set aside are trained on.

    Raises:
        InputError: The file is missing, damaged, of another data set, split, cycle or other images, or holds an image
            of another class (or of a target class among those set aside), or a single image.
    """
    path = index_path(folder, number)
    if not path.exists():
        remedy = "query first (same --dataset and --mismatch), or choose fewer cycles with --cycles or --number"
        raise InputError(f"{path} does not exist; {remedy}")
    checks = {"split_digest": split.digest, "n_images": len(data.train_labels)}
    content = read_index_file(path, **(checks if data.has_oracle else {}))  # people's labels go by the images' names
    if (content.dataset, content.cycle) != (data.name, number):
        raise InputError(f"{path} is of {content.dataset}, cycle {content.cycle}; expected {data.name}, cycle {number}")
    labeled, aside = (np.asarray(part, dtype=np.int64) for part in (content.labeled, content.set_aside))
    labels = data.train_labels
    if content.files is None and (recorded := content.settings.get("images_digest")):
        queried = image_digest(data.train_images, np.sort(np.concatenate([split.unlabeled, split.labeled])))
        digests = {"images_digest": recorded}, {"images_digest": queried}
        require_same(*digests, what=path, remedy="query again")
    if content.files is not None:
        located = locate(content, str(path), data)
        located.warn(path.name)
        labeled, aside, labels = located.labeled, located.set_aside, located.labels
    others = labeled[~np.isin(labels[labeled], split.target_classes)]
    if len(others):
        problem = f"labeled image {others[0]} is of class {labels[others[0]]}, which is not a target class"
        raise InputError(f"{path}: {problem}; write the file again")
    if len(labeled) < 2:
        raise InputError(f"{path} has {len(labeled)} labeled image; training needs at least 2")
    if (wrong := aside[np.isin(labels[aside], split.target_classes)]).size:
        raise InputError(f"{path}: image {wrong[0]} is set aside, and of a target class; write the file again")
    classes, test = split.class_numbers(labels[labeled]), test_set(data, split)
    if other == "class":
        labeled = np.concatenate([labeled, aside])
        classes = np.concatenate([classes, np.full(len(aside), len(split.target_classes))])
        test += (other_test_images(data, split),)
    images = data.train_images[labeled]
    columns = {
        "dataset": data.name,
        "mismatch": split.mismatch,
        "strategy": content.strategy,
        "cycle": number,
        "labeled": len(labeled) - len(aside) * (other == "class"),
        "other": other,
        "index_digest": int64_digest(content.labeled),
        "data_digest": data_digest(images, classes, *test),
    }
    return TrainingSet(images, classes, columns, content.settings)


def test_set(data: Dataset, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """The target-class test images, uint8 (T, H, W, 3), and their class numbers for the classifier, (T,)."""
    return data.test_images[split.test], split.class_numbers(data.test_labels[split.test])


def other_test_images(data: Dataset, split: Split) -> np.ndarray:
    """The test images of other classes, uint8 (A, H, W, 3)."""
    return data.test_images[~np.isin(data.test_labels, split.target_classes)]


def data_digest(*arrays: np.ndarray) -> str:
    """SHA-256 of the arrays' shapes and contents."""
    content = hashlib.sha256()
    for array in arrays:
        content.update(str(array.shape).encode() + array.tobytes())
    return content.hexdigest()


def readable_sets(
    folder: Path, numbers: Iterable[int], *, like: TrainingSet, data: Dataset, split: Split
) -> list[TrainingSet]:
    """Further cycles of the same strategy, of which the table shows the rows; a file that cannot be used is left out.

    So table and curve grow from one command with --number to the next.
    """
    found = []
    for number in numbers:
        with contextlib.suppress(InputError):
            other = like.columns["other"]
            found.append(read_training_set(folder, number, data=data, split=split, other=other))
    return [training_set for training_set in found if training_set.columns["strategy"] == like.columns["strategy"]]


def measured_part(training_set: TrainingSet, test: Measured, *, seed: int) -> np.ndarray:
    """Which images a seed's classifier is measured on and not trained on, bool (L,): where test images lack, a fold.

    Raises:
        InputError: There are too few images for that.
    """
    targets = np.arange(len(training_set.classes)) < training_set.columns["labeled"]
    chosen = np.zeros(len(targets), dtype=bool)
    if test.targets is None:
        chosen[targets] = held_out(training_set.classes[targets], seed=seed)
    if test.others is None and training_set.has_others:
        with contextlib.suppress(InputError):  # too few of them: their rejection is not measured
            chosen[~targets] = held_out(training_set.classes[~targets], seed=seed)
    if (~chosen & targets).sum() < 2:
        raise InputError("one labeled image is left to train on, and two are needed: label more")
    return chosen


def check(training_sets: Sequence[TrainingSet], test: Measured, *, names: Sequence[str], seeds: Sequence[int]) -> None:
    """Warns of what the accuracy would hide: classes that are not measured, or of which little is labeled.

    Raises:
        InputError: The images do not suffice for one of the seeds, which would stop the command when that is reached.
    """
    measured = range(len(names)) if test.targets is None else test.targets.labels.unique().tolist()
    if missing := [shown(name) for number, name in enumerate(names) if number not in measured]:
        warn(f"no test image of {', '.join(missing)}: the accuracy is that of the other classes alone")
    for training_set in training_sets:
        counts = [(int((training_set.classes == number).sum()), shown(name)) for number, name in enumerate(names)]
        if len(names) > 1 and max(counts)[0] >= IMBALANCE * min(counts)[0]:
            found = "{} of {}".format(*max(counts)), "{} of {}".format(*min(counts))
            cycle = f"cycle {training_set.columns['cycle']}"
            warn(f"{cycle}: the labeled images are unbalanced ({', '.join(found)}): look at the balanced accuracy")
        for seed in seeds[:FOLDS]:
            measured_part(training_set, test, seed=seed)


def held_out(classes: np.ndarray, *, seed: int) -> np.ndarray:
    """Which labeled images the classifier of a seed is measured on, bool (L,): fold ``seed`` mod FOLDS.

    The folds divide each class evenly and are the same for all seeds, so FOLDS seeds in a row measure each image once.
    The only image of a class is always trained on. ``classes`` are class numbers, (L,).

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
