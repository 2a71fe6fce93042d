"""Features of pool and labeled images: extracted once, averaged over views as they come, or given in a file."""

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
READ = 65536  # rows per read of a check


class MappedFeatures:
    """Features in an npy file, of which only the rows that are asked for come into memory.

    Every read maps the file anew: pages of a mapping that stays would count as the process's memory.

    Attributes:
        shape: (N, K, D).
        dtype: ``torch.float32`` or ``torch.float16``.

    Args:
        path: The file, floating point, (M, K, D) or (M, D), which stands for K = 1.
        rows: Which of its rows these features are, (N,); None for all.

    Raises:
        ValueError: It holds something else; a damaged file raises nearly anything.
    """

    device = torch.device("cpu")

    def __init__(self, path: Path, rows: np.ndarray | None = None) -> None:
        self._path, self._rows = path, rows
        array = self._map()
        if array.ndim not in (2, 3) or not array.size or array.dtype.kind != "f":
            raise ValueError(f"it holds {array.dtype} {array.shape}, not features (N, K, D) or (N, D)")
        count, shifts = len(array) if rows is None else len(rows), array.shape[1] if array.ndim == 3 else 1
        self.shape = torch.Size((count, shifts, array.shape[-1]))
        self.dtype = DTYPES.get(array.dtype.name, torch.float32)

    def __getitem__(self, rows: slice | np.ndarray) -> Tensor:
        """Rows by slice or by number, copied into memory."""
        values = np.array(self._map()[rows if self._rows is None else self._rows[rows]])
        return torch.from_numpy(values).to(self.dtype).view(-1, *self.shape[1:])

    def require_finite(self) -> None:
        """Raises ValueError if a value is not finite."""
        for start in range(0, self.shape[0], READ):
            if not self[start : start + READ].isfinite().all():
                raise ValueError("a value in it is not finite")

    def _map(self) -> np.ndarray:
        return np.lib.format.open_memmap(self._path, mode="r")  # np.load would open an archive as well


Features = Tensor | MappedFeatures


@dataclass(frozen=True)
class FeatureBank:
    """Features of some images; it holds no labels, so none can leak into a score.

    Attributes:
        indices: Data set indices, ascending, int64 (N,).
        features: Not normalised, float32 or float16 (N, K, D); K = 1 but for the distinctive encoder.
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


def given_features(
    path: Path, indices: np.ndarray, *, train: int, test: int, numbers_file: Path | None = None
) -> FeatureBank:
    """Features of pool and labeled images from a file that somebody else has made.

    Args:
        path: npy, floating point, (R, D) or (R, K, D).
        indices: Of all pool and labeled images, ascending, (N,).
        train: Train images of the data set; R may be this number,
        test: or this one more (train, then test images),
        numbers_file: or an npy file says which train images the rows are of, (R,). Without one R may be N.

    Raises:
        InputError: R is another number, an image has no row, a value is not finite, or a file cannot be read.
    """
    try:
        count = MappedFeatures(path).shape[0]
        rows = np.arange(len(indices)) if count == len(indices) else indices
        if numbers_file:
            numbers = np.lib.format.open_memmap(numbers_file, mode="r")
            if count != len(numbers) or len(np.unique(numbers)) != len(numbers) or not np.isin(indices, numbers).all():
                raise ValueError(
                    f"its {count} rows must be of the {len(numbers)} images in {numbers_file}, each there once, and "
                    f"all {len(indices)} images of pool and labeled set among them"
                )
            rows = np.argsort(numbers)[np.searchsorted(np.sort(numbers), indices)]
        elif count not in (train, train + test, len(indices)):
            raise ValueError(
                f"it has {count} rows; {train} (all train images), {train + test} (all train, then all test images) or "
                f"{len(indices)} (pool and labeled set, ascending) are right, or the rows' images in --feature_indices"
            )
        features = MappedFeatures(path, rows)
        features.require_finite()
    except Exception as problem:  # a damaged header raises nearly anything
        raise InputError(f"{path}: {' '.join(str(problem).split()) or type(problem).__name__}") from None
    return FeatureBank(indices, features)


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
        views: V, views per image and shift; 0 for the image as it is.
        shift: Kind of the shifts.
        shift_numbers: The shifts to encode, K of them.
        seed: Of the draws.
        batch_size: Images per forward batch (V and K do not count).
        precision: Of the encoder's passes.
        dtype: ``float16`` or ``float32``, to which the averages are rounded.
        output: ``projection`` or ``features`` (penultimate), see models.encoder.EncoderOutput.
    """

    augmentation: Augmentation
    views: int
    shift: str
    shift_numbers: tuple[int, ...]
    seed: int
    batch_size: int
    precision: Precision = FP32
    dtype: str = "float32"
    output: str = "projection"

    def width(self, encoder: nn.Module) -> int:
        """D."""
        return encoder.feature_dim if self.output == "features" else encoder.simclr_layer[-1].out_features


def extract_features(
    encoder: nn.Module, images: Tensor, indices: np.ndarray, extraction: Extraction, *, name: str = "features"
) -> FeatureBank:
    """Averages the encoder's output for each image over augmented views, per shift (CCAL, Sec. 3; METHOD 3).

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
    shape = (0, len(extraction.shift_numbers), extraction.width(encoder))
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
        yield _mean_output(encoder, images, batch, extraction).to(DTYPES[extraction.dtype])


def _mean_output(encoder: nn.Module, images: Tensor, batch: Tensor, extraction: Extraction) -> Tensor:
    """Mean output for a batch, float32 (B, K, D)."""
    numbers, augmentation = extraction.shift_numbers, extraction.augmentation
    pixels = images[batch].contiguous().float() / 255

    def output(copies: Tensor) -> Tensor:
        return getattr(extraction.precision.encode(encoder, copies), extraction.output)

    if not extraction.views:
        return output(pixels)[:, None]
    total: Tensor | float = 0.0
    for view in range(extraction.views):
        keys = [make_keys(extraction.seed, Purpose.QUERY, batch, view, number) for number in numbers]
        flipped = [augmentation.flip(pixels, key) for key in keys]
        shifted = [shift_images(copy, extraction.shift, number) for copy, number in zip(flipped, numbers, strict=True)]
        copies = augmentation.after_shift(torch.cat(shifted), torch.cat(keys))
        total = total + output(copies)
    return (total / extraction.views).view(len(numbers), len(batch), -1).transpose(0, 1).contiguous()
