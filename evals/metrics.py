"""What a query found. These look at labels, so they run after the query, as the oracle does."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score


def auroc(values: np.ndarray, is_target: np.ndarray) -> float | None:
    """Area under the ROC curve of target against other images, in [0, 1]; None if only one kind is there.

    Args:
        values: A score that should be larger for targets, (U,).
        is_target: (U,).
    """
    if is_target.all() or not is_target.any():
        return None
    ranks = np.unique(values, return_inverse=True)[1]  # a strategy may say -inf, which scikit-learn refuses
    return float(roc_auc_score(is_target, ranks))


def query_metrics(
    queried_labels: np.ndarray, *, target_classes: tuple[int, ...], found_before: int, pool_targets: int
) -> dict[str, Any]:
    """Counts of one cycle.

    Args:
        queried_labels: True labels of the queried images, (Q,).
        target_classes: Data set classes that matter.
        found_before: Target images found in earlier cycles.
        pool_targets: Target images in the initial pool.

    Returns:
        queried, found, found_per_class (in the order of target_classes), precision (of this cycle, in percent, None if
        nothing was queried) and recall (cumulative, in percent).
    """
    per_class = [int((queried_labels == label).sum()) for label in target_classes]
    found = sum(per_class)
    return {
        "queried": len(queried_labels),
        "found": found,
        "found_per_class": per_class,
        "precision": 100 * found / len(queried_labels) if len(queried_labels) else None,
        "recall": 100 * (found_before + found) / pool_targets if pool_targets else None,
    }


def describe(values: np.ndarray) -> dict[str, float]:
    """Mean, deviation and the 0, 10, .. 100 % quantiles of a score."""
    quantiles = np.quantile(values, np.linspace(0, 1, 11))
    summary = {"mean": float(values.mean()), "std": float(values.std())}
    return summary | {f"{10 * step}%": float(value) for step, value in enumerate(quantiles)}
