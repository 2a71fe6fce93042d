"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) through torchvision, which checks the files' checksums."""

from __future__ import annotations

import urllib.error
from pathlib import Path

import numpy as np
import torchvision.datasets

from common import distributed
from datasets.base import Dataset
from utils import InputError

SOURCES = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}


def load_cifar(name: str, data_path: Path) -> Dataset:
    """Loads CIFAR from ``data_path``, downloading it where it is missing.

    Raises:
        InputError: The files are neither there nor to be had; the message names the file and its place.
    """
    source = SOURCES[name]
    parts = {}
    # One process downloads what is missing; the others find it there.
    with distributed.main_first():
        for train in (True, False):
            try:
                parts[train] = source(str(data_path), train=train)
            except RuntimeError:
                parts[train] = _download(source, name, data_path, train)
    train, test = parts[True], parts[False]
    return Dataset(
        name=name,
        train_images=train.data,
        train_labels=np.asarray(train.targets, dtype=np.int64),
        test_images=test.data,
        test_labels=np.asarray(test.targets, dtype=np.int64),
        num_classes=len(train.classes),
        class_names=tuple(train.classes),
    )


def _download(source: type, name: str, data_path: Path, train: bool) -> torchvision.datasets.CIFAR10:
    try:
        return source(str(data_path), train=train, download=True)
    except (urllib.error.URLError, ConnectionError, TimeoutError, PermissionError, RuntimeError) as error:
        raise InputError(
            f"{name} is not in {data_path} and could not be downloaded ({error}); "
            f"put {source.filename} (md5 {source.tgz_md5}) or its folder {source.base_folder} into {data_path}, "
            "or name its folder with --data_path"
        ) from None
