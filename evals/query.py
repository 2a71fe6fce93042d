"""What a query strategy may look at, and the selection that all strategies share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datasets.split import Split
from evals.features import FeatureBank
from evals.scores import PoolScores
from utils import InputError


@dataclass(frozen=True)
class QueryInputs:
    """All that a strategy may look at; no label of a pool image is among it.

    Attributes:
        pool: Unqueried images, int64 (U,).
        labeled: Labeled images, int64 (L,).
        labeled_classes: Their class numbers, (L,).
        set_aside: Queried images of other classes, int64 (A,).
        num_classes: C.
        scores: Of the unqueried images, in the order of ``pool``; what the strategy does not need is None.
        banks: Banks of the features that the strategy needs, by their name.
        rng: The strategy's own random stream.
        budget: B, how many images this cycle asks for, over all classes.
        history: Of each answered cycle, how many images were queried and how many of them are targets. The latest ones
            stand last in ``labeled`` and in ``set_aside``.
        device: Where to compute.
    """

    pool: np.ndarray
    labeled: np.ndarray
    labeled_classes: np.ndarray
    set_aside: np.ndarray
    num_classes: int
    scores: PoolScores
    banks: dict[str, FeatureBank]
    rng: np.random.Generator
    budget: int
    history: tuple[tuple[int, int], ...] = ()
    device: torch.device | str = "cpu"


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


def select(utilities: Tensor, inputs: QueryInputs, *, queries_per_class: int) -> QueryResult:
    """Takes the best candidates of each class; ties go to the lower index, and no image is taken twice.

    A class with fewer candidates yields what it has. ``utilities`` are (U, C), -inf where an image is no candidate.

    Raises:
        InputError: See ``checked``.
    """
    values = checked(utilities, inputs).cpu().numpy()
    count, taken = queries_per_class, np.zeros(len(inputs.pool), dtype=bool)
    rows, classes, shortfall = [], [], {}
    for number in range(inputs.num_classes):
        candidates = np.flatnonzero((values[:, number] > -np.inf) & ~taken)
        if len(candidates) > count:  # of millions, only those that reach the last place need sorting
            last = np.partition(values[candidates, number], -count)[-count]
            candidates = candidates[values[candidates, number] >= last]
        order = np.lexsort((inputs.pool[candidates], -values[candidates, number]))
        best = candidates[order[:count]]
        taken[best] = True
        rows.append(best)
        classes.append(np.full(len(best), number))
        if len(best) < count:
            shortfall[number] = count - len(best)
    row, number = np.concatenate(rows), np.concatenate(classes)
    return QueryResult(
        indices=inputs.pool[row],
        pseudo_class=number,
        utility=values[row, number],
        semantic=_picked(inputs.scores.semantic, row),
        distinctive=_picked(inputs.scores.distinctive, row, number),
        shortfall=shortfall,
    )


def checked(found: Tensor | np.ndarray, inputs: QueryInputs) -> Tensor:
    """What a strategy returned, as utilities: a float tensor, (U, C), without a gradient; an array will do.

    Raises:
        InputError: It is anything else, or a value is NaN, which has no rank.
    """
    shape = (len(inputs.pool), inputs.num_classes)
    is_array = isinstance(found, np.ndarray) and found.dtype.kind == "f"
    values = torch.from_numpy(np.array(found, dtype=np.float64)) if is_array else found
    if not isinstance(values, Tensor) or not values.is_floating_point() or tuple(values.shape) != shape:
        what = f"{found.dtype} {tuple(found.shape)}" if hasattr(found, "dtype") else type(found).__name__
        raise InputError(f"the strategy gave {what}: it has to give utilities (U, C), here floats {shape}")
    if missing := int(values.isnan().any(1).sum()):
        raise InputError(f"the strategy gave NaN for {missing} of {shape[0]} images: -inf is for no candidate")
    return values.detach().to(torch.promote_types(values.dtype, torch.float32))  # NumPy has no bfloat16


def best_first(inputs: QueryInputs, *values: np.ndarray) -> np.ndarray:
    """Rows of the pool, largest value first, (U,); the next values, each (U,), break ties, and then the lower index."""
    return np.lexsort((inputs.pool, *(-np.asarray(part, dtype=np.float64) for part in reversed(values))))


def dealt(order: np.ndarray, inputs: QueryInputs) -> Tensor:
    """Utilities, (U, C), with which the budget is spent on the first images of an order of the pool's rows, (n,).

    For strategies that do not choose per class: the images are dealt out to the classes in turn. Rows that are not in
    the order follow by index.
    """
    position = np.full(len(inputs.pool), len(order))
    position[order] = np.arange(len(order))
    ranks = np.arange(len(position))
    utilities = torch.full((len(ranks), inputs.num_classes), -torch.inf)
    utilities[best_first(inputs, -position), ranks % inputs.num_classes] = -torch.from_numpy(ranks).float()
    return utilities


def _picked(values: Tensor | None, *where: np.ndarray) -> np.ndarray:
    if values is None:
        return np.full(len(where[0]), np.nan, dtype=np.float32)
    return values.cpu().numpy()[where]


def check_budget(split: Split, labels: np.ndarray, queries_per_class: int, needs: Sequence[str]) -> None:
    """Refuses a query that the pool or the labeled set cannot serve.

    Args:
        labels: Of all train images, (N,), as far as they are known.
        needs: The encoders that the strategy needs.

    Raises:
        InputError: More images are asked for per cycle than the pool has, or a class has too few labeled images.
    """
    classes, pool = len(split.target_classes), len(split.unlabeled)
    if queries_per_class * classes > pool:
        raise InputError(
            f"--queries_per_class {queries_per_class} asks for {queries_per_class * classes} images a cycle ({classes} "
            f"classes) and the pool has {pool}; the largest possible here is {pool // classes}"
        )
    counts = np.bincount(split.class_numbers(labels[split.labeled]), minlength=classes)
    if "distinctive" in needs and counts.min() < 2:
        raise InputError(
            f"target class {split.target_classes[int(counts.argmin())]} has {counts.min()} labeled image and the "
            "distinctive score needs two: raise --initial_budget, take another --split_seed, or --strategy semantic"
        )
