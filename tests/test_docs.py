"""docs/extending.md: its code runs, and what it adds works like what is there."""

import re

import numpy as np
import pytest
import torch

import datasets
import models
from common.settings import DataSettings
from datasets.base import UNKNOWN
from datasets.split import given_split
from evals.cycles import QueryLoop
from evals.features import FeatureBank
from evals.strategies import STRATEGIES


@pytest.fixture(scope="module")
def added(root):
    """The names that the page's code defines; the tables that it extends are put back afterwards."""
    text = (root / "docs" / "extending.md").read_text()
    tables = (STRATEGIES, models.BACKBONES, datasets.LOADERS)
    before = [dict(table) for table in tables]
    names = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, "docs/extending.md", "exec"), names)
    yield names
    for table, entries in zip(tables, before):
        table.clear()
        table.update(entries)


def test_the_strategy_queries_the_least_similar_image_of_each_class(added):
    """Two classes along two axes; of the pool images at 10, 40, 80 and 55 degrees, 40 and 55 are farthest from both."""
    degrees = np.radians([0, 90, 10, 40, 80, 55])
    points = torch.tensor(np.stack([np.cos(degrees), np.sin(degrees)], axis=1), dtype=torch.float32)
    labels = np.array([0, 1, 0, 0, 1, 1])
    bank = FeatureBank(np.arange(6), points[:, None])
    known = np.where(np.arange(6) < 2, labels, UNKNOWN)
    split = given_split(known, labels, num_classes=2, seed=0, content="")
    cycle = QueryLoop({"semantic": bank}, split, labels, STRATEGIES["farthest"]).query(1, 1)
    assert cycle.result.indices.tolist() == [3, 5]


def test_the_backbone_encodes(added):
    encoder = models.build_encoder("mobilenet_v3_small", num_classes=5, shifts=4, seed=0).eval()
    output = encoder(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert [tuple(part.shape) for part in output] == [(2, 576), (2, 128), (2, 4), (2, 5)]
    assert 0.5e6 < sum(p.numel() for p in encoder.features.parameters()) < 1.0e6


def test_the_data_set_gives_a_split(added):
    wanted = DataSettings(dataset="fake", data_path="", mismatch=0.5, target_classes=("c", "a"), initial_budget=4)
    data, split = datasets.load_data_and_split(wanted)
    assert data.train_images.shape == (150, 32, 32, 3)
    assert split.target_classes == (2, 0)
    assert len(split.labeled) == 4


@pytest.fixture(scope="module")
def api(root):
    names = {}
    for block in re.findall(r"```python\n(.*?)```", (root / "docs" / "api.md").read_text(), re.DOTALL):
        exec(compile(block, "docs/api.md", "exec"), names)
    return names


@pytest.fixture(scope="module")
def clusters():
    """Embeddings of 500 images in five well separated classes."""
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.repeat(np.arange(5), 100))
    centres = 5 * np.eye(5, dtype=np.float32)
    return centres[labels] + generator.normal(0, 0.5, (500, 5)).astype(np.float32), labels


def test_embeddings_are_queried_in_ten_lines(api, clusters):
    """Of 180 targets in the pool, forty are asked for in each cycle; the classes lie apart, so that all are targets."""
    assert api["found_per_cycle"](*clusters) == [40, 40, 40]
    assert api["found_per_cycle"](*clusters, strategy="semantic") == [40, 40, 40]
    assert max(api["found_per_cycle"](*clusters, strategy="random")) < 30


def test_what_to_label_next(api, clusters):
    embeddings, labels = clusters
    known = np.full(500, UNKNOWN)
    for number in (0, 1):
        few = np.flatnonzero(labels == number)[:10]
        known[few] = number
    found = api["next_query"](embeddings, known, 2, 15)
    assert labels[found].tolist() == [0] * 15 + [1] * 15 and (known[found] == UNKNOWN).all()
