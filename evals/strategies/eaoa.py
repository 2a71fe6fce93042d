"""EAOA (Zong and Huang, Rethinking Epistemic and Aleatoric Uncertainty for Active Open-Set Annotation: An Energy-Based
Approach, CVPR 2025)."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.special import logsumexp
from torch import Tensor

from evals.query import QueryInputs, best_first
from evals.scores import BLOCK, blocks, min_max
from evals.strategies.linear import Features, classifier, detector, features, log_odds, mixture_posterior, unit_norm

NEIGHBOURS = 250
FIRST_K, PRECISION, BAND = 5, 0.6, 0.05


def eaoa(inputs: QueryInputs) -> Tensor:
    """Of the k B / C likeliest targets of each predicted class, the B / C with the largest aleatoric uncertainty.

    Epistemic uncertainty is -LSE(known logits) + log(1 + e^unknown), once of the detector's logits and once of votes
    (``votes``); each is min-max normalised, the posterior of the smaller mean in a mixture of two Gaussians is taken,
    and the two are multiplied. Aleatoric is -LSE(f) + LSE(f without its largest) of the classifier's logits f, and the
    posterior that of the larger mean. k follows the answers (``adaptive_k``).

    The paper's networks are here the linear models on frozen features; their training has no energy margins.
    """
    z = features(inputs)
    known = posterior_of(epistemic(detector(z, inputs)), inputs, larger=False)
    known *= posterior_of(epistemic(votes(z, inputs)), inputs, larger=False)
    logits = classifier(z, inputs)
    doubt = posterior_of(aleatoric(logits), inputs, larger=True)
    utilities = torch.full((len(inputs.pool), inputs.num_classes), -torch.inf)
    count = math.ceil(inputs.budget / inputs.num_classes) * adaptive_k(inputs.history)
    predicted, likeliest, candidate = logits.argmax(1), best_first(inputs, known), np.zeros(len(known), dtype=bool)
    for number in range(inputs.num_classes):
        candidate[likeliest[predicted[likeliest] == number][:count]] = True
    order = best_first(inputs, candidate, np.where(candidate, doubt, known))
    utilities[order, predicted[order]] = -torch.arange(len(order), dtype=torch.float32)
    return utilities


def adaptive_k(history: tuple[tuple[int, int], ...]) -> int:
    """k after the answers so far: 5, and after each cycle one more above a precision of 0.65, one less below 0.55.

    At least 1. Where people label, the history has all cycles before the latest as one.
    """
    k = FIRST_K
    for queried, found in history:
        precision = found / queried
        k = max(1, k + (precision > PRECISION + BAND) - (precision < PRECISION - BAND))
    return k


def epistemic(logits: np.ndarray) -> np.ndarray:
    """-LSE(known) + log(1 + e^unknown), (n, C + 1) to (n,)."""
    return -logsumexp(logits[:, :-1], axis=1) + np.logaddexp(0, logits[:, -1])


def aleatoric(logits: np.ndarray) -> np.ndarray:
    """-LSE(f) + LSE(f without its largest) = log(1 - max p), (n, C) to (n,); finite for one class, too."""
    return -np.logaddexp(0, log_odds(logits).clip(max=700))


def votes(z: Features, inputs: QueryInputs) -> np.ndarray:
    """Each annotated image's votes for its 250 nearest pool images (cosine), per class, (U, C + 1).

    They are divided by the class's size over the mean size of a target class.
    """
    pool, annotated = (torch.from_numpy(unit_norm(part)) for part in (z.pool, z.annotated))
    counts = np.zeros((len(pool), inputs.num_classes + 1))
    for rows in blocks(len(annotated), BLOCK // 4):
        nearest = (annotated[rows] @ pool.T).topk(min(NEIGHBOURS, len(pool)), dim=1).indices.numpy()
        np.add.at(counts, (nearest, z.classes[rows, None]), 1)
    sizes = np.bincount(z.classes, minlength=inputs.num_classes + 1)
    return counts / np.maximum(sizes / sizes[:-1].mean(), 1e-9)  # without an image there is no vote to divide


def posterior_of(values: np.ndarray, inputs: QueryInputs, *, larger: bool) -> np.ndarray:
    """The mixture's posterior of min-max normalised values, (n,)."""
    return mixture_posterior(min_max(torch.from_numpy(values)).numpy(), inputs.rng, larger=larger)
