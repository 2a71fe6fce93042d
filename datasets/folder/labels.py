"""What people said about images of a folder, kept by the files' content: indices shift as a folder changes.

An index file of an annotated query names each image by path and SHA-256. Here these are found again in the folder as
it is now. Where an image lies in a class folder of labeled/ by now, that is its label, whatever was said before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from common.console import warn
from datasets.base import UNKNOWN, Dataset, shown
from datasets.index_files import IndexFile
from utils import InputError

OTHER = -2  # the label of an image of which a person said that it is of no target class
SHOWN = 3  # paths that a warning names


@dataclass(frozen=True)
class Located:
    """An index file's images in the data set as it is now.

    Attributes:
        labels: Of all train images: the folder's own, what people said (OTHER for images that were set aside), else
            UNKNOWN, int64 (N,).
        labeled: Labeled images of the file that are still there, in its order, int64 (L,).
        annotated: Those of them whose label a person gave in a query: they lie in the pool's folder, int64 (A,).
        set_aside: Images of no target class that are still in the pool's folder, int64 (S,).
        lost: Why labels of the file no longer count, each with the paths that it is true of.
    """

    labels: np.ndarray
    labeled: np.ndarray
    annotated: np.ndarray
    set_aside: np.ndarray
    lost: dict[str, list[str]] = field(default_factory=dict)

    def warn(self, name: str) -> None:
        """Warns of labels of the file ``name`` that are lost."""
        for reason, paths in self.lost.items():
            more = f", and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
            listing = ", ".join(shown(path) for path in paths[:SHOWN])
            warn(f"{len(paths)} labeled image(s) of {name} {reason} ({listing}{more})")


GONE = "are no longer in the folder and left out of the labeled set"
CHANGED = "have changed since they were labeled, so they are in the pool again"
TAKEN_BACK = "were moved from labeled/ into unlabeled/, so they are in the pool again"


def locate(content: IndexFile, name: str, data: Dataset) -> Located:
    """Finds the images of an annotated query's index file.

    Args:
        content: Of the file.
        name: Of the file, for messages.
        data: Of a folder with labeled/ and unlabeled/.

    Raises:
        InputError: The file does not name its images, or the folder of a class is gone.
    """
    if content.files is None:
        raise InputError(f"{name} does not name its images by path: it is of no query with --annotate")
    finder = Finder(data)
    labels = data.train_labels.copy()
    labeled: list[int] = []
    annotated: list[int] = []
    lost: dict[str, list[str]] = {}
    for (path, digest), number in zip(content.files["labeled"], content.labels, strict=True):
        image = finder.find(path, digest)
        if image is None:
            lost.setdefault(CHANGED if finder.is_there(path) else GONE, []).append(path)
        elif data.train_labels[image] != UNKNOWN:
            labeled.append(image)
        elif path.startswith("labeled/"):
            lost.setdefault(TAKEN_BACK, []).append(path)
        else:
            labels[image] = class_number(content.class_names[number], data.class_names, name)
            labeled.append(image)
            annotated.append(image)
    found = (finder.find(path, digest) for path, digest in content.files["set_aside"])
    set_aside = [image for image in found if image is not None and data.train_labels[image] == UNKNOWN]
    labels[set_aside] = OTHER
    return Located(labels, *(np.asarray(part, dtype=np.int64) for part in (labeled, annotated, set_aside)), lost)


def class_number(label: str, class_names: Sequence[str], name: str) -> int:
    """A class's number in the folder as it is now.

    Raises:
        InputError: Its folder is gone.
    """
    if label not in class_names:
        raise InputError(
            f"{name} has images of class {label!r}, and there is no folder labeled/{shown(label)} any more: put it "
            "back (with an image in it), or begin anew with another --index_dir"
        )
    return class_names.index(label)


class Finder:
    """Finds files of a folder by content, wherever they lie now.

    Args:
        data: Its images, no two of which have the same content.
    """

    def __init__(self, data: Dataset) -> None:
        self._labels = data.train_labels
        self._by_digest = {digest: image for image, digest in enumerate(data.digests)}
        self._by_path = {path: image for image, path in enumerate(data.paths)}

    def find(self, path: str, digest: str) -> int | None:
        """The image with this content; or, where the path lies in a class folder, whatever is there now."""
        if digest in self._by_digest:
            return self._by_digest[digest]
        image = self._by_path.get(path)
        return None if image is None or self._labels[image] == UNKNOWN else image

    def is_there(self, path: str) -> bool:
        """Whether an image lies at this path."""
        return path in self._by_path
