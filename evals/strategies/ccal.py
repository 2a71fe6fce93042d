"""CCAL's joint score, and its two terms alone for comparison (CCAL, ICCV 2021, Sec. 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from evals.query import QueryInputs


def of_pseudo_class(values: Tensor, inputs: QueryInputs) -> Tensor:
    """Values (U,) or (U, C) for each image's pseudo class, and -inf for the other classes, (U, C)."""
    if values.ndim == 1:
        values = values[:, None].expand(-1, inputs.num_classes)
    classes = torch.arange(inputs.num_classes, device=values.device)
    return values.masked_fill(inputs.scores.pseudo_class[:, None] != classes, -torch.inf)


def ccal(inputs: QueryInputs) -> Tensor:
    """The joint score S(u) + D_i(u) (CCAL, joint query score)."""
    return of_pseudo_class(inputs.scores.semantic[:, None] + inputs.scores.distinctive, inputs)


def semantic(inputs: QueryInputs) -> Tensor:
    """S(u) alone. Where tanh saturates, the similarity behind it still ranks: it is what is returned."""
    return of_pseudo_class(inputs.scores.similarity, inputs)


def distinctive(inputs: QueryInputs) -> Tensor:
    """D_i(u) alone."""
    return of_pseudo_class(inputs.scores.distinctive, inputs)
