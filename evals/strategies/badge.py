"""BADGE (Ash et al., Deep Batch Active Learning by Diverse, Uncertain Gradient Lower Bounds, ICLR 2020)."""

from __future__ import annotations

import numpy as np
from scipy.special import softmax
from torch import Tensor

from evals.query import QueryInputs, dealt
from evals.strategies.linear import classifier, features, leading


def badge(inputs: QueryInputs) -> Tensor:
    """k-means++ on g = (p - onehot(argmax p)) outer z, the last layer's gradient for the likeliest label (Algorithm 1).

    The first image has the largest |g|; each next one is drawn in proportion to its squared distance to those taken.
    The paper's network is here the linear model on frozen features.
    """
    z, rows = features(inputs), np.argsort(inputs.pool)
    x = softmax(classifier(z, inputs)[rows], axis=1)
    x[np.arange(len(x)), x.argmax(1)] -= 1
    taken = k_means_plus_plus(x.astype(np.float32), z.pool[rows], min(inputs.budget, len(rows)), inputs.rng)
    return dealt(rows[taken], inputs)


def k_means_plus_plus(x: np.ndarray, z: np.ndarray, count: int, rng: np.random.Generator) -> list[int]:
    """Rows of x, (U, C), and z, (U, D), in the order of drawing; fewer than ``count`` where the rest coincides.

    The outer products g are never built: |g_a - g_b|^2 = |x_a|^2 |z_a|^2 + |x_b|^2 |z_b|^2 - 2 (x_a . x_b)(z_a . z_b).
    """
    norms = np.einsum("uc,uc->u", x, x) * np.einsum("ud,ud->u", z, z)
    distance, taken = np.full_like(norms, np.inf), [int(norms.argmax())]
    head, rest = leading(z)
    while len(taken) < count:
        a = taken[-1]
        product = x @ x[a]
        at_least = norms + norms[a] - 2 * (product * (head @ head[a]) + np.abs(product) * rest * rest[a])
        near = np.flatnonzero(at_least < distance)  # the others keep their distance
        reached = norms[near] + norms[a] - 2 * product[near] * (z[near] @ z[a])
        distance[near] = np.minimum(distance[near], reached)
        distance[taken] = 0.0
        mass = np.cumsum(distance.clip(min=0.0), dtype=np.float64)
        if mass[-1] == 0:
            break
        taken.append(int(np.searchsorted(mass, rng.random() * mass[-1], side="right")))
    return taken
