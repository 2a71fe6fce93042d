"""What the rival strategies share: their networks, on frozen features, and a mixture of Gaussians.

Their papers train a network at each cycle. Here, so that strategies differ in nothing but the query, it is a linear
model on frozen features (``penultimate``, or the files that were given, side by side): scikit-learn's
LogisticRegression with C = 0.01. At its default of 1 a few hundred labels are told apart with certainty, and nothing is
uncertain any more. Its inputs z stand for the network's penultimate features.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture

from evals.query import QueryInputs

REGULARISATION = 0.01  # C
LEADING = 32


@dataclass(frozen=True)
class Features:
    """Features, a row an image: pool (U, D), labeled (L, D), annotated (L + A, D), which is labeled, then set aside.

    ``classes`` are the numbers of the annotated images' classes, (L + A,), and C for those set aside.
    """

    pool: np.ndarray
    labeled: np.ndarray
    annotated: np.ndarray
    classes: np.ndarray


def z_scores(values: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
    """Values, (n, D), less the mean of the known ones (default: of all) over their deviation; 0 where that is 0."""
    known = values if known is None else known
    mean, deviation = known.mean(0, dtype=np.float64), known.std(0, dtype=np.float64)
    constant = deviation <= 1e-6 * np.abs(mean)
    return ((values - mean) / np.where(constant, np.inf, deviation)).astype(np.float32)


def unit_norm(values: np.ndarray) -> np.ndarray:
    """Rows of length 1, (n, D); 0 stays 0."""
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def features(inputs: QueryInputs, scaled: Callable[[np.ndarray], np.ndarray] = z_scores) -> Features:
    """Features of all of a query's images, scaled together."""
    banks = inputs.banks
    banks = [banks["penultimate"]] if "penultimate" in banks else banks.values()
    images = np.concatenate([inputs.pool, inputs.labeled, inputs.set_aside])
    values = scaled(torch.cat([bank.of(images).flatten(1) for bank in banks], dim=1).cpu().numpy())
    pool, annotated = np.split(values, [len(inputs.pool)])
    classes = np.concatenate([inputs.labeled_classes, np.full(len(inputs.set_aside), inputs.num_classes)])
    return Features(pool, annotated[: len(inputs.labeled)], annotated, classes)


def classifier(z: Features, inputs: QueryInputs) -> np.ndarray:
    """Logits of the pool, (U, C), by the cycle's classifier: of labeled images, by their classes."""
    return _logits(z.pool, z.labeled, inputs.labeled_classes, inputs.num_classes)


def detector(z: Features, inputs: QueryInputs, *, temperature: float = 1.0) -> np.ndarray:
    """Logits of the pool, (U, C + 1), by the classifier whose last output is right for the images set aside.

    Before there are any, that output is never right in training and its logit goes to -inf; here it is -inf. With a
    temperature in the loss, a linear model's logits / T at C are logits at C / T^2: a scale, and no other fit.
    """
    return _logits(z.pool, z.annotated, z.classes, inputs.num_classes + 1, temperature)


def fit(known: np.ndarray, targets: np.ndarray, *, temperature: float = 1.0) -> LogisticRegression:
    """The linear model of features, (n, D), and their classes, (n,), of which there are two or more."""
    return LogisticRegression(C=REGULARISATION / temperature**2, max_iter=1000).fit(known, targets)


def _logits(
    pool: np.ndarray, known: np.ndarray, targets: np.ndarray, outputs: int, temperature: float = 1.0
) -> np.ndarray:
    present, logits = np.unique(targets), np.full((len(pool), outputs), -np.inf)
    if len(present) == 1:
        logits[:, present] = 0.0
        return logits
    decision = temperature * fit(known, targets, temperature=temperature).decision_function(pool)
    # Of two classes scikit-learn gives the difference; logits of more sum to 0, so these do as well.
    logits[:, present] = decision if decision.ndim == 2 else np.stack([-decision / 2, decision / 2], axis=1)
    return logits


def leading(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of values, (n, D), in the LEADING directions that hold most of them, and the rest's length, (n,).

    A product a . b is that of their coordinates, give or take the product of their rests: a cheap bound.
    """
    directions = np.linalg.eigh(values.T @ values)[1][:, ::-1][:, :LEADING]
    coordinates = np.ascontiguousarray(values @ directions)
    rest = np.einsum("nd,nd->n", values, values) - np.einsum("nd,nd->n", coordinates, coordinates)
    return coordinates, np.sqrt(rest.clip(min=0.0))


def log_odds(logits: np.ndarray) -> np.ndarray:
    """log(max p / (1 - max p)), (n, K) to (n,): the order of max p also where that rounds to 1; +inf for one class."""
    best, others = logits.argmax(1)[:, None], logits.copy()
    np.put_along_axis(others, best, -np.inf, axis=1)
    with np.errstate(divide="ignore"):
        return logits.max(1) - logsumexp(others, axis=1)


def mixture_posterior(values: np.ndarray, rng: np.random.Generator, *, larger: bool, components: int = 2) -> np.ndarray:
    """P(component of the largest, or smallest, mean | value) of Gaussians fitted to values, (n,).

    The fit's settings are those of LfOSA, EAOA and E2OAL. Values that are all equal tell nothing apart: 1.
    """
    state = int(rng.integers(2**31))
    if np.ptp(values) == 0:
        return np.ones(len(values))
    mixture = GaussianMixture(min(components, len(values)), max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ten iterations need not converge
        mixture.fit(np.sort(values)[:, None])  # in whatever order they come
    means = mixture.means_[:, 0]
    return mixture.predict_proba(values[:, None])[:, means.argmax() if larger else means.argmin()]
