"""Uniform random querying."""

from __future__ import annotations

import numpy as np
import pytest

from evals.query import QueryResult, select
from evals.strategies import STRATEGIES
from tests.evals.test_query import make_inputs


def random_query(pool: list[int], num_classes: int, count: int, seed: int) -> QueryResult:
    inputs = make_inputs(pool, num_classes, seed=seed)
    return select(STRATEGIES["random"].utilities(inputs), inputs, queries_per_class=count)


def test_a_random_order_is_dealt_out_to_the_classes_in_turn():
    """The first images of the order are queried: seeds mean the same as in earlier versions."""
    pool = list(range(50, 90))
    order = np.asarray(pool)[np.random.default_rng(6).permutation(40)]
    result = random_query(pool, 3, 4, seed=6)
    assert result.indices.tolist() == [*order[0:12:3], *order[1:12:3], *order[2:12:3]]
    assert np.isnan(result.semantic).all() and np.isnan(result.distinctive).all()


@pytest.mark.parametrize(
    ("size", "num_classes", "count", "queried", "shortfall"),
    [(40, 3, 13, 39, {}), (5, 2, 3, 5, {1: 1}), (1, 3, 2, 1, {0: 1, 1: 2, 2: 2}), (0, 2, 1, 0, {0: 1, 1: 1})],
)
def test_it_keeps_the_budget(size, num_classes, count, queried, shortfall):
    pool = list(range(100, 100 + size))
    result = random_query(pool, num_classes, count, seed=3)
    assert len(result.indices) == len(set(result.indices.tolist())) == queried
    assert set(result.indices.tolist()) <= set(pool)
    assert result.shortfall == shortfall
