"""Features of pool and labeled images: extracted once, averaged over views as they come, in memory or on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from common import distributed
from common.acceleration import FP32, Precision
from common.console import progress
from common.interruption import never_stop
from models.counter_random import make_keys
from models.transform_layers import Augmentation, shift_images
from utils import InputError

QUERY = 3  # the purpose part of a draw's key; training uses others


class MappedFeatures:
    """Features in an npy file, of which only what is asked for comes into memory.

    Every read maps the file anew: pages of a mapping that stays would count as the process's memory.

    Attributes:
        shape: (N, K, D).
        dtype: ``torch.float32`` or ``torch.float16``.

    Args:
        path: The file, float32 or float16, (N, K, D).

    Raises:
        InputError: It is missing, damaged, or holds something else. Values are checked as they are read.
    """

    device = torch.device("cpu")

    def __init__(self, path: Path) -> None:
        self._path = path
        array = self._map()
        dtypes = {np.dtype(np.float32): torch.float32, np.dtype(np.float16): torch.float16}
        if array.ndim != 3 or array.dtype not in dtypes:
            raise InputError(f"{path} holds {array.dtype} {array.shape}, not features (N, K, D): remove it")
        self.shape = torch.Size(array.shape)
        self.dtype = dtypes[array.dtype]

    def __getitem__(self, rows: slice | np.ndarray) -> Tensor:
        """Rows by slice or by number, copied into memory.

        Raises:
            InputError: A value is not finite, or the file is no longer there.
        """
        features = torch.from_numpy(np.array(self._map()[rows]))
        if not features.isfinite().all():
            raise InputError(
                f"{self._path} holds a value that is not finite; remove it and its .json to extract the features again"
            )
        return features

    def _map(self) -> np.ndarray:
        try:
            return np.lib.format.open_memmap(self._path, mode="r")  # np.load would open an archive as well
        except FileNotFoundError:
            raise InputError(f"{self._path} does not exist") from None
        except Exception as error:  # a damaged header raises nearly anything
            raise InputError(
                f"{self._path} is damaged ({error}); remove it and its .json to extract the features again"
            ) from None


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
    """

    augmentation: Augmentation
    views: int
    shift: str
    shift_numbers: tuple[int, ...]
    seed: int
    batch_size: int
    precision: Precision = FP32


def extract_features(
    encoder: nn.Module,
    images: Tensor,
    indices: np.ndarray,
    how: Extraction,
    *,
    name: str = "features",
    check: Callable[[], None] = never_stop,
) -> FeatureBank:
    """Averages the projection of each image over augmented views, per shift (CCAL, Sec. 3; METHOD 3).

    The draws of an image depend on the seed, its index, view and shift alone. Memory does not grow with the number of
    views. Under a launcher the batches are shared among the processes, and every process gets the whole bank.

    Args:
        encoder: The bare encoder; it is put into eval mode.
        images: All train images, uint8 (M, 3, H, W), on the encoder's device.
        indices: Images to encode, (N,), in any order.
        how: The settings.
        name: What the progress bar says.
        check: See feature_blocks.

    Raises:
        InputError: A feature is not finite.
    """
    ordered = np.sort(np.asarray(indices, dtype=np.int64))
    width = encoder.simclr_layer[-1].out_features
    parts = [torch.empty(0, len(how.shift_numbers), width, device=images.device)]
    parts += [part for _, part in feature_blocks(encoder, images, ordered, how, name=name, check=check)]
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
        image = indices[int(bad[0])]
        raise InputError(f"{name}: the feature of image {image} is not finite; the checkpoint is unusable")


@torch.no_grad()
def feature_blocks(
    encoder: nn.Module,
    images: Tensor,
    indices: np.ndarray,
    how: Extraction,
    *,
    name: str,
    check: Callable[[], None] = never_stop,
) -> Iterator[tuple[slice, Tensor]]:
    """This process's share of the features, batch by batch; see extract_features.

    Args:
        encoder: The bare encoder; it is put into eval mode.
        images: All train images, uint8 (M, 3, H, W), on the encoder's device.
        indices: Images to encode, (N,), in the order of the rows.
        how: The settings.
        name: What the progress bar says.
        check: Called before each view of a batch, equally often at every process, so that it may ask the others; an
            exception that it raises ends the extraction.

    Yields:
        Rows, and their features, float32 (B, K, D), which the caller checks.
    """
    distributed.enter(f"the extraction of the {name}")
    encoder.eval()
    chosen = torch.from_numpy(indices).to(images.device)
    starts = range(0, len(chosen), how.batch_size)
    # Whole batches go to a process, so that each is computed as it would be by one process.
    share = -(-len(starts) // distributed.world_size())
    own = starts[distributed.rank() * share : (distributed.rank() + 1) * share]
    for start in progress(own, description=name, unit="batch"):
        rows = slice(start, min(start + how.batch_size, len(chosen)))
        yield rows, _mean_projection(encoder, images, chosen[rows], how, check)
    for _ in range((share - len(own)) * how.views):
        check()


def _mean_projection(
    encoder: nn.Module, images: Tensor, batch: Tensor, how: Extraction, check: Callable[[], None]
) -> Tensor:
    """Mean projection of a batch, (B, K, D)."""
    pixels = images[batch].float() / 255
    total: Tensor | float = 0.0
    for view in range(how.views):
        check()
        keys = [make_keys(how.seed, QUERY, batch, view, number) for number in how.shift_numbers]
        shifted = [
            shift_images(how.augmentation.flip(pixels, key), how.shift, number)
            for key, number in zip(keys, how.shift_numbers, strict=True)
        ]
        copies = how.augmentation.after_shift(torch.cat(shifted), torch.cat(keys))
        total = total + how.precision.encode(encoder, copies).projection
    return (total / how.views).view(len(how.shift_numbers), len(batch), -1).transpose(0, 1).contiguous()
