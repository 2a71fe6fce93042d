"""LfOSA's score by hand."""

from __future__ import annotations

import sys

import numpy as np

from evals.strategies import STRATEGIES
from evals.strategies.lfosa import likelihood
from evals.strategies.linear import mixture_posterior
from tests.evals.strategies.points import order_of, point_inputs, replace_networks

MODULE = sys.modules["evals.strategies.lfosa"]
# Class 0: three large and three small activations; class 1: one image; then two of other classes.
FIRST = [[9, 0, 0], [2, 0, 0], [9.1, 0, 0], [2.1, 0, 1], [1.9, 1, 0], [8.9, 0, 0]]
LOGITS = np.array([*FIRST, [0, 59, 0], [0, 0, 7], [1, 0, 3]])


def test_each_class_has_a_mixture_of_its_own():
    found = likelihood(LOGITS, np.random.default_rng(0))
    np.testing.assert_allclose(found, [1, 0, 1, 0, 0, 1, -1, 0, 0], atol=1e-6)
    two = np.concatenate([LOGITS, LOGITS[:6][:, [1, 0, 2]] + [0, 50, 0]])  # of a class with other activations
    found = likelihood(two, np.random.default_rng(0))
    assert (found[[0, 2, 5, 9, 11, 14]] > 0.99).all() and (found[[1, 3, 4, 10, 12, 13]] < 0.01).all()
    rng = np.random.default_rng(0)
    first = mixture_posterior(two[:6, 0], rng, larger=True)
    np.testing.assert_array_equal(found[:6], first)
    second = mixture_posterior(two[[6, *range(9, 15)], 1], rng, larger=True)
    np.testing.assert_array_equal(found[[6, *range(9, 15)]], second)


def test_the_largest_are_queried_and_the_loss_has_its_temperature(monkeypatch):
    inputs, asked = point_inputs(np.zeros((9, 2)), np.eye(2), [0, 1]), []
    monkeypatch.setattr(MODULE, "detector", lambda z, inputs, temperature: asked.append(temperature) or LOGITS)
    monkeypatch.setattr(MODULE, "likelihood", lambda logits, rng: np.array([1, 0, 1, 0, 0.5, 0.9, -1, 0, 0]))
    assert order_of(STRATEGIES["lfosa"].utilities(inputs), inputs) == [0, 2, 5, 4, 1, 3, 7, 8, 6]
    assert asked == [0.5]


def test_before_an_image_is_set_aside_none_is_predicted_to_be_other(monkeypatch):
    replace_networks(monkeypatch, MODULE, detector=np.where([True, True, False], LOGITS, -np.inf))
    inputs = point_inputs(np.zeros((9, 2)), np.eye(2), [0, 1])
    assert order_of(STRATEGIES["lfosa"].utilities(inputs), inputs)[-2:] != [7, 8]
