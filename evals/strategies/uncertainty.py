"""Uncertainty sampling (Settles, Active Learning Literature Survey, 2009, Sec. 3.1), and its opposite.

p is the softmax of the cycle's classifier: ours is the linear model of evals.strategies.linear.
"""

from __future__ import annotations

import numpy as np
from scipy.special import entr, softmax
from torch import Tensor

from evals.query import QueryInputs, best_first, dealt
from evals.strategies.linear import classifier, features, log_odds


def entropy(inputs: QueryInputs) -> Tensor:
    """Largest -sum p log p."""
    return dealt(best_first(inputs, entropy_of(classifier(features(inputs), inputs))), inputs)


def margin(inputs: QueryInputs) -> Tensor:
    """Smallest p_1 - p_2, the two largest probabilities; with one class p_1 = 1 for all."""
    p = np.sort(softmax(classifier(features(inputs), inputs), axis=1), axis=1)
    return dealt(best_first(inputs, p[:, -2:-1].sum(1) - p[:, -1]), inputs)


def confidence(inputs: QueryInputs) -> Tensor:
    """Smallest max p (least confidence)."""
    return dealt(best_first(inputs, -log_odds(classifier(features(inputs), inputs))), inputs)


def certainty(inputs: QueryInputs) -> Tensor:
    """Largest max p, the opposite of confidence."""
    return dealt(best_first(inputs, log_odds(classifier(features(inputs), inputs))), inputs)


def entropy_of(logits: np.ndarray) -> np.ndarray:
    """-sum p log p, (n, K) to (n,)."""
    return entr(softmax(logits, axis=1)).sum(1)
