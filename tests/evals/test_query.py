"""Selection and strategies by hand, and what must hold for any utilities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common import arguments
from datasets.split import make_split
from evals.cycles import query_cycles
from evals.features import FeatureBank, MappedFeatures
from evals.query import STRATEGIES, QueryInputs, QueryResult, select
from evals.scores import PoolScores

NONE = -math.inf


def make_inputs(pool: list[int], num_classes: int, *, scores: PoolScores | None = None, seed: int = 0) -> QueryInputs:
    return QueryInputs(
        pool=np.array(pool, dtype=np.int64),
        labeled=np.empty(0, dtype=np.int64),
        labeled_classes=np.empty(0, dtype=np.int64),
        num_classes=num_classes,
        scores=scores or PoolScores(),
        banks={},
        rng=np.random.default_rng(seed),
    )


def select_from(pool: list[int], utilities: list[list[float]], *, target: int) -> QueryResult:
    num_classes = len(utilities[0]) if utilities else 2
    values = torch.tensor(utilities, dtype=torch.float32).view(len(pool), num_classes)
    return select(values, make_inputs(pool, num_classes), target=target)


@pytest.mark.parametrize(
    ("pool", "utilities", "target", "indices", "classes", "shortfall"),
    [
        pytest.param([10, 11, 12], [[1, NONE], [3, NONE], [NONE, 5]], 1, [11, 12], [0, 1], {}, id="best of each"),
        pytest.param([10, 11, 12], [[1, NONE], [3, NONE], [NONE, 5]], 2, [11, 10, 12], [0, 0, 1], {1: 1}, id="short"),
        pytest.param([7, 3, 9, 5], [[1], [1], [1], [1]], 2, [3, 5], [0, 0], {}, id="ties go to the lower index"),
        pytest.param([9, 4, 6, 2], [[1], [2], [1], [0]], 2, [4, 6], [0, 0], {}, id="best first, then ties"),
        pytest.param([5, 6, 7], [[3, 3], [2, 2], [1, 1]], 2, [5, 6, 7], [0, 0, 1], {1: 1}, id="candidates for both"),
        pytest.param([5, 6, 7], [[3, 9], [1, 8], [2, 7]], 1, [5, 6], [0, 1], {}, id="the first class takes"),
        pytest.param([5, 6], [[NONE, NONE], [NONE, NONE]], 2, [], [], {0: 2, 1: 2}, id="no candidates"),
        pytest.param([5, 6], [[math.nan, NONE], [0, math.nan]], 2, [6], [0], {0: 1, 1: 2}, id="nan is never picked"),
        pytest.param([5, 6, 7], [[-1e30], [math.inf], [0]], 2, [6, 7], [0, 0], {}, id="infinitely good"),
        pytest.param([], [], 2, [], [], {0: 2, 1: 2}, id="empty pool"),
    ],
)
def test_select_by_hand(pool, utilities, target, indices, classes, shortfall):
    result = select_from(pool, utilities, target=target)
    assert result.indices.dtype == np.int64
    assert result.indices.tolist() == indices
    assert result.pseudo_class.tolist() == classes
    assert result.shortfall == shortfall
    assert result.utility.tolist() == [
        pytest.approx(utilities[pool.index(index)][number]) for index, number in zip(indices, classes)
    ]


def test_the_result_carries_the_scores_behind_each_choice():
    scores = PoolScores(
        semantic=torch.tensor([0.1, 0.2, 0.3]), distinctive=torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    )
    inputs = make_inputs([30, 20, 10], 2, scores=scores)
    result = select(torch.tensor([[NONE, 7], [8, NONE], [9, NONE]]), inputs, target=2)
    assert result.indices.tolist() == [10, 20, 30]
    np.testing.assert_allclose(result.semantic, [0.3, 0.2, 0.1])
    np.testing.assert_allclose(result.distinctive, [5, 3, 2])
    assert result.utility.tolist() == [9, 8, 7]


def test_scores_that_a_strategy_does_not_have_are_nan():
    result = select_from([3, 4], [[1.0], [2.0]], target=2)
    assert np.isnan(result.semantic).tolist() == [True, True]
    assert np.isnan(result.distinctive).tolist() == [True, True]


SCORES = PoolScores(
    similarity=torch.tensor([0.99, 0.90, 0.95, 0.20, 0.98]),
    semantic=torch.tensor([1.0, -0.5, 0.5, -1.0, 1.0]),
    pseudo_class=torch.tensor([1, 0, 1, 0, 1]),
    distinctive=torch.tensor([[0.9, 0.1], [0.2, 0.9], [0.9, 0.8], [1.0, 0.9], [0.9, 0.3]]),
)


@pytest.mark.parametrize(
    ("strategy", "utilities", "indices"),
    [
        ("ccal", [[NONE, 1.1], [-0.3, NONE], [NONE, 1.3], [0.0, NONE], [NONE, 1.3]], [53, 51, 52, 54]),
        ("semantic", [[NONE, 0.99], [0.90, NONE], [NONE, 0.95], [0.20, NONE], [NONE, 0.98]], [51, 53, 50, 54]),
        ("distinctive", [[NONE, 0.1], [0.2, NONE], [NONE, 0.8], [1.0, NONE], [NONE, 0.3]], [53, 51, 52, 54]),
    ],
)
def test_strategies_by_hand(strategy, utilities, indices):
    """Of images 50 .. 54, 50 and 54 both have S = 1: for ``semantic`` the similarity behind it tells them apart."""
    inputs = make_inputs([50, 51, 52, 53, 54], 2, scores=SCORES)
    values = STRATEGIES[strategy].utilities(inputs)
    torch.testing.assert_close(values, torch.tensor(utilities))
    assert select(values, inputs, target=2).indices.tolist() == indices


@pytest.mark.parametrize(
    ("strategy", "needs"),
    [
        ("ccal", ("semantic", "distinctive")),
        ("semantic", ("semantic",)),
        ("distinctive", ("semantic", "distinctive")),
        ("random", ()),
    ],
)
def test_what_each_strategy_needs(strategy, needs):
    assert STRATEGIES[strategy].needs == needs


def test_the_flag_offers_the_strategies_that_exist():
    assert set(arguments.STRATEGIES) == set(STRATEGIES)


def random_query(pool: list[int], num_classes: int, target: int, seed: int) -> QueryResult:
    inputs = make_inputs(pool, num_classes, seed=seed)
    return select(STRATEGIES["random"].utilities(inputs), inputs, target=target)


@pytest.mark.parametrize(
    ("size", "num_classes", "target", "queried", "shortfall"),
    [
        (40, 2, 5, 10, {}),
        (40, 3, 13, 39, {}),
        (10, 2, 5, 10, {}),
        (5, 2, 3, 5, {1: 1}),
        (1, 3, 2, 1, {0: 1, 1: 2, 2: 2}),
        (4, 1, 3, 3, {}),
    ],
)
def test_random_keeps_the_budget(size, num_classes, target, queried, shortfall):
    result = random_query(list(range(100, 100 + size)), num_classes, target, seed=3)
    assert len(result.indices) == len(set(result.indices.tolist())) == queried
    assert set(result.indices.tolist()) <= set(range(100, 100 + size))
    assert result.shortfall == shortfall


def test_random_is_decided_by_its_seed():
    pool = list(range(40))
    assert random_query(pool, 2, 5, seed=1).indices.tolist() == random_query(pool, 2, 5, seed=1).indices.tolist()
    assert random_query(pool, 2, 5, seed=1).indices.tolist() != random_query(pool, 2, 5, seed=2).indices.tolist()


def test_random_prefers_no_image():
    """2000 queries of 4 among 20: each image is expected 400 times, with a deviation of 18."""
    counts = np.zeros(20, dtype=int)
    for seed in range(2000):
        counts[random_query(list(range(20)), 2, 2, seed=seed).indices] += 1
    assert counts.sum() == 8000
    assert abs(counts - 400).max() < 5 * 18


@st.composite
def queries(draw) -> tuple[list[int], list[list[float]], int]:
    """A pool in any order, utilities with many ties and non-candidates, and a number per class."""
    pool = draw(st.lists(st.integers(0, 60), unique=True, max_size=14))
    num_classes = draw(st.integers(1, 4))
    value = st.sampled_from([NONE, -1.5, 0.0, 0.25, 0.5, 2.0])
    row = st.lists(value, min_size=num_classes, max_size=num_classes)
    utilities = draw(st.lists(row, min_size=len(pool), max_size=len(pool)))
    return pool, utilities, draw(st.integers(1, 6))


@settings(max_examples=200, deadline=None)
@given(queries())
def test_select_is_the_greedy_loop(query):
    pool, utilities, target = query
    result = select_from(pool, utilities, target=target)
    expected, classes, shortfall = [], [], {}
    for number in range(len(utilities[0]) if utilities else 2):
        ranked = sorted((-row[number], index) for index, row in zip(pool, utilities) if row[number] > NONE)
        best = [index for _, index in ranked if index not in expected][:target]
        expected += best
        classes += [number] * len(best)
        if len(best) < target:
            shortfall[number] = target - len(best)
    assert result.indices.tolist() == expected
    assert result.pseudo_class.tolist() == classes
    assert result.shortfall == shortfall
    assert len(set(expected)) == len(expected) <= target * (len(utilities[0]) if utilities else 2)
    assert set(result.indices.tolist()) <= set(pool)


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(1, 30), st.integers(1, 3), st.integers(1, 8))
def test_the_order_of_the_pool_changes_nothing(data, size, num_classes, target):
    """For ccal, with scores on a coarse grid so that ties are common."""
    generator = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    pool = generator.permutation(100)[:size]
    semantic = torch.from_numpy(generator.integers(-2, 3, size) / 2)
    distinctive = torch.from_numpy(generator.integers(0, 3, (size, num_classes)) / 2)
    pseudo = torch.from_numpy(generator.integers(0, num_classes, size))
    found = []
    for order in (np.arange(size), generator.permutation(size)):
        scores = PoolScores(semantic=semantic[order], distinctive=distinctive[order], pseudo_class=pseudo[order])
        inputs = make_inputs(pool[order].tolist(), num_classes, scores=scores)
        result = select(STRATEGIES["ccal"].utilities(inputs), inputs, target=target)
        found.append((result.indices.tolist(), result.pseudo_class.tolist(), result.shortfall))
    assert found[0] == found[1]
    indices, classes, _ = found[0]
    assert len(set(indices)) == len(indices)
    for index, number in zip(indices, classes):
        assert pseudo[pool.tolist().index(index)] == number
    for number in range(num_classes):
        assert classes.count(number) == min(target, int((pseudo == number).sum()))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(1, 4), st.integers(1, 8), st.integers(0, 2**32))
def test_random_never_repeats_nor_leaves_the_pool(size, num_classes, target, seed):
    pool = np.random.default_rng(seed).permutation(90)[:size].tolist()
    indices = random_query(pool, num_classes, target, seed).indices.tolist()
    # Dealt out in turn: image i of the random order goes to class i % num_classes.
    dealt = [len(range(number, size, num_classes)) for number in range(num_classes)]
    assert len(indices) == len(set(indices)) == sum(min(target, count) for count in dealt)
    assert set(indices) <= set(pool)


# The partial sort


def sorted_whole(values: np.ndarray, pool: np.ndarray, target: int) -> list[int]:
    """Every candidate of each class sorted, without any partial sort."""
    taken, chosen = set(), []
    for number in range(values.shape[1]):
        order = np.lexsort((pool, -values[:, number].astype(np.float64)))
        best = [row for row in order if values[row, number] > -np.inf and row not in taken][:target]
        taken |= set(best)
        chosen += best
    return pool[chosen].tolist()


@pytest.mark.parametrize("seed", range(200))
def test_a_partial_sort_selects_what_a_whole_one_does(seed):
    """Coarse values: many ties, also at the last place; -inf, +inf, -0 and 0, and pools in any order."""
    generator = np.random.default_rng(seed)
    size, num_classes = int(generator.integers(1, 120)), int(generator.integers(1, 4))
    levels = np.array([-np.inf, -1.0, -0.0, 0.0, 0.25, 3.0, np.inf], dtype=np.float32)
    values = levels[generator.integers(0, generator.integers(1, 8), (size, num_classes))]
    if seed % 4 == 0:  # no ties, but for one value at the last place
        values = generator.normal(size=(size, num_classes)).astype(np.float32)
        values[generator.random(size) < 0.3] = np.median(values)
    pool = generator.permutation(500)[:size]
    target = int(generator.integers(1, size + 3))
    inputs = make_inputs(pool.tolist(), num_classes)
    result = select(torch.from_numpy(values), inputs, target=target)
    assert result.indices.tolist() == sorted_whole(values, pool, target)


@pytest.mark.parametrize("strategy", ["ccal", "semantic", "distinctive"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_features_on_disk_select_what_the_same_in_memory_do(tmp_path, monkeypatch, strategy, dtype):
    """Over three cycles and blocks of 16 images."""
    monkeypatch.setattr("evals.scores.BLOCK", 16)
    generator = np.random.default_rng(4)
    labels = generator.integers(0, 4, 150)
    split = make_split(labels, labels, target_classes=(3, 1), mismatch=0.4, initial_budget=8, seed=0)
    everything = np.sort(np.concatenate([split.unlabeled, split.labeled]))
    memory, disk = {}, {}
    for name, shifts in (("semantic", 1), ("distinctive", 4)):
        centres = generator.normal(size=(4, shifts, 6))
        features = (centres[labels[everything]] + generator.normal(size=(len(everything), shifts, 6))).astype(dtype)
        np.save(tmp_path / f"{name}.npy", features)
        memory[name] = FeatureBank(everything, torch.from_numpy(features))
        disk[name] = FeatureBank(everything, MappedFeatures(tmp_path / f"{name}.npy"))
    runs = [
        list(query_cycles(split, labels, banks, STRATEGIES[strategy], cycles=3, target=5, k=3.0, t=0.5))
        for banks in (memory, disk)
    ]
    assert [len(cycles) for cycles in runs] == [3, 3]
    for one, two in zip(*runs):
        assert one.result.indices.tolist() == two.result.indices.tolist()
        assert torch.equal(one.utilities, two.utilities)
        assert one.result.utility.tolist() == two.result.utility.tolist()


@pytest.mark.parametrize("strategy", ["ccal", "semantic", "distinctive"])
def test_half_precision_features_select_what_their_values_in_float32_do(strategy):
    """Rounding is all that float16 does: from there on every product is float32's, bit for bit."""
    generator = np.random.default_rng(5)
    labels = generator.integers(0, 4, 150)
    split = make_split(labels, labels, target_classes=(3, 1), mismatch=0.4, initial_budget=8, seed=0)
    everything = np.sort(np.concatenate([split.unlabeled, split.labeled]))
    half, whole = {}, {}
    for name, shifts in (("semantic", 1), ("distinctive", 4)):
        features = torch.from_numpy(generator.normal(size=(len(everything), shifts, 6))).half()
        half[name], whole[name] = (FeatureBank(everything, values) for values in (features, features.float()))
    runs = [
        list(query_cycles(split, labels, banks, STRATEGIES[strategy], cycles=3, target=5, k=3.0, t=0.5))
        for banks in (half, whole)
    ]
    assert [len(cycles) for cycles in runs] == [3, 3]
    for one, two in zip(*runs):
        assert one.result.indices.tolist() == two.result.indices.tolist()
        assert one.utilities.dtype == torch.float32 and torch.equal(one.utilities, two.utilities)


@pytest.mark.parametrize("target", [1, 100, 2500, 4999, 5000])
def test_a_large_pool_is_selected_from_in_the_order_of_its_utilities(target):
    """Distinct values in no order, so that a partial sort at a wrong place would miss some of the best."""
    generator = np.random.default_rng(target)
    pool, ranks = generator.permutation(10_000)[:5000], generator.permutation(5000)
    result = select_from(pool.tolist(), ranks[:, None].astype(np.float32).tolist(), target=target)
    assert result.indices.tolist() == pool[np.argsort(-ranks)][:target].tolist()


def test_random_deals_a_random_order_out_to_the_classes_in_turn():
    """The first images of the order are queried: seeds mean the same as in earlier versions."""
    pool = list(range(50, 90))
    order = np.asarray(pool)[np.random.default_rng(6).permutation(40)]
    result = random_query(pool, 3, 4, seed=6)
    assert result.indices.tolist() == [*order[0:12:3], *order[1:12:3], *order[2:12:3]]


def test_a_strategy_without_scores_has_none_of_their_type():
    result = random_query(list(range(9)), 2, 2, seed=0)
    for values in (result.semantic, result.distinctive):
        assert values.dtype == np.float32 and np.isnan(values).all() and len(values) == 4


@pytest.mark.parametrize("name", ["ccal", "semantic", "distinctive"])
def test_utilities_are_made_where_the_scores_are(name):
    """Also where tensors without a device would land elsewhere, here on one that holds no data."""
    scores = PoolScores(
        similarity=torch.tensor([0.5, 0.9, 0.1]),
        semantic=torch.tensor([0.0, 1.0, -1.0]),
        pseudo_class=torch.tensor([1, 0, 1]),
        distinctive=torch.tensor([[0.25, 0.5], [0.75, 0.0], [1.0, 0.5]]),
    )
    inputs = make_inputs([4, 5, 6], 2, scores=scores)
    with torch.device("meta"):
        found = STRATEGIES[name].utilities(inputs)
    assert found.tolist() == STRATEGIES[name].utilities(inputs).tolist()
    assert (found == NONE).tolist() == [[True, False], [False, True], [True, False]]
