"""Query strategies and the selection that they share.

A strategy is a function from ``QueryInputs`` to utilities (U, C): how much each unqueried image is worth for each
target class, -inf where it is no candidate. To add one, write the function and enter it in STRATEGIES with the
encoders that it needs (and in common.arguments.STRATEGIES, which declares the flag's choices).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evals.features import FeatureBank
from evals.scores import PoolScores


@dataclass(frozen=True)
class QueryInputs:
    """All that a strategy may look at; no label of a pool image is among it.

    Attributes:
        pool: Unqueried images, int64 (U,).
        labeled: Labeled images, int64 (L,).
        labeled_classes: Their class numbers, (L,).
        num_classes: C.
        scores: Of the unqueried images, in the order of ``pool``.
        banks: Feature banks by encoder.
        rng: The strategy's own random stream.
    """

    pool: np.ndarray
    labeled: np.ndarray
    labeled_classes: np.ndarray
    num_classes: int
    scores: PoolScores
    banks: dict[str, FeatureBank]
    rng: np.random.Generator


def of_pseudo_class(values: Tensor, inputs: QueryInputs) -> Tensor:
    """Puts values (U,) or (U, C) where the class is the image's pseudo class; elsewhere it is no candidate, (U, C)."""
    if values.ndim == 1:
        values = values[:, None].expand(-1, inputs.num_classes)
    classes = torch.arange(inputs.num_classes, device=values.device)
    return values.masked_fill(inputs.scores.pseudo_class[:, None] != classes, -torch.inf)


def ccal(inputs: QueryInputs) -> Tensor:
    """The joint score S(u) + D_i(u) (CCAL, joint query score)."""
    return of_pseudo_class(inputs.scores.semantic[:, None] + inputs.scores.distinctive, inputs)


def semantic(inputs: QueryInputs) -> Tensor:
    """S(u) alone. Where tanh saturates, the similarity behind it still ranks: it is what is returned."""
    return of_pseudo_class(inputs.scores.similarity, inputs)


def distinctive(inputs: QueryInputs) -> Tensor:
    """D_i(u) alone, for the same candidates as the joint score: only the score's other term is left out."""
    return of_pseudo_class(inputs.scores.distinctive, inputs)


def uniform_random(inputs: QueryInputs) -> Tensor:
    """A random order of the pool, dealt out to the classes in turn: the same budget without any score."""
    order = inputs.rng.permutation(len(inputs.pool))
    utilities = torch.full((len(inputs.pool), inputs.num_classes), -torch.inf)
    utilities[order, np.arange(len(order)) % inputs.num_classes] = -torch.arange(len(order), dtype=torch.float32)
    return utilities


@dataclass(frozen=True)
class Strategy:
    """A query strategy and the encoders whose features it needs (``semantic``, ``distinctive``)."""

    utilities: Callable[[QueryInputs], Tensor]
    needs: tuple[str, ...]


STRATEGIES = {
    "ccal": Strategy(ccal, ("semantic", "distinctive")),
    "semantic": Strategy(semantic, ("semantic",)),
    "distinctive": Strategy(distinctive, ("semantic", "distinctive")),
    "random": Strategy(uniform_random, ()),
}


@dataclass(frozen=True)
class QueryResult:
    """One cycle's query, in the order of selection: class by class, best first.

    Attributes:
        indices: Queried images, int64 (Q,).
        pseudo_class: Class number for which each was chosen, (Q,).
        utility: The strategy's value of each, (Q,); the joint score for ``ccal``.
        semantic: S(u), (Q,); NaN where the strategy has none.
        distinctive: D_i(u), (Q,); likewise.
        shortfall: By class number, how many candidates were missing to the number asked.
    """

    indices: np.ndarray
    pseudo_class: np.ndarray
    utility: np.ndarray
    semantic: np.ndarray
    distinctive: np.ndarray
    shortfall: dict[int, int]


def select(utilities: Tensor, inputs: QueryInputs, *, target: int) -> QueryResult:
    """Takes the ``target`` best candidates of each class; ties go to the lower index, and no image is taken twice.

    A class with fewer candidates yields what it has.

    Args:
        utilities: (U, C), -inf where an image is no candidate.
        inputs: What the strategy saw.
        target: Images per class.
    """
    values = utilities.detach().cpu().numpy()
    assert values.shape == (len(inputs.pool), inputs.num_classes)
    taken = np.zeros(len(inputs.pool), dtype=bool)
    rows, classes, shortfall = [], [], {}
    for number in range(inputs.num_classes):
        candidates = np.flatnonzero((values[:, number] > -np.inf) & ~taken)
        if len(candidates) > target:  # of millions, only those that reach the last place need sorting
            last = np.partition(values[candidates, number], -target)[-target]
            candidates = candidates[values[candidates, number] >= last]
        order = np.lexsort((inputs.pool[candidates], -values[candidates, number]))
        best = candidates[order[:target]]
        taken[best] = True
        rows.append(best)
        classes.append(np.full(len(best), number))
        if len(best) < target:
            shortfall[number] = target - len(best)
    row, number = np.concatenate(rows), np.concatenate(classes)
    return QueryResult(
        indices=inputs.pool[row],
        pseudo_class=number,
        utility=values[row, number],
        semantic=_picked(inputs.scores.semantic, row),
        distinctive=_picked(inputs.scores.distinctive, row, number),
        shortfall=shortfall,
    )


def _picked(values: Tensor | None, *where: np.ndarray) -> np.ndarray:
    if values is None:
        return np.full(len(where[0]), np.nan, dtype=np.float32)
    return values.cpu().numpy()[where]
