"""Features of pool and labeled images: extracted once, averaged over views as they come."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from common import distributed
from models.counter_random import make_keys
from models.transform_layers import Augmentation, shift_images
from utils import InputError, progress

QUERY = 3  # the purpose part of a draw's key; training uses others


@dataclass(frozen=True)
class FeatureBank:
    """Averaged projections of some images; it holds no labels, so none can leak into a score.

    Attributes:
        indices: Data set indices, ascending, int64 (N,).
        features: Not normalised, float32 (N, K, D); K = 1 for the semantic encoder.
    """

    indices: np.ndarray
    features: Tensor

    def of(self, indices: np.ndarray) -> Tensor:
        """Features of the given images, in their order: (n,) to (n, K, D).

        Raises:
            ValueError: An image is not in the bank.
        """
        rows = np.searchsorted(self.indices, indices)
        if len(indices) and (rows.max() >= len(self.indices) or (self.indices[rows] != indices).any()):
            raise ValueError("some images are not in this feature bank")
        return self.features[torch.from_numpy(rows).to(self.features.device)]


@torch.no_grad()
def extract_features(
    encoder: nn.Module,
    images: Tensor,
    indices: np.ndarray,
    *,
    augmentation: Augmentation,
    views: int,
    shift: str,
    shift_numbers: tuple[int, ...],
    seed: int,
    batch_size: int,
    name: str = "features",
) -> FeatureBank:
    """Averages the projection of each image over augmented views, per shift (CCAL, Sec. 3; METHOD 3).

    The draws of an image depend on the seed, its index, view and shift alone. Memory does not grow with the number of
    views. Under a launcher the batches are shared among the processes, and every process gets the whole bank.

    Args:
        encoder: The bare encoder; it is put into eval mode.
        images: All train images, uint8 (M, 3, H, W), on the encoder's device.
        indices: Images to encode, (N,), in any order.
        augmentation: The crop's settings.
        views: V, views per image and shift.
        shift: Kind of the shifts.
        shift_numbers: The shifts to encode, K of them.
        seed: Of the draws.
        batch_size: Images per forward batch (V and K do not count).
        name: What the progress bar says.

    Raises:
        InputError: A feature is not finite.
    """
    encoder.eval()
    ordered = np.sort(np.asarray(indices, dtype=np.int64))
    chosen = torch.from_numpy(ordered).to(images.device)
    starts = list(range(0, len(chosen), batch_size))
    # Whole batches go to a process, so that each is computed as it would be by one process.
    share = -(-len(starts) // distributed.world_size())
    own = starts[distributed.rank() * share : (distributed.rank() + 1) * share]
    parts = []
    for start in progress(own, description=name, unit="batch"):
        batch = chosen[start : start + batch_size]
        parts.append(_mean_projection(encoder, images, batch, augmentation, views, shift, shift_numbers, seed))
    width = encoder.simclr_layer[-1].out_features
    features = torch.cat(parts) if parts else torch.empty(0, len(shift_numbers), width, device=images.device)
    features = distributed.gather_rows(features)
    if not features.isfinite().all():
        bad = int((~features.isfinite()).flatten(1).any(1).nonzero()[0])
        raise InputError(f"{name}: the feature of image {ordered[bad]} is not finite; the checkpoint is unusable")
    return FeatureBank(ordered, features)


def _mean_projection(
    encoder: nn.Module,
    images: Tensor,
    batch: Tensor,
    augmentation: Augmentation,
    views: int,
    shift: str,
    shift_numbers: tuple[int, ...],
    seed: int,
) -> Tensor:
    """Mean projection of a batch, (B, K, D)."""
    pixels = images[batch].float() / 255
    numbers = torch.tensor(shift_numbers, device=images.device)
    total: Tensor | float = 0.0
    for view in range(views):
        keys = make_keys(seed, QUERY, batch, view, numbers[:, None])  # (K, B)
        shifted = [
            shift_images(augmentation.flip(pixels, keys[row]), shift, number)
            for row, number in enumerate(shift_numbers)
        ]
        copies = augmentation.after_shift(torch.cat(shifted), keys.flatten())
        total = total + encoder(copies).projection.float()
    return (total / views).view(len(shift_numbers), len(batch), -1).transpose(0, 1).contiguous()
