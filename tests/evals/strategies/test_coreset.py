"""k-center greedy against the plain loop."""

from __future__ import annotations

import numpy as np
import pytest

from evals.strategies import STRATEGIES
from evals.strategies.linear import features
from tests.evals.strategies.points import order_of, point_inputs, random_inputs


@pytest.mark.parametrize("strategy", ["coreset", "coreset_others"])
@pytest.mark.parametrize("seed", range(3))
def test_the_farthest_image_is_taken_again_and_again(strategy, seed):
    inputs = random_inputs(seed, budget=11)
    z, expected = features(inputs), []
    centres = list(z.annotated if strategy == "coreset_others" else z.labeled)
    while len(expected) < 11:
        distances = [min(np.linalg.norm(point - centre) for centre in centres) for point in z.pool]
        best = int(np.argmax(distances))
        expected.append(inputs.pool[best])
        centres.append(z.pool[best])
    order = order_of(STRATEGIES[strategy].utilities(inputs), inputs)
    assert order[:11] == expected
    assert order[11:] == sorted(set(inputs.pool) - set(expected))


def test_by_hand_with_a_tie():
    """From 0, both 4 and -4 are farthest: the lower index is taken, then the other, then 2 before -1."""
    inputs = point_inputs([[4], [-4], [2], [-1]], [[0], [0]], [0, 1], numbers=[8, 6, 4, 2])
    assert order_of(STRATEGIES["coreset"].utilities(inputs), inputs) == [6, 8, 4, 2]
    inputs = point_inputs([[4], [-4], [2], [-1]], [[0], [0]], [0, 1], [[-4]], numbers=[8, 6, 4, 2])
    assert order_of(STRATEGIES["coreset_others"].utilities(inputs), inputs) == [8, 4, 2, 6]
