"""What a classifier is worth: per class, whatever their sizes, and at telling other images from targets."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

KEPT = 0.95  # share of the targets that pass where the rejection of others is measured


def measures(targets: np.ndarray, labels: np.ndarray, others: np.ndarray | None, *, classes: int) -> dict[str, Any]:
    """Columns of results.csv for one classifier.

    Args:
        targets: Probabilities of the target images, (T, C), or (T, C + 1) with that of "other" as the last.
        labels: Their class numbers, (T,).
        others: Likewise of images of other classes, (A, C + 1); None where there are none, or no such output.
        classes: C.
    """
    right = targets[:, :classes].argmax(1) == labels
    found = [right[labels == number] for number in range(classes)]
    return {
        "balanced_accuracy": 100 * float(np.mean([part.mean() for part in found if len(part)])),
        "class_accuracies": " ".join(f"{100 * part.mean():.2f}" if len(part) else "-" for part in found),
        "rejection": None if others is None else rejected(targets[:, -1], others[:, -1]),
    }


def rejected(targets: np.ndarray, others: np.ndarray) -> float:
    """Percent of other images, (A,), whose score is above the lowest that KEPT of the targets, (T,), do not exceed."""
    threshold = np.sort(targets)[math.ceil(KEPT * len(targets)) - 1]
    return 100 * float((others > threshold).mean())
