"""Features kept on disk from run to run: extracted again only if something that they depend on is another.

A folder holds, per encoder, <name>.npy (features, (N, K, D), memory-mapped when read) and <name>.json (what they were
made from). The json is written last: features without it are of an extraction that did not end, and are replaced.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common import distributed
from common.files import SMALL_JSON, current_umask, naming_file, read_json, write_json
from common.interruption import never_stop
from common.provenance import int64_digest
from evals.features import (
    Extraction,
    FeatureBank,
    MappedFeatures,
    extract_features,
    feature_blocks,
    require_finite,
)
from utils import InputError

Parts = Iterable[tuple[slice, Tensor]]  # rows, and their features
FORMAT_VERSION = 1
DTYPES = {"float32": np.float32, "float16": np.float16}
HASH_BLOCK = 4096  # images per update of their digest


def describe(*, checkpoint: str, images: str, indices: np.ndarray, how: Extraction, dtype: str) -> dict[str, Any]:
    """All that features depend on, as plain values: digests of checkpoint, pixels and indices, and the settings.

    The size of the batches is left out: it changes nothing but rounding.

    Args:
        checkpoint: SHA-256 of the encoder's file.
        images: Of the images' pixels, see image_digest.
        indices: Images to encode, ascending, (N,).
        how: The settings.
        dtype: ``float32`` or ``float16``, in which the features are kept.
    """
    settings = dataclasses.asdict(how)
    settings.pop("batch_size")
    settings["precision"] = how.precision.name
    settings["shift_numbers"] = list(how.shift_numbers)
    return {
        "format_version": FORMAT_VERSION,
        "checkpoint": checkpoint,
        "images": images,
        "indices": int64_digest(indices),
        "dtype": dtype,
        **settings,
    }


def find(folder: Path, name: str, wanted: dict[str, Any], indices: np.ndarray, *, width: int) -> FeatureBank | None:
    """The features of an earlier run, or None if there are none.

    Args:
        folder: Of the cache.
        name: Of the encoder.
        wanted: What ``describe`` said.
        indices: Images to encode, ascending, (N,).
        width: Dimensions of the projection.

    Raises:
        InputError: They were made from something else, which the message names, or are damaged, or a folder stands in
            their place.
    """
    record_path, path = folder / f"{name}.json", folder / f"{name}.npy"
    for place in (record_path, path):
        if place.is_dir():
            raise InputError(
                f"{place} is a directory where features belong; remove it, or give another --feature_cache"
            )
    if not record_path.is_file():
        return None
    record = read_json(record_path, limit=SMALL_JSON)
    if not isinstance(record, dict):
        raise InputError(f"{record_path} is no record of features; remove it, or give another --feature_cache")
    differs = sorted(key for key in {*record, *wanted} if record.get(key) != wanted.get(key))
    if differs:
        raise InputError(
            f"the {name} features in {folder} were made with another {', '.join(differs)}: give the flags and files of "
            "that run, remove them, or give another --feature_cache"
        )
    features = MappedFeatures(path)
    expected = len(indices), len(wanted["shift_numbers"]), width, getattr(torch, wanted["dtype"])
    if (*features.shape, features.dtype) != expected:
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
    *,
    check: Callable[[], None] = never_stop,
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
        check: See features.feature_blocks.

    Raises:
        InputError: A feature is not finite, or beyond the range of float16.
    """
    title, path = f"{name} features", folder / f"{name}.npy"
    if distributed.world_size() > 1:
        bank = extract_features(encoder, images, indices, how, name=title, check=check)
        kept = narrowed(bank.features, record["dtype"])
        if distributed.is_main():
            _write(path, record, [(slice(0, len(kept)), kept)], shape=tuple(kept.shape))
        return FeatureBank(bank.indices, kept)
    width = encoder.simclr_layer[-1].out_features
    shape = (len(indices), len(how.shift_numbers), width)
    parts = _checked(feature_blocks(encoder, images, indices, how, name=title, check=check), indices, title)
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
    _remove_leftovers(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with naming_file(path), os.fdopen(handle, "r+b") as file:
            with contextlib.suppress(OSError):  # some file systems know no locks
                fcntl.flock(file, fcntl.LOCK_EX)  # says that this file's process lives; see _remove_leftovers
            out = np.lib.format.open_memmap(temporary, mode="w+", dtype=DTYPES[record["dtype"]], shape=shape)
            if hasattr(os, "posix_fallocate"):  # a full disk would end a write through the mapping with a signal
                os.posix_fallocate(file.fileno(), 0, os.path.getsize(temporary))
            for rows, features in parts:
                out[rows] = narrowed(features, record["dtype"]).cpu().numpy()
            out.flush()
            del out
            os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~current_umask())
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    write_json(path.with_suffix(".json"), record)


def _remove_leftovers(path: Path) -> None:
    """Removes what extractions into ``path`` that were killed have left: it may be as large as the features."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        with contextlib.suppress(OSError), open(leftover, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()
