"""Data sets, the split protocol and the index files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.console import listed, log, shown, warn
from common.paper import DEFAULT_BUDGET, DEFAULT_MISMATCH, PROTOCOLS
from common.settings import DataSettings
from datasets.base import Dataset, pixel_digest, plain_name, require_variety
from datasets.digits import load_digits
from datasets.folder import ANNOTATION, find_form, load_folder
from datasets.mixed import load_sources, mix
from datasets.npz import load_npz
from datasets.split import Split, given_split, make_split
from datasets.torchvision_sets import SOURCES, load_torchvision
from utils import InputError

LOADERS = {
    **dict.fromkeys(SOURCES, load_torchvision),
    "digits": load_digits,
    "npz": load_npz,
    "folder": load_folder,
}


def load_dataset(
    name: str, data_path: str | Path = "~/data", *, image_size: int | None = None, cache_dir: str | Path | None = None
) -> Dataset:
    """Loads a data set by its name.

    Args:
        name: One of LOADERS.
        data_path: The folder of CIFAR and the like, the npz file, or the folder of images; digits need none.
        image_size: Of a folder's images, in pixels; None for 32.
        cache_dir: Where a folder's images are kept; None for a place within the folder.

    Raises:
        InputError: The name is unknown, the files are missing or unusable, or a folder's flag is given without one.
    """
    if name not in LOADERS:
        raise InputError(f"--dataset {name} is unknown; choose from {', '.join(LOADERS)}")
    path = Path(data_path).expanduser()
    if name == "folder":
        data = load_folder(name, path, image_size=image_size, cache_dir=cache_dir)
    else:
        for flag, value in (("--image_size", image_size), ("--cache_dir", cache_dir)):
            if value is not None:
                raise InputError(f"{flag} {value} is for --dataset folder, not for {name}; leave it out")
        data = LOADERS[name](name, path)
    require_variety(data.train_images, str(path))
    return data


def load_data_and_split(settings: DataSettings, *, without_labels: bool = False) -> tuple[Dataset, Split]:
    """Loads a data set and draws its initial split; what is None takes the value of the data set's protocol.

    With ``others`` the pool's other images come from further data sets, see datasets.mixed. A folder of images that
    nobody has labeled has its split already, see datasets.split.given_split; ``without_labels``, as encoders are
    trained, it need not have labeled/. What makes accuracies too good, or say nothing of a class, is warned of.

    Raises:
        InputError: See load_dataset and make_split; a data set without a protocol needs target classes.
    """
    data, split = _load(settings)
    if not (split.target_classes or without_labels):
        raise InputError(f"{settings.data_path} has no labeled/: put a few images of each class into labeled/<class>/")
    if untested := [shown(data.class_names[label]) for label in split.untested(data.test_labels)]:
        warn(f"the test set has no image of {', '.join(untested)}: an accuracy is of the other target classes alone")
    if data.digests is None:  # a folder's copies are left out; a published split must stay as it is
        warn_of_copies(data, split)
    return data, split


def _load(settings: DataSettings) -> tuple[Dataset, Split]:
    name, path = settings.dataset, Path(settings.data_path).expanduser()
    if settings.others_path is not None and not settings.others:
        raise InputError(f"--others_path {settings.others_path} is for --others; leave it out")
    # With others the cache may be theirs alone.
    own_cache = settings.cache_dir if name == "folder" or not settings.others else None
    if name == "folder" and find_form(path) is ANNOTATION:
        refuse_drawing(settings)
        data = load_dataset(name, path, image_size=settings.image_size, cache_dir=own_cache)
        return data, given_split(
            data.train_labels,
            data.test_labels,
            num_classes=data.num_classes,
            seed=settings.split_seed,
            content=data.digest,
        )
    protocol = PROTOCOLS.get(name)
    target_classes = settings.target_classes or (protocol and protocol.target_classes)
    if target_classes is None:
        raise InputError(f"--dataset {name} needs --target_classes (the classes that matter), such as 0 1")
    data = load_dataset(name, path, image_size=settings.image_size, cache_dir=own_cache)
    draw = {
        "target_classes": class_numbers(target_classes, data.class_names),
        "mismatch": DEFAULT_MISMATCH if settings.mismatch is None else settings.mismatch,
        "initial_budget": settings.initial_budget or (protocol.initial_budget if protocol else DEFAULT_BUDGET),
        "initial_others": settings.initial_others or 0,
        "seed": settings.split_seed,
    }
    if not settings.others:
        return data, make_split(data.train_labels, data.test_labels, **draw, content=data.digest)
    if settings.initial_others:
        raise InputError(f"--initial_others {settings.initial_others} does not go with --others; leave it out")
    others_path = Path(settings.others_path or (path if name in SOURCES else "~/data")).expanduser()
    sources = load_sources(
        settings.others,
        dataset=name,
        data_path=path,
        others_path=others_path,
        image_size=data.image_size,
        cache_dir=settings.cache_dir,
    )
    return mix(data, sources, **draw)


def refuse_drawing(settings: DataSettings) -> None:
    """Refuses what would draw a split where a person has made it.

    Raises:
        InputError: A setting of make_split is given.
    """
    for name in ("mismatch", "target_classes", "initial_budget", "initial_others", "others"):
        if getattr(settings, name) is not None:
            raise InputError(
                f"--{name} draws a split, and a folder with labeled/ and unlabeled/ has one: every class of labeled/ "
                f"is a target, unlabeled/ is the pool; leave --{name} out"
            )


def class_numbers(classes: Sequence[int | str], names: Sequence[str]) -> list[int]:
    """Classes by name, or by number, as numbers: a number is a position, from 0, where no class has that name.

    What was taken by position is said, and warned of where another class's name reads as that number, as 01 as 1.

    Raises:
        InputError: There is no such name. (That a number exists is make_split's to check.)
    """
    positions = {plain_name(name): number for number, name in enumerate(names)}
    unknown = [value for value in classes if isinstance(value, str) and plain_name(value) not in positions]
    if unknown:
        raise InputError(f"--target_classes: there is no class {unknown[0]!r}; the data set has {listed(names, 20)}")
    counted = [value for value in classes if isinstance(value, int) and str(value) not in positions]
    taken = [f"{value} is {shown(names[value])}" for value in counted if value < len(names)]
    alike = [shown(name) for name in names if name.isdecimal() and int(name) in counted]
    if alike:
        warn(f"target classes by position, from 0: {', '.join(taken)}; for the class named {alike[0]} give that name")
    elif taken:
        log(f"target classes by position, from 0: {', '.join(taken)}")
    return [positions.get(plain_name(str(value)), value) for value in classes]


def warn_of_copies(data: Dataset, split: Split) -> None:
    """Warns of images that stand, pixel by pixel, in training and test, in pool and labeled set, or in two classes."""
    labels, first, again, in_two = data.train_labels, {}, 0, []
    for place, index in enumerate([*split.labeled.tolist(), *split.unlabeled.tolist()]):
        known = first.setdefault(pixel_digest(data.train_images[index]), (place, index))
        again += known[0] < len(split.labeled) <= place
        if labels[known[1]] != labels[index]:
            in_two.append(f"{known[1]} and {index}")
    tested = sum(pixel_digest(data.test_images[index]) in first for index in split.test)
    if tested:
        seen = f"{tested} of {len(split.test)} test images are, pixel by pixel, among the labeled images and the pool"
        warn(f"{seen}: accuracies will be too good; leave them out of the one or the other")
    if again:
        warn(f"{again} image(s) of the pool are, pixel by pixel, labeled already")
    if in_two:
        warn(f"{len(in_two)} picture(s) stand under two classes: training images {listed(in_two)}")
