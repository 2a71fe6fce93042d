"""Any labeled images, from one npz file of four arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from common.console import log
from common.files import read_npz
from datasets.base import Dataset, check_images, check_labels, warn_of_range
from utils import InputError

MANY_CODES = 1000
KEYS = ("train_images", "train_labels", "test_images", "test_labels")


def load_npz(name: str, data_path: Path) -> Dataset:
    """Loads ``train_images``, ``train_labels``, ``test_images`` and ``test_labels`` from an npz file.

    Images are uint8, (N, H, W, 3) or (N, H, W); labels are whole numbers from 0. Nothing is ever unpickled. A head for
    labels such as 99,999 would be larger than the network: from MANY_CODES on they are names of the classes there are.

    Raises:
        InputError: The file is missing or damaged, an array is missing, or its shape or type is wrong.
    """
    if not data_path.is_file():
        raise InputError(f"--dataset npz needs --data_path FILE.npz, and {data_path} is not a file")
    arrays = read_npz(data_path, KEYS)
    for part in ("train", "test"):
        images, labels = f"{part}_images", f"{part}_labels"
        arrays[images] = check_images(arrays[images], f"{images} in {data_path}")
        arrays[labels] = check_labels(arrays[labels], len(arrays[images]), f"{labels} in {data_path}")
        warn_of_range(arrays[images], f"{images} in {data_path}")
    sizes = [arrays[f"{part}_images"].shape[1:3] for part in ("train", "test")]
    if sizes[0] != sizes[1]:
        raise InputError(f"{data_path}: train and test images must have one size, got {sizes[0]} and {sizes[1]}")
    codes = np.arange(1 + max(int(arrays["train_labels"].max()), int(arrays["test_labels"].max())))
    if len(codes) > MANY_CODES:
        codes = np.unique(np.concatenate([arrays["train_labels"], arrays["test_labels"]]))
        for part in ("train_labels", "test_labels"):
            arrays[part] = np.searchsorted(codes, arrays[part])
        log(f"{data_path}: labels up to {codes[-1]} name {len(codes)} classes, which are numbered in their order")
    return Dataset(name=name, num_classes=len(codes), class_names=tuple(map(str, codes.tolist())), **arrays)
