"""Selection by hand, against the plain loop, and what a query needs of pool and labeled set."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from datasets.split import make_split
from evals.query import QueryInputs, QueryResult, best_first, check_budget, checked, dealt, select
from evals.scores import PoolScores
from utils import InputError

NONE = -math.inf


def make_inputs(pool: list[int], num_classes: int, *, scores: PoolScores | None = None, seed: int = 0) -> QueryInputs:
    """What a strategy sees of a pool; the labeled images do not matter here."""
    return QueryInputs(
        pool=np.array(pool, dtype=np.int64),
        labeled=np.empty(0, dtype=np.int64),
        labeled_classes=np.empty(0, dtype=np.int64),
        set_aside=np.empty(0, dtype=np.int64),
        num_classes=num_classes,
        scores=scores or PoolScores(),
        banks={},
        rng=np.random.default_rng(seed),
        budget=1,
    )


def test_values_rank_and_the_next_ones_and_the_lower_index_break_ties():
    inputs = make_inputs([9, 4, 6, 2, 5], 2)
    first, second = np.array([1.0, 2.0, 1.0, 1.0, -np.inf]), np.array([False, True, True, False, True])
    assert inputs.pool[best_first(inputs, first, second)].tolist() == [4, 6, 2, 9, 5]
    assert inputs.pool[best_first(inputs)].tolist() == [2, 4, 5, 6, 9]


def test_an_order_is_dealt_to_the_classes_in_turn_and_the_rest_follows_by_index():
    inputs = make_inputs([9, 4, 6, 2, 5], 2)
    utilities = dealt(np.array([0, 4]), inputs)  # 9, 5, then 2, 4, 6
    expected = [[0, NONE], [NONE, -3], [-4, NONE], [-2, NONE], [NONE, -1]]
    assert utilities.tolist() == expected
    assert select(utilities, inputs, queries_per_class=1).indices.tolist() == [9, 5]


def select_from(pool: list[int], utilities: list[list[float]], *, target: int) -> QueryResult:
    num_classes = len(utilities[0]) if utilities else 2
    values = torch.tensor(utilities, dtype=torch.float32).view(len(pool), num_classes)
    return select(values, make_inputs(pool, num_classes), queries_per_class=target)


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
    result = select(torch.tensor([[NONE, 7], [8, NONE], [9, NONE]]), inputs, queries_per_class=2)
    assert result.indices.tolist() == [10, 20, 30]
    np.testing.assert_allclose(result.semantic, [0.3, 0.2, 0.1])
    np.testing.assert_allclose(result.distinctive, [5, 3, 2])
    assert result.utility.tolist() == [9, 8, 7]


def sorted_whole(values: np.ndarray, pool: np.ndarray, target: int) -> list[int]:
    """Every candidate of each class sorted, without any partial sort."""
    taken, chosen = set(), []
    for number in range(values.shape[1]):
        order = np.lexsort((pool, -values[:, number].astype(np.float64)))
        best = [row for row in order if values[row, number] > -np.inf and row not in taken][:target]
        taken |= set(best)
        chosen += best
    return pool[chosen].tolist()


def test_a_partial_sort_selects_what_a_whole_one_does():
    """Coarse values: many ties, also at the last place; -inf, +inf, -0 and 0, and pools in any order."""
    for seed in range(200):
        generator = np.random.default_rng(seed)
        size, num_classes = int(generator.integers(1, 120)), int(generator.integers(1, 4))
        levels = np.array([-np.inf, -1.0, -0.0, 0.0, 0.25, 3.0, np.inf], dtype=np.float32)
        values = levels[generator.integers(0, generator.integers(1, 8), (size, num_classes))]
        if seed % 4 == 0:  # no ties, but for one value at the last place
            values = generator.normal(size=(size, num_classes)).astype(np.float32)
            values[generator.random(size) < 0.3] = np.median(values)
        pool = generator.permutation(500)[:size]
        target = int(generator.integers(1, size + 3))
        result = select(torch.from_numpy(values), make_inputs(pool.tolist(), num_classes), queries_per_class=target)
        assert result.indices.tolist() == sorted_whole(values, pool, target), seed


@pytest.mark.parametrize("target", [1, 2500, 4999, 5000])
def test_a_large_pool_is_selected_from_in_the_order_of_its_utilities(target):
    """Distinct values in no order, so that a partial sort at a wrong place would miss some of the best."""
    generator = np.random.default_rng(target)
    pool, ranks = generator.permutation(10_000)[:5000], generator.permutation(5000)
    result = select_from(pool.tolist(), ranks[:, None].astype(np.float32).tolist(), target=target)
    assert result.indices.tolist() == pool[np.argsort(-ranks)][:target].tolist()


# A pool of 10 images, 4 of them targets; labeled are 3 images of class 0 and 1 of class 1.
LABELS = np.array([0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2])


@pytest.mark.parametrize(
    ("queries_per_class", "needs", "phrase"),
    [
        (5, ("semantic",), None),
        (6, ("semantic",), "asks for 12 images a cycle .* the pool has 10; the largest possible here is 5"),
        (0, ("semantic", "distinctive"), "class 1 has 1 labeled image and the distinctive score needs two"),
    ],
)
def test_a_query_that_pool_or_labeled_set_cannot_serve_is_refused(queries_per_class, needs, phrase):
    split = make_split(LABELS, LABELS, target_classes=(0, 1), mismatch=0.6, initial_budget=4, seed=3)
    assert np.bincount(LABELS[split.labeled]).tolist() == [3, 1] and len(split.unlabeled) == 10
    if phrase is None:
        return check_budget(split, LABELS, queries_per_class, needs)
    with pytest.raises(InputError, match=phrase):
        check_budget(split, LABELS, queries_per_class, needs)


@pytest.mark.parametrize(
    ("given", "phrase"),
    [
        (torch.tensor([[math.nan], [0]]), "the strategy gave NaN for 1 of 2 images"),
        (np.array([[0.0], [np.nan]]), "the strategy gave NaN for 1 of 2 images"),
        (torch.ones(2, 2), r"gave torch.float32 \(2, 2\): it has to give utilities \(U, C\), here floats \(2, 1\)"),
        (torch.ones(2), r"gave torch.float32 \(2,\)"),
        (np.ones((1, 1)), r"gave float64 \(1, 1\)"),
        (torch.ones(2, 1, dtype=torch.uint8), r"gave torch.uint8 \(2, 1\)"),  # whose negative is no order
        ([[1.0], [2.0]], "gave list: "),
        (None, "gave NoneType: "),
    ],
)
def test_what_are_no_utilities(given, phrase):
    with pytest.raises(InputError, match=phrase):
        select(given, make_inputs([5, 6], 1), queries_per_class=1)


@pytest.mark.parametrize(
    "given",
    [
        torch.tensor([[1.0], [2.0]], requires_grad=True),
        torch.tensor([[1.0], [2.0]], dtype=torch.bfloat16),
        np.array([[2.0], [1.0]])[::-1],
        np.array([[1], [2]], dtype=">f2"),
    ],
)
def test_utilities_of_any_precision_and_of_numpy(given):
    inputs = make_inputs([5, 6], 1)
    assert select(given, inputs, queries_per_class=1).indices.tolist() == [6]
    assert not checked(given, inputs).requires_grad
