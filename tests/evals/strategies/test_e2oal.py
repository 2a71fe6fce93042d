"""E2OAL's purity, informativeness and number of candidates, by hand and against plain loops."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from evals.query import select
from evals.strategies import STRATEGIES
from evals.strategies.e2oal import candidate_count, informativeness, target_precision
from tests.evals.strategies.points import point_inputs, random_inputs, replace_networks

MODULE = sys.modules["evals.strategies.e2oal"]


@pytest.mark.parametrize(
    ("history", "target"),
    [((), 0.6), (((10, 5),), 0.7), (((10, 5), (100, 80)), 0.5), (((10, 0),), 1.0), (((10, 0), (10, 9)), 0.7)],
)
def test_the_target_makes_up_for_what_the_last_cycle_missed(history, target):
    assert target_precision(history) == pytest.approx(target)
    assert target_precision(((10, 10), (10, 10))) == 0  # 0.2, then not -0.2


def test_informativeness_is_scipys():
    p = np.random.default_rng(0).dirichlet(np.ones(4), size=30)
    expected = [
        jensenshannon(row, np.full(4, 0.25)) ** 2 * jensenshannon(row, np.eye(4)[row.argmax()]) ** 2 for row in p
    ]
    np.testing.assert_allclose(informativeness(p), expected, atol=1e-12)
    certain = informativeness(np.array([[1.0, 0.0], [0.5, 0.5], [0.9, 0.1]]))
    assert certain[:2].tolist() == [0, 0] and certain[2] > 0
    assert informativeness(np.ones((2, 1))).tolist() == [0, 0]


@pytest.mark.parametrize("target", [-1.0, 1.0, 2.5, 4.0, 5.0])
def test_the_count_is_that_of_the_plain_search(target):
    rng = np.random.default_rng(int(target + 1))
    posterior, value = rng.random(60).round(1), rng.random(60).round(1)
    order = np.argsort(-posterior, kind="stable")
    expected = 60
    for k in range(60, 4, -1):
        taken = sorted(order[:k], key=lambda row: -value[row])[:5]
        if sum(posterior[row] for row in taken) <= target:
            expected = k  # the last that is found is the least
    assert candidate_count(posterior, value, order, 5, target) == expected
    assert candidate_count(posterior[:3], value[:3], np.arange(3), 5, target) >= 3


def test_of_the_purest_of_each_class_the_most_informative_are_queried(monkeypatch):
    """B = 4 and k = 6 of two classes: of each, three candidates and two queried; 4 and 9 are taken for others."""
    known = np.array([9, 8, 7, 6, 0, 9, 8, 7, 6, 0])
    value = np.array([0.1, 0.3, 0.2, 0.9, 0.9, 0.5, 0.2, 0.5, 0.9, 0.9])
    logits = np.full((13, 3), -9.0)  # three annotated images stand first
    logits[3 + np.arange(10), np.repeat([0, 1], 5)] = known
    logits[:, 2] = 1
    inputs = point_inputs(np.zeros((10, 2)), np.eye(2), [0, 1], [[1, 1]], numbers=range(10))
    replace_networks(monkeypatch, MODULE, classifier=np.zeros((10, 2)), detector=logits)
    monkeypatch.setattr(MODULE, "informativeness", lambda p: value)
    monkeypatch.setattr(MODULE, "candidate_count", lambda posterior, value, order, budget, target: 6)
    utilities = STRATEGIES["e2oal"].utilities(inputs)
    result = select(utilities, inputs, queries_per_class=2)
    assert result.indices.tolist() == [1, 2, 5, 7]  # 5 and 7 are equal
    assert result.pseudo_class.tolist() == [0, 0, 1, 1]
    everything = select(utilities, inputs, queries_per_class=5)
    assert everything.indices.tolist() == [1, 2, 0, 3, 4, 5, 7, 6, 8, 9]
    monkeypatch.setattr(MODULE, "candidate_count", lambda posterior, value, order, budget, target: 10)
    result = select(STRATEGIES["e2oal"].utilities(inputs), inputs, queries_per_class=2)
    assert result.indices.tolist() == [3, 1, 8, 5]  # neither 4 nor 9, however informative


@pytest.mark.parametrize("aside", [0, 2])
def test_the_mixture_is_fitted_to_the_purity_of_all_images(monkeypatch, aside):
    """Largest known logit less the unknown one, annotated images first; before there are others, the former alone."""
    seen = []

    def note(values, rng, larger, components):
        seen.extend([values, larger, components])
        return np.linspace(0, 1, len(values))

    inputs = random_inputs(0, pool=5, labeled=4, set_aside=aside, budget=2, history=((4, 4),))
    logits = np.random.default_rng(0).normal(size=(9 + aside, 3))
    replace_networks(monkeypatch, MODULE, detector=logits)
    monkeypatch.setattr(MODULE, "mixture_posterior", note)
    monkeypatch.setattr(MODULE, "candidate_count", lambda *given: seen.extend(given) or 3)
    STRATEGIES["e2oal"].utilities(inputs)
    purity = [max(row[:2]) - (row[2] if aside else 0) for row in logits]
    np.testing.assert_allclose(seen[0], purity)
    assert seen[1:3] == [True, 3]
    np.testing.assert_allclose(seen[3], np.linspace(0, 1, 9 + aside)[-5:])
    assert seen[5].tolist() == [4, 3, 2, 1, 0]
    assert seen[6:] == [2, pytest.approx(0.4)]  # after a precision of 1, 0.2 of the two images
