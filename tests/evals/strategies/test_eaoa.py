"""EAOA's energies, votes and choice, by hand and against plain loops."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from scipy.special import softmax

from evals.query import select
from evals.strategies import STRATEGIES
from evals.strategies.eaoa import adaptive_k, aleatoric, epistemic, votes
from evals.strategies.linear import features
from tests.evals.strategies.points import point_inputs, random_inputs, replace_networks

MODULE = sys.modules["evals.strategies.eaoa"]


@pytest.mark.parametrize(
    ("history", "k"),
    [
        ((), 5),
        (((100, 66),), 6),
        (((100, 65), (100, 55)), 5),  # within the dead band
        (((100, 54),), 4),
        (((100, 90), (100, 10), (50, 40)), 6),
        (((10, 0),) * 9, 1),
        (((10, 0),) * 9 + ((10, 10),), 2),
    ],
)
def test_k_follows_the_answers(history, k):
    assert adaptive_k(history) == k


def test_energies_by_hand():
    log = np.log
    found = epistemic(np.array([[log(2), log(3), log(4)], [log(2), log(3), -np.inf], [1000, 0, 2000]]))
    np.testing.assert_allclose(found, [0, log(1 / 5), 1000], atol=1e-12)  # -log(2 + 3) + log(1 + 4)
    logits = np.random.default_rng(0).normal(size=(9, 4))
    np.testing.assert_allclose(aleatoric(logits), log(1 - softmax(logits, axis=1).max(1)))
    assert aleatoric(np.zeros((2, 1))).tolist() == [-700, -700]


@pytest.mark.parametrize("aside", [0, 9])
def test_votes_are_counted_as_in_the_plain_loop(monkeypatch, aside):
    monkeypatch.setattr(MODULE, "NEIGHBOURS", 5)
    monkeypatch.setattr(MODULE, "BLOCK", 16)
    inputs = random_inputs(1, labeled=13, num_classes=2, set_aside=aside)  # seven of class 0 and six of class 1
    z = features(inputs)
    expected = np.zeros((40, 3))
    for point, number in zip(z.annotated, z.classes):
        cosines = [point @ other / np.linalg.norm(point) / np.linalg.norm(other) for other in z.pool]
        for place in np.argsort(cosines)[-5:]:
            expected[place, number] += 1 / ({0: 7, 1: 6, 2: aside}[number] / 6.5)
    np.testing.assert_allclose(votes(z, inputs), expected)


def test_of_the_likeliest_of_each_class_the_most_doubtful_are_queried(monkeypatch):
    """B = 4 of two classes, and k = 2: of each class, four candidates and two queried."""
    known = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.9, 0.8, 0.7, 0.6, 0.5])
    doubt = np.array([0.1, 0.3, 0.2, 0.4, 0.9, 0.5, 0.5, 0.1, 0.5, 0.9])
    inputs = point_inputs(np.zeros((10, 2)), np.eye(2), [0, 1], numbers=range(10), history=((10, 1),) * 3)
    logits = np.repeat([[1, 0], [0, 1]], 5, axis=0)
    replace_networks(monkeypatch, MODULE, classifier=logits, detector=np.zeros((10, 3)))
    parts = iter([known**0.25, known**0.75, doubt])
    monkeypatch.setattr(MODULE, "posterior_of", lambda values, inputs, larger: next(parts))
    utilities = STRATEGIES["eaoa"].utilities(inputs)
    result = select(utilities, inputs, queries_per_class=2)
    assert result.indices.tolist() == [3, 1, 5, 6]  # among 5, 6 and 8, which are equal, the lower ones
    assert result.pseudo_class.tolist() == [0, 0, 1, 1]
    everything = select(utilities, inputs, queries_per_class=5)
    assert everything.indices.tolist() == [3, 1, 2, 0, 4, 5, 6, 8, 7, 9]


def test_each_posterior_is_of_the_right_mean(monkeypatch):
    sides = []

    def note(values, rng, larger):
        sides.append((larger, values.min(), values.max()))
        return values

    monkeypatch.setattr(MODULE, "NEIGHBOURS", 5)
    monkeypatch.setattr(MODULE, "mixture_posterior", note)
    STRATEGIES["eaoa"].utilities(random_inputs(0))
    assert sides == [(False, 0, 1), (False, 0, 1), (True, 0, 1)]
