"""OpenAL's distances against their definition, and its order by hand."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from evals.strategies import STRATEGIES
from evals.strategies.mahalanobis import nearest_distance
from tests.evals.strategies.points import order_of, point_inputs, replace_networks

MODULE = sys.modules["evals.strategies.mahalanobis"]


def slow_distance(values: np.ndarray, groups: list[np.ndarray]) -> np.ndarray:
    known = np.concatenate(groups)
    mean, deviation, nearest = known.mean(0), known.std(0), []
    for value in (values - mean) / deviation:
        distances = []
        for group in groups:
            group = (group - mean) / deviation
            inverse = np.linalg.pinv(np.cov(group.T, bias=True), rcond=1e-9)
            offset = value - group.mean(0)
            distances.append(offset @ inverse @ offset)
        nearest.append(min(distances))
    return np.array(nearest)


@pytest.mark.parametrize("sizes", [(30,), (30, 9), (4, 30)])  # of four images the covariance has no inverse
def test_distances_are_those_of_the_definition(sizes):
    rng = np.random.default_rng(sum(sizes))
    values, groups = (
        rng.normal(size=(20, 5)),
        [rng.normal(number, 1 + number, (n, 5)) for number, n in enumerate(sizes)],
    )
    np.testing.assert_allclose(nearest_distance(values, groups), slow_distance(values, groups), rtol=1e-3, atol=1e-4)


def test_a_group_of_one_image_does_not_count():
    rng = np.random.default_rng(1)
    values, group = rng.normal(size=(6, 2)), rng.normal(size=(9, 2))
    assert nearest_distance(values, [group[:1]]).tolist() == [0] * 6
    both = nearest_distance(values, [group, group[:1]])
    np.testing.assert_allclose(np.argsort(both), np.argsort(slow_distance(values, [group])))


def test_candidates_are_close_to_targets_and_far_from_others_and_doubt_ranks_them(monkeypatch):
    """Angles of unit vectors: targets about 0, others about 1.5. Of 20 images a tenth are candidates, B = 1."""
    rng = np.random.default_rng(0)

    def at(angles):
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)

    targets, others = at(rng.normal(0, 0.2, 40)), at(rng.normal(1.5, 0.2, 40))
    angles = np.linspace(1.5, 0.0, 20)
    inputs = point_inputs(at(angles), targets, [0, 1] * 20, others, budget=1)
    logits = np.zeros((20, 2))
    logits[:, 0] = np.linspace(0, 5, 20)  # the closer, the surer
    replace_networks(monkeypatch, MODULE, classifier=logits)
    distances = []
    monkeypatch.setattr(MODULE, "nearest_distance", lambda *given: distances.append(found := real(*given)) or found)
    real = nearest_distance
    order = order_of(STRATEGIES["mahalanobis"].utilities(inputs), inputs)
    closest = np.argsort(distances[0] - distances[1], kind="stable")
    assert order[:2] == sorted(closest[:2])
    assert order[2:] == closest[2:].tolist()
    assert set(order[:2]) <= set(range(10, 20))
