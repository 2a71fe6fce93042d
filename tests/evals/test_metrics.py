"""Metrics by hand."""

from __future__ import annotations

import numpy as np
import pytest

from evals.metrics import auroc, describe, query_metrics

INFINITE = -np.inf


@pytest.mark.parametrize(
    ("values", "is_target", "expected"),
    [
        ([1, 2, 3, 4], [0, 0, 1, 1], 1.0),
        ([1, 2, 3, 4], [1, 1, 0, 0], 0.0),
        ([1, 2, 3, 4], [0, 1, 0, 1], 0.75),  # of the four pairs, only (3, 2) is the wrong way round
        ([5, 5, 5], [1, 0, 0], 0.5),
        ([1, 1, 2], [0, 1, 0], 0.25),  # half for the tie, nothing for 1 against 2
        ([INFINITE, 0, 1], [0, 1, 0], 0.5),  # a strategy may leave an image without a class
        ([INFINITE, INFINITE, 1], [0, 1, 0], 0.25),
    ],
)
def test_auroc_counts_pairs(values, is_target, expected):
    area = auroc(np.array(values, dtype=np.float32), np.array(is_target, dtype=bool))
    assert area == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("is_target", [[1, 1, 1], [0, 0, 0], []], ids=str)
def test_auroc_of_one_kind_is_unknown(is_target):
    assert auroc(np.arange(len(is_target), dtype=np.float32), np.array(is_target, dtype=bool)) is None


@pytest.mark.parametrize(
    ("labels", "before", "targets", "expected"),
    [
        (
            [5, 3, 5, 0, 9, 3, 5, 1],
            5,
            20,
            {"queried": 8, "found": 5, "found_per_class": [3, 2], "precision": 62.5, "recall": 50.0},
        ),
        ([0, 0], 20, 20, {"queried": 2, "found": 0, "found_per_class": [0, 0], "precision": 0.0, "recall": 100.0}),
        ([], 2, 8, {"queried": 0, "found": 0, "found_per_class": [0, 0], "precision": None, "recall": 25.0}),
        ([1], 0, 0, {"queried": 1, "found": 0, "found_per_class": [0, 0], "precision": 0.0, "recall": None}),
    ],
)
def test_query_metrics_by_hand(labels, before, targets, expected):
    queried = np.array(labels, dtype=np.int64)
    assert query_metrics(queried, target_classes=(5, 3), found_before=before, pool_targets=targets) == expected


def test_describe_by_hand():
    """0 .. 20 times two, in a shuffled order: mean 20, variance 4 (21^2 - 1) / 12 = 146.67, and every tenth is 4 up."""
    values = np.random.default_rng(0).permutation(np.arange(21.0) * 2)
    summary = describe(values)
    assert list(summary) == ["mean", "std", *(f"{10 * step}%" for step in range(11))]
    assert summary["mean"] == pytest.approx(20)
    assert summary["std"] == pytest.approx((440 / 3) ** 0.5)
    assert [summary[f"{10 * step}%"] for step in range(11)] == pytest.approx([4 * step for step in range(11)])
