"""The paper's numbers: the protocol, the recipe by data set and scale, and the authors' query lists counted again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from common.paper import PROTOCOLS, PUBLISHED_FOUND, PUBLISHED_LABELED, PUBLISHED_POOL_TARGETS, Recipe, recipe_for
from common.provenance import int64_digest
from datasets.split import make_split


def test_the_target_classes_are_the_papers() -> None:
    classes = (3, 42, 43, 88, 97, 15, 19, 21, 32, 39, 35, 63, 64, 66, 75, 37, 50, 65, 74, 80)
    assert PROTOCOLS["cifar10"].target_classes == (0, 1) and PROTOCOLS["cifar100"].target_classes == classes
    assert PROTOCOLS["cifar10"].initial_budget == PROTOCOLS["cifar100"].initial_budget == 800


@pytest.mark.parametrize(
    ("dataset", "scale", "expected"),
    [
        ("cifar10", 1.0, (700, 700, 10, 100)),
        ("cifar10", 0.25, (175, 175, 2, 25)),  # a warm-up of 2.5 epochs is rounded to the even number
        ("cifar10", 0.0001, (1, 1, 1, 1)),
        ("cifar100", 1.0, (2000, 700, 10, 100)),
        ("cifar100", 0.03, (60, 21, 1, 3)),
        ("digits", 0.01, (7, 7, 1, 1)),
    ],
)
def test_a_scale_shortens_every_schedule(dataset: str, scale: float, expected: tuple[int, ...]) -> None:
    full = recipe_for(dataset, pool=1000, classes=2)
    schedules = ("semantic_epochs", "distinctive_epochs", "warmup", "classifier_epochs")
    assert full.scaled(scale) == dataclasses.replace(full, **dict(zip(schedules, expected, strict=True)))


@pytest.mark.parametrize(
    ("dataset", "pool", "classes", "queries"),
    [
        ("cifar10", 11500, 2, 750),
        ("cifar100", 46001, 20, 75),
        ("npz", 46001, 2, 750),  # the paper's share of the pool
        ("npz", 46001, 20, 75),
        ("digits", 1346, 2, 22),
        ("npz", 10, 5, 1),
    ],
)
def test_a_query_takes_the_papers_share_of_a_pool(dataset: str, pool: int, classes: int, queries: int) -> None:
    assert recipe_for(dataset, pool=pool, classes=classes).queries_per_class == queries


def test_the_published_counts_are_those_of_the_authors_lists(shared: Path) -> None:
    labels = np.load(shared / "data" / "labels_cifar10_train.npy")
    lists = np.load(shared / "data" / "published_queries_cifar10_mismatch80.npz")
    labeled = [lists[f"cycle_{cycle}"] for cycle in range(8)]
    assert tuple(np.diff([len(indices) for indices in labeled])) == PUBLISHED_FOUND
    assert np.isin(labels[labeled[-1]], (0, 1)).all()
    split = make_split(labels, np.arange(10), target_classes=(0, 1), mismatch=0.8, initial_budget=800)
    assert int64_digest(labeled[0]) == int64_digest(split.labeled) == PUBLISHED_LABELED
    assert np.isin(labels[split.unlabeled], (0, 1)).sum() == PUBLISHED_POOL_TARGETS
    assert Recipe().queries_per_class * 2 == 1500
