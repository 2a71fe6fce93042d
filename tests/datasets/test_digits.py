"""The embedded digits: counts, labels and pixels."""

import numpy as np
import sklearn.datasets

from datasets import load_dataset


def test_shapes_counts_and_labels():
    data = load_dataset("digits", "not needed")
    assert (data.train_images.shape, data.test_images.shape) == ((1437, 16, 16, 3), (360, 16, 16, 3))
    assert data.train_images.dtype == data.test_images.dtype == np.uint8
    assert data.train_labels.dtype == data.test_labels.dtype == np.int64
    assert (data.name, data.num_classes, data.class_names) == ("digits", 10, tuple("0123456789"))
    assert data.train_labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    counts = np.bincount(np.concatenate([data.train_labels, data.test_labels]))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # the data set's own description


def test_pixels_by_hand():
    """Twice the size with half-pixel centres: corners stay, inner pixels are 9 3 3 1 sixteenths of their neighbours."""
    data = load_dataset("digits")
    source = sklearn.datasets.load_digits().images * (255 / 16)
    images = np.concatenate([data.train_images, data.test_images])
    assert (images == images[..., :1]).all()  # three equal channels
    gray = images[..., 0].astype(float)
    assert (gray[:, 0, 0] == np.round(source[:, 0, 0])).all()
    assert (gray[:, 15, 15] == np.round(source[:, 7, 7])).all()
    mixed = (9 * source[:, 3, 4] + 3 * source[:, 3, 5] + 3 * source[:, 4, 4] + source[:, 4, 5]) / 16
    assert np.abs(gray[:, 7, 9] - mixed).max() <= 0.5 + 1e-9
    assert gray.max() == 255
