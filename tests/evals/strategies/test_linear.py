"""The linear models against scikit-learn's probabilities and a minimum of the loss as the paper writes it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression

from evals.strategies.linear import (
    classifier,
    detector,
    features,
    log_odds,
    mixture_posterior,
    unit_norm,
    z_scores,
)
from tests.evals.strategies.points import point_inputs, random_inputs


def test_features_are_of_all_images_together_and_in_their_order():
    inputs = point_inputs([[0, 5], [2, 5]], [[4, 5]], [0], [[6, 5]], numbers=[9, 3])
    z = features(inputs)
    deviation = 5**0.5  # of 0, 2, 4, 6, whose mean is 3; the second dimension is constant
    np.testing.assert_allclose(z.pool, np.array([[-3, 0], [-1, 0]]) / deviation, rtol=1e-6)
    np.testing.assert_allclose(z.labeled, np.array([[1, 0]]) / deviation, rtol=1e-6)
    np.testing.assert_allclose(z.annotated, np.array([[1, 0], [3, 0]]) / deviation, rtol=1e-6)
    assert z.classes.tolist() == [0, 1]
    np.testing.assert_allclose(z_scores(np.array([[8.0]]), np.array([[1.0], [3.0]])), [[6]])
    np.testing.assert_allclose(unit_norm(np.array([[3.0, 4.0], [0.0, 0.0]])), [[0.6, 0.8], [0, 0]])


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("aside", [0, 9])
def test_the_logits_are_those_of_a_logistic_regression(num_classes, aside):
    inputs = random_inputs(num_classes, num_classes=num_classes, set_aside=aside)
    z = features(inputs)
    plain = LogisticRegression(C=0.01, max_iter=1000).fit(z.labeled, inputs.labeled_classes)
    logits = classifier(z, inputs)
    np.testing.assert_allclose(softmax(logits, axis=1), plain.predict_proba(z.pool), atol=1e-6)
    np.testing.assert_allclose(logits.sum(1), 0, atol=1e-4)
    further = detector(z, inputs)
    if not aside:
        assert (further[:, -1] == -np.inf).all()
        np.testing.assert_array_equal(further[:, :-1], logits)
        return
    plain = LogisticRegression(C=0.01, max_iter=1000).fit(
        z.annotated, [*inputs.labeled_classes, *[num_classes] * aside]
    )
    np.testing.assert_allclose(softmax(further, axis=1), plain.predict_proba(z.pool), atol=1e-6)


def test_the_temperature_is_that_of_the_loss():
    """scikit-learn minimises the sum of cross entropies and |W|^2 / 2C; here of logits / 0.5, written out."""
    inputs, temperature = random_inputs(5), 0.5
    z = features(inputs)

    def objective(flat):
        weights, bias = flat[:9].reshape(3, 3), flat[9:]
        log_p = log_softmax((z.annotated @ weights + bias) / temperature, axis=1)
        return -log_p[np.arange(len(z.classes)), z.classes].sum() + np.square(weights).sum() / 2 / 0.01

    best = minimize(objective, np.zeros(12), tol=1e-9).x
    expected = z.pool @ best[:9].reshape(3, 3) + best[9:]
    found = detector(z, inputs, temperature=temperature)
    np.testing.assert_allclose(found, expected - expected.mean(1, keepdims=True), atol=2e-3)


def test_one_class_is_certain():
    inputs = random_inputs(0, num_classes=1, set_aside=0)
    assert softmax(classifier(features(inputs), inputs), axis=1).tolist() == [[1]] * 40
    assert log_odds(np.zeros((2, 1))).tolist() == [np.inf, np.inf]


def test_log_odds_of_the_largest_probability():
    p = np.array([[0.2, 0.5, 0.3], [0.9, 0.05, 0.05]])
    np.testing.assert_allclose(log_odds(np.log(p) - 3), np.log([1, 9]), atol=1e-12)
    np.testing.assert_allclose(log_odds(np.array([[90.0, 0.0]])), [90])


def test_the_posterior_of_the_larger_or_the_smaller_mean():
    """Two groups about 0 and 1."""
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, 0.05, 100), rng.normal(1, 0.05, 50)])
    larger = mixture_posterior(values, rng, larger=True)
    assert (larger[:100] < 1e-6).all() and (larger[100:] > 1 - 1e-6).all()
    np.testing.assert_allclose(larger + mixture_posterior(values, rng, larger=False), 1, atol=1e-6)
    assert mixture_posterior(np.full(3, 0.7), rng, larger=True).tolist() == [1, 1, 1]
    assert mixture_posterior(np.array([0.7]), rng, larger=False).tolist() == [1]


def test_the_posterior_of_the_largest_of_three_means():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(mean, 0.05, 60) for mean in (0, 1, 2)])
    largest = mixture_posterior(values, rng, larger=True, components=3)
    assert (largest[:120] < 1e-6).all() and (largest[120:] > 1 - 1e-6).all()
    two = mixture_posterior(np.array([0.1, 0.7]), rng, larger=True, components=3)  # no more Gaussians than values
    np.testing.assert_allclose(two, [0, 1], atol=1e-6)
