"""What holds for every split, query, score and file, whatever the draw."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.index_files import IndexFile, read_index_file, write_index_file
from datasets.split import Split, make_split
from evals.cycles import QueryLoop, simulate
from evals.features import FeatureBank
from evals.scores import Scorer, min_max, semantic_score
from evals.strategies import STRATEGIES
from utils import InputError

always = settings(max_examples=40, deadline=None, database=None, derandomize=True)
fewer = settings(always, max_examples=12)  # whole queries take longer
seeds = st.integers(0, 2**32 - 1)


def drawn_split(seed: int) -> tuple[np.ndarray, Split]:
    """Labels of 60 to 120 images in 2 to 5 classes, and a split with at least two labeled images of each target."""
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(2, 6))
    targets = rng.permutation(classes)[: rng.integers(1, classes)].tolist()
    labels = rng.permutation(np.arange(rng.integers(60, 121)) % classes)
    for attempt in range(100):
        budget, again = 4 * len(targets) + attempt // 20, seed + attempt
        try:
            split = make_split(labels, labels, target_classes=targets, mismatch=0.2, initial_budget=budget, seed=again)
        except InputError:
            continue  # a class was left without a labeled image
        if min(np.bincount(split.class_numbers(labels[split.labeled]), minlength=len(targets))) >= 2:
            return labels, split
    raise AssertionError("no such split")


def check_partition(split: Split, initial: Split, labels: np.ndarray) -> None:
    """Labeled, pool and set aside share no image, and are together what the initial split had."""
    everything = np.concatenate([split.labeled, split.unlabeled, split.set_aside])
    assert len(np.unique(everything)) == len(everything)
    assert set(everything) == set(initial.labeled) | set(initial.unlabeled)
    assert np.isin(labels[split.labeled], split.target_classes).all()
    assert not np.isin(labels[split.set_aside], split.target_classes).any()
    unchanged = ("digest", "target_classes", "mismatch", "seed")
    assert all(getattr(split, name) == getattr(initial, name) for name in unchanged)
    assert np.array_equal(split.test, initial.test)


@always
@given(seeds)
def test_annotation_moves_images_and_loses_none(seed):
    labels, initial = drawn_split(seed)
    rng, split = np.random.default_rng(seed), initial
    while len(split.unlabeled):
        asked = rng.permutation(split.unlabeled)[: rng.integers(1, 9)]
        after = split.annotate(asked, labels)
        check_partition(after, initial, labels)
        joined = after.labeled[len(split.labeled) :]
        assert np.array_equal(after.labeled[: len(split.labeled)], split.labeled)  # in the order of labeling
        assert joined.tolist() == [index for index in asked if labels[index] in split.target_classes]
        assert after.unlabeled.tolist() == [index for index in split.unlabeled if index not in asked]
        split = after
    assert len(split.labeled) + len(split.set_aside) == len(initial.labeled) + len(initial.unlabeled)


def banks_for(name: str, labels: np.ndarray, split: Split, seed: int) -> dict[str, FeatureBank]:
    """Features for a strategy, with ties, in which classes lie apart, more or less."""
    rng, indices, banks = np.random.default_rng(seed), np.sort(np.concatenate([split.labeled, split.unlabeled])), {}
    for encoder, shifts in (("semantic", 1), ("distinctive", 4), ("penultimate", 1)):
        shape = len(indices), shifts, 6
        noise = rng.integers(-2, 3, shape).astype(np.float32)
        centre = np.eye(6, dtype=np.float32)[labels[indices]][:, None] * rng.integers(0, 6)
        banks[encoder] = FeatureBank(indices, torch.from_numpy(noise + centre + 0.5))
    return {encoder: banks[encoder] for encoder in STRATEGIES[name].needs}


@pytest.fixture(scope="module", autouse=True)
def short_training():
    """Whatever ``posterior`` has learned, its queries keep to the budget."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["evals.strategies.posterior"], "STEPS", 3)
        yield


@pytest.mark.parametrize("name", STRATEGIES)
@fewer
@given(seeds)
def test_a_query_keeps_its_budget_and_its_pool(name, seed):
    labels, initial = drawn_split(seed)
    budget, classes = 1 + seed % 9, len(initial.target_classes)
    before, queried = initial, []
    loop = QueryLoop(
        banks_for(name, labels, initial, seed), initial, labels, STRATEGIES[name], k=20.0, t=0.7, seed=seed
    )
    for cycle in simulate(loop, cycles=4, queries_per_class=budget):
        asked = cycle.result.indices
        assert len(asked) + sum(cycle.result.shortfall.values()) == budget * classes
        assert set(asked) <= set(before.unlabeled) and len(set(asked)) == len(asked)
        assert not set(asked) & set(queried)
        assert all(np.bincount(cycle.result.pseudo_class, minlength=classes) <= budget)
        check_partition(cycle.split, initial, labels)
        assert cycle.metrics["queried"] == len(asked)
        assert cycle.metrics["found"] == np.isin(labels[asked], initial.target_classes).sum()
        assert cycle.metrics["pool"] == len(before.unlabeled) - len(asked) == len(cycle.split.unlabeled)
        assert cycle.metrics["labeled"] == len(cycle.split.labeled)
        found = set(cycle.split.labeled) - set(initial.labeled)
        targets_there = np.isin(labels[initial.unlabeled], initial.target_classes).sum()
        assert cycle.metrics["recall"] == (100 * len(found) / targets_there if targets_there else None)
        queried += asked.tolist()
        before = cycle.split


def scored(seed: int, *, scale: float = 1.0):
    rng = np.random.default_rng(seed)
    count, labeled, classes = int(rng.integers(1, 40)), int(rng.integers(6, 20)), int(rng.integers(1, 4))
    pool, known = (
        [torch.from_numpy(rng.normal(size=(n, shifts, 5)).astype(np.float32)) * scale for shifts in (1, 4)]
        for n in (count, labeled)
    )
    scorer = Scorer(*pool, num_classes=classes, k=float(rng.integers(1, 200)), t=float(rng.random()))
    scorer.add_labeled(*known, torch.arange(labeled) % classes)
    return scorer.scores(torch.from_numpy(rng.permutation(count)[: rng.integers(1, count + 1)])), classes


@always
@given(seeds, st.floats(0.01, 100))
def test_scores_stay_in_their_ranges_and_ignore_the_length_of_features(seed, scale):
    scores, classes = scored(seed)
    rounding = 1e-5
    assert (scores.similarity.abs() <= 1 + rounding).all()
    assert (scores.semantic.abs() <= 1).all() and scores.semantic.isfinite().all()
    assert ((scores.pseudo_class >= 0) & (scores.pseudo_class < classes)).all()
    assert ((scores.distinctive >= 0) & (scores.distinctive <= 1)).all()
    # cos(u, a) - cos(u, b) is 0 to 2, cos(a, b) and cos(u, a) -1 to 1.
    assert ((scores.distance >= -2 - rounding) & (scores.distance <= 4 + rounding)).all()
    assert scores.distance.shape == scores.distinctive.shape == (len(scores.similarity), classes)
    longer = scored(seed, scale=scale)[0]
    assert torch.allclose(scores.similarity, longer.similarity, atol=rounding)
    assert torch.allclose(scores.distance, longer.distance, atol=rounding)


@always
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30))
def test_min_max_reaches_both_ends_and_keeps_the_order(values):
    found = min_max(torch.tensor(values))
    assert found.min() == 0 and found.max() == (1 if max(values) > min(values) else 0)
    assert (np.diff(found.numpy()[np.argsort(values, kind="stable")]) >= 0).all()


@always
@given(st.floats(0.1, 1000), st.floats(0, 1), st.lists(st.floats(0, 1, width=32), min_size=1, max_size=30))
def test_the_semantic_score_rises_through_0_at_t(k, t, values):
    found, signs = semantic_score(torch.tensor(sorted(values)), k=k, t=t), torch.tensor(sorted(values)) - t
    assert (found.diff() >= 0).all() and (found.abs() <= 1).all()
    assert ((found >= 0) | (signs <= 0)).all() and ((found <= 0) | (signs >= 0)).all()


names = st.from_regex(r"[A-Za-z0-9_-][\w.+-]{0,20}", fullmatch=True)
numbers = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | numbers | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def index_contents(draw) -> IndexFile:
    images = draw(st.permutations(range(draw(st.integers(1, 40)))))
    labeled = images[: draw(st.integers(1, len(images)))]
    aside = images[len(labeled) :]
    return IndexFile(
        dataset=draw(names),
        mismatch=draw(st.none() | st.floats(0, 1, exclude_max=True)),
        split_digest=draw(st.text(max_size=64)),
        target_classes=draw(st.lists(st.integers(0, 99), unique=True, min_size=1, max_size=5)),
        strategy=draw(names),
        cycle=draw(st.integers(0, 10**6)),
        labeled=labeled,
        queried=draw(st.lists(st.sampled_from(images), unique=True)),
        set_aside=aside[: draw(st.integers(0, len(aside)))],
        settings=draw(st.dictionaries(st.text(max_size=5), json_values, max_size=4)),
        metrics={"queried": draw(st.integers(0, 99)), "precision": draw(st.none() | st.floats(0, 100))},
        seconds=draw(st.floats(0, 1e9)),
    )


@always
@given(index_contents())
def test_index_files_come_back_and_keep_to_the_data_set(tmp_path_factory, content):
    path = write_index_file(tmp_path_factory.mktemp("index"), content)
    lists = content.labeled, content.queried, content.set_aside
    enough = max(max(map(len, lists)), *(index + 1 for part in lists for index in part))
    assert read_index_file(path, split_digest=content.split_digest, n_images=enough) == content
    with pytest.raises(InputError):
        read_index_file(path, n_images=enough - 1)
