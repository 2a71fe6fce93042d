"""NEAT (Mao, Xu and Guo, Inconsistency-Based Data-Centric Active Open-Set Annotation, AAAI 2024)."""

from __future__ import annotations

import numpy as np
from scipy.special import log_softmax
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from evals.query import QueryInputs, best_first, dealt
from evals.strategies.linear import classifier, features, unit_norm

NEIGHBOURS = 10


def neat(inputs: QueryInputs) -> Tensor:
    """Of images whose neighbours are mostly targets, those whose neighbours contradict the classifier.

    n_c of the 10 nearest annotated images (cosine) are of class c; candidates have more targets than others among them.
    Of the 2B candidates with the most targets, those with the largest -sum_c (n_c / 10) log p_c are queried. Before an
    image is set aside all neighbours are targets, and the 2B are, as in every tie, those of the lowest index.

    The paper takes CLIP's features and a network's p; ours are the frozen features and the linear model. In the paper
    others that were queried stay in the pool; here none does.
    """
    unit = features(inputs, unit_norm)
    nearest = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(unit.annotated)), algorithm="brute").fit(unit.annotated)
    classes = unit.classes[nearest.kneighbors(unit.pool, return_distance=False)]  # (U, 10)
    counts = np.stack([(classes == number).sum(1) for number in range(inputs.num_classes + 1)], axis=1)
    log_p = log_softmax(classifier(features(inputs), inputs), axis=1)
    return dealt(order_by(counts, log_p, inputs), inputs)


def order_by(counts: np.ndarray, log_p: np.ndarray, inputs: QueryInputs) -> np.ndarray:
    """The pool's order, (U,), by neighbours of each class and others, (U, C + 1), and log p, (U, C)."""
    of_class, known = counts[:, :-1], counts[:, :-1].sum(1)
    candidate, kept = known > counts[:, -1], np.zeros(len(counts), dtype=bool)
    kept[best_first(inputs, candidate, known)[: 2 * inputs.budget]] = True
    kept &= candidate
    contradiction = -(of_class * np.where(of_class > 0, log_p, 0.0)).sum(1) / counts.sum(1)  # 0 log 0 = 0
    return best_first(inputs, kept, np.where(kept, contradiction, 0.0), candidate, known)
