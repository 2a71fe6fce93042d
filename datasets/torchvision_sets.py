"""Data sets that torchvision reads, downloads and checks: CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), SVHN (Netzer et
al., 2011), MNIST (LeCun et al., 1998) and Fashion-MNIST (Xiao et al., 2017)."""

from __future__ import annotations

import urllib.error
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torchvision.datasets

from common import distributed
from datasets.base import Dataset, check_images
from utils import InputError

SOURCES = {
    "cifar10": torchvision.datasets.CIFAR10,
    "cifar100": torchvision.datasets.CIFAR100,
    "svhn": torchvision.datasets.SVHN,
    "mnist": torchvision.datasets.MNIST,
    "fashion_mnist": torchvision.datasets.FashionMNIST,
}


class Part(NamedTuple):
    """The train or the test images of a data set."""

    images: np.ndarray  # uint8, (N, H, W, 3)
    labels: np.ndarray  # int64, (N,)
    class_names: tuple[str, ...]


def load_torchvision(name: str, data_path: Path) -> Dataset:
    """Loads a data set from ``data_path``, and downloads it if it is missing.

    Raises:
        InputError: The files are damaged, or missing and cannot be downloaded; the message says which files go where.
    """
    train, test = load_part(name, data_path, train=True), load_part(name, data_path, train=False)
    names = train.class_names
    return Dataset(name, train.images, train.labels, test.images, test.labels, len(names), names)


def load_part(name: str, data_path: Path, *, train: bool) -> Part:
    """Loads the train or the test images of a data set; see load_torchvision."""
    with distributed.first_here():  # it downloads what is missing
        try:
            found = _open(name, data_path, train)
        except InputError:
            raise
        except RuntimeError:
            found = _download(name, data_path, train)
        except (ValueError, AssertionError, EOFError, IndexError, KeyError, TypeError) as error:
            reason = str(error) or type(error).__name__
            raise InputError(f"{name} in {data_path} is damaged ({reason}); {_remedy(name, data_path)}") from None
    if name == "svhn":
        return Part(check_images(found.data.transpose(0, 2, 3, 1), name), found.labels, tuple("0123456789"))
    class_names = tuple(label.split(" - ")[0] for label in found.classes)  # MNIST's are "0 - zero"
    return Part(check_images(np.asarray(found.data), name), np.asarray(found.targets, dtype=np.int64), class_names)


def _open(name: str, data_path: Path, train: bool, **options: bool) -> Any:
    if name == "svhn":
        return SOURCES[name](str(data_path), split="train" if train else "test", **options)
    outdated = data_path / SOURCES[name].__name__ / "processed"
    if not name.startswith("cifar") and outdated.exists():  # torchvision would read it unchecked instead of raw/
        raise InputError(
            f"{outdated} holds {name} in a format of old torchvision versions; remove that folder, and raw/ is read"
        )
    return SOURCES[name](str(data_path), train=train, **options)


def _download(name: str, data_path: Path, train: bool) -> Any:
    try:
        return _open(name, data_path, train, download=True)
    except (urllib.error.URLError, ConnectionError, TimeoutError, PermissionError, RuntimeError) as error:
        raise InputError(
            f"{name} is not in {data_path} and could not be downloaded ({error}); {_remedy(name, data_path)}"
        ) from None


def _remedy(name: str, data_path: Path) -> str:
    source, place, instead = SOURCES[name], data_path, ""
    if name == "svhn":
        files = [source.split_list[part][1:] for part in ("train", "test")]
    elif name.startswith("cifar"):
        files, instead = [(source.filename, source.tgz_md5)], f" or its folder {source.base_folder}"
    else:
        files, place = source.resources, data_path / source.__name__ / "raw"
    listing = ", ".join(f"{file} (md5 {md5})" for file, md5 in files)
    return f"put {listing}{instead} into {place}, or name its folder with --data_path (of --others: --others_path)"
