"""Features kept on disk from query to query, and extracted again where something that they depend on has changed.

A folder holds, per encoder, <name>.npy (features, (N, K, D), memory-mapped when read) and <name>.json (what they were
made from). The json is written last: without it, features are those of an extraction that did not end. A cache is not a
result: features of something else, and damaged ones, are replaced.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common import distributed
from common.console import log
from common.files import SMALL_JSON, atomic_write, read_json, remove_leftovers, write_json
from common.provenance import file_digest, image_digest, int64_digest
from evals.features import Extraction, FeatureBank, MappedFeatures, extract_features, feature_blocks, require_finite

FORMAT_VERSION = 2


def sources_of(
    checkpoints: dict[str, Path], features: dict[str, Path], train_images: np.ndarray, indices: np.ndarray
) -> dict[str, Any]:
    """What a query is made of, as index files record it: files and their SHA-256, and the SHA-256 of the pixels.

    Args:
        checkpoints: The encoders' files, by the name of the features that they make.
        features: Files of given features, by name.
        train_images: uint8, (M, H, W, 3).
        indices: Of all pool and labeled images, (N,).
    """
    found: dict[str, Any] = {"images_digest": image_digest(train_images, indices)}
    for kind, files in {"checkpoint": checkpoints, "feature": features}.items():
        found[f"{kind}s"] = {name: str(path) for name, path in files.items()}
        found[f"{kind}_digests"] = {name: file_digest(path) for name, path in files.items()}
    return found


def feature_banks(
    encoders: dict[str, nn.Module],
    train_images: np.ndarray,
    indices: np.ndarray,
    extractions: dict[str, Extraction],
    *,
    sources: dict[str, Any],
    folder: Path | None,
    device: torch.device,
) -> dict[str, FeatureBank]:
    """Every encoder's features, once for all cycles; those that the folder holds are not extracted again.

    Args:
        encoders: The bare encoders, by the name of the features that they make, on ``device``.
        train_images: uint8, (M, H, W, 3).
        indices: Images to encode, ascending, (N,).
        extractions: Settings by encoder.
        sources: See sources_of.
        folder: Of kept features, made if it is not there; None to keep them in memory alone.

    Raises:
        InputError: A feature is not finite.
    """
    banks: dict[str, FeatureBank] = {}
    images: Tensor | None = None
    for name, encoder in encoders.items():
        title, start = f"{name} features", time.perf_counter()
        record = describe(encoder, sources, name, indices, extractions[name])
        bank = read_features(folder, name, record, indices) if folder else None
        if all(distributed.gather_objects(bank is not None)):  # machines may have folders of their own
            log(f"{title} of {len(indices)} images: kept from {folder}")
        else:
            if images is None:
                images = torch.from_numpy(train_images).to(device).permute(0, 3, 1, 2)
            path, work = folder and folder / f"{name}.npy", (encoder, images, indices, extractions[name])
            if path and distributed.world_size() == 1:  # a batch is written as it comes: memory does not grow with N
                _write(path, record, feature_blocks(*work, name=title), indices, title, start)
                bank = FeatureBank(indices, MappedFeatures(path))
            else:
                bank = extract_features(*work, name=title)
                if path and distributed.is_main():
                    _write(path, record, [bank.features], indices, title, start)
            seconds = time.perf_counter() - start
            log(f"{title} of {len(indices)} images: {seconds:.1f} s ({sources['checkpoints'][name]})")
        banks[name] = bank
    return banks


def describe(
    encoder: nn.Module, sources: dict[str, Any], name: str, indices: np.ndarray, extraction: Extraction
) -> dict[str, Any]:
    """All that features depend on, as plain values."""
    settings = dataclasses.asdict(extraction)
    settings.pop("batch_size")  # changes nothing but rounding
    settings |= {"precision": extraction.precision.name, "shift_numbers": list(extraction.shift_numbers)}
    return {
        "format_version": FORMAT_VERSION,
        "checkpoint": sources["checkpoint_digests"][name],
        "network": type(encoder).__name__,  # with --no_strict one checkpoint fits several
        "width": extraction.width(encoder),
        "images": sources["images_digest"],
        "indices": int64_digest(indices),
        **settings,
    }


def read_features(folder: Path, name: str, record: dict[str, Any], indices: np.ndarray) -> FeatureBank | None:
    """The features that an earlier query kept; None, with a log line, if they are of something else or damaged.

    Args:
        folder: Of the cache.
        name: Of the encoder.
        record: What ``describe`` gives now.
        indices: Ascending, (N,).
    """
    path = folder / f"{name}.npy"
    if not path.with_suffix(".json").is_file():
        return None
    try:
        kept = read_json(path.with_suffix(".json"), limit=SMALL_JSON)
        differing = [key for key in record if kept.get(key) != record[key]]
        if differing:
            raise ValueError(f"made with another {', '.join(differing)}")
        features = MappedFeatures(path)
        shape = len(indices), len(record["shift_numbers"]), record["width"]
        if (*features.shape, str(features.dtype)) != (*shape, f"torch.{record['dtype']}"):
            raise ValueError(f"it holds {features.dtype} {tuple(features.shape)}")
        features.require_finite()
    except Exception as problem:  # a damaged header raises nearly anything
        log(f"the {name} features in {folder} are replaced: {' '.join(str(problem).split()) or type(problem).__name__}")
        return None
    return FeatureBank(indices, features)


def _write(
    path: Path, record: dict[str, Any], blocks: Iterable[Tensor], indices: np.ndarray, title: str, began: float
) -> None:
    """Writes blocks of features, (B, K, D), beside ``path``, renames it, and last the record and the time they took."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, f"{path.stem}.*")
    shape = len(indices), len(record["shift_numbers"]), record["width"]
    descr = np.lib.format.dtype_to_descr(np.dtype(record["dtype"]))
    with atomic_write(path) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
        start = 0
        for block in blocks:
            require_finite(block, indices[start : start + len(block)], title)
            file.write(block.cpu().numpy())
            start += len(block)
        path.with_suffix(".json").unlink(missing_ok=True)  # of the features that are replaced
    write_json(path.with_suffix(".json"), {**record, "seconds": round(time.perf_counter() - began, 3)})
