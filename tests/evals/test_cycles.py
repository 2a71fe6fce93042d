"""The loop of cycles on synthetic features."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
import torch

from datasets.base import UNKNOWN
from datasets.split import Split, make_split
from evals.cycles import Cycle, QueryLoop, simulate
from evals.features import FeatureBank, MappedFeatures
from evals.scores import Scorer
from evals.strategies import STRATEGIES

CLASSES = (4, 1)  # in an order in which class numbers and labels cannot be taken for each other
SCORED = ("ccal", "semantic", "distinctive")


@dataclasses.dataclass
class World:
    """Images of five classes around a centre each, their split, and banks of both encoders."""

    labels: np.ndarray
    split: Split
    banks: dict[str, FeatureBank]

    def loop(self, strategy: str = "ccal", *, split: Split | None = None, labels=None, **changes) -> QueryLoop:
        settings = {"k": 3.0, "t": 0.5, "seed": 0} | changes
        banks = {name: self.banks[name] for name in STRATEGIES[strategy].needs}
        labels = self.labels if labels is None else labels
        return QueryLoop(banks, split or self.split, labels, STRATEGIES[strategy], **settings)

    def cycles(self, strategy: str = "ccal", *, cycles: int = 3, target: int = 6, **changes) -> list[Cycle]:
        return list(simulate(self.loop(strategy, **changes), cycles=cycles, queries_per_class=target))


def make_world(seed: int) -> World:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 5, 160)
    split = make_split(labels, labels, target_classes=CLASSES, mismatch=0.5, initial_budget=9, seed=seed)
    everything = np.sort(np.concatenate([split.unlabeled, split.labeled]))
    banks = {}
    for name, shifts in (("semantic", 1), ("distinctive", 4), ("penultimate", 1)):
        centres = generator.normal(size=(5, shifts, 7))
        noise = generator.normal(size=(len(everything), shifts, 7))
        features = torch.from_numpy(centres[labels[everything]] + noise).float()
        banks[name] = FeatureBank(everything, features)
    return World(labels, split, banks)


@pytest.fixture(autouse=True)
def short_training(monkeypatch):
    """What ``posterior`` learns matters elsewhere; here it has to be the same twice."""
    monkeypatch.setattr(sys.modules["evals.strategies.posterior"], "STEPS", 5)


@pytest.fixture(scope="module", params=[0, 1])
def world(request) -> World:
    return make_world(request.param)


@pytest.fixture(scope="module")
def small_world() -> World:
    return make_world(2)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("answered", [0, 2])
def test_queries_know_the_labels_of_queried_images_alone(world, strategy, answered):
    cycles = world.cycles(strategy, cycles=answered + 1)
    labels = world.labels.copy()
    hidden = cycles[-1].inputs.pool  # all that the answered queries left unlabeled
    labels[hidden] = np.random.default_rng(9).permutation(labels[hidden])
    assert (labels != world.labels).sum() > 20
    for first, second in zip(cycles, world.cycles(strategy, cycles=answered + 1, labels=labels), strict=True):
        assert first.result.indices.tolist() == second.result.indices.tolist()
        assert torch.equal(first.utilities, second.utilities)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_loop_that_starts_from_a_later_split_makes_the_same_query(world, strategy):
    """As when people label: nobody knows the labels of the pool, and each command begins with what is labeled."""
    split = world.split
    for cycle in world.cycles(strategy):
        labels = np.full_like(world.labels, UNKNOWN)
        labels[split.labeled] = world.labels[split.labeled]
        alone = world.loop(strategy, split=split, labels=labels).query(cycle.number, 6)
        assert alone.result.indices.tolist() == cycle.result.indices.tolist()
        assert alone.result.pseudo_class.tolist() == cycle.result.pseudo_class.tolist()
        assert (alone.is_target, alone.metrics, alone.split) == (None, {}, split)
        split = cycle.split


def test_a_strategy_knows_the_budget_and_the_answers_so_far(world):
    before = []
    for cycle in world.cycles("random", target=4):
        assert (cycle.inputs.budget, list(cycle.inputs.history)) == (8, before)
        before.append((8, int((np.isin(world.labels[cycle.result.indices], CLASSES)).sum())))
        assert cycle.split.history == tuple(before)


def pair_count(values: list[float], is_target: np.ndarray) -> float:
    """The share of (target, other) pairs in the right order, a tie for half."""
    targets = [value for value, target in zip(values, is_target) if target]
    others = [value for value, target in zip(values, is_target) if not target]
    wins = sum((a > b) + 0.5 * (a == b) for a in targets for b in others)
    return wins / (len(targets) * len(others))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_auroc_is_a_count_of_pairs(world, strategy):
    for cycle in world.cycles(strategy):
        assert cycle.is_target.tolist() == [world.labels[index] in CLASSES for index in cycle.inputs.pool]
        best = [max(row) for row in cycle.utilities.tolist()]
        assert cycle.metrics["auroc_utility"] == pytest.approx(pair_count(best, cycle.is_target), abs=1e-12)
        if "semantic" not in STRATEGIES[strategy].needs:
            assert cycle.metrics["auroc_semantic"] is None
        else:
            similarity = cycle.inputs.scores.similarity.tolist()
            assert cycle.metrics["auroc_semantic"] == pytest.approx(pair_count(similarity, cycle.is_target), abs=1e-12)


@pytest.mark.parametrize("strategy", SCORED)
def test_each_cycle_scores_as_from_scratch(world, strategy):
    """New scorers over the unqueried images alone, given all labeled images of that cycle at once."""
    for cycle in world.cycles(strategy):
        pool, labeled = cycle.inputs.pool, cycle.inputs.labeled
        of = {name: bank.of for name, bank in world.banks.items() if name in STRATEGIES[strategy].needs}
        parts = {
            where: [of[name](indices) if name in of else None for name in ("semantic", "distinctive")]
            for where, indices in (("pool", pool), ("labeled", labeled))
        }
        scorer = Scorer(*parts["pool"], num_classes=2, k=3.0, t=0.5)
        scorer.add_labeled(*parts["labeled"], torch.from_numpy(cycle.inputs.labeled_classes))
        expected = scorer.scores(torch.arange(len(pool)))
        for field in dataclasses.fields(expected):
            value, wanted = getattr(cycle.inputs.scores, field.name), getattr(expected, field.name)
            if wanted is None:
                assert value is None
            else:
                torch.testing.assert_close(value, wanted, rtol=0, atol=1e-5)


def test_each_cycle_has_a_random_stream_of_its_own(small_world):
    def draws(seed):
        cycles = small_world.cycles("semantic", seed=seed)  # which leaves the stream untouched
        return [cycle.inputs.rng.random() for cycle in cycles]

    assert draws(0) == draws(0)
    assert len(set(draws(0) + draws(1))) == 6


@pytest.mark.parametrize("strategy", SCORED)
def test_features_on_disk_and_in_half_precision_select_what_their_values_in_memory_do(
    world, strategy, tmp_path, monkeypatch
):
    """Rounding is all that float16 does: from there on every product is float32's, bit for bit."""
    monkeypatch.setattr("evals.scores.BLOCK", 16)
    runs = []
    for place in ("memory", "half", "disk"):
        banks = {}
        for name, bank in world.banks.items():
            features = bank.features.half()
            if place == "disk":
                np.save(tmp_path / f"{name}.npy", features.numpy())
                features = MappedFeatures(tmp_path / f"{name}.npy")
                monkeypatch.setattr("evals.scores.BLOCK", 16)
            banks[name] = FeatureBank(bank.indices, features.float() if place == "memory" else features)
        runs.append(World(world.labels, world.split, banks).cycles(strategy))
    for memory, *others in zip(*runs, strict=True):
        for other in others:
            assert memory.result.indices.tolist() == other.result.indices.tolist()
            assert other.utilities.dtype == torch.float32 and torch.equal(memory.utilities, other.utilities)
