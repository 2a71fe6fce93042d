"""The active learning loop: score, query, have the query labeled, and again."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.split import Split
from evals.features import FeatureBank
from evals.metrics import auroc, query_metrics
from evals.query import QueryInputs, QueryResult, checked, select
from evals.scores import PoolScores, Scorer
from evals.strategies import Strategy

ENCODERS = ("semantic", "distinctive")


@dataclass(frozen=True)
class Cycle:
    """One cycle's query and, once the oracle has labeled it, what it found.

    Attributes:
        number: From 1.
        inputs: What the strategy saw.
        utilities: How much it gave each image for each class, (U, C).
        result: The query.
        split: Before the oracle's answer, then after it.
        seconds: Scoring, query and the oracle's answer together.
        is_target: Whether each image of ``inputs.pool`` is a target, looked up after the query, (U,); None before.
        metrics: See evals.metrics, and auroc_semantic, auroc_utility, labeled, pool; empty before the answer.
        by_class: Whether the strategy chose each image for its class.
    """

    number: int
    inputs: QueryInputs
    utilities: Tensor
    result: QueryResult
    split: Split
    seconds: float
    is_target: np.ndarray | None = None
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    by_class: bool = True


class QueryLoop:
    """Queries a pool cycle by cycle, and takes in the answers of an oracle that knows every label.

    A cycle depends on the features, the settings and the images labeled so far alone, so a loop that starts from a
    later split (people have labeled the queries before) makes the same query as one that began with the first.

    The labels of pool images are the oracle's: they are looked up for images once these are queried, and for the
    metrics; no score sees them.

    Args:
        banks: Features by encoder, of all pool and labeled images; each bank holds the same images.
        split: What is labeled, and the pool; the attribute follows the answers.
        labels: Of all train images, (N,).
        strategy: What to query.
        k: Steepness of the semantic score.
        t: Its zero, or ``auto``, see evals.scores.automatic_t.
        seed: Of the strategy's random stream.
        device: Where the scores are computed; features that lie elsewhere come block by block.
    """

    def __init__(
        self,
        banks: dict[str, FeatureBank],
        split: Split,
        labels: np.ndarray,
        strategy: Strategy,
        *,
        k: float = 100.0,
        t: float | str = 0.9,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.split, self.banks = split, banks
        self._labels, self._strategy, self._seed, self._device = labels, strategy, seed, torch.device(device)
        self._initial = split
        self._scored = [banks[name] if name in strategy.needs else None for name in ENCODERS]
        pools = [bank and bank.features for bank in self._scored]
        self._scorer = Scorer(*pools, num_classes=len(split.target_classes), k=k, t=t, device=device)
        self._add_labeled(split.labeled)

    def query(self, number: int, queries_per_class: int) -> Cycle:
        """Scores the pool and queries it; nothing is labeled yet. Cycles have numbers from 1."""
        start, split = time.perf_counter(), self.split
        budget = queries_per_class * len(split.target_classes)
        inputs = QueryInputs(
            pool=split.unlabeled,
            labeled=split.labeled,
            labeled_classes=split.class_numbers(self._labels[split.labeled]),
            set_aside=split.set_aside,
            num_classes=len(split.target_classes),
            scores=self._scores(split.unlabeled, budget),
            banks=self.banks,
            rng=np.random.default_rng([self._seed, number]),
            budget=budget,
            history=split.history,
            device=self._device,
        )
        utilities = checked(self._strategy.utilities(inputs), inputs)
        result = select(utilities, inputs, queries_per_class=queries_per_class)
        seconds, by_class = time.perf_counter() - start, self._strategy.by_class
        return Cycle(number, inputs, utilities, result, split, seconds, by_class=by_class)

    def answer(self, cycle: Cycle) -> Cycle:
        """Has the oracle label a query: targets join the labeled images, the others are set aside."""
        start, before = time.perf_counter(), self.split
        after = self.take(cycle.result.indices)
        seconds = cycle.seconds + time.perf_counter() - start
        is_target = np.isin(self._labels[before.unlabeled], after.target_classes)
        metrics = query_metrics(
            self._labels[cycle.result.indices],
            target_classes=after.target_classes,
            found_before=len(before.labeled) - len(self._initial.labeled),
            pool_targets=int(np.isin(self._labels[self._initial.unlabeled], after.target_classes).sum()),
        )
        metrics |= _pool_auroc(cycle.inputs.scores, cycle.utilities, is_target)
        metrics |= {"labeled": len(after.labeled), "pool": len(after.unlabeled)}
        return dataclasses.replace(cycle, split=after, seconds=seconds, is_target=is_target, metrics=metrics)

    def take(self, queried: np.ndarray) -> Split:
        """Takes in the oracle's answers to a query, (Q,), such as one that was made before; returns the split then."""
        known = len(self.split.labeled)
        self.split = self.split.annotate(queried, self._labels)
        self._add_labeled(self.split.labeled[known:])
        return self.split

    def _add_labeled(self, indices: np.ndarray) -> None:
        features = [bank and bank.of(indices) for bank in self._scored]
        classes = torch.from_numpy(self.split.class_numbers(self._labels[indices]))
        self._scorer.add_labeled(*features, classes)

    def _scores(self, indices: np.ndarray, asked: int) -> PoolScores:
        bank = next(filter(None, self._scored), None)
        if bank is None:
            return PoolScores()
        return self._scorer.scores(torch.from_numpy(bank.rows(indices)), asked=asked)


def simulate(loop: QueryLoop, *, cycles: int, queries_per_class: int) -> Iterator[Cycle]:
    """Queries and has the oracle answer until the pool is empty or ``cycles`` are done."""
    for number in range(1, cycles + 1):
        if not len(loop.split.unlabeled):
            return
        yield loop.answer(loop.query(number, queries_per_class))


def best_utility(utilities: Tensor) -> np.ndarray:
    """Each image's largest utility over the classes, (U, C) to (U,)."""
    return utilities.amax(1).cpu().numpy()


def _pool_auroc(scores: PoolScores, utilities: Tensor, is_target: np.ndarray) -> dict[str, float | None]:
    """AUROC of target against other images, for the similarity s and for what the strategy ranked by."""
    similarity = None if scores.similarity is None else auroc(scores.similarity.cpu().numpy(), is_target)
    return {"auroc_semantic": similarity, "auroc_utility": auroc(best_utility(utilities), is_target)}
