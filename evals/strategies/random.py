"""Uniform random querying, the baseline without any score."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from evals.query import QueryInputs


def uniform_random(inputs: QueryInputs) -> Tensor:
    """A random order of the pool, dealt out to the classes in turn: the same budget without any score."""
    order = inputs.rng.permutation(len(inputs.pool))
    utilities = torch.full((len(inputs.pool), inputs.num_classes), -torch.inf)
    utilities[order, np.arange(len(order)) % inputs.num_classes] = -torch.arange(len(order), dtype=torch.float32)
    return utilities
