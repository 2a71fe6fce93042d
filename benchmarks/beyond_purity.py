"""Is purity all? Queries that ask, among likely targets, for those that should teach most, judged by accuracy.

Usage: python -m benchmarks.beyond_purity --features semantic_450_penultimate.npy --npz cifar10.npz --classes 3 5

Every variant takes, per class, the 2 B likeliest images by ``posterior`` and queries B of these: the likeliest
(posterior itself), those nearest to the border between the target classes, those that the distinctive score D(u) puts
first (CCAL, Sec. 3, on the penultimate features), or those that cover the features best (k-center greedy). After each
cycle a logistic regression on the labeled images' features is measured on the classes' test images.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cifar10_h200 import linear_accuracy
from common.console import log
from common.files import atomic_write, read_npz
from common.flags import Parser, positive_int
from common.session import run_command
from common.settings import option
from datasets.split import make_split
from evals.cycles import QueryLoop, simulate
from evals.features import FeatureBank
from evals.query import QueryInputs
from evals.scores import Scorer
from evals.strategies import Strategy
from evals.strategies.posterior import posterior


@dataclass(frozen=True)
class Settings:
    """What is compared."""

    title: ClassVar[str] = "comparison"
    features: str = option(help="features of all train, then all test images, (N, D)", metavar="NPY")
    npz: str = option(help="the images' data set, for its labels", metavar="FILE")
    classes: tuple[int, ...] = option((3, 5), "target classes", kind=int, several=True, metavar="CLASS")
    budget: int = option(300, "images queried a cycle", kind=positive_int)
    initial: int = option(100, "images labeled first", kind=positive_int)
    cycles: int = option(5, "cycles", kind=positive_int)
    seeds: int = option(3, "seeds of split and strategy", kind=positive_int)
    out: str | None = option(None, "a csv file of the accuracies", metavar="FILE")


def build_parser() -> Parser:
    """The command's flags."""
    return Parser(__doc__.splitlines()[0], comparison=Settings)


def main(argv: Sequence[str] | None = None) -> None:
    given = build_parser().parse(argv).comparison
    data = read_npz(Path(given.npz), ["train_labels", "test_labels"])
    features = np.load(given.features, allow_pickle=False).astype(np.float32)
    rows = [("variant", "seed", "cycle", "answers", "found", "labeled", "accuracy")]
    for name, teaching in TEACHING.items():
        for seed in range(given.seeds):
            rows += run(name, teaching, seed, given, features, data)
    for cycle in range(given.cycles + 1):
        log(f"cycle {cycle}: {', '.join(summary(rows, name, cycle) for name in TEACHING)}")
    if given.out:
        with atomic_write(Path(given.out)) as file:
            file.write("".join(",".join(map(str, row)) + "\n" for row in rows).encode())


def run(
    name: str,
    teaching: Callable[[QueryInputs, Tensor], Tensor],
    seed: int,
    given: Settings,
    features: np.ndarray,
    data: dict[str, np.ndarray],
) -> list[tuple]:
    """The rows of one variant and seed."""
    labels, per_class = data["train_labels"], given.budget // len(given.classes)
    split = make_split(
        labels, data["test_labels"], target_classes=given.classes, mismatch=0.8, initial_budget=given.initial, seed=seed
    )
    images = np.sort(split.contrast())
    bank = FeatureBank(images, torch.from_numpy(features[images])[:, None])

    def utilities(inputs: QueryInputs) -> Tensor:
        """The candidates' worth; the others, behind them, keep their order."""
        likely = posterior(inputs)
        worth = teaching(inputs, likely)
        for number in range(inputs.num_classes):
            best = likely[:, number].argsort(descending=True)[: 2 * per_class]
            likely[best, number] = 1 + worth[best, number].argsort().argsort().float() + 1
        return likely

    strategy = Strategy(utilities, needs=("penultimate",))
    loop = QueryLoop({"penultimate": bank}, split, labels, strategy, seed=seed)
    rows = [(name, seed, 0, 0, 0, given.initial, linear_accuracy(split.labeled, given.classes, features, data))]
    for cycle in simulate(loop, cycles=given.cycles, queries_per_class=per_class):
        labeled = cycle.split.labeled
        accuracy = linear_accuracy(labeled, given.classes, features, data)
        rows.append((name, seed, cycle.number, rows[-1][3] + len(cycle.result.indices), cycle.metrics["found"]))
        rows[-1] += (len(labeled), accuracy)
    return rows


def likeliest(inputs: QueryInputs, likely: Tensor) -> Tensor:
    """Posterior as it is."""
    return likely


def uncertain(inputs: QueryInputs, likely: Tensor) -> Tensor:
    """Nearest to the border between the two likeliest target classes."""
    top = (likely / likely.sum(1, keepdim=True)).topk(2, dim=1).values
    return (top[:, 1] - top[:, 0])[:, None].expand_as(likely)


def distinctive(inputs: QueryInputs, likely: Tensor) -> Tensor:
    """D_i(u) on the penultimate features."""
    bank = inputs.banks["penultimate"]
    scorer = Scorer(None, bank.of(inputs.pool), num_classes=inputs.num_classes, k=100, t=0.9)
    scorer.add_labeled(None, bank.of(inputs.labeled), torch.from_numpy(inputs.labeled_classes))
    return scorer.scores(torch.arange(len(inputs.pool))).distinctive


def covering(inputs: QueryInputs, likely: Tensor) -> Tensor:
    """k-center greedy among each class's candidates, from the labeled images on; the first taken is worth most."""
    bank, worth = inputs.banks["penultimate"], torch.full_like(likely, -torch.inf)
    known = F.normalize(bank.of(inputs.labeled)[:, 0], dim=1)
    for number in range(inputs.num_classes):
        best = likely[:, number].argsort(descending=True)[:CANDIDATES]
        points = F.normalize(bank.of(inputs.pool[best.numpy()])[:, 0], dim=1)
        nearest = (points @ known.T).amax(1)
        for place in range(len(best)):
            furthest = int(nearest.argmin())
            worth[best[furthest], number] = -place
            nearest = torch.maximum(nearest, points @ points[furthest])
            nearest[furthest] = torch.inf
    return worth


CANDIDATES = 3000  # of covering: more than twice the budget of a class
TEACHING = {"likeliest": likeliest, "uncertain": uncertain, "distinctive": distinctive, "covering": covering}


def summary(rows: Sequence[tuple], name: str, cycle: int) -> str:
    """Mean and deviation of a variant's accuracy after a cycle, and what it found so far."""
    own = [row for row in rows[1:] if row[:1] + row[2:3] == (name, cycle)]
    accuracy = np.array([row[6] for row in own])
    deviation = f" ± {accuracy.std(ddof=1):.2f}" if len(own) > 1 else ""
    return f"{name} {accuracy.mean():.2f}{deviation} % ({np.mean([row[5] for row in own]):.0f} labeled)"


if __name__ == "__main__":
    sys.exit(run_command(main))
