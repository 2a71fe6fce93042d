"""The active learning loop: score, query, ask the oracle, and again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.split import Split
from evals.features import FeatureBank
from evals.metrics import auroc, query_metrics
from evals.query import QueryInputs, QueryResult, Strategy, select
from evals.scores import PoolScores, Scorer

ENCODERS = ("semantic", "distinctive")


@dataclass(frozen=True)
class Cycle:
    """One cycle's outcome.

    Attributes:
        number: From 1.
        inputs: What the strategy saw.
        utilities: What it said, (U, C).
        result: The query.
        split: After the oracle's answer.
        is_target: Whether each image of ``inputs.pool`` is a target, looked up after the query, (U,); None where
            nobody knows.
        metrics: See evals.metrics, and auroc_semantic, auroc_utility, labeled, pool; empty before the oracle's answer.
        seconds: Scoring, query and annotation together.
    """

    number: int
    inputs: QueryInputs
    utilities: Tensor
    result: QueryResult
    split: Split
    is_target: np.ndarray | None
    metrics: dict[str, Any]
    seconds: float


def query_cycles(
    split: Split,
    labels: np.ndarray,
    banks: dict[str, FeatureBank],
    strategy: Strategy,
    *,
    cycles: int,
    target: int,
    done: Sequence[np.ndarray] = (),
    k: float = 100.0,
    t: float = 0.9,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[Cycle]:
    """Queries ``target`` images per class in each cycle until the pool is empty or ``cycles`` are done.

    A cycle depends on the features, the settings and what was queried before it alone: continued after the cycles of
    ``done``, the others come out to the bit as they would have without a stop.

    The labels of pool images are the oracle's: they are looked up for images once these are queried, and for the
    metrics; no score sees them.

    Args:
        split: The initial split.
        labels: Of all train images, (N,).
        banks: Features by encoder, of all pool and labeled images; each bank holds the same images.
        strategy: What to query.
        cycles: How many, with those of ``done``.
        target: Images per class and cycle.
        done: What an earlier process has queried, cycle by cycle; these cycles are not yielded.
        k: Steepness of the semantic score.
        t: Its zero.
        seed: Of the strategy's random stream.
        device: Where the scores are computed; features that lie elsewhere come block by block.
    """
    initial = split
    loop = _Loop(banks, num_classes=len(split.target_classes), k=k, t=t, device=device)
    loop.add(split.labeled, split.class_numbers(labels[split.labeled]))
    pool_targets = int(np.isin(labels[split.unlabeled], split.target_classes).sum())
    for indices in done:  # cycle by cycle as they were, so that every product has the shape that it had
        split = loop.annotate(split, indices, labels)
    for number in range(len(done) + 1, cycles + 1):
        if not len(split.unlabeled):
            return
        start = time.perf_counter()
        inputs = loop.inputs(split, labels, np.random.default_rng([seed, number]))
        utilities = strategy.utilities(inputs)
        result = select(utilities, inputs, target=target)
        before, split = split, loop.annotate(split, result.indices, labels)
        seconds = time.perf_counter() - start
        metrics = query_metrics(
            labels[result.indices],
            target_classes=split.target_classes,
            found_before=len(before.labeled) - len(initial.labeled),
            pool_targets=pool_targets,
        )
        is_target = np.isin(labels[before.unlabeled], split.target_classes)
        metrics |= _pool_auroc(inputs.scores, utilities, is_target)
        metrics |= {"labeled": len(split.labeled), "pool": len(split.unlabeled)}
        yield Cycle(number, inputs, utilities, result, split, is_target, metrics, seconds)


def query_once(
    split: Split,
    labels: np.ndarray,
    banks: dict[str, FeatureBank],
    strategy: Strategy,
    *,
    number: int,
    target: int,
    k: float = 100.0,
    t: float = 0.9,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Cycle:
    """Queries for one cycle and asks no oracle; the same images as query_cycles would after the same answers.

    Args:
        split: What is labeled by now, and the pool.
        labels: Of all train images, (N,); those of the pool are not looked at.
        banks: Features by encoder.
        strategy: What to query.
        number: Of the cycle, from 1.
        target: Images per class.
        k: Steepness of the semantic score.
        t: Its zero.
        seed: Of the strategy's random stream.
        device: Where the scores are computed.
    """
    start = time.perf_counter()
    loop = _Loop(banks, num_classes=len(split.target_classes), k=k, t=t, device=device)
    loop.add(split.labeled, split.class_numbers(labels[split.labeled]))
    inputs = loop.inputs(split, labels, np.random.default_rng([seed, number]))
    utilities = strategy.utilities(inputs)
    result = select(utilities, inputs, target=target)
    return Cycle(number, inputs, utilities, result, split, None, {}, time.perf_counter() - start)


class _Loop:
    """The scorer over all images of the banks, addressed by data set indices."""

    def __init__(
        self, banks: dict[str, FeatureBank], *, num_classes: int, k: float, t: float, device: torch.device | str
    ) -> None:
        self._banks = banks
        pools = [banks[name].features if name in banks else None for name in ENCODERS]
        self._scorer = Scorer(*pools, num_classes=num_classes, k=k, t=t, device=device)

    def add(self, indices: np.ndarray, classes: np.ndarray) -> None:
        features = [self._banks[name].of(indices) if name in self._banks else None for name in ENCODERS]
        self._scorer.add_labeled(*features, torch.from_numpy(classes))

    def annotate(self, split: Split, indices: np.ndarray, labels: np.ndarray) -> Split:
        """The split after the oracle's answer, whose targets the scorer takes in."""
        after = split.annotate(indices, labels)
        joined = after.labeled[len(split.labeled) :]
        self.add(joined, after.class_numbers(labels[joined]))
        return after

    def inputs(self, split: Split, labels: np.ndarray, rng: np.random.Generator) -> QueryInputs:
        """What a strategy sees of the pool."""
        return QueryInputs(
            pool=split.unlabeled,
            labeled=split.labeled,
            labeled_classes=split.class_numbers(labels[split.labeled]),
            num_classes=len(split.target_classes),
            scores=self.scores(split.unlabeled),
            banks=self._banks,
            rng=rng,
        )

    def scores(self, indices: np.ndarray) -> PoolScores:
        if not self._banks:
            return PoolScores()
        bank = next(iter(self._banks.values()))
        return self._scorer.scores(torch.from_numpy(bank.rows(indices)))


def best_utility(utilities: Tensor) -> np.ndarray:
    """Each image's largest utility over the classes, (U, C) to (U,)."""
    return utilities.amax(1).cpu().numpy()


def _pool_auroc(scores: PoolScores, utilities: Tensor, is_target: np.ndarray) -> dict[str, float | None]:
    """AUROC of target against other images, for the similarity s and for what the strategy ranked by."""
    similarity = None if scores.similarity is None else auroc(scores.similarity.cpu().numpy(), is_target)
    return {"auroc_semantic": similarity, "auroc_utility": auroc(best_utility(utilities), is_target)}
