"""The labels that people gave in an annotated query, found again in the folder as it is now.

The index file of an annotated query names each image by path and SHA-256, because image numbers shift as the folder
changes. An image that lies in a class folder of labeled/ by now has that label, whatever was said before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.console import listed, shown, warn
from datasets.base import UNKNOWN, Dataset, plain_name
from datasets.index_files import IndexFile
from utils import InputError

SET_ASIDE = -2  # the label of a queried image that is of no target class
# Why a label of the file does not count any more.
GONE = "are no longer in the folder and left out of the labeled set"
CHANGED = "have changed since they were labeled, so they are in the pool again"
TAKEN_BACK = "were moved from labeled/ into unlabeled/, so they are in the pool again"


@dataclass(frozen=True)
class Located:
    """The images of an index file in the data set as it is now."""

    labels: np.ndarray  # of all train images: the folder's own or people's, SET_ASIDE or UNKNOWN, int64 (N,)
    labeled: np.ndarray  # labeled images of the file that are still there, in its order, int64 (L,)
    annotated: np.ndarray  # those of them that lie in unlabeled/: their label is from a query, int64 (A,)
    set_aside: np.ndarray  # images of no target class that are still in unlabeled/, int64 (S,)
    lost: dict[str, list[str]]  # paths of labeled images that do not count any more, by the reason

    def warn(self, name: str) -> None:
        """Warns of the lost labels of the file ``name``."""
        for reason, paths in self.lost.items():
            warn(f"{len(paths)} labeled image(s) of {name} {reason} ({listed(paths)})")


def locate(content: IndexFile, name: str, data: Dataset) -> Located:
    """Finds the images of an annotated query's index file, called ``name`` in messages.

    Raises:
        InputError: The file does not name its images, or the folder of a class is gone.
    """
    if content.files is None:
        raise InputError(f"{name} does not name its images by path: it is not of a query with --annotate")
    finder, labels = Finder(data), data.train_labels.copy()
    labeled, annotated, lost = [], [], defaultdict(list)
    for (path, digest), number in zip(content.files["labeled"], content.labels, strict=True):
        image = finder.find(path, digest)
        if image is None:
            lost[CHANGED if path in finder.by_path else GONE].append(path)
        elif data.train_labels[image] == UNKNOWN and path.startswith("labeled/"):
            lost[TAKEN_BACK].append(path)
        else:
            labeled.append(image)
            if data.train_labels[image] == UNKNOWN:
                labels[image] = class_number(content.class_names[number], data.class_names, name)
                annotated.append(image)
    found = [finder.find(path, digest) for path, digest in content.files["set_aside"]]
    set_aside = [image for image in found if image is not None and data.train_labels[image] == UNKNOWN]
    labels[set_aside] = SET_ASIDE
    return Located(labels, *(np.asarray(part, dtype=np.int64) for part in (labeled, annotated, set_aside)), dict(lost))


def class_number(label: str, class_names: Sequence[str], name: str) -> int:
    """A class's number in the folder as it is now; raises InputError, which names the file, if its folder is gone."""
    numbers = {plain_name(known): number for number, known in enumerate(class_names)}
    if plain_name(label) not in numbers:
        problem = f"{name} has images of class {label!r}, and there is no folder labeled/{shown(label)} any more"
        raise InputError(f"{problem}: put it back (with an image in it), or start again with another --index_dir")
    return numbers[plain_name(label)]


class Finder:
    """Finds the images of a folder by content, wherever they lie now; no two have the same content."""

    def __init__(self, data: Dataset) -> None:
        self._labels = data.train_labels
        self._by_digest = {digest: image for image, digest in enumerate(data.digests)}
        self.by_path = {path: image for image, path in enumerate(data.paths)}

    def find(self, path: str, digest: str) -> int | None:
        """The image with this content; or, if the path lies in a class folder, the image that is there now."""
        if digest in self._by_digest:
            return self._by_digest[digest]
        image = self.by_path.get(path)
        return None if image is None or self._labels[image] == UNKNOWN else image
