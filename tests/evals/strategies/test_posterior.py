"""The classifier of targets and everything else, on clusters of points whose right query is plain to see."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from evals.features import FeatureBank
from evals.query import QueryInputs, select
from evals.scores import PoolScores
from evals.strategies.posterior import NORM, Standardised, posterior

MODULE = sys.modules["evals.strategies.posterior"]
# Of classes 0 and 1, of two others far away, and of two on either side of class 0.
CENTRES = np.array([[4, 0, 0], [0, 4, 0], [0, 0, 4], [-4, 0, 0], [4, -1, 1], [4, 1, -1]], dtype=np.float32)


@pytest.fixture(autouse=True)
def short_training(monkeypatch):
    monkeypatch.setattr(MODULE, "STEPS", 100)
    monkeypatch.setattr(MODULE, "BATCH", 256)


def make_inputs(
    kinds: list[int], labeled: int, *, set_aside: tuple[int, ...] = (), spread: float = 0.5, seed: int = 0
) -> QueryInputs:
    """Points about the centres named by ``kinds``; the first ``labeled`` ones (classes 0 and 1) are labeled."""
    noise = np.random.default_rng(seed).normal(0, spread, (len(kinds), 3))
    features = torch.tensor(CENTRES[kinds] + noise, dtype=torch.float32)[:, None]
    images = np.arange(len(kinds))
    return QueryInputs(
        pool=np.setdiff1d(images[labeled:], set_aside),
        labeled=images[:labeled],
        labeled_classes=np.array(kinds[:labeled]),
        set_aside=np.array(set_aside, dtype=np.int64),
        num_classes=2,
        scores=PoolScores(),
        banks={"penultimate": FeatureBank(images, features)},
        rng=np.random.default_rng(seed),
        budget=1,
    )


def test_targets_of_each_class_come_before_everything_else():
    kinds = [0, 1] * 5 + [0] * 12 + [1] * 9 + [2] * 40 + [3] * 30
    inputs = make_inputs(kinds, 10)
    values = posterior(inputs)
    assert values.shape == (91, 2) and (values >= 0).all() and (values.sum(1) <= 1).all()
    order = [inputs.pool[np.argsort(-values[:, number].numpy())] for number in (0, 1)]
    assert sorted(order[0][:12]) == list(range(10, 22)) and sorted(order[1][:9]) == list(range(22, 31))


def test_a_set_aside_image_speaks_against_those_like_it():
    """Two groups lie on either side of class 0; the annotator has called some images of one of them other."""
    kinds = [0, 1] * 8 + [4] * 30 + [5] * 30
    values = [
        posterior(make_inputs(kinds, 16, set_aside=group, spread=0.3))[:, 0].numpy()
        for group in (tuple(range(16, 31)), tuple(range(46, 61)))
    ]
    first, second = slice(0, 15), slice(30, 45)  # the other half of either group, where it is in the pool
    assert values[0][first].mean() < 0.5 * values[1][15:30].mean()
    assert values[1][second].mean() < 0.5 * values[0][second].mean()


def test_the_query_is_the_same_for_the_same_seed_and_whatever_the_global_one():
    inputs = [make_inputs([0, 1] * 4 + [2, 0, 1] * 10, 8, spread=2.0) for _ in range(2)]
    torch.manual_seed(1)
    first = posterior(inputs[0])
    torch.manual_seed(2)
    assert torch.equal(first, posterior(inputs[1]))


def test_features_are_standardised_over_all_of_a_querys_images():
    """Against the plain formulation; two banks stand side by side, and a constant dimension counts for nothing."""
    inputs = make_inputs([0, 1, 2, 3] * 20, 6, set_aside=(70, 71))
    images = np.arange(80)
    second = torch.tensor(np.random.default_rng(3).normal(5, 3, (80, 2, 2)), dtype=torch.float16)
    second[:, 1, 1] = 7.0
    banks = inputs.banks | {"distinctive": FeatureBank(images, second)}
    found = Standardised(QueryInputs(**{**vars(inputs), "banks": banks})).of(np.array([5, 79, 0]))
    raw = np.concatenate([inputs.banks["penultimate"].features[:, 0], second.float().flatten(1)], axis=1).astype(float)
    deviation = raw.std(0)
    deviation[-1] = 1
    plain = (raw - raw.mean(0)) / deviation
    plain = NORM * plain / np.linalg.norm(plain, axis=1, keepdims=True)
    np.testing.assert_allclose(found, plain[[5, 79, 0]], atol=2e-3)


def test_of_a_large_pool_a_sample_is_learned_from_and_all_of_it_is_ranked(monkeypatch):
    monkeypatch.setattr(MODULE, "SAMPLE", 30)
    monkeypatch.setattr(MODULE, "READ", 16)
    fitted, fit = [], MODULE._fit
    monkeypatch.setattr(MODULE, "_fit", lambda *given: fitted.append(len(given[2])) or fit(*given))
    inputs = make_inputs([0, 1] * 5 + [0] * 20 + [1] * 20 + [2] * 100 + [3] * 60, 10)
    result = select(posterior(inputs), inputs, queries_per_class=15)
    assert fitted == [30, 30]
    assert set(result.indices[:15]) <= set(range(10, 30)) and set(result.indices[15:]) <= set(range(30, 50))


def test_where_hardly_any_image_stands_apart_some_are_still_taken_for_other():
    """Constant features: the second round has negatives, and gives nothing a likelihood near 1."""
    values = posterior(make_inputs([0, 1] * 3 + [0] * 40, 6, spread=0.0))
    assert values.shape == (40, 2) and values.sum(1).max() < 0.95


@pytest.mark.parametrize("pool", [1, 2])
def test_a_pool_of_hardly_any_images(pool):
    values = posterior(make_inputs([0, 1] + [2] * pool, 2))
    assert values.shape == (pool, 2) and values.isfinite().all()
