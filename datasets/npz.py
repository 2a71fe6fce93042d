"""Any labeled images, from one npz file of four arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from datasets.base import Dataset, check_images, check_labels
from utils import InputError

KEYS = ("train_images", "train_labels", "test_images", "test_labels")


def load_npz(name: str, data_path: Path) -> Dataset:
    """Loads ``train_images``, ``train_labels``, ``test_images`` and ``test_labels`` from an npz file.

    Images are uint8, (N, H, W, 3) or (N, H, W); labels are whole numbers from 0. Nothing is ever unpickled.

    Raises:
        InputError: The file is missing or damaged, an array is missing, or its shape or type is wrong.
    """
    if not data_path.is_file():
        raise InputError(f"--dataset npz needs --data_path FILE.npz, and {data_path} is no file")
    arrays = {}
    try:
        with np.load(data_path, allow_pickle=False) as file:
            missing = [key for key in KEYS if key not in file.files]
            if missing:
                raise InputError(f"{data_path} lacks {', '.join(missing)}; it must hold {', '.join(KEYS)}")
            for key in KEYS:
                arrays[key] = file[key]
                if not isinstance(arrays[key], np.ndarray):  # NumPy hands a member that is no array over as bytes
                    raise ValueError(f"{key} is no array")
    except InputError:
        raise
    except Exception as error:  # a damaged file can raise almost anything in NumPy, zipfile, zlib and tokenize
        raise InputError(f"{data_path} cannot be read as an npz file without pickle ({error})") from None
    for part in ("train", "test"):
        arrays[f"{part}_images"] = check_images(arrays[f"{part}_images"], f"{part}_images in {data_path}")
        arrays[f"{part}_labels"] = check_labels(
            arrays[f"{part}_labels"], len(arrays[f"{part}_images"]), f"{part}_labels in {data_path}"
        )
    if arrays["train_images"].shape[1:] != arrays["test_images"].shape[1:]:
        raise InputError(
            f"{data_path}: train and test images must have one size, got {arrays['train_images'].shape[1:3]} "
            f"and {arrays['test_images'].shape[1:3]}"
        )
    num_classes = 1 + max(int(arrays["train_labels"].max()), int(arrays["test_labels"].max()))
    return Dataset(
        name=name, num_classes=num_classes, class_names=tuple(str(label) for label in range(num_classes)), **arrays
    )
