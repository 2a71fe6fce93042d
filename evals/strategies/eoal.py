"""EOAL (Safaei et al., Entropic Open-Set Active Learning, AAAI 2024)."""

from __future__ import annotations

import math

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.special import entr, expit, softmax
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from evals.query import QueryInputs, best_first, dealt
from evals.strategies.linear import REGULARISATION, Features, detector, features, unit_norm

TEMPERATURE, ALPHA = 0.5, 0.8


def eoal(inputs: QueryInputs) -> Tensor:
    """From each cluster of likely targets in turn, B / clusters images, those with the smallest S_C - S_D.

    S_C is the mean entropy of C binary classifiers, over log 2; S_D the entropy of softmax(-distance) to C centres of
    the set-aside images, over log C; 0 before there are any. Likely targets are those that the detector does not
    predict to be others; these come last. Clusters are FINCH's finest partition with at most B of them.

    The paper trains features, detector and binary classifiers together; ours are linear models on frozen features, on
    which nothing draws clusters together. The centres are of k-means, for the paper's FINCH.
    """
    z, seed, count = features(inputs), int(inputs.rng.integers(2**31)), min(inputs.num_classes, len(inputs.set_aside))
    p = expit(binary_logits(z, inputs.num_classes))
    score = (entr(p) + entr(1 - p)).mean(1) / math.log(2)
    if count > 1:
        centres = KMeans(count, n_init=1, random_state=seed).fit(z.annotated[len(z.labeled) :]).cluster_centers_
        score -= entr(softmax(-euclidean_distances(z.pool, centres), axis=1)).sum(1) / math.log(count)
    rejected = detector(z, inputs, temperature=TEMPERATURE).argmax(1) == inputs.num_classes
    rows = best_first(inputs, ~rejected)[: len(rejected) - rejected.sum()]
    clusters = np.full(len(score), len(score))
    clusters[rows] = finch(z.pool[rows], inputs.budget)
    share = max(1, min(inputs.budget, len(rows)) // max(1, len(np.unique(clusters[rows]))))
    by_cluster = best_first(inputs, -clusters, -score)
    place = np.arange(len(score)) - np.searchsorted(clusters[by_cluster], clusters[by_cluster])
    turns = np.where(rejected[by_cluster], len(score), place // share)
    return dealt(by_cluster[np.argsort(turns, kind="stable")], inputs)


def binary_logits(z: Features, num_classes: int) -> np.ndarray:
    """Logits of the pool, (U, C), by binary classifiers, each of a class against the rest.

    Targets weigh 1 - alpha on average. Others are examples of either side of each, which draws p to 1/2, and weigh
    alpha / C on each. The paper takes of a target's C - 1 negative losses the largest alone; this is their sum.
    """
    aside = z.classes == num_classes
    alpha, known = ALPHA * aside.any(), len(z.labeled)
    weights = np.where(aside, alpha / num_classes / max(1, aside.sum()), (1 - alpha) / known) * len(aside)
    x, weights = np.concatenate([z.annotated, z.annotated[aside]]), np.concatenate([weights, weights[aside]])
    logits = np.zeros((len(z.pool), num_classes))
    for number in range(num_classes):
        y = np.concatenate([z.classes == number, np.ones(aside.sum(), dtype=bool)])
        if not y.all():
            model = LogisticRegression(C=REGULARISATION, max_iter=1000).fit(x, y, sample_weight=weights)
            logits[:, number] = model.decision_function(z.pool)
    return logits


def finch(x: np.ndarray, most: int) -> np.ndarray:
    """Cluster numbers, (n,), of x, (n, D): each is joined with its nearest (cosine), and so are clusters' means until
    few enough are left (Sarfraz et al., Efficient Parameter-Free Clustering Using First Neighbor Relations, CVPR 2019).
    """
    labels, means = np.arange(len(x)), x
    while len(means) > 1 and (means is x or len(means) > most):
        nearest = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(unit_norm(means)).kneighbors()[1][:, 0]
        graph = csr_array((np.ones(len(means)), (np.arange(len(means)), nearest)), shape=(len(means), len(means)))
        labels = connected_components(graph, directed=False)[1][labels]
        member = csr_array((np.ones(len(x), dtype=x.dtype), (labels, np.arange(len(x)))))
        means = (member @ x) / member.sum(1)[:, None]
    return labels
