"""Accuracy by class and rejection of others, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from train_classifier.measures import measures, rejected


def test_each_class_counts_alike_and_the_other_output_is_no_answer() -> None:
    # Nine of class 0 and one of class 1, all called 0; class 2 is not measured. The last output, "other", is largest.
    targets = np.tile([0.3, 0.2, 0.1, 0.4], (10, 1))
    labels = np.array([0] * 9 + [1])
    found = measures(targets, labels, None, classes=3)
    assert found == {"balanced_accuracy": 50.0, "class_accuracies": "100.00 0.00 -", "rejection": None}


def test_rejection_where_95_percent_of_the_targets_pass() -> None:
    # Of 20 targets one may fail: that with 0.9. The threshold is the next lower score, 0.18.
    targets = np.array([*(0.01 * n for n in range(19)), 0.9])
    others = np.array([0.05, 0.18, 0.19, 0.95])
    assert rejected(targets, others) == 50.0
    pairs = [np.stack([1 - scores, scores], axis=1) for scores in (targets, others)]
    assert measures(pairs[0], np.zeros(20, int), pairs[1], classes=1)["rejection"] == 50.0
    assert rejected(np.array([0.2, 0.7]), others) == pytest.approx(25.0)  # ceil(1.9): both must pass
