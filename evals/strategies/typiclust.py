"""TypiClust (Hacohen et al., Active Learning on a Budget: Opposite Strategies Suit High and Low Budgets, ICML 2022)."""

from __future__ import annotations

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from evals.query import QueryInputs, dealt
from evals.strategies.linear import features, unit_norm

MOST_CLUSTERS, SMALLEST_CLUSTER, NEIGHBOURS = 500, 6, 20


def typiclust(inputs: QueryInputs) -> Tensor:
    """The most typical image of each cluster, clusters with the fewest annotated images first (Algorithm 1).

    Typicality is 1 / mean distance to the nearest images of the cluster. Features are of unit length, clusters
    k-means', min(images annotated + B, 500) in number; those of five images and fewer are left out, as long as others
    have images. The paper clusters SimCLR's features: so do we, where the features are the semantic encoder's. There
    are no images of other classes in the paper: ours count as annotated.
    """
    unit, rows = features(inputs, unit_norm), np.argsort(inputs.pool)
    points, size = np.concatenate([unit.pool[rows], unit.annotated]), len(rows)
    count, seed = min(len(unit.annotated) + inputs.budget, MOST_CLUSTERS, len(points)), int(inputs.rng.integers(2**31))
    clusters = MiniBatchKMeans(count, batch_size=5000, n_init=1, random_state=seed).fit_predict(points)
    taken = in_rounds(points[:size], clusters[:size], clusters[size:], min(inputs.budget, size))
    return dealt(rows[taken], inputs)


def in_rounds(points: np.ndarray, clusters: np.ndarray, annotated: np.ndarray, count: int) -> list[int]:
    """Rows of the pool's points, (U, D), in clusters, (U,); ``annotated`` are the annotated images' clusters."""
    inside = np.bincount(annotated, minlength=clusters.max() + 1)
    clusters, sizes, taken = clusters.copy(), inside + np.bincount(clusters, minlength=len(inside)), []
    turns = np.lexsort((-sizes, inside))
    for group in (turns[sizes[turns] >= SMALLEST_CLUSTER], turns[sizes[turns] < SMALLEST_CLUSTER]):
        while len(taken) < count and np.isin(clusters, group).any():
            for cluster in group:
                members = np.flatnonzero(clusters == cluster)
                if len(members) and len(taken) < count:
                    taken.append(members[typicality(points[members]).argmax()])
                    clusters[taken[-1]] = -1
    return taken


def typicality(points: np.ndarray) -> np.ndarray:
    """1 / (mean distance to the min(20, n / 2) nearest others + 1e-5), (n, D) to (n,)."""
    if len(points) == 1:
        return np.ones(1)
    nearest = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(points) // 2)).fit(points)
    return 1 / (nearest.kneighbors()[0].mean(1) + 1e-5)
