"""The one shape in which every data set is held."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from common.console import listed, warn
from utils import InputError

MAX_CLASSES = 100_000
UNKNOWN = -1  # the label of an image that nobody has labeled yet
NEARLY_BLACK = 32  # images whose largest value of 255 is below: most were written in another range


@dataclass(frozen=True)
class Dataset:
    """Images decoded once, and their labels.

    Attributes:
        name: The data set's name.
        train_images: uint8, (N, H, W, 3); may be memory-mapped.
        train_labels: int64, (N,); UNKNOWN for images that nobody has labeled yet.
        test_images: uint8, (M, H, W, 3); M is 0 where there is no test set.
        test_labels: int64, (M,).
        num_classes: Labels are 0 .. num_classes - 1.
        class_names: One name per class.
        paths: Of images from a folder: each train image's path within it (POSIX, as os.fsdecode gives it).
        digests: SHA-256 of each such file; no two are the same.
        sources: Names of the data sets of a mixed pool, that with the target classes first; otherwise empty.
        source_numbers: Position in ``sources`` of each train image, int64 (N,).
        digest: SHA-256 of files and paths, where indices alone do not say which images are meant.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    num_classes: int
    class_names: tuple[str, ...]
    paths: tuple[str, ...] | None = None
    digests: tuple[str, ...] | None = None
    sources: tuple[str, ...] = ()
    source_numbers: np.ndarray | None = None
    digest: str | None = None

    @property
    def has_oracle(self) -> bool:
        """Whether the class of every train image is known, so that an oracle can be simulated."""
        return not (self.train_labels == UNKNOWN).any()

    def count_by_source(self, indices: np.ndarray) -> dict[str, int]:
        """How many of some train images are from each source; empty if there is only one source."""
        if self.source_numbers is None:
            return {}
        counts = np.bincount(self.source_numbers[indices], minlength=len(self.sources)).tolist()
        return dict(zip(self.sources, counts, strict=True))

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.train_images.shape[1], self.train_images.shape[2]


def plain_name(name: str) -> str:
    """A name without what people do not take for a difference: letter case and the form of accents (NFC, NFD)."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def spreadsheet_name(name: str) -> str:
    """What is left of a name in a spreadsheet's cell: 01 and 1.0 become 1, 1e1 becomes 10, True becomes TRUE."""
    if re.fullmatch(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?\s*", name, re.IGNORECASE):
        return f"{float(name):.15g}"
    return name.upper() if name.upper() in ("TRUE", "FALSE") else plain_name(name)


def twins(names: Iterable[str], same: Callable[[str], str] = plain_name) -> list[str]:
    """The first two or more of some names that ``same`` makes one name, in order; empty where all stay apart."""
    groups = defaultdict(list)
    for name in names:
        groups[same(name)].append(name)
    return next((group for group in groups.values() if len(group) > 1), [])


def pixel_digest(image: np.ndarray) -> bytes:
    """SHA-256 of an image's pixels, by which copies are found whatever files they came from."""
    return hashlib.sha256(np.ascontiguousarray(image)).digest()


def check_images(images: np.ndarray, what: str) -> np.ndarray:
    """Returns images as a contiguous uint8 array (N, H, W, 3); grayscale (N, H, W) gets three equal channels.

    Raises:
        InputError: Another shape or type.
    """
    if images.dtype != np.uint8:
        raise InputError(f"{what} must be uint8 (0 to 255), got {images.dtype}")
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=3)
    if images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
        raise InputError(f"{what} must have shape (N, H, W, 3) or (N, H, W), got {images.shape}")
    return np.ascontiguousarray(images)


def warn_of_range(images: np.ndarray, what: str) -> None:
    """Warns of images, uint8 (N, H, W, 3), that are nearly black all together, and of those that are of one colour."""
    if (largest := images.max()) < NEARLY_BLACK:
        warn(f"{what} are nearly black: the largest value is {largest} of 255; were they written in another range?")
    # Of most images the first row of pixels tells.
    candidates = np.flatnonzero((images[:, 0] == images[:, :1, 0]).all(axis=(1, 2)))
    plain = [int(number) for number in candidates if (images[number] == images[number, 0, 0]).all()]
    if plain:
        warn(f"{what}: {len(plain)} image(s) are of one colour everywhere (number {listed(plain)})")


def check_labels(labels: np.ndarray, count: int, what: str) -> np.ndarray:
    """Returns labels as int64 (N,).

    Raises:
        InputError: Another length, not whole numbers, or out of range.
    """
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{what} must be a list of whole numbers, got {labels.dtype} of shape {labels.shape}")
    if len(labels) != count:
        raise InputError(f"{what} must have one label per image: {len(labels)} labels for {count} images")
    labels = labels.astype(np.int64)
    if len(labels) and not (labels.min() >= 0 and labels.max() < MAX_CLASSES):
        raise InputError(f"{what} must lie in 0 .. {MAX_CLASSES - 1}, got {labels.min()} .. {labels.max()}")
    return labels


def require_variety(images: np.ndarray, what: str) -> None:
    """Checks that not all images, uint8 (N, H, W, 3), are the same.

    Raises:
        InputError: They are, so that there is nothing to learn from them; the message begins with ``what``.
    """
    if not any((image != images[0]).any() for image in images[1:]):
        raise InputError(
            f"{what}: all {len(images)} training images are the same, so nothing can be learned from them; check how "
            "they were written (as uint8 from 0 to 255; fractions from 0 to 1 all become black)"
        )
