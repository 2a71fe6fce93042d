"""Mixed pools, the paper's cross-dataset setting: images of further data sets in the place of other classes."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from common.console import log, warn
from datasets.base import Dataset
from datasets.digits import load_digits
from datasets.folder import index_others
from datasets.folder.walk import ANNOTATION, BENCHMARK
from datasets.npz import load_npz
from datasets.split import Split, make_split
from datasets.torchvision_sets import SOURCES, load_part
from utils import InputError

NAMES = (*SOURCES, "digits")


@dataclass(frozen=True)
class Source:
    """Where other images come from.

    Attributes:
        name: Of the data set, or of the file or folder without what is before and behind it.
        images: uint8, (N, h, w, 3).
    """

    name: str
    images: np.ndarray


def source_name(other: str) -> str:
    """What a source given with --others is called: a name that may be part of a folder's."""
    path = Path(other).expanduser()
    name = other if other in NAMES else path.stem if path.suffix == ".npz" else path.resolve().name
    return re.sub(r"[^\w.-]", "_", name)[:40]


def data_name(dataset: str, others: Sequence[str] | None) -> str:
    """What a data set with the images of others is called, such as cifar10+svhn."""
    return joined_name([dataset, *map(source_name, others or ())])


def joined_name(names: Sequence[str]) -> str:
    """The names of a data set and its others as one, of 100 characters at most."""
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
) -> list[Source]:
    """Loads the train images of further data sets; their labels do not matter.

    Args:
        others: Names of data sets, npz files or folders.
        dataset: The name of the data set that has the target classes.
        data_path: Where that lies.
        others_path: Where those of torchvision lie, or are downloaded to.
        image_size: Height and width at which a folder's images are kept.
        cache_dir: Where that is done, see datasets.folder.

    Raises:
        InputError: One is none of these, the target data itself, or given twice, or its files are unusable.
    """
    names = [source_name(other) for other in others]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"--others names {name} twice")
    sources = []
    for name, other in zip(names, others, strict=True):
        path = Path(other).expanduser()
        if other == dataset or (other not in NAMES and _overlap(path, data_path)):
            raise InputError(f"--others {other} holds the target classes themselves; name other data")
        if other == "digits":
            images = load_digits(other, path).train_images
        elif other in NAMES:
            images = load_part(other, others_path, train=True).images
        elif path.suffix == ".npz" and path.is_file():
            images = load_npz("npz", path).train_images
        elif path.is_dir():
            images = index_others(path, size=max(image_size), cache_dir=cache_dir)
        else:
            raise InputError(f"--others {other} is no npz file, no folder, and none of {', '.join(NAMES)}")
        sources.append(Source(name, images))
    return sources


def _overlap(other: Path, data_path: Path) -> bool:
    """Whether a source's images may be the data set's own: it holds the data, or lies in one of a folder's parts."""
    other, data_path = other.resolve(), data_path.resolve()
    parts = {part for form in (ANNOTATION, BENCHMARK) for part in form.parts}
    return data_path.is_relative_to(other) or any(other.is_relative_to((data_path / part).resolve()) for part in parts)


def mix(
    data: Dataset,
    sources: Sequence[Source],
    *,
    target_classes: Sequence[int],
    mismatch: float,
    initial_budget: int,
    seed: int = 0,
) -> tuple[Dataset, Split]:
    """Draws the split with the sources' images, all equally likely, in the place of the data set's own other classes.

    The images drawn follow the data set's own train images, in the order of the draw, resized to their shape. Each
    source is one more class. Of the test images those of target classes are left.

    Args:
        data: The data set that has the target classes.
        sources: At least one.
        target_classes: See make_split, as for the rest.
        mismatch: Share of the sources' images in the pool.
        initial_budget: Target images labeled at the start.
        seed: Of every draw.

    Raises:
        InputError: See make_split.
    """
    own, counts = len(data.train_labels), [len(source.images) for source in sources]
    number = np.repeat(np.arange(len(sources)), counts)  # which source, for each image that may be drawn
    split = make_split(
        np.concatenate([data.train_labels, data.num_classes + number]),
        data.test_labels,
        target_classes=target_classes,
        mismatch=mismatch,
        initial_budget=initial_budget,
        seed=seed,
        others=np.arange(own, own + sum(counts)),
        content=data.digest,
    )
    targets, drawn = split.unlabeled[split.unlabeled < own], split.unlabeled[split.unlabeled >= own] - own
    place = np.concatenate([np.arange(count) for count in counts])[drawn]  # within the source
    number = number[drawn]
    images = np.empty((len(drawn), *data.train_images.shape[1:]), dtype=np.uint8)
    for which, source in enumerate(sources):
        images[number == which] = fitted(source.images[place[number == which]], data.image_size)
    names = (data.name, *(source.name for source in sources))
    copies = number[repeats(images, np.concatenate([data.train_images, data.test_images]))]
    for which in np.unique(copies):
        warn(
            f"{(copies == which).sum()} of the images drawn from {names[1 + which]} are, pixel by pixel, in "
            f"{data.name}, too, and count as others all the same: remove the copies, or name other data"
        )
    paths = data.paths and (*data.paths, *(f"{names[1 + which]}/{i}" for which, i in zip(number, place)))
    mixed = dataclasses.replace(
        data,
        name=joined_name(names),
        train_images=np.concatenate([data.train_images, images]),
        train_labels=np.concatenate([data.train_labels, data.num_classes + number]),
        test_images=data.test_images[split.test],
        test_labels=data.test_labels[split.test],
        num_classes=data.num_classes + len(sources),
        class_names=(*data.class_names, *names[1:]),
        paths=paths,
        sources=names,
        source_numbers=np.concatenate([np.zeros(own, dtype=np.int64), 1 + number]),
    )
    content = hashlib.sha256(f"{split.digest} {names[1:]}".encode() + images.tobytes())
    split = dataclasses.replace(
        split,
        unlabeled=np.concatenate([targets, np.arange(own, own + len(drawn))]),
        test=np.arange(len(split.test)),
        digest=content.hexdigest(),
    )
    log(f"pool of {len(split.unlabeled)} images: {counted(mixed, split.unlabeled)}")
    return mixed, split


def counted(data: Dataset, indices: np.ndarray) -> str:
    """How many of some train images are from where, for people."""
    return ", ".join(f"{count} from {name}" for name, count in data.count_by_source(indices).items())


def repeats(images: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which of some images (N, H, W, 3) are among known ones (M, H, W, 3), (N,) of bool."""
    seen = {hashlib.sha256(image.tobytes()).digest() for image in known}
    return np.asarray([hashlib.sha256(image.tobytes()).digest() in seen for image in images], dtype=bool)


def fitted(images: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Brings images to a size: the largest centred part of its shape, resized bilinearly, uint8 (N, H, W, 3)."""
    height, width = images.shape[1:3]
    if (height, width) == image_size:
        return images
    scale = min(height / image_size[0], width / image_size[1])
    crop_height, crop_width = image_size[0] * scale, image_size[1] * scale
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    box, size = (left, top, left + crop_width, top + crop_height), (image_size[1], image_size[0])
    resized = [np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, box=box)) for image in images]
    return np.stack(resized) if resized else np.empty((0, *image_size, 3), dtype=np.uint8)
