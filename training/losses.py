"""Contrastive losses (SimCLR, https://arxiv.org/abs/2002.05709)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def nt_xent(views: Tensor, *, temperature: float = 0.5) -> Tensor:
    """Normalized temperature-scaled cross entropy (SimCLR, Eq. 1), averaged over all views.

    For view i with positive j: -log(exp(s_ij / T) / sum over k != i of exp(s_ik / T)), s the dot product.

    Args:
        views: Unit-norm projections, (2N, D); rows i and i + N are two views of one instance.
        temperature: T, above 0.

    Returns:
        The loss, a scalar.

    Raises:
        ValueError: The number of rows is odd or below 4 (one instance has no negatives).

    Example:
        >>> nt_xent(torch.eye(2).repeat(2, 1), temperature=1.0)  # log(e + 2) - 1
        tensor(0.5514)
    """
    rows = len(views)
    if rows % 2 or rows < 4:
        raise ValueError(f"views must be two per instance, of at least two instances; got {rows} rows")
    similarity = views @ views.T / temperature
    itself = torch.eye(rows, dtype=torch.bool, device=views.device)
    positive = torch.arange(rows, device=views.device).roll(rows // 2)
    return F.cross_entropy(similarity.masked_fill(itself, -torch.inf), positive)
