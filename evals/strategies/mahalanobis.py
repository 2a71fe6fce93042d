"""OpenAL (Qu et al., OpenAL: An Efficient Deep Active Learning Framework for Open-Set Pathology Image Classification,
MICCAI 2023)."""

from __future__ import annotations

import math

import numpy as np
from sklearn.cluster import KMeans
from torch import Tensor

from evals.query import QueryInputs, best_first, dealt
from evals.strategies.linear import classifier, features, unit_norm, z_scores
from evals.strategies.uncertainty import entropy_of

CLUSTERS, CANDIDATES = 9, 0.1


def mahalanobis(inputs: QueryInputs) -> Tensor:
    """Of the tenth of the pool (B at least) with the lowest d_target - d_other, those with the largest entropy.

    d_target is the Mahalanobis distance to the labeled images, d_other that to the nearest of 9 k-means clusters of the
    set-aside ones; 0 before there are any.

    The paper's features and entropy are of its network; ours are the frozen features and the linear model. Its code
    min-max normalises both distances over the pool, which lets a few set-aside images outweigh all labeled ones.
    """
    unit, seed = features(inputs, unit_norm), int(inputs.rng.integers(2**31))
    distance, others = nearest_distance(unit.pool, [unit.labeled]), unit.annotated[len(unit.labeled) :]
    if len(others):
        clusters = KMeans(min(CLUSTERS, len(others)), n_init=1, random_state=seed).fit_predict(others)
        distance -= nearest_distance(unit.pool, [others[clusters == number] for number in np.unique(clusters)])
    candidate = np.zeros(len(distance), dtype=bool)
    candidate[best_first(inputs, -distance)[: max(inputs.budget, math.ceil(CANDIDATES * len(distance)))]] = True
    doubt = entropy_of(classifier(features(inputs), inputs))
    return dealt(best_first(inputs, candidate, np.where(candidate, doubt, -distance)), inputs)


def nearest_distance(values: np.ndarray, groups: list[np.ndarray]) -> np.ndarray:
    """(v - m)^T pinv(S) (v - m) of the nearest group's mean m and covariance S, (U,).

    Values, (U, D), and groups, (n, D) each, are first standardised by all groups' mean and deviation. S says
    nothing about directions in which its group does not vary, and a group of one image does not count.
    """
    known, distances = np.concatenate(groups), [np.zeros(len(values))]
    values, groups = z_scores(values, known), [z_scores(group, known) for group in groups if len(group) > 1]
    for group in groups:
        _, scale, directions = np.linalg.svd(group - group.mean(0), full_matrices=False)  # S = V^T diag(s^2 / n) V
        kept = scale > scale.max() * max(group.shape) * np.finfo(scale.dtype).eps
        whitened = (values - group.mean(0)) @ (directions[kept].T / scale[kept])
        distances.append(np.square(whitened).sum(1) * len(group))
    return np.min(distances[bool(groups) :], axis=0)
