"""Query strategies, one file a family.

A strategy is a function from ``QueryInputs`` to utilities (U, C): how much each unqueried image is worth for each
target class, -inf where it is not a candidate. To add one, write the function, enter it in STRATEGIES with the features
that it needs, and add its name to ``common.settings.STRATEGIES``, the flag's choices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from evals.query import QueryInputs
from evals.strategies.ccal import ccal, distinctive, semantic
from evals.strategies.posterior import posterior
from evals.strategies.random import uniform_random


@dataclass(frozen=True)
class Strategy:
    """A query strategy and the features that it needs.

    ``semantic`` and ``distinctive`` are the encoders' projections, averaged over views, as in the paper;
    ``penultimate`` are the semantic encoder's penultimate features of the image as it is, or features from files.
    """

    utilities: Callable[[QueryInputs], Tensor]
    needs: tuple[str, ...]


STRATEGIES = {
    "ccal": Strategy(ccal, needs=("semantic", "distinctive")),
    "semantic": Strategy(semantic, needs=("semantic",)),
    "distinctive": Strategy(distinctive, needs=("distinctive",)),
    "posterior": Strategy(posterior, needs=("penultimate",)),
    "random": Strategy(uniform_random, needs=()),
}
