"""BADGE with gradients written out."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from evals.strategies import STRATEGIES
from evals.strategies.linear import classifier, features
from tests.evals.strategies.points import order_of, point_inputs, random_inputs


@pytest.mark.parametrize(("seed", "num_classes"), [(0, 2), (1, 3), (2, 3)])
def test_images_are_drawn_as_k_means_plus_plus_draws_gradients(seed, num_classes):
    inputs = random_inputs(seed, num_classes=num_classes, budget=9, rng=np.random.default_rng(seed))
    z, rng, by_index = features(inputs), np.random.default_rng(seed), np.argsort(inputs.pool)
    gradients = []
    for p, point in zip(softmax(classifier(z, inputs), axis=1)[by_index], z.pool[by_index]):
        p[p.argmax()] -= 1
        gradients.append(np.outer(p, point).ravel())
    expected = [int(np.argmax([np.linalg.norm(g) for g in gradients]))]
    while len(expected) < 9:
        squares = [min(((g - gradients[taken]) ** 2).sum() for taken in expected) for g in gradients]
        draw, place = rng.random() * sum(squares), 0
        while draw >= sum(squares[: place + 1]):
            place += 1
        expected.append(place)
    order = order_of(STRATEGIES["badge"].utilities(inputs), inputs)
    assert order[:9] == inputs.pool[by_index][expected].tolist()
    assert order[9:] == sorted(set(inputs.pool) - set(order[:9]))


def test_the_first_of_equals_has_the_lower_index_and_another_gradient_follows():
    """The images 9, 5 and 7 lie on the border of both classes, far out; 1 and 3 in the middle of a class."""
    points = [[0, 9]] * 3 + [[3, 0]] * 2
    inputs = point_inputs(points, [[2, 0], [-2, 0]] * 100, [0, 1] * 100, numbers=[9, 5, 7, 1, 3])
    order = order_of(STRATEGIES["badge"].utilities(inputs), inputs)
    assert order[0] == 5 and order[1] in (1, 3)
