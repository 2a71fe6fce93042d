"""Features of pool and labeled images: extracted once, averaged over views as they come, in memory or on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from common import distributed
from common.acceleration import FP32, Precision
from common.console import progress
from models.counter_random import Purpose, make_keys
from models.transform_layers import Augmentation, shift_images
from utils import InputError

DTYPES = {"float16": torch.float16, "float32": torch.float32}


class MappedFeatures:
    """Features in an npy file, of which only the rows that are asked for come into memory.

    Every read maps the file anew: pages of a mapping that stays would count as the process's memory.

    Attributes:
        shape: (N, K, D).
        dtype: ``torch.float32`` or ``torch.float16``.

    Args:
        path: The file, float32 or float16, (N, K, D).

    Raises:
        ValueError: It holds something else; a damaged file raises nearly anything.
    """

    device = torch.device("cpu")

    def __init__(self, path: Path) -> None:
        self._path = path
        array = self._map()
        if array.ndim != 3 or array.dtype.name not in DTYPES:
            raise ValueError(f"it holds {array.dtype} {array.shape}, not features (N, K, D)")
        self.shape = torch.Size(array.shape)
        self.dtype = DTYPES[array.dtype.name]

    def __getitem__(self, rows: slice | np.ndarray) -> Tensor:
        """Rows by slice or by number, copied into memory."""
        return torch.from_numpy(np.array(self._map()[rows]))

    def _map(self) -> np.ndarray:
        return np.lib.format.open_memmap(self._path, mode="r")  # np.load would open an archive as well


Features = Tensor | MappedFeatures


@dataclass(frozen=True)
class FeatureBank:
    """Averaged projections of some images; it holds no labels, so none can leak into a score.

    Attributes:
        indices: Data set indices, ascending, int64 (N,).
        features: Not normalised, float32 or float16 (N, K, D); K = 1 for the semantic encoder.
    """

    indices: np.ndarray
    features: Features

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Where the given images stand in the bank, int64 (n,).

        Raises:
            ValueError: An image is not in the bank.
        """
        rows = np.searchsorted(self.indices, indices)
        if len(indices) and (rows.max() >= len(self.indices) or (self.indices[rows] != indices).any()):
            raise ValueError("some images are not in this feature bank")
        return rows

    def of(self, indices: np.ndarray) -> Tensor:
        """Features of the given images, in their order: (n,) to float32 (n, K, D).

        Raises:
            ValueError: An image is not in the bank.
        """
        rows = self.rows(indices)
        if isinstance(self.features, Tensor):
            rows = torch.from_numpy(rows).to(self.features.device)
        return self.features[rows].float()


def default_batch(device: torch.device, image_size: tuple[int, int]) -> int:
    """Images per forward batch: the original's 100, and on GPUs, which small batches leave idle, up to 1000."""
    if device.type != "cuda":
        return 100
    return max(100, 1000 * 32 * 32 // (image_size[0] * image_size[1]))


@dataclass(frozen=True)
class Extraction:
    """How features are made of images.

    Attributes:
        augmentation: The crop's settings.
        views: V, views per image and shift.
        shift: Kind of the shifts.
        shift_numbers: The shifts to encode, K of them.
        seed: Of the draws.
        batch_size: Images per forward batch (V and K do not count).
        precision: Of the encoder's passes.
        dtype: ``float16`` or ``float32``, to which the averages are rounded.
    """

    augmentation: Augmentation
    views: int
    shift: str
    shift_numbers: tuple[int, ...]
    seed: int
    batch_size: int
    precision: Precision = FP32
    dtype: str = "float32"


def extract_features(
    encoder: nn.Module, images: Tensor, indices: np.ndarray, extraction: Extraction, *, name: str = "features"
) -> FeatureBank:
    """Averages the projection of each image over augmented views, per shift (CCAL, Sec. 3; METHOD 3).

    The draws of an image depend on the seed, its index, view and shift alone. Memory does not grow with the number of
    views. Under a launcher the batches are shared among the processes, and every process gets the whole bank.

    Args:
        encoder: The bare encoder; it is put into eval mode.
        images: All train images, uint8 (M, 3, H, W), on the encoder's device; a view of another layout will do.
        indices: Images to encode, (N,), in any order.
        extraction: How.
        name: For the progress bar and errors.

    Raises:
        InputError: A feature is not finite.
    """
    ordered = np.sort(np.asarray(indices, dtype=np.int64))
    shape = (0, len(extraction.shift_numbers), encoder.simclr_layer[-1].out_features)
    parts = [torch.empty(shape, device=images.device, dtype=DTYPES[extraction.dtype])]
    parts += feature_blocks(encoder, images, ordered, extraction, name=name)
    features = distributed.gather_rows(torch.cat(parts))
    require_finite(features, ordered, name)  # of all processes' images at each process, so that all stop
    return FeatureBank(ordered, features)


def require_finite(features: Tensor, indices: np.ndarray, name: str) -> None:
    """Checks features, (B, K, D), of images, (B,).

    Raises:
        InputError: One is not finite; the message names the image.
    """
    bad = (~features.isfinite()).flatten(1).any(1).nonzero()
    if len(bad):
        message = f"{name}: the feature of image {indices[int(bad[0])]} is not finite"
        if features.dtype == torch.float16:
            raise InputError(f"{message} in float16: give --feature_dtype float32, or, where that fails, a checkpoint")
        raise InputError(f"{message}; the checkpoint is unusable")


@torch.no_grad()
def feature_blocks(
    encoder: nn.Module, images: Tensor, indices: np.ndarray, extraction: Extraction, *, name: str
) -> Iterator[Tensor]:
    """This process's share of the features, (B, K, D) per batch; see extract_features. The caller checks them."""
    encoder.eval()
    batches = torch.from_numpy(indices).to(images.device).split(extraction.batch_size)
    # Whole batches go to a process, so that each is computed as it would be by one process.
    share = -(-len(batches) // distributed.world_size())
    own = batches[distributed.rank() * share : (distributed.rank() + 1) * share]
    for batch in progress(own, description=name, unit="batch"):
        yield _mean_projection(encoder, images, batch, extraction).to(DTYPES[extraction.dtype])


def _mean_projection(encoder: nn.Module, images: Tensor, batch: Tensor, extraction: Extraction) -> Tensor:
    """Mean projection of a batch, float32 (B, K, D)."""
    numbers, augmentation = extraction.shift_numbers, extraction.augmentation
    pixels = images[batch].contiguous().float() / 255
    total: Tensor | float = 0.0
    for view in range(extraction.views):
        keys = [make_keys(extraction.seed, Purpose.QUERY, batch, view, number) for number in numbers]
        flipped = [augmentation.flip(pixels, key) for key in keys]
        shifted = [shift_images(copy, extraction.shift, number) for copy, number in zip(flipped, numbers, strict=True)]
        copies = augmentation.after_shift(torch.cat(shifted), torch.cat(keys))
        total = total + extraction.precision.encode(encoder, copies).projection
    return (total / extraction.views).view(len(numbers), len(batch), -1).transpose(0, 1).contiguous()
