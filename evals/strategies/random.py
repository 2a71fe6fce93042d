"""Uniform random querying, the baseline without any score."""

from __future__ import annotations

from torch import Tensor

from evals.query import QueryInputs, dealt


def uniform_random(inputs: QueryInputs) -> Tensor:
    """A random order of the pool, dealt out to the classes in turn: the same budget without any score."""
    return dealt(inputs.rng.permutation(len(inputs.pool)), inputs)
