"""A query's encoders and the features that they give: extracted, or those that the cache holds."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from common import checkpoint, distributed, provenance
from common.console import log
from common.files import require_writable
from common.interruption import never_stop
from common.provenance import file_digest
from evals import feature_cache
from evals.features import Extraction, FeatureBank, extract_features
from models import build_encoder
from models.transform_layers import SHIFT_COUNTS

CPU_BATCH, GPU_BATCH = 100, 1000  # images of 32 pixels per forward batch where --test_batch_size is not given


@dataclass(frozen=True)
class Sources:
    """What a query's features are made of, to tell whether they are the same as another query's.

    Attributes:
        checkpoints: The encoders' files, by name.
        checkpoint_digests: Their SHA-256.
        images_digest: SHA-256 of the pixels of all pool and labeled images.
    """

    checkpoints: dict[str, Path]
    checkpoint_digests: dict[str, str]
    images_digest: str

    @classmethod
    def of(cls, checkpoints: dict[str, Path], train_images: np.ndarray, indices: np.ndarray) -> Sources:
        """Reads the files and the images, uint8 (M, H, W, 3), at ``indices``, (N,); no image where there is no file."""
        digests = {name: file_digest(path) for name, path in checkpoints.items()}
        return cls(checkpoints, digests, provenance.image_digest(train_images, indices if checkpoints else indices[:0]))

    def record(self) -> dict[str, Any]:
        """As settings of an index file."""
        names = {"checkpoints": {name: str(path) for name, path in self.checkpoints.items()}}
        if not self.checkpoints:
            return names
        return names | {"checkpoint_digests": self.checkpoint_digests, "images_digest": self.images_digest}


def with_shift(views: Extraction, shift: str) -> Extraction:
    """The same extraction for all copies of a kind of shift."""
    return dataclasses.replace(views, shift=shift, shift_numbers=tuple(range(SHIFT_COUNTS[shift])))


def default_batch(device: torch.device, image_size: tuple[int, int]) -> int:
    """Images per forward batch: the original's 100, and on GPUs, which small batches leave idle, up to 1000."""
    if device.type != "cuda":
        return CPU_BATCH
    return max(CPU_BATCH, GPU_BATCH * 32 * 32 // (image_size[0] * image_size[1]))


def load_encoder(
    path: Path, model: str, *, num_classes: int, shifts: int, simclr_dim: int, strict: bool, device: torch.device
) -> nn.Module:
    """An encoder with a checkpoint's weights."""
    encoder = build_encoder(model, num_classes=num_classes, shifts=shifts, simclr_dim=simclr_dim)
    checkpoint.load_weights(path, encoder, strict=strict)
    return encoder.to(device, memory_format=torch.channels_last)


def kept_features(
    cache: Path, name: str, network: nn.Module, sources: Sources, indices: np.ndarray, how: Extraction, *, dtype: str
) -> tuple[dict[str, Any], FeatureBank | None]:
    """What features of an encoder must say of themselves in a cache, and those that it holds.

    Raises:
        InputError: The cache holds features of something else.
    """
    record = feature_cache.describe(
        checkpoint=sources.checkpoint_digests[name], images=sources.images_digest, indices=indices, how=how, dtype=dtype
    )
    width = network.simclr_layer[-1].out_features
    record["network"] = [type(network).__name__, width]  # with --no_strict one checkpoint fits several
    return record, feature_cache.find(cache, name, record, indices, width=width)


def feature_banks(
    encoders: dict[str, nn.Module],
    train_images: np.ndarray,
    indices: np.ndarray,
    how: dict[str, Extraction],
    *,
    sources: Sources,
    cache: Path | None,
    dtype: str,
    device: torch.device,
    check: Callable[[], None] = never_stop,
) -> dict[str, FeatureBank]:
    """Every encoder's features, once for all cycles; those that the cache holds are not extracted again.

    Args:
        encoders: By name.
        train_images: uint8, (M, H, W, 3).
        indices: Images to encode, ascending, (N,).
        how: Settings by encoder.
        sources: Of the features, for the cache's record.
        cache: Folder of kept features, or None.
        dtype: ``float32`` or ``float16``, in which features are kept.
        device: Of the encoders.
        check: See features.feature_blocks.

    Raises:
        InputError: The cache holds features of something else.
    """
    if cache is not None and not encoders:
        log(f"--feature_cache {cache} is not used: this strategy needs no features")
        return {}
    banks: dict[str, FeatureBank] = {}
    records: dict[str, dict[str, Any]] = {}
    if cache is not None:
        require_writable(cache, "--feature_cache")
        for name in encoders:
            records[name], found = kept_features(cache, name, encoders[name], sources, indices, how[name], dtype=dtype)
            if found:
                banks[name] = found
                log(f"{name} features of {len(indices)} images: kept from {cache}")
        distributed.barrier()  # every process has looked before the first one writes
    if len(banks) == len(encoders):
        return banks
    images = torch.from_numpy(train_images).to(device).permute(0, 3, 1, 2).contiguous()
    for name in [name for name in encoders if name not in banks]:  # in one order, which a set has not, everywhere
        start, encoder = time.perf_counter(), encoders[name]
        if cache is not None:
            banks[name] = feature_cache.make(
                cache, name, records[name], encoder, images, indices, how[name], check=check
            )
        else:
            bank = extract_features(encoder, images, indices, how[name], name=f"{name} features", check=check)
            banks[name] = FeatureBank(indices, feature_cache.narrowed(bank.features, dtype))
        seconds = time.perf_counter() - start
        log(f"{name} features of {len(indices)} images: {seconds:.1f} s ({sources.checkpoints[name]})")
    return banks
