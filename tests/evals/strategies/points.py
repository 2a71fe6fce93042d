"""What a strategy sees of points in a plane or in space."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from evals.features import FeatureBank
from evals.query import QueryInputs
from evals.scores import PoolScores


def point_inputs(pool, labeled, classes, set_aside=(), *, numbers=None, distinctive=None, **changes) -> QueryInputs:
    """A query's inputs.

    Args:
        pool: Points, (U, D).
        labeled: Points, (L, D).
        classes: Theirs, (L,).
        set_aside: Points, (A, D).
        numbers: Images of the pool, (U,), such that their order is not that of the points; default 0 .. U - 1.
        distinctive: Features by the other encoder, of pool, labeled and set aside, (U + L + A, K, D).
        changes: Of the other fields.
    """
    pool, labeled = (np.asarray(points, dtype=np.float32) for points in (pool, labeled))
    aside = np.asarray(set_aside, dtype=np.float32).reshape(-1, labeled.shape[1])
    known = np.arange(1000, 1000 + len(labeled) + len(aside))
    images = np.concatenate([np.arange(len(pool)) if numbers is None else numbers, known])
    order = np.argsort(images)

    def bank(values: np.ndarray) -> FeatureBank:
        return FeatureBank(images[order], torch.tensor(values[order], dtype=torch.float32))

    banks = {"penultimate": bank(np.concatenate([pool, labeled, aside])[:, None])}
    if distinctive is not None:
        banks["distinctive"] = bank(np.asarray(distinctive))
    fields = {
        "pool": images[: len(pool)],
        "labeled": known[: len(labeled)],
        "labeled_classes": np.asarray(classes),
        "set_aside": known[len(labeled) :],
        "num_classes": int(max(classes)) + 1,
        "scores": PoolScores(),
        "banks": banks,
        "rng": np.random.default_rng(0),
        "budget": 4,
    }
    return QueryInputs(**fields | changes)


def random_inputs(seed: int, *, pool=40, labeled=12, set_aside=9, num_classes=2, **changes) -> QueryInputs:
    """Three-dimensional points without any order, the pool's images in no order either."""
    rng = np.random.default_rng(seed)
    parts = [rng.normal(size=(count, 3)) for count in (pool, labeled, set_aside)]
    classes, numbers = np.arange(labeled) % num_classes, rng.permutation(2 * pool)[:pool]
    shifts = rng.normal(size=(pool + labeled + set_aside, 4, 3))
    return point_inputs(*parts[:2], classes, parts[2], numbers=numbers, distinctive=shifts, **changes)


def order_of(utilities: Tensor, inputs: QueryInputs) -> list[int]:
    """Images, first that of the highest rank."""
    return inputs.pool[np.argsort(-utilities.amax(1).numpy(), kind="stable")].tolist()


def replace_networks(monkeypatch, module, **logits) -> None:
    """Has a strategy's classifier or detector give these logits."""
    for name, values in logits.items():
        network = SimpleNamespace(values=np.asarray(values, dtype=np.float64))
        monkeypatch.setattr(module, name, lambda z, inputs, network=network, **more: network.values)
