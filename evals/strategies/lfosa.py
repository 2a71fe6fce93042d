"""LfOSA (Ning et al., Active Learning for Open-set Annotation, CVPR 2022)."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from evals.query import QueryInputs, best_first, dealt
from evals.strategies.linear import detector, features, mixture_posterior

TEMPERATURE = 0.5


def lfosa(inputs: QueryInputs) -> Tensor:
    """Images whose largest logit is most likely of the component of larger mean, see ``likelihood``.

    The paper's detector is a network with the cross entropy of logits / 0.5; ours is the linear model with a further
    output and the same loss. In the paper others that were queried stay in the pool; here none does.
    """
    logits = detector(features(inputs), inputs, temperature=TEMPERATURE)
    return dealt(best_first(inputs, likelihood(logits, inputs.rng)), inputs)


def likelihood(logits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Per predicted class, the posterior of one of two Gaussians over the largest logits, (U, C + 1) to (U,).

    0 for images that are predicted to be of other classes; an image alone in its class comes last (the paper drops it).
    """
    predicted, found = logits.argmax(1), np.zeros(len(logits))
    for number in range(logits.shape[1] - 1):
        rows = np.flatnonzero(predicted == number)
        found[rows] = mixture_posterior(logits[rows, number], rng, larger=True) if len(rows) > 1 else -1.0
    return found
