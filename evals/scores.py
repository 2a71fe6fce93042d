"""CCAL's scores: how much a pool image looks like a target class, and how unlike what is labeled already."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from utils import InputError

BLOCK = 2048  # pool rows per matrix product: the similarities of one block stay within tens of megabytes


class NearestLabeled:
    """Running nearest labeled images of each pool image, by cosine similarity, separately for each shift.

    Labeled images come in groups, as cycles go by; only a new group's columns are computed.

    Args:
        pool: Features of the pool, (N, K, D).
        keep: How many neighbours to keep, 1 or 2.
    """

    def __init__(self, pool: Tensor, *, keep: int) -> None:
        self._pool = F.normalize(pool, dim=2)
        self._keep = keep
        self._labeled = self._pool.new_empty(0, *pool.shape[1:])
        self.similarity = self._pool.new_full((*pool.shape[:2], keep), -torch.inf)
        self.position = torch.zeros((*pool.shape[:2], keep), dtype=torch.int64, device=pool.device)

    def __len__(self) -> int:
        return len(self._labeled)

    def add(self, labeled: Tensor) -> None:
        """Takes in further labeled images, (L, K, D); their positions go on from those already there."""
        if not len(labeled):
            return
        labeled = F.normalize(labeled, dim=2)
        keep = min(self._keep, len(labeled))
        for shift in range(labeled.shape[1]):
            columns = labeled[:, shift].T.contiguous()
            for start in range(0, len(self._pool), BLOCK):
                rows = slice(start, start + BLOCK)
                # Neighbours known so far stand first: on a tie the earlier labeled image stays.
                top = (self._pool[rows, shift] @ columns).topk(keep, dim=1)
                values = torch.cat([self.similarity[rows, shift], top.values], dim=1)
                places = torch.cat([self.position[rows, shift], top.indices + len(self)], dim=1)
                order = values.sort(dim=1, descending=True, stable=True).indices[:, : self._keep]
                self.similarity[rows, shift] = values.gather(1, order)
                self.position[rows, shift] = places.gather(1, order)
        self._labeled = torch.cat([self._labeled, labeled])

    def between(self) -> Tensor:
        """cos(a, b) of the two nearest labeled images a and b, (N, K)."""
        similarity = torch.empty_like(self.similarity[:, :, 0])
        for shift in range(similarity.shape[1]):
            for start in range(0, len(self._pool), BLOCK):
                rows = slice(start, start + BLOCK)
                a, b = self._labeled[self.position[rows, shift], shift].unbind(1)
                similarity[rows, shift] = (a * b).sum(1)
        return similarity


def min_max(values: Tensor) -> Tensor:
    """(v - min) / (max - min) over the first dimension; 0 where all values are equal (they tell nothing apart)."""
    low, high = values.min(0).values, values.max(0).values
    width = torch.where(high > low, high - low, torch.ones_like(high))
    return (values - low) / width


def semantic_score(normalised: Tensor, *, k: float = 100.0, t: float = 0.9) -> Tensor:
    """S(u) = (1 - exp(-k (s - t))) / (1 + exp(-k (s - t))) (CCAL, semantic score), as tanh(k (s - t) / 2).

    Written with exponentials it overflows float32 where s is far below t.

    Args:
        normalised: s, min-max normalised over the unqueried images, (U,).
        k: Steepness.
        t: Where the score is 0.

    Example:
        >>> semantic_score(torch.tensor([0.0, 0.9, 1.0]))
        tensor([-1.0000,  0.0000,  0.9999])
    """
    return torch.tanh(k * (normalised - t) / 2)


def distinctive_distance(nearest: NearestLabeled) -> Tensor:
    """d(u) = mean over shifts of cos(u, a) - cos(u, b) + cos(a, b) + cos(u, a), (N,) (CCAL, distinctive score).

    a and b are the nearest and second nearest labeled images of one class.

    Raises:
        InputError: The class has fewer than two labeled images.
    """
    if len(nearest) < 2:
        raise InputError(
            f"a target class has {len(nearest)} labeled image(s) and the distinctive score needs two: raise "
            "--initial_budget, take another --split_seed, or use --strategy semantic"
        )
    to_a, to_b = nearest.similarity.unbind(2)
    return (to_a - to_b + nearest.between() + to_a).mean(1)


@dataclass(frozen=True)
class PoolScores:
    """The scores of the images still unqueried; what a strategy did not ask for is None.

    Attributes:
        similarity: Largest cosine similarity to a labeled image, (U,).
        semantic: S(u), (U,).
        pseudo_class: Class number of that labeled image, (U,).
        distance: d(u) per class, (U, C).
        distinctive: D_i(u) = 1 - min-max normalised d(u), (U, C).
    """

    similarity: Tensor | None = None
    semantic: Tensor | None = None
    pseudo_class: Tensor | None = None
    distance: Tensor | None = None
    distinctive: Tensor | None = None


class Scorer:
    """Keeps the neighbours of the whole initial pool from cycle to cycle and scores what is left of it.

    Args:
        semantic: Features of the pool by the semantic encoder, (N, 1, D), or None.
        distinctive: By the distinctive encoder, (N, K, D), or None.
        num_classes: C, the number of target classes.
        k: Steepness of the semantic score.
        t: Its zero.
    """

    def __init__(
        self, semantic: Tensor | None, distinctive: Tensor | None, *, num_classes: int, k: float, t: float
    ) -> None:
        self._k, self._t = k, t
        self._semantic = None if semantic is None else NearestLabeled(semantic, keep=1)
        self._distinctive = (
            None if distinctive is None else [NearestLabeled(distinctive, keep=2) for _ in range(num_classes)]
        )
        self._classes = torch.empty(0, dtype=torch.int64)

    def add_labeled(self, semantic: Tensor | None, distinctive: Tensor | None, classes: Tensor) -> None:
        """Takes in newly labeled images.

        Args:
            semantic: (L, 1, D), or None.
            distinctive: (L, K, D), or None.
            classes: Class numbers, (L,).
        """
        self._classes = torch.cat([self._classes.to(classes.device), classes])
        if self._semantic is not None:
            self._semantic.add(semantic)
        if self._distinctive is not None:
            for number, nearest in enumerate(self._distinctive):
                nearest.add(distinctive[classes == number])

    def scores(self, remaining: Tensor) -> PoolScores:
        """Scores the pool rows ``remaining``, int64 (U,); normalisation runs over just these."""
        parts: dict[str, Tensor] = {}
        if self._semantic is not None:
            parts["similarity"] = self._semantic.similarity[remaining, 0, 0]
            parts["pseudo_class"] = self._classes[self._semantic.position[remaining, 0, 0]]
            parts["semantic"] = semantic_score(min_max(parts["similarity"]), k=self._k, t=self._t)
        if self._distinctive is not None:
            parts["distance"] = torch.stack(
                [distinctive_distance(nearest)[remaining] for nearest in self._distinctive], dim=1
            )
            parts["distinctive"] = 1 - min_max(parts["distance"])
        return PoolScores(**parts)
