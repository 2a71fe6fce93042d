"""The query of E2OAL (Zong et al., Revisiting Unknowns, CVPR 2026)."""

from __future__ import annotations

import bisect
import dataclasses
import math

import numpy as np
import torch
from scipy.special import rel_entr, softmax
from torch import Tensor

from evals.query import QueryInputs, best_first
from evals.strategies.linear import classifier, detector, features, mixture_posterior

PRECISION, COMPONENTS = 0.6, 3


def e2oal(inputs: QueryInputs) -> Tensor:
    """Of the k / C purest images of each predicted class, the B / C with the largest JS(p, uniform) JS(p, one-hot).

    Purity is the detector's largest known logit less its unknown one; before there are others, the former alone. k
    follows from the purity's posterior in a mixture of three Gaussians and from the answers (``candidate_count``).

    The paper's network has an output for each of as many clusters of others as its answers suggest, and evidential
    training; ours are the linear models on frozen features, with one output for others. Its code takes KL(m || p) for
    KL(p || m) in the divergences, and leaves a class short that has too few images; here its purest others follow.
    """
    z = features(inputs)
    logits = detector(dataclasses.replace(z, pool=np.concatenate([z.annotated, z.pool])), inputs)
    purity = logits[:, :-1].max(1) - (logits[:, -1] if len(inputs.set_aside) else 0.0)
    posterior = mixture_posterior(purity, inputs.rng, larger=True, components=COMPONENTS)
    logits, purity, posterior = (part[-len(z.pool) :] for part in (logits, purity, posterior))
    value = informativeness(softmax(classifier(z, inputs), axis=1))
    target = target_precision(inputs.history) * inputs.budget
    count = candidate_count(posterior, value, best_first(inputs, posterior, purity), inputs.budget, target)
    predicted, purest, candidate = logits.argmax(1), best_first(inputs, purity), np.zeros(len(purity), dtype=bool)
    for number in range(inputs.num_classes):  # no image that is predicted to be of another class
        candidate[purest[predicted[purest] == number][: math.ceil(count / inputs.num_classes)]] = True
    order = best_first(inputs, candidate, np.where(candidate, value, purity))
    utilities = torch.full((len(order), inputs.num_classes), -torch.inf)
    utilities[order, logits[order, :-1].argmax(1)] = -torch.arange(len(order), dtype=torch.float32)
    return utilities


def informativeness(p: np.ndarray) -> np.ndarray:
    """JS(p, uniform) JS(p, one-hot of the largest p), (n, C) to (n,); 2 JS(p, q) = KL(p || m) + KL(q || m)."""
    q = np.stack([np.full_like(p, 1 / p.shape[1]), np.eye(p.shape[1])[p.argmax(1)]])
    return ((rel_entr(p, (p + q) / 2) + rel_entr(q, (p + q) / 2)).sum(2) / 2).prod(0)


def target_precision(history: tuple[tuple[int, int], ...]) -> float:
    """t <- min(max(t + 0.6 - precision, 0), 1) after each answered cycle; at first 0.6."""
    target = PRECISION
    for queried, found in history:
        target = min(max(target + PRECISION - found / queried, 0.0), 1.0)
    return target


def candidate_count(posterior: np.ndarray, value: np.ndarray, order: np.ndarray, budget: int, target: float) -> int:
    """The least k >= B such that the posteriors of the B most valuable of an order's first k images sum to the target
    at most; all of the pool if there is none.

    ``order`` goes by posterior, so that an image that enters the B has no larger one than the image that it replaces:
    the sum never rises with k, and bisection finds k.
    """
    return budget + bisect.bisect_left(
        range(budget, len(order)),
        True,
        key=lambda k: posterior[order[:k][np.argsort(-value[order[:k]], kind="stable")[:budget]]].sum() <= target,
    )
