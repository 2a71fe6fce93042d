"""Uncertainty sampling by hand."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from evals.strategies import STRATEGIES
from tests.evals.strategies.points import order_of, point_inputs, replace_networks

MODULE = sys.modules["evals.strategies.uncertainty"]
# Entropies 1.03, 0.95, 0.95 (less by 0.001), 0.74, 0.39.
P = np.array([[0.5, 0.3, 0.2], [0.2, 0.6, 0.2], [0.45, 0.1, 0.45], [0.55, 0.44, 0.01], [0.05, 0.05, 0.9]])
BY_HAND = {
    "entropy": [0, 1, 2, 3, 4],
    "margin": [2, 3, 0, 1, 4],  # 0.2, 0.4, 0, 0.11, 0.85
    "confidence": [2, 0, 3, 1, 4],
    "certainty": [4, 1, 3, 0, 2],
}


@pytest.mark.parametrize("strategy", BY_HAND)
def test_the_order_by_hand_is_dealt_to_the_classes_in_turn(monkeypatch, strategy):
    inputs = point_inputs(np.zeros((5, 2)), np.eye(3, 2), [0, 1, 2], numbers=[15, 14, 13, 12, 11])
    replace_networks(monkeypatch, MODULE, classifier=np.log(P) + 7)
    utilities = STRATEGIES[strategy].utilities(inputs)
    assert order_of(utilities, inputs) == [15 - place for place in BY_HAND[strategy]]
    assert utilities.argmax(1)[BY_HAND[strategy]].tolist() == [0, 1, 2, 0, 1]
    assert (utilities > -np.inf).sum() == 5


@pytest.mark.parametrize(("strategy", "first"), [("certainty", 2), ("confidence", 0)])
def test_probabilities_that_round_to_1_are_told_apart(monkeypatch, strategy, first):
    inputs = point_inputs(np.zeros((3, 2)), np.eye(2), [0, 1])
    replace_networks(monkeypatch, MODULE, classifier=[[0, 60], [0, 70], [0, 80]])
    assert order_of(STRATEGIES[strategy].utilities(inputs), inputs)[0] == first
