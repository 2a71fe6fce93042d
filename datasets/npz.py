"""Any labeled images, from one npz file of four arrays."""

from __future__ import annotations

from pathlib import Path

from common.files import read_npz
from datasets.base import Dataset, check_images, check_labels, warn_of_range
from utils import InputError

KEYS = ("train_images", "train_labels", "test_images", "test_labels")


def load_npz(name: str, data_path: Path) -> Dataset:
    """Loads ``train_images``, ``train_labels``, ``test_images`` and ``test_labels`` from an npz file.

    Images are uint8, (N, H, W, 3) or (N, H, W); labels are whole numbers from 0. Nothing is ever unpickled.

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
    num_classes = 1 + max(int(arrays["train_labels"].max()), int(arrays["test_labels"].max()))
    return Dataset(name=name, num_classes=num_classes, class_names=tuple(map(str, range(num_classes))), **arrays)
