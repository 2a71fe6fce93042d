"""What the classifiers of each cycle are trained and measured on: index files, test images, or folds without these."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.provenance import image_digest, int64_digest
from common.settings import require_same
from datasets import Dataset, Split
from datasets.folder.labels import locate
from datasets.index_files import index_path, read_index_file
from train_classifier.engine import LabeledImages
from utils import InputError

FOLDS = 5  # of the labeled images, where there are no test images


@dataclass(frozen=True)
class TrainingSet:
    """The labeled images of one cycle.

    Attributes:
        images: uint8, (L, H, W, 3).
        classes: The classifier's class numbers, int64, (L,).
        columns: What identifies the set in results.csv: the values of some of its columns.
    """

    images: np.ndarray
    classes: np.ndarray
    columns: dict[str, Any]


def read_training_sets(folder: Path, numbers: Iterable[int], *, data: Dataset, split: Split) -> list[TrainingSet]:
    """Reads and checks the index files of some cycles.

    Raises:
        InputError: See read_training_set; or the files come from several strategies.
    """
    training_sets = [read_training_set(folder, number, data=data, split=split) for number in numbers]
    strategies = sorted({training_set.columns["strategy"] for training_set in training_sets})
    if len(strategies) > 1:
        raise InputError(f"{folder} mixes the index files of {' and '.join(strategies)}; write them again")
    return training_sets


def read_training_set(folder: Path, number: int, *, data: Dataset, split: Split) -> TrainingSet:
    """Reads and checks one cycle's index file.

    Raises:
        InputError: The file is missing, damaged, of another data set, split, cycle or other images, or holds an image
            of another class, or a single image.
    """
    path = index_path(folder, number)
    if not path.exists():
        remedy = "query first (same --dataset and --mismatch), or choose fewer cycles with --cycles or --number"
        raise InputError(f"{path} does not exist; {remedy}")
    checks = {"split_digest": split.digest, "n_images": len(data.train_labels)}
    content = read_index_file(path, **(checks if data.has_oracle else {}))  # people's labels go by the images' names
    if (content.dataset, content.cycle) != (data.name, number):
        raise InputError(f"{path} is of {content.dataset}, cycle {content.cycle}; expected {data.name}, cycle {number}")
    labeled, labels = np.asarray(content.labeled, dtype=np.int64), data.train_labels
    if content.files is None and (recorded := content.settings.get("images_digest")):
        queried = image_digest(data.train_images, np.sort(np.concatenate([split.unlabeled, split.labeled])))
        digests = {"images_digest": recorded}, {"images_digest": queried}
        require_same(*digests, what=path, remedy="query again")
    if content.files is not None:
        located = locate(content, str(path), data)
        located.warn(path.name)
        labeled, labels = located.labeled, located.labels
    others = labeled[~np.isin(labels[labeled], split.target_classes)]
    if len(others):
        problem = f"labeled image {others[0]} is of class {labels[others[0]]}, which is not a target class"
        raise InputError(f"{path}: {problem}; write the file again")
    if len(labeled) < 2:
        raise InputError(f"{path} has {len(labeled)} labeled image; training needs at least 2")
    images, classes = data.train_images[labeled], split.class_numbers(labels[labeled])
    columns = {
        "dataset": data.name,
        "mismatch": split.mismatch,
        "strategy": content.strategy,
        "cycle": number,
        "labeled": len(labeled),
        "index_digest": int64_digest(content.labeled),
        "data_digest": data_digest(images, classes, *test_set(data, split)),
    }
    return TrainingSet(images, classes, columns)


def test_set(data: Dataset, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """The target-class test images, uint8 (T, H, W, 3), and their class numbers for the classifier, (T,)."""
    return data.test_images[split.test], split.class_numbers(data.test_labels[split.test])


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
            found.append(read_training_set(folder, number, data=data, split=split))
    return [training_set for training_set in found if training_set.columns["strategy"] == like.columns["strategy"]]


def images_of(
    training_set: TrainingSet, test: LabeledImages | None, *, seed: int, device: torch.device
) -> tuple[LabeledImages, LabeledImages]:
    """What a seed's classifier is trained on and what it is measured on, see train_seeds."""
    images, classes = training_set.images, training_set.classes
    if test is not None:
        return LabeledImages.from_numpy(images, classes, device), test
    chosen = held_out(classes, seed=seed)
    train, held = (LabeledImages.from_numpy(images[part], classes[part], device) for part in (~chosen, chosen))
    return train, held


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
