"""The 1,797 handwritten digits that scikit-learn carries (Alpaydin and Kaynak, 1998): the embedded data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import sklearn.datasets
import torch

from datasets.base import Dataset, check_images

TRAIN_COUNT = 1437  # the first four fifths, in the data set's own order
SCALE = 2  # 8x8 pixels become 16x16, so that crops and flips have something to work on


def load_digits(name: str, data_path: Path) -> Dataset:
    """Loads the digits as 16x16 images, bilinearly enlarged; ``data_path`` is not needed."""
    digits = sklearn.datasets.load_digits()
    gray = torch.from_numpy(digits.images * (255 / 16))[:, None]
    enlarged = torch.nn.functional.interpolate(gray, scale_factor=SCALE, mode="bilinear", align_corners=False)
    images = check_images(enlarged[:, 0].round().to(torch.uint8).numpy(), "digits")
    labels, names = digits.target.astype(np.int64), tuple("0123456789")
    train, test = ((images[part], labels[part]) for part in (slice(TRAIN_COUNT), slice(TRAIN_COUNT, None)))
    return Dataset(name, *train, *test, len(names), names)
