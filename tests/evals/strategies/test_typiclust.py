"""TypiClust: clusters and typicality by hand."""

from __future__ import annotations

import sys

import numpy as np

from evals.strategies import STRATEGIES
from evals.strategies.typiclust import in_rounds, typicality
from tests.evals.strategies.points import order_of, point_inputs

MODULE = sys.modules["evals.strategies.typiclust"]


def test_typicality_is_that_of_the_plain_loop():
    points = np.random.default_rng(0).normal(size=(31, 4))
    expected = []
    for point in points:
        distances = sorted(np.linalg.norm(points - point, axis=1))[1:16]  # without itself; 31 / 2 is 15
        expected.append(1 / (np.mean(distances) + 1e-5))
    np.testing.assert_allclose(typicality(points), expected)
    np.testing.assert_allclose(typicality(np.array([[0.0], [2.0], [2.5]])), 1 / (np.array([2, 0.5, 0.5]) + 1e-5))
    assert typicality(np.zeros((1, 2))).tolist() == [1]


def test_clusters_take_turns_the_least_annotated_first_then_the_largest():
    """Cluster 0 has 6 + 1 images, one annotated; 1 has 6, 2 has 7; 3 has 5, too few to be asked before the others."""
    line = [0.0, 4.0, 5.0, 5.5, 6.0, 9.0]
    clusters = np.array([0] * 6 + [1] * 6 + [2] * 7 + [3] * 5)
    points = np.array(line + line + [0, *line] + line[:5])[:, None]
    taken = in_rounds(points, clusters, np.array([0]), 24)
    assert [clusters[row] for row in taken] == [2, 1, 0] * 6 + [2] + [3] * 5
    assert sorted(taken) == list(range(24))
    # 5 and 5.5 are both at 2.5 / 3 from their three nearest; then 5.5 is at 1 from its two, the others farther.
    assert [points[row, 0] for row in taken if clusters[row] == 1][:2] == [5.0, 5.5]
    assert in_rounds(points, clusters, np.array([0]), 4) == taken[:4]


def test_directions_are_clustered_and_one_image_of_each_is_asked_for():
    """Six images of each of three directions at various lengths; one direction is annotated. B = 2, so 3 clusters."""
    rng = np.random.default_rng(1)
    angles = np.repeat([0.0, 2.0, 4.0], 6) + rng.normal(0, 0.05, 18)
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * rng.uniform(1, 9, (18, 1))
    inputs = point_inputs(points, [[5, 0]], [0], numbers=np.arange(18) + 30, budget=2, num_classes=1)
    order = order_of(STRATEGIES["typiclust"].utilities(inputs), inputs)
    assert sorted((image - 30) // 6 for image in order[:2]) == [1, 2]
    assert order[2:] == sorted(order[2:])


def test_there_are_no_more_clusters_than_images(monkeypatch):
    counts = []
    real = MODULE.MiniBatchKMeans
    monkeypatch.setattr(MODULE, "MiniBatchKMeans", lambda count, **more: counts.append(count) or real(count, **more))
    inputs = point_inputs(np.eye(3), np.eye(3)[:2], [0, 1], np.eye(3)[2:], budget=50)
    STRATEGIES["typiclust"].utilities(inputs)
    monkeypatch.setattr(MODULE, "MOST_CLUSTERS", 2)
    STRATEGIES["typiclust"].utilities(inputs)
    assert counts == [6, 2]
