"""What holds for every strategy: no label is read, ties go to the lower index, and hardly any images will do."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest

from evals.cycles import QueryLoop
from evals.query import select
from evals.strategies import RIVALS, STRATEGIES
from tests.evals.strategies.points import point_inputs, random_inputs
from tests.evals.test_cycles import make_world

ENTRIES = [*(rival.__name__ for rival in RIVALS), "mqnet", "posterior", "random"]  # which need no scores


@pytest.fixture(autouse=True)
def short_training(monkeypatch):
    monkeypatch.setattr(sys.modules["evals.strategies.posterior"], "STEPS", 2)
    monkeypatch.setattr(sys.modules["evals.strategies.mqnet"], "STEPS", 1)


class Sealed:
    """Labels that may be read of given images only."""

    def __init__(self, labels: np.ndarray, known: np.ndarray) -> None:
        self._labels, self._known = labels, known

    def __getitem__(self, images: np.ndarray) -> np.ndarray:
        if not np.isin(images, self._known).all():
            raise AssertionError("the label of an image in the pool was read")
        return self._labels[images]

    def __array__(self, *given, **more):
        raise AssertionError("all labels were read")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_label_of_the_pool_is_read(strategy):
    world = make_world(0)
    split = world.cycles(strategy, cycles=1)[0].split
    banks = {name: world.banks[name] for name in STRATEGIES[strategy].needs}
    sealed = Sealed(world.labels, split.labeled)
    with pytest.raises(AssertionError, match="was read"):
        sealed[split.unlabeled[:1]]
    QueryLoop(banks, split, sealed, STRATEGIES[strategy]).query(2, 6)


@pytest.mark.parametrize("strategy", ENTRIES)
@pytest.mark.parametrize("aside", [0, 3])
def test_images_that_are_all_alike_are_queried_by_index(strategy, aside):
    if strategy == "random":
        pytest.skip("it does not look")
    numbers = np.random.default_rng(1).permutation(60)[:30]
    count = 30 + 6 + aside
    inputs = point_inputs(
        np.full((30, 4), 1 / 3),
        np.full((6, 4), 1 / 3),
        [0, 1] * 3,
        np.full((aside, 4), 1 / 3),
        numbers=numbers,
        distinctive=np.ones((count, 4, 3)),
        budget=8,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # k-means finds fewer points than clusters
        result = select(STRATEGIES[strategy].utilities(inputs), inputs, queries_per_class=4)
    assert sorted(result.indices) == sorted(numbers)[: len(result.indices)]
    assert len(result.indices) + sum(result.shortfall.values()) == 8
    assert len(result.indices) >= 4


@pytest.mark.parametrize("strategy", ENTRIES)
@pytest.mark.parametrize(
    "case",
    [
        {"num_classes": 1},
        {"num_classes": 1, "set_aside": 0},
        {"set_aside": 0},
        {"set_aside": 1},
        {"num_classes": 3, "labeled": 3, "set_aside": 1},  # one image of each class
        {"pool": 1},
        {"pool": 2, "set_aside": 0},
        {"pool": 5, "budget": 60},
    ],
    ids=str,
)
def test_hardly_any_images(strategy, case):
    """Every image has a finite utility, and none is taken twice; however large the budget, the pool is queried."""
    inputs = random_inputs(0, **case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        utilities = STRATEGIES[strategy].utilities(inputs)
    assert utilities.shape == (len(inputs.pool), inputs.num_classes)
    assert utilities.amax(1).isfinite().all()
    result = select(utilities, inputs, queries_per_class=len(inputs.pool))
    assert sorted(result.indices) == sorted(inputs.pool)


@pytest.mark.parametrize("strategy", ENTRIES)
def test_the_order_of_the_pool_changes_nothing(strategy):
    if strategy in ("random", "posterior"):
        pytest.skip("it draws by place in the pool")
    found = []
    for order in (np.arange(40), np.random.default_rng(2).permutation(40)):
        inputs = random_inputs(7, history=((6, 2),))
        inputs.pool[:] = inputs.pool[order]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = select(STRATEGIES[strategy].utilities(inputs), inputs, queries_per_class=2)
        found.append((result.indices.tolist(), result.pseudo_class.tolist()))
    assert found[0] == found[1]
