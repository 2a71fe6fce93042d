"""What a query keeps comes back as it was, small, and nothing else is taken for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from evals import kept
from evals.features import FeatureBank
from evals.query import QueryResult
from evals.scores import PoolScores
from utils import InputError

POOL = np.array([9, 4, 7, 2, 5, 0])
SEMANTIC = torch.tensor([0.9, 0.4, 0.7, 0.2, 0.5, 0.0])
CLASSES = torch.tensor([0, 1, 0, 1, 1, 0])
DISTINCTIVE = torch.arange(12.0).reshape(6, 2)
IMAGES = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 6, 3), dtype=np.uint8)
SCORES = PoolScores(semantic=SEMANTIC, pseudo_class=CLASSES, distinctive=DISTINCTIVE)


def save(folder: Path, **changes: object) -> Path:
    """Images 9 and 5 of six are queried; the path of the file."""
    utilities = torch.full((6, 2), -torch.inf).scatter(1, CLASSES[:, None], SEMANTIC[:, None])
    result = QueryResult(np.array([9, 5]), np.array([0, 1]), np.array([0.9, 0.5]), *np.zeros((2, 2)), {})
    given = {"pool": POOL, "utilities": utilities, "result": result, "scores": SCORES, "images": IMAGES}
    given |= {"is_target": POOL % 2 == 1, "names": ["cat", "dog"]}
    kept.save_cycle(folder, 3, **given | changes)
    return kept.cycle_path(folder, 3)


def test_a_cycle_comes_back_by_image_number(tmp_path: Path) -> None:
    path = save(tmp_path)
    assert path == tmp_path / "scores" / "cycle_3.npz"
    cycle = kept.read_cycle(path)
    assert cycle.pool.tolist() == [0, 2, 4, 5, 7, 9] and cycle.pool_size == 6
    np.testing.assert_array_equal(cycle.query_score, np.float32([0, 0.2, 0.4, 0.5, 0.7, 0.9]))
    assert cycle.pseudo_class.tolist() == [0, 1, 1, 1, 0, 0]
    assert cycle.distinctive.tolist() == [10, 7, 3, 9, 4, 0]  # of each image's own pseudo class
    assert cycle.is_target.tolist() == [False, False, False, True, True, True]
    assert cycle.queried.tolist() == [9, 5] and cycle.rows.tolist() == [5, 3]
    assert cycle.names.tolist() == ["cat", "dog"] and cycle.paths is None
    assert cycle.pictured.tolist() == [0, 1] and cycle.thumbnails.shape == (2, 8, 6, 3)
    assert cycle.thumbnails[:, 0, 0, 0].tolist() == [9, 5]


def test_what_nobody_knows_or_a_strategy_lacks_is_none(tmp_path: Path) -> None:
    given = {"scores": PoolScores(), "is_target": None, "names": None, "paths": ["ä/\udcff.png", "b.png"]}
    cycle = kept.read_cycle(save(tmp_path, **given))
    assert (cycle.semantic, cycle.distinctive, cycle.is_target, cycle.names) == (None, None, None, None)
    assert cycle.paths.tolist() == ["ä/\udcff.png", "b.png"]  # as os.fsdecode gives a name that is not UTF-8
    assert cycle.pseudo_class.tolist() == [0, 1, 1, 1, 0, 0]  # the class of the largest utility


def test_a_query_that_found_no_candidate_is_kept(tmp_path: Path) -> None:
    result = QueryResult(*np.empty((2, 0), dtype=np.int64), *np.empty((3, 0)), {0: 5})
    cycle = kept.read_cycle(save(tmp_path, result=result, names=[]))
    assert len(cycle.queried) == len(cycle.pictured) == len(cycle.thumbnails) == 0


def test_of_a_large_pool_the_queried_and_a_sample_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MAX_POOL", 4)
    cycle = kept.read_cycle(save(tmp_path))
    assert cycle.pool_size == 6 and len(cycle.pool) == 4 and {9, 5} < {*cycle.pool.tolist()}
    assert kept.read_cycle(save(tmp_path)).pool.tolist() == cycle.pool.tolist()


def test_pictures_are_the_best_the_last_and_the_wrong() -> None:
    score, wrong = np.arange(40.0), np.arange(40) % 2 == 0
    rows = kept.rows_of_pictures(score, wrong)
    assert rows["highest"].tolist() == list(range(39, 27, -1))
    assert rows["lowest"].tolist() == list(range(11, -1, -1))
    assert rows["wrong"].tolist() == list(range(38, 15, -2))
    few = kept.rows_of_pictures(score[:13], wrong[:13])
    assert few["lowest"].tolist() == [0] and len(few["highest"]) == 12


@pytest.mark.parametrize(("known", "count"), [(True, 36), (False, 72)])
def test_more_pictures_are_kept_where_nobody_knows_which_are_wrong(tmp_path: Path, known: bool, count: int) -> None:
    pool = np.arange(200)
    utilities = torch.linspace(1, 0, 200)[:, None]
    result = QueryResult(pool[:100], np.zeros(100, int), utilities[:100, 0].numpy(), *np.zeros((2, 100)), {})
    images = np.zeros((200, 100, 200, 3), dtype=np.uint8)
    given = {"pool": pool, "utilities": utilities, "result": result, "scores": PoolScores(), "images": images}
    path = save(tmp_path, **given, is_target=pool < 50 if known else None, names=None)
    assert kept.read_cycle(path).thumbnails.shape == (count, 32, 64, 3)


def test_a_sample_has_unit_features_of_at_most_so_many_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MAX_SAMPLE", 3)
    bank = FeatureBank(np.array([2, 4, 6, 8]), torch.tensor([[[3.0, 4.0]], [[0.0, 2.0]], [[1e6, 0]], [[1.0, 1.0]]]))
    labels, paths = np.array([-1, 0, 1, 0, 1, 0, 1, 0, -1]), [f"{n}.png" for n in range(9)]
    kept.save_sample(tmp_path, {"semantic": bank}, labels, class_names=["a", "b"], paths=paths)
    sample = kept.read_sample(kept.sample_path(tmp_path))
    assert len(sample.images) == 3 and {*sample.images.tolist()} < {2, 4, 6, 8}
    assert sample.labels.tolist() == labels[sample.images].tolist() and sample.class_names == ("a", "b")
    assert sample.paths.tolist() == [paths[image] for image in sample.images]
    assert [*sample.features] == ["semantic"] and sample.features["semantic"].dtype == np.float16
    np.testing.assert_allclose(np.linalg.norm(sample.features["semantic"], axis=2), 1, atol=2e-3)


def test_a_query_without_features_keeps_the_names_of_the_classes(tmp_path: Path) -> None:
    kept.save_sample(tmp_path, {}, np.array([0, 1, -1]), class_names=["a", "b"], paths=["x.png", "y.png", "z.png"])
    sample = kept.read_sample(kept.sample_path(tmp_path))
    assert sample.class_names == ("a", "b") and len(sample.images) == len(sample.labels) == len(sample.features) == 0


def test_a_sample_holds_any_of_three_banks_and_files_from_before_the_third_are_read(tmp_path: Path) -> None:
    indices = np.arange(5)
    sizes = {"semantic": (1, 2), "distinctive": (4, 2), "penultimate": (1, 7)}
    banks = {name: FeatureBank(indices, torch.ones(5, *size)) for name, size in sizes.items()}
    path = kept.sample_path(tmp_path)
    for names in (["penultimate"], ["semantic", "penultimate"], [*sizes]):
        kept.save_sample(tmp_path, {name: banks[name] for name in names}, indices)
        features = kept.read_sample(path).features
        assert {name: array.shape for name, array in features.items()} == {name: (5, *sizes[name]) for name in names}
        np.testing.assert_allclose(features["penultimate"].astype(float), 7**-0.5, atol=1e-3)
    with np.load(path) as file:
        arrays = {name: array for name, array in file.items() if name != "penultimate"}
    np.savez(path, **arrays)
    assert [*kept.read_sample(path).features] == ["semantic", "distinctive"]
    np.savez(path, **{name: array for name, array in arrays.items() if name != "semantic"})
    with pytest.raises(InputError, match="lacks semantic"):
        kept.read_sample(path)
    np.savez(path, **arrays, penultimate=np.ones((4, 1, 7), np.float16))  # of other images
    with pytest.raises(InputError, match="penultimate is float16"):
        kept.read_sample(path)


@pytest.mark.parametrize(
    ("changes", "phrase"),
    [
        ({"pool": np.array([0, 2, 4, 5, 9, 9])}, "contradict"),
        ({"queried": np.array([9, 1])}, "contradict"),
        ({"pictured": np.array([0, 2])}, "contradict"),
        ({"pseudo_class": np.array([0, 1, 1, 1, 0, -1])}, "contradict"),
        ({"thumbnails": np.zeros((2, 8, 65, 3), np.uint8)}, "contradict"),
        ({"query_score": np.zeros(4, np.float32)}, "query_score"),
        ({"pool": np.arange(6.0)}, "pool"),
        ({"semantic": np.full(6, np.nan)}, "semantic"),
        ({"names": np.array([{}, {}])}, "without pickle"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, changes: dict[str, np.ndarray], phrase: str) -> None:
    path = save(tmp_path)
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **{**arrays, **changes})
    with pytest.raises(InputError, match=phrase) as caught:
        kept.read_cycle(path)
    assert str(path) in str(caught.value)
