"""CCAL's joint score and its terms alone, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.query import select
from evals.scores import PoolScores
from evals.strategies import STRATEGIES
from tests.evals.test_query import make_inputs

NONE = -math.inf
SCORES = PoolScores(
    similarity=torch.tensor([0.99, 0.90, 0.95, 0.20, 0.98]),
    semantic=torch.tensor([1.0, -0.5, 0.5, -1.0, 1.0]),
    pseudo_class=torch.tensor([1, 0, 1, 0, 1]),
    distinctive=torch.tensor([[0.9, 0.1], [0.2, 0.9], [0.9, 0.8], [1.0, 0.9], [0.9, 0.3]]),
)
BY_HAND = {
    "ccal": ([[NONE, 1.1], [-0.3, NONE], [NONE, 1.3], [0.0, NONE], [NONE, 1.3]], [53, 51, 52, 54]),
    "semantic": ([[NONE, 0.99], [0.90, NONE], [NONE, 0.95], [0.20, NONE], [NONE, 0.98]], [51, 53, 50, 54]),
    "distinctive": ([[NONE, 0.1], [0.2, NONE], [NONE, 0.8], [1.0, NONE], [NONE, 0.3]], [53, 51, 52, 54]),
}


@pytest.mark.parametrize("strategy", BY_HAND)
def test_strategies_by_hand(strategy):
    """Of images 50 .. 54, 50 and 54 both have S = 1: for ``semantic`` the similarity behind it tells them apart."""
    utilities, indices = BY_HAND[strategy]
    inputs = make_inputs([50, 51, 52, 53, 54], 2, scores=SCORES)
    values = STRATEGIES[strategy].utilities(inputs)
    torch.testing.assert_close(values, torch.tensor(utilities))
    assert select(values, inputs, queries_per_class=2).indices.tolist() == indices


@pytest.mark.parametrize("strategy", BY_HAND)
def test_utilities_are_made_where_the_scores_are(strategy):
    """Also where tensors without a device would land elsewhere, here on one that holds no data."""
    inputs = make_inputs([50, 51, 52, 53, 54], 2, scores=SCORES)
    with torch.device("meta"):
        found = STRATEGIES[strategy].utilities(inputs)
    torch.testing.assert_close(found, torch.tensor(BY_HAND[strategy][0]))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 3), st.integers(1, 8))
def test_the_order_of_the_pool_changes_nothing(seed, size, num_classes, count):
    """With scores on a coarse grid, so that ties are common."""
    generator = np.random.default_rng(seed)
    pool = generator.permutation(100)[:size]
    semantic = torch.from_numpy(generator.integers(-2, 3, size) / 2)
    distinctive = torch.from_numpy(generator.integers(0, 3, (size, num_classes)) / 2)
    pseudo = torch.from_numpy(generator.integers(0, num_classes, size))
    found = []
    for order in (np.arange(size), generator.permutation(size)):
        scores = PoolScores(semantic=semantic[order], distinctive=distinctive[order], pseudo_class=pseudo[order])
        inputs = make_inputs(pool[order].tolist(), num_classes, scores=scores)
        result = select(STRATEGIES["ccal"].utilities(inputs), inputs, queries_per_class=count)
        found.append((result.indices.tolist(), result.pseudo_class.tolist(), result.shortfall))
    assert found[0] == found[1]
    for number in range(num_classes):
        chosen = [image for image, of in zip(*found[0][:2]) if of == number]
        assert len(chosen) == len(set(chosen)) == min(count, int((pseudo == number).sum()))
        assert all(pseudo[pool.tolist().index(image)] == number for image in chosen)
