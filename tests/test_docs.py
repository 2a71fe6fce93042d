"""docs/extending.md and docs/api.md: their code runs, and what it adds works like what is there."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

import active_main
import datasets
import models
from common.files import read_json
from common.settings import DataSettings
from datasets.base import UNKNOWN
from datasets.split import given_split
from evals.cycles import QueryLoop
from evals.features import FeatureBank
from evals.strategies import find_strategy


def blocks(path, language="python"):
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def added(root):
    """The names that the page's code defines; the tables that it extends are put back afterwards."""
    tables = (models.BACKBONES, datasets.LOADERS)
    before = [dict(table) for table in tables]
    names = {}
    for block in blocks(root / "docs" / "extending.md")[1:]:
        exec(compile(block, "docs/extending.md", "exec"), names)
    yield names
    for table, entries in zip(tables, before):
        table.clear()
        table.update(entries)


@pytest.fixture
def strategies(root, tmp_path, monkeypatch):
    """The page's my_strategies.py in the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("my_strategies.py").write_text(blocks(root / "docs" / "extending.md")[0])


def test_the_pages_command_queries_by_the_pages_strategy(root, strategies):
    """On the digits, with pixels as features: margins alone look for others, and the detector's margins for targets."""
    line = blocks(root / "docs" / "extending.md", "bash")[0]
    words = shlex.split(line.partition("active_main.py")[2])
    words += "--dataset digits --mismatch 0.5 --queries_per_class 20 --cycles 3 --device cpu".split()
    data, _ = datasets.load_data_and_split(DataSettings(dataset="digits", mismatch=0.5))
    np.save("embeddings.npy", data.train_images.reshape(len(data.train_images), -1).astype(np.float32))
    active_main.main(words)
    active_main.main([*words, "--strategy", "margin", "--index_dir", "runs/margin"])
    cycles = {}
    for name in ("doubtful", "margin"):
        cycles[name] = [read_json(Path("runs", name, f"cycle_{number}.json")) for number in (1, 2, 3)]
        assert [len(cycle["queried"]) for cycle in cycles[name]] == [40, 40, 40]
    assert {cycle["strategy"] for cycle in cycles["doubtful"]} == {"doubtful_targets"}
    found, by_margin = ([cycle["metrics"]["found"] for cycle in cycles[name]] for name in cycles)
    assert found[0] == by_margin[0]  # no other is known yet
    assert sum(found[1:]) > 5 * sum(by_margin[1:]) and sum(found[1:]) > 40


def test_the_other_strategy_is_ccal_without_its_filter(strategies):
    """Each class takes the images of the highest sum, whichever class they resemble."""
    generator = torch.Generator().manual_seed(0)
    bank = FeatureBank(np.arange(40), torch.randn(40, 1, 3, generator=generator))
    known = np.where(np.arange(40) < 8, np.arange(40) % 2, UNKNOWN)
    split = given_split(known, known[:0], num_classes=2, seed=0, content="")
    loop = QueryLoop(
        {"semantic": bank, "distinctive": bank}, split, known, find_strategy("my_strategies.py:unfiltered_ccal")
    )
    cycle = loop.query(1, 5)
    scores, taken = cycle.inputs.scores, []
    for number in (0, 1):
        joint = (scores.semantic + scores.distinctive[:, number]).tolist()
        order = sorted(range(32), key=lambda row: -joint[row])
        taken += [row for row in order if row not in taken][:5]
    assert cycle.result.indices.tolist() == cycle.inputs.pool[taken].tolist()
    assert (scores.pseudo_class[taken].numpy() != cycle.result.pseudo_class).any()


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
    for block in blocks(root / "docs" / "api.md"):
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
