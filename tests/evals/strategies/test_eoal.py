"""EOAL's entropies, binary classifiers, clusters and turns, by hand and against plain loops."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.cluster import KMeans

from evals.strategies import STRATEGIES
from evals.strategies.eoal import binary_logits, finch
from evals.strategies.linear import REGULARISATION, features
from tests.evals.strategies.points import order_of, point_inputs, random_inputs, replace_networks

MODULE = sys.modules["evals.strategies.eoal"]


@pytest.mark.parametrize("aside", [0, 9])
def test_images_go_by_the_difference_of_the_entropies(monkeypatch, aside):
    """In a single cluster; image by image. Those that are predicted to be others come last."""
    inputs = random_inputs(2, num_classes=3, set_aside=aside)
    rng = np.random.default_rng(0)
    logits, detected, z = rng.normal(size=(40, 3)), rng.normal(size=(40, 4)), features(inputs)
    monkeypatch.setattr(MODULE, "binary_logits", lambda z, num_classes: logits)
    monkeypatch.setattr(MODULE, "finch", lambda x, most: np.zeros(len(x), dtype=np.int64))
    replace_networks(monkeypatch, MODULE, detector=detected)
    seed = int(np.random.default_rng(0).integers(2**31))
    others = z.annotated[len(z.labeled) :]
    centres = KMeans(3, n_init=1, random_state=seed).fit(others).cluster_centers_ if aside else []
    score = np.zeros(40)
    for row in range(40):
        for p in 1 / (1 + np.exp(-logits[row])):
            score[row] -= (p * np.log2(p) + (1 - p) * np.log2(1 - p)) / 3
        near = np.array([np.exp(-np.linalg.norm(z.pool[row] - centre)) for centre in centres])
        score[row] += sum(q * np.log(q) for q in near / near.sum()) / np.log(3) if aside else 0
    expected = sorted(range(40), key=lambda row: (detected[row].argmax() == 3, score[row]))
    assert order_of(STRATEGIES["eoal"].utilities(inputs), inputs) == inputs.pool[expected].tolist()


def test_clusters_take_turns(monkeypatch):
    """Five images of three clusters: one each, and again. Image 5 is predicted to be another, and comes last."""
    inputs = point_inputs(np.zeros((6, 2)), np.eye(2), [0, 1], numbers=range(6), budget=4)
    logits = np.array([[1.0, 1], [2, 2], [3, 3], [5, 5], [4, 4], [9, 9]])  # the larger, the less doubt
    monkeypatch.setattr(MODULE, "binary_logits", lambda z, num_classes: logits)
    monkeypatch.setattr(MODULE, "finch", lambda x, most: np.array([0, 0, 0, 1, 2]))
    replace_networks(monkeypatch, MODULE, detector=np.array([[1, 0, 0]] * 5 + [[0, 0, 1]]))
    assert order_of(STRATEGIES["eoal"].utilities(inputs), inputs) == [2, 3, 4, 1, 0, 5]
    monkeypatch.setattr(MODULE, "finch", lambda x, most: np.array([0, 0, 0, 1, 1]))  # two of each cluster
    assert order_of(STRATEGIES["eoal"].utilities(inputs), inputs) == [2, 1, 3, 4, 0, 5]


@pytest.mark.parametrize("aside", [0, 9])
def test_the_binary_classifiers_minimise_the_entropic_loss(aside):
    """Of each class, written out: means over the labeled and over the set-aside images, and |w|^2 / (2 C n)."""
    inputs = random_inputs(5, num_classes=3, set_aside=aside)
    z, found = features(inputs), binary_logits(features(inputs), 3)
    alpha, count = 0.8 if aside else 0.0, 12 + aside
    for number in range(3):

        def objective(w, number=number):
            losses = [[], []]
            for x, other in zip(z.annotated, z.classes):
                yes, no = np.logaddexp(0, -(x @ w[:3] + w[3])), np.logaddexp(0, x @ w[:3] + w[3])
                losses[int(other == 3)].append(alpha / 3 * (yes + no) if other == 3 else yes if other == number else no)
            known = (1 - alpha) * np.mean(losses[0])
            return known + (np.mean(losses[1]) if aside else 0) + w[:3] @ w[:3] / (2 * REGULARISATION * count)

        w = minimize(objective, np.zeros(4), tol=1e-10).x
        np.testing.assert_allclose(found[:, number], z.pool @ w[:3] + w[3], atol=1e-3)
    assert binary_logits(features(random_inputs(0, num_classes=1, set_aside=0)), 1).tolist() == [[0]] * 40


@pytest.mark.parametrize("most", [60, 12, 4, 1])
def test_finch_joins_what_the_plain_loop_joins(most):
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    groups = [{row} for row in range(60)]
    while len(groups) == 60 or len(groups) > most:
        means = [x[sorted(group)].mean(0) for group in groups]
        unit, joined = np.array([mean / np.linalg.norm(mean) for mean in means]), [{i} for i in range(len(means))]
        for i in range(len(means)):
            near = max((j for j in range(len(means)) if j != i), key=lambda j: unit[i] @ unit[j])
            one, other = (next(part for part in joined if k in part) for k in (i, near))
            if one is not other:
                joined.remove(other)
                one |= other
        groups = [set().union(*(groups[i] for i in part)) for part in joined]
    labels = finch(x, most)
    assert sorted(map(sorted, groups)) == sorted(np.flatnonzero(labels == number).tolist() for number in set(labels))
    assert finch(x[:1], 5).tolist() == [0] and finch(x[:0], 5).tolist() == []
