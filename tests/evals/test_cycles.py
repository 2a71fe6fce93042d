"""The loop of cycles on synthetic features."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from datasets.split import Split, make_split
from evals.cycles import Cycle, query_cycles
from evals.features import FeatureBank
from evals.query import STRATEGIES
from evals.scores import Scorer

CLASSES = (4, 1)  # in an order in which class numbers and labels cannot be taken for each other
SCORED = ("ccal", "semantic", "distinctive")


@dataclasses.dataclass
class World:
    """Images of five classes around a centre each, their split, and banks of both encoders."""

    labels: np.ndarray
    split: Split
    banks: dict[str, FeatureBank]

    def cycles(self, strategy: str = "ccal", **changes) -> list[Cycle]:
        settings = {"cycles": 3, "target": 6, "k": 3.0, "t": 0.5, "seed": 0, "labels": self.labels} | changes
        labels = settings.pop("labels")
        banks = {name: self.banks[name] for name in STRATEGIES[strategy].needs}
        return list(query_cycles(self.split, labels, banks, STRATEGIES[strategy], **settings))


def make_world(seed: int) -> World:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 5, 160)
    split = make_split(labels, labels, target_classes=CLASSES, mismatch=0.5, initial_budget=9, seed=seed)
    everything = np.sort(np.concatenate([split.unlabeled, split.labeled]))
    banks = {}
    for name, shifts in (("semantic", 1), ("distinctive", 4)):
        centres = generator.normal(size=(5, shifts, 7))
        noise = generator.normal(size=(len(everything), shifts, 7))
        features = torch.from_numpy(centres[labels[everything]] + noise).float()
        banks[name] = FeatureBank(everything, features)
    return World(labels, split, banks)


@pytest.fixture(scope="module", params=[0, 1])
def world(request) -> World:
    return make_world(request.param)


@pytest.fixture(scope="module")
def small_world() -> World:
    return make_world(2)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_labels_of_pool_images_do_not_influence_the_first_query(world, strategy):
    labels = world.labels.copy()
    labels[world.split.unlabeled] = np.random.default_rng(9).permutation(labels[world.split.unlabeled])
    told, permuted = world.cycles(strategy, cycles=1), world.cycles(strategy, cycles=1, labels=labels)
    assert (labels != world.labels).sum() > 20
    assert told[0].result.indices.tolist() == permuted[0].result.indices.tolist()
    assert torch.equal(told[0].utilities, permuted[0].utilities)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_later_queries_know_the_queried_labels_alone(world, strategy):
    cycles = world.cycles(strategy, cycles=3)
    labels = world.labels.copy()
    hidden = cycles[1].split.unlabeled  # all that two queries left unlabeled
    labels[hidden] = 0
    again = world.cycles(strategy, cycles=3, labels=labels)
    assert (labels != world.labels).any()
    for first, second in zip(cycles, again, strict=True):
        assert first.result.indices.tolist() == second.result.indices.tolist()
        assert torch.equal(first.utilities, second.utilities)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_image_is_in_one_place(world, strategy):
    everything = sorted([*world.split.unlabeled.tolist(), *world.split.labeled.tolist()])
    before = world.split
    for number, cycle in enumerate(world.cycles(strategy), start=1):
        assert cycle.number == number
        after, queried = cycle.split, cycle.result.indices
        places = [after.labeled, after.unlabeled, after.set_aside]
        assert sorted(np.concatenate(places).tolist()) == everything
        assert cycle.inputs.pool.tolist() == before.unlabeled.tolist()
        assert set(queried.tolist()) <= set(before.unlabeled.tolist())
        is_target = np.isin(world.labels[queried], CLASSES)
        assert after.labeled.tolist() == before.labeled.tolist() + queried[is_target].tolist()
        assert after.set_aside.tolist() == before.set_aside.tolist() + queried[~is_target].tolist()
        assert cycle.inputs.labeled.tolist() == before.labeled.tolist()
        numbers = [CLASSES.index(label) for label in world.labels[before.labeled]]
        assert cycle.inputs.labeled_classes.tolist() == numbers
        before = after
    assert number == 3


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_metrics_are_counts(world, strategy):
    in_pool = sum(world.labels[index] in CLASSES for index in world.split.unlabeled)
    found_so_far, queried_so_far = 0, 0
    for cycle in world.cycles(strategy):
        labels = [world.labels[index] for index in cycle.result.indices]
        per_class = [labels.count(label) for label in CLASSES]
        found_so_far += sum(per_class)
        queried_so_far += len(labels)
        metrics = cycle.metrics
        assert metrics["queried"] == len(labels) <= 12
        assert metrics["found_per_class"] == per_class
        assert metrics["found"] == sum(per_class)
        assert metrics["precision"] == pytest.approx(100 * sum(per_class) / len(labels))
        assert metrics["recall"] == pytest.approx(100 * found_so_far / in_pool)
        assert metrics["labeled"] == 9 + found_so_far
        assert metrics["pool"] == len(world.split.unlabeled) - queried_so_far
        assert cycle.is_target.tolist() == [world.labels[index] in CLASSES for index in cycle.inputs.pool]
        assert cycle.seconds > 0


def pair_count(values: list[float], is_target: np.ndarray) -> float:
    """The share of (target, other) pairs in the right order, a tie for half."""
    targets = [value for value, target in zip(values, is_target) if target]
    others = [value for value, target in zip(values, is_target) if not target]
    wins = sum((a > b) + 0.5 * (a == b) for a in targets for b in others)
    return wins / (len(targets) * len(others))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_auroc_is_a_count_of_pairs(world, strategy):
    for cycle in world.cycles(strategy):
        best = [max(row) for row in cycle.utilities.tolist()]
        assert cycle.metrics["auroc_utility"] == pytest.approx(pair_count(best, cycle.is_target), abs=1e-12)
        if strategy == "random":
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


def test_each_cycle_normalises_over_the_unqueried_images(world):
    """So in every cycle the least similar has S = tanh(-k t / 2) and the most similar tanh(k (1 - t) / 2)."""
    for cycle in world.cycles():
        semantic, distinctive = cycle.inputs.scores.semantic, cycle.inputs.scores.distinctive
        assert semantic.min().item() == pytest.approx(np.tanh(-0.75), abs=1e-6)
        assert semantic.max().item() == pytest.approx(np.tanh(0.75), abs=1e-6)
        assert distinctive.amin(0).tolist() == pytest.approx([0, 0], abs=1e-6)
        assert distinctive.amax(0).tolist() == pytest.approx([1, 1], abs=1e-6)


@pytest.mark.parametrize(("k", "t"), [(3.0, 0.5), (100.0, 0.9)])
def test_the_query_takes_the_best_of_each_pseudo_class(world, k, t):
    for cycle in world.cycles(k=k, t=t):
        scores = cycle.inputs.scores
        expected = []
        for number in range(2):
            ranked = [
                (-(scores.semantic[row] + scores.distinctive[row, number]).item(), index)
                for row, index in enumerate(cycle.inputs.pool.tolist())
                if scores.pseudo_class[row] == number
            ]
            expected += [index for _, index in sorted(ranked)[:6]]
        assert cycle.result.indices.tolist() == expected


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_loop_ends_with_the_pool(small_world, strategy):
    cycles = small_world.cycles(strategy, cycles=50, target=20)
    size = len(small_world.split.unlabeled)
    assert len(cycles) < 10
    assert len(cycles[-1].split.unlabeled) == 0
    assert cycles[-2].metrics["pool"] > 0
    assert sum(cycle.metrics["queried"] for cycle in cycles) == size
    assert cycles[-1].metrics["recall"] == 100.0
    assert cycles[-1].result.shortfall


def test_the_loop_ends_with_its_cycles(small_world):
    assert [cycle.number for cycle in small_world.cycles(cycles=2)] == [1, 2]


def test_a_class_that_runs_short_says_by_how_much(small_world):
    (cycle,) = small_world.cycles(cycles=1, target=1000)
    candidates = np.bincount(cycle.inputs.scores.pseudo_class, minlength=2).tolist()
    assert sum(candidates) == len(cycle.inputs.pool)
    assert cycle.result.shortfall == {number: 1000 - count for number, count in enumerate(candidates)}


def test_the_seed_moves_the_random_strategy_alone(small_world):
    def first(strategy, seed):
        return small_world.cycles(strategy, cycles=1, seed=seed)[0].result.indices.tolist()

    assert first("random", 0) == first("random", 0)
    assert first("random", 0) != first("random", 1)
    assert first("ccal", 0) == first("ccal", 1)


def test_each_cycle_has_a_random_stream_of_its_own(small_world):
    def draws(seed):
        cycles = small_world.cycles("semantic", seed=seed)  # which leaves the stream untouched
        return [cycle.inputs.rng.random() for cycle in cycles]

    assert draws(0) == draws(0)
    assert len(set(draws(0) + draws(1))) == 6


def test_an_image_without_features_is_an_error(small_world):
    bank = small_world.banks["semantic"]
    cut = World(small_world.labels, small_world.split, {"semantic": FeatureBank(bank.indices[1:], bank.features[1:])})
    with pytest.raises(ValueError, match="not in this feature bank"):
        cut.cycles("semantic")
