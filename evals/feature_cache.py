"""Features kept on disk from run to run: extracted again only if something that they depend on is another.

A folder holds, per encoder, <name>.npy (features, (N, K, D), memory-mapped when read) and <name>.json (what they were
made from). The json is written last: features without it are of an extraction that did not end, and are replaced.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common import distributed
from evals.features import Extraction, FeatureBank, MappedFeatures, extract_features, feature_blocks, require_finite
from utils import InputError, int64_digest, read_json, write_json

Parts = Iterable[tuple[slice, Tensor]]  # rows, and their features
FORMAT_VERSION = 1
DTYPES = {"float32": np.float32, "float16": np.float16}
HASH_BLOCK = 4096  # images per update of their digest


def describe(
    checkpoint: Path, images: np.ndarray, indices: np.ndarray, how: Extraction, *, dtype: str
) -> dict[str, Any]:
    """All that features depend on, as plain values: digests of checkpoint, pixels and indices, and the settings.

    The size of the batches is left out: it changes nothing but rounding.

    Args:
        checkpoint: The encoder's file.
        images: All train images, uint8 (M, H, W, 3).
        indices: Images to encode, ascending, (N,).
        how: The settings.
        dtype: ``float32`` or ``float16``, in which the features are kept.
    """
    pixels = hashlib.sha256()
    for start in range(0, len(indices), HASH_BLOCK):
        pixels.update(images[indices[start : start + HASH_BLOCK]].tobytes())
    settings = dataclasses.asdict(how)
    settings.pop("batch_size")
    settings["precision"] = how.precision.name
    settings["shift_numbers"] = list(how.shift_numbers)
    return {
        "format_version": FORMAT_VERSION,
        "checkpoint": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "images": pixels.hexdigest(),
        "indices": int64_digest(indices),
        "dtype": dtype,
        **settings,
    }


def find(folder: Path, name: str, wanted: dict[str, Any], indices: np.ndarray) -> FeatureBank | None:
    """The features of an earlier run, or None if there are none.

    Raises:
        InputError: They were made from something else, which the message names, or are damaged.
    """
    record_path, path = folder / f"{name}.json", folder / f"{name}.npy"
    if not record_path.is_file():
        return None
    record = read_json(record_path)
    if not isinstance(record, dict):
        raise InputError(f"{record_path} is no record of features; remove it, or give another --feature_cache")
    differs = sorted(key for key in {*record, *wanted} if record.get(key) != wanted.get(key))
    if differs:
        raise InputError(
            f"the {name} features in {folder} were made with another {', '.join(differs)}: give the flags and files of "
            "that run, remove them, or give another --feature_cache"
        )
    features = MappedFeatures(path)
    expected = len(indices), len(wanted["shift_numbers"]), getattr(torch, wanted["dtype"])
    if (*features.shape[:2], features.dtype) != expected:
        raise InputError(
            f"{path} holds {features.dtype} {tuple(features.shape)}, not what {record_path} says: remove both"
        )
    return FeatureBank(indices, features)


def make(
    folder: Path,
    name: str,
    record: dict[str, Any],
    encoder: nn.Module,
    images: Tensor,
    indices: np.ndarray,
    how: Extraction,
) -> FeatureBank:
    """Extracts features into the folder and returns them memory-mapped.

    One process writes each batch as it comes, so memory does not grow with the number of images; several gather the
    features first, and the first of them writes.

    Args:
        folder: Made if it is not there.
        name: Of the encoder.
        record: What ``describe`` said.
        encoder: The bare encoder.
        images: All train images, uint8 (M, 3, H, W), on the encoder's device.
        indices: Images to encode, ascending, (N,).
        how: The settings.

    Raises:
        InputError: A feature is not finite, or beyond the range of float16.
    """
    title, path = f"{name} features", folder / f"{name}.npy"
    if distributed.world_size() > 1:
        bank = extract_features(encoder, images, indices, how, name=title)
        kept = narrowed(bank.features, record["dtype"])
        if distributed.is_main():
            _write(path, record, [(slice(0, len(kept)), kept)], shape=tuple(kept.shape))
        return FeatureBank(bank.indices, kept)
    width = encoder.simclr_layer[-1].out_features
    shape = (len(indices), len(how.shift_numbers), width)
    parts = _checked(feature_blocks(encoder, images, indices, how, name=title), indices, title)
    _write(path, record, parts, shape=shape)
    return FeatureBank(indices, MappedFeatures(path))


def _checked(parts: Parts, indices: np.ndarray, title: str) -> Parts:
    for rows, features in parts:
        require_finite(features, indices[rows], title)
        yield rows, features


def narrowed(features: Tensor, dtype: str) -> Tensor:
    """Features in ``float32`` (as they are) or ``float16``.

    Raises:
        InputError: A value is beyond float16.
    """
    features = features.to(getattr(torch, dtype))
    if not features.isfinite().all():
        raise InputError("a feature is beyond the range of float16: keep --feature_dtype float32")
    return features


def _write(path: Path, record: dict[str, Any], parts: Parts, *, shape: tuple[int, ...]) -> None:
    """Writes the parts, (rows, features), beside ``path``, renames the file, and writes the record last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        out = np.lib.format.open_memmap(temporary, mode="w+", dtype=DTYPES[record["dtype"]], shape=shape)
        if hasattr(os, "posix_fallocate"):  # a full disk would end a write through the mapping with a signal
            with open(temporary, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
        for rows, features in parts:
            out[rows] = narrowed(features, record["dtype"]).cpu().numpy()
        out.flush()
        del out
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    write_json(path.with_suffix(".json"), record)
