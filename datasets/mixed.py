"""Mixed pools, the paper's cross-dataset setting: images of further data sets in the place of other classes."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.console import log, warn
from datasets.base import Dataset, pixel_digest
from datasets.digits import load_digits
from datasets.folder import index_others
from datasets.folder.walk import ANNOTATION, BENCHMARK
from datasets.npz import load_npz
from datasets.split import Split, make_split
from datasets.torchvision_sets import SOURCES, load_part
from utils import InputError

NAMES = (*SOURCES, "digits")


def source_name(other: str) -> str:
    """The name of a source given with --others: that of the data set, or of the file or folder, fit for a path."""
    path = Path(other).expanduser()
    name = other if other in NAMES else path.stem if path.suffix == ".npz" else path.resolve().name
    return re.sub(r"[^\w.-]", "_", name)[:40]


def data_name(dataset: str, others: Sequence[str] | None) -> str:
    """The name of a data set mixed with others, such as cifar10+svhn, with at most 100 characters."""
    return _joined([dataset, *map(source_name, others or ())])


def _joined(names: Sequence[str]) -> str:
    name = "+".join(names)
    return name if len(name) <= 100 else f"{names[0]}+{len(names) - 1}_others"


def load_sources(
    others: Sequence[str],
    *,
    dataset: str,
    data_path: Path,
    others_path: Path,
    image_size: tuple[int, int],
    cache_dir: str | Path | None,
) -> dict[str, np.ndarray]:
    """Loads the train images of further data sets, uint8 (N, h, w, 3), by source name; their labels do not matter.

    Args:
        others: Names of data sets, npz files or folders.
        dataset, data_path: The data set that has the target classes.
        others_path: Where data sets of torchvision lie, or are downloaded to.
        image_size, cache_dir: See datasets.folder.

    Raises:
        InputError: One is none of these, the target data itself, or given twice, or its files are unusable.
    """
    sources = {}
    for other in others:
        name, path = source_name(other), Path(other).expanduser()
        if name in sources:
            raise InputError(f"--others names {name} twice")
        if other == dataset or (other not in NAMES and _overlap(path, data_path)):
            raise InputError(f"--others {other} holds the target classes themselves; name other data")
        if other == "digits":
            sources[name] = load_digits(other, path).train_images
        elif other in NAMES:
            sources[name] = load_part(other, others_path, train=True).images
        elif path.suffix == ".npz" and path.is_file():
            sources[name] = load_npz("npz", path).train_images
        elif path.is_dir():
            sources[name] = index_others(path, size=max(image_size), cache_dir=cache_dir)
        else:
            raise InputError(f"--others {other} is not an npz file, a folder, or one of {', '.join(NAMES)}")
    return sources


def _overlap(other: Path, data_path: Path) -> bool:
    """Whether a source holds the data set, or lies in a subfolder of it that is in use."""
    other, data_path = other.resolve(), data_path.resolve()
    inside = (other.is_relative_to((data_path / part).resolve()) for part in {*ANNOTATION, *BENCHMARK})
    return data_path.is_relative_to(other) or any(inside)


def mix(data: Dataset, sources: dict[str, np.ndarray], **draw: Any) -> tuple[Dataset, Split]:
    """Draws the split with the sources' images, all equally likely, in the place of the data set's own other classes.

    The images drawn follow the data set's own train images, in the order of the draw, resized to their shape. Each
    source is one more class. Of the test images those of target classes are left.

    Args:
        data: The data set that has the target classes.
        sources: Images by name, see load_sources.
        **draw: Target classes, mismatch, initial budget and seed, see make_split, whose InputError it may raise.
    """
    own, counts = len(data.train_labels), [len(images) for images in sources.values()]
    source = np.repeat(np.arange(len(sources)), counts)  # of each image that may be drawn
    split = make_split(
        np.concatenate([data.train_labels, data.num_classes + source]),
        data.test_labels,
        others=np.arange(own, own + sum(counts)),
        content=data.digest,
        **draw,
    )
    targets, drawn = split.unlabeled[split.unlabeled < own], split.unlabeled[split.unlabeled >= own] - own
    source, position = source[drawn], np.concatenate([np.arange(count) for count in counts])[drawn]
    images = np.empty((len(drawn), *data.train_images.shape[1:]), dtype=np.uint8)
    for number, found in enumerate(sources.values()):
        images[source == number] = fitted(found[position[source == number]], data.image_size)
    names = (data.name, *sources)
    known = {pixel_digest(image) for part in (data.train_images, data.test_images) for image in part}
    copies = source[[pixel_digest(image) in known for image in images]]
    for number, count in zip(*np.unique(copies, return_counts=True)):
        found = f"{count} of the images drawn from {names[1 + number]} are, pixel by pixel, in {data.name}, too"
        warn(f"{found}, and count as others all the same: remove the copies, or name other data")
    mixed = dataclasses.replace(
        data,
        name=_joined(names),
        train_images=np.concatenate([data.train_images, images]),
        train_labels=np.concatenate([data.train_labels, data.num_classes + source]),
        test_images=data.test_images[split.test],
        test_labels=data.test_labels[split.test],
        num_classes=data.num_classes + len(sources),
        class_names=(*data.class_names, *sources),
        paths=data.paths and (*data.paths, *(f"{names[1 + number]}/{i}" for number, i in zip(source, position))),
        sources=names,
        source_numbers=np.concatenate([np.zeros(own, dtype=np.int64), 1 + source]),
    )
    split = dataclasses.replace(
        split,
        unlabeled=np.concatenate([targets, np.arange(own, own + len(drawn))]),
        test=np.arange(len(split.test)),
        digest=hashlib.sha256(f"{split.digest} {names[1:]}".encode() + images.tobytes()).hexdigest(),
    )
    log(f"pool of {len(split.unlabeled)} images: {counted(mixed, split.unlabeled)}")
    return mixed, split


def counted(data: Dataset, indices: np.ndarray) -> str:
    """How many of some train images are from each source, in words."""
    return ", ".join(f"{count} from {name}" for name, count in data.count_by_source(indices).items())


def fitted(images: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Brings images to a size: the largest centred part of its shape, resized bilinearly, uint8 (N, H, W, 3)."""
    height, width = images.shape[1:3]
    if (height, width) == image_size:
        return images
    scale = min(height / image_size[0], width / image_size[1])
    crop_height, crop_width = image_size[0] * scale, image_size[1] * scale
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    box, size = (left, top, left + crop_width, top + crop_height), image_size[::-1]
    resized = [np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, box=box)) for image in images]
    return np.asarray(resized, dtype=np.uint8).reshape(-1, *image_size, 3)
