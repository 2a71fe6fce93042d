"""CCAL's scores: how much a pool image looks like a target class, and how unlike what is labeled already."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from evals.features import Features
from utils import InputError

BLOCK = 2048  # pool rows per matrix product: the similarities of one block stay within tens of megabytes
GPU_BLOCK = 16384
CANDIDATES = 1.25  # images above an automatic t, per image asked for
READ = 65536  # pool rows per step where nothing is multiplied


class Neighbours:
    """The nearest labeled images of each pool image so far, by cosine similarity, separately for each shift.

    Attributes:
        similarity: To the nearest ones, best first, -inf where there are none yet, float32 (N, K, keep).
        position: Their places in the order in which they were added, int32 (N, K, keep).

    Args:
        count: N, pool images.
        shifts: K.
        keep: How many neighbours to keep, 1 or 2.
        device: Where the tables live.
    """

    def __init__(self, count: int, shifts: int, *, keep: int, device: torch.device | str = "cpu") -> None:
        self._keep = keep
        self._labeled: list[Tensor] = []
        self.similarity = torch.full((count, shifts, keep), -torch.inf, device=device)
        self.position = torch.zeros((count, shifts, keep), dtype=torch.int32, device=device)

    def __len__(self) -> int:
        return sum(len(part) for part in self._labeled)

    def update(self, rows: slice, pool: Tensor, labeled: Tensor) -> None:
        """Compares rows of the pool, (B, K, D), with new labeled images, (L, K, D), both of unit norm.

        ``append`` follows when every block has been through.
        """
        keep = min(self._keep, len(labeled))
        for shift in range(labeled.shape[1]):
            top = (pool[:, shift] @ labeled[:, shift].T).topk(keep, dim=1)
            places = (top.indices + len(self)).to(torch.int32)
            if not self._labeled:
                self.similarity[rows, shift, :keep], self.position[rows, shift, :keep] = top.values, places
                continue
            # Neighbours known so far stand first: on a tie the earlier labeled image stays.
            values = torch.cat([self.similarity[rows, shift], top.values], dim=1)
            places = torch.cat([self.position[rows, shift], places], dim=1)
            order = values.sort(dim=1, descending=True, stable=True).indices[:, : self._keep]
            self.similarity[rows, shift] = values.gather(1, order)
            self.position[rows, shift] = places.gather(1, order)

    def append(self, labeled: Tensor) -> None:
        """Makes new labeled images, unit norm (L, K, D), known: positions go on behind them."""
        if len(labeled):
            self._labeled.append(labeled)

    def between(self, rows: slice) -> Tensor:
        """cos(a, b) of the two nearest labeled images a and b of some pool images, (B, K)."""
        labeled = torch.cat(self._labeled)
        shifts = torch.arange(labeled.shape[1], device=labeled.device)
        a, b = labeled[self.position[rows].long(), shifts[:, None]].unbind(2)  # (B, K, D) each
        return (a * b).sum(2)


def add_labeled(pool: Features, tables: Sequence[Neighbours], groups: Sequence[Tensor]) -> None:
    """Compares the whole pool with newly labeled images; the pool is read once, in blocks, for all tables.

    Args:
        pool: (N, K, D), of any length.
        tables: One per group of labeled images, such as a class.
        groups: New images of each, (L, K, D).
    """
    pairs = [(table, F.normalize(group.float(), dim=2)) for table, group in zip(tables, groups, strict=True)]
    pairs = [(table, group) for table, group in pairs if len(group)]
    if not pairs:
        return
    device = pairs[0][1].device
    for rows in blocks(pool.shape[0], GPU_BLOCK if device.type == "cuda" else BLOCK):
        part = F.normalize(pool[rows].to(device, torch.float32), dim=2)
        for table, group in pairs:
            table.update(rows, part, group)
    for table, group in pairs:
        table.append(group)


def blocks(count: int, size: int) -> Iterator[slice]:
    """Slices of at most ``size`` rows that cover ``count`` rows in order."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


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


def automatic_t(normalised: Tensor, asked: int) -> float:
    """A t for any length of training: the value that CANDIDATES times as many images reach as a cycle asks for."""
    return float(normalised.topk(min(len(normalised), math.ceil(CANDIDATES * asked))).values[-1])


def distinctive_distance(nearest: Neighbours) -> Tensor:
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
    distance = torch.empty_like(nearest.similarity[:, 0, 0])
    for rows in blocks(len(distance), READ):
        to_a, to_b = nearest.similarity[rows].unbind(2)
        distance[rows] = (to_a - to_b + nearest.between(rows) + to_a).mean(1)
    return distance


@dataclass(frozen=True)
class PoolScores:
    """The scores of the images still unqueried; what a strategy did not ask for is None.

    Attributes:
        similarity: Largest cosine similarity to a labeled image, (U,).
        semantic: S(u), (U,).
        pseudo_class: Class number of that labeled image, (U,); without semantic features, the class of which a labeled
            image is nearest by the distinctive ones, on average over the shifts.
        distance: d(u) per class, (U, C).
        distinctive: D_i(u) = 1 - min-max normalised d(u), (U, C).
    """

    similarity: Tensor | None = None
    semantic: Tensor | None = None
    pseudo_class: Tensor | None = None
    distance: Tensor | None = None
    distinctive: Tensor | None = None


class Scorer:
    """Keeps the neighbours of a set of images from cycle to cycle and scores those of them that form the pool.

    Only the columns of newly labeled images are computed in a cycle. Beside the features it holds 8 bytes per image,
    class, shift and neighbour.

    Args:
        semantic: Features by the semantic encoder, (N, 1, D), or None.
        distinctive: By the distinctive encoder, (N, K, D), or None.
        num_classes: C, the number of target classes.
        k: Steepness of the semantic score.
        t: Its zero, or ``auto``, see automatic_t.
        device: Where to compute; features that are elsewhere come block by block.
    """

    def __init__(
        self,
        semantic: Features | None,
        distinctive: Features | None,
        *,
        num_classes: int,
        k: float,
        t: float | str,
        device: torch.device | str = "cpu",
    ) -> None:
        self._k, self._t = k, t
        self._pools = semantic, distinctive
        self._semantic: list[Neighbours] = []
        self._distinctive: list[Neighbours] = []
        if semantic is not None:
            self._semantic = [Neighbours(*semantic.shape[:2], keep=1, device=device)]
        if distinctive is not None:
            self._distinctive = [Neighbours(*distinctive.shape[:2], keep=2, device=device) for _ in range(num_classes)]
        self._classes = torch.empty(0, dtype=torch.int64, device=device)

    def add_labeled(self, semantic: Tensor | None, distinctive: Tensor | None, classes: Tensor) -> None:
        """Takes in newly labeled images: features, (L, 1, D) and (L, K, D) or None, and class numbers, (L,)."""
        classes = classes.to(self._classes.device)
        self._classes = torch.cat([self._classes, classes])
        if self._semantic:
            add_labeled(self._pools[0], self._semantic, [semantic.to(classes.device)])
        if self._distinctive:
            distinctive = distinctive.to(classes.device)
            groups = [distinctive[classes == number] for number in range(len(self._distinctive))]
            add_labeled(self._pools[1], self._distinctive, groups)

    def scores(self, remaining: Tensor, *, asked: int = 1) -> PoolScores:
        """Scores the rows ``remaining``, int64 (U,), ``asked`` of which are queried, normalised over just these."""
        remaining = remaining.to(self._classes.device)
        parts: dict[str, Tensor] = {}
        for nearest in self._semantic:
            parts["similarity"] = nearest.similarity[remaining, 0, 0]
            parts["pseudo_class"] = self._classes[nearest.position[remaining, 0, 0].long()]
            normalised = min_max(parts["similarity"])
            t = automatic_t(normalised, asked) if self._t == "auto" else self._t
            parts["semantic"] = semantic_score(normalised, k=self._k, t=t)
        if self._distinctive:
            distances = [distinctive_distance(nearest)[remaining] for nearest in self._distinctive]
            parts["distance"] = torch.stack(distances, dim=1)
            parts["distinctive"] = 1 - min_max(parts["distance"])
            own = torch.stack([nearest.similarity[remaining, :, 0].mean(1) for nearest in self._distinctive], dim=1)
            parts.setdefault("pseudo_class", own.argmax(1))
        return PoolScores(**parts)
