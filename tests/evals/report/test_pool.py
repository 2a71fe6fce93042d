"""evals/report_pool.py and report_scores.py: a query seen again has the scores, images and truth that it had."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from common import checkpoint
from datasets import Dataset
from datasets.index_files import IndexFile
from datasets.split import make_split
from evals.cycles import best_utility, query_cycles
from evals.features import FeatureBank
from evals.query import STRATEGIES
from evals.report.encoders import encoder_of
from evals.report.pool import Material, gather
from evals.report.runs import EncoderRun, Query, Run
from evals.report.scores import OTHER, TARGET, UNKNOWN, Truth, known_truth, read_scores, replay
from utils import InputError

LABELS = np.arange(90) % 3
SETTINGS = {"k": 10.0, "t": 0.5, "target": 4, "seed": 3}


def data_of(labels: np.ndarray = LABELS) -> Dataset:
    images = np.arange(len(labels) * 12, dtype=np.uint8).reshape(-1, 2, 2, 3)
    return Dataset("npz", images, labels, images[:9], labels[:9], 3, ("a", "b", "c"))


SPLIT = make_split(LABELS, LABELS[:9], target_classes=[0, 2], mismatch=0.3, initial_budget=10, seed=0)
INDICES = np.sort(np.concatenate([SPLIT.unlabeled, SPLIT.labeled]))


def banks_of(*names: str) -> dict[str, FeatureBank]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"semantic": (len(INDICES), 1, 5), "distinctive": (len(INDICES), 4, 5)}
    return {name: FeatureBank(INDICES, torch.randn(shapes[name], generator=generator)) for name in names}


def queried(strategy: str) -> tuple[list, list[IndexFile]]:
    """Three cycles of a query, and their index files."""
    banks = banks_of(*STRATEGIES[strategy].needs)
    cycles = list(query_cycles(SPLIT, LABELS, banks, STRATEGIES[strategy], cycles=3, **SETTINGS))
    first = IndexFile("npz", 0.3, SPLIT.digest, [0, 2], strategy, 0, SPLIT.labeled.tolist(), [], [], settings=SETTINGS)
    files = [first] + [
        dataclasses.replace(
            first,
            cycle=cycle.number,
            labeled=cycle.split.labeled.tolist(),
            queried=cycle.result.indices.tolist(),
            set_aside=cycle.split.set_aside.tolist(),
        )
        for cycle in cycles
    ]
    return cycles, files


@pytest.mark.parametrize("strategy", ["ccal", "semantic", "distinctive"])
def test_scores_computed_again_are_the_querys(strategy: str) -> None:
    cycles, files = queried(strategy)
    again = list(replay(files, data_of(), SPLIT, banks_of(*STRATEGIES[strategy].needs)))
    assert len(again) == 3
    for (seen, agreed), cycle in zip(again, cycles, strict=True):
        scores = cycle.inputs.scores
        assert agreed == len(cycle.result.indices) == seen.is_queried.sum()
        np.testing.assert_array_equal(seen.pool, cycle.inputs.pool)
        np.testing.assert_array_equal(seen.utility, best_utility(cycle.utilities))
        np.testing.assert_array_equal(seen.semantic, scores.semantic.numpy())
        if strategy == "semantic":
            assert seen.distinctive is None
        else:
            own = scores.distinctive.gather(1, scores.pseudo_class[:, None])[:, 0]
            np.testing.assert_array_equal(seen.distinctive, own.numpy())


def test_queries_that_other_scores_made_are_counted() -> None:
    _, files = queried("ccal")
    others = [image for image in SPLIT.unlabeled.tolist() if image not in files[1].queried]
    files[1] = dataclasses.replace(files[1], queried=[*files[1].queried[:6], *others[:2]], labeled=files[0].labeled)
    [(seen, agreed)] = list(replay(files[:2], data_of(), SPLIT, banks_of("semantic", "distinctive")))
    assert (agreed, seen.is_queried.sum()) == (6, 8)


def test_labels_that_people_gave_are_taken_from_the_files() -> None:
    """In a folder that nobody has labeled the data set knows no label of the pool; version 2 of index files does."""
    cycles, files = queried("ccal")
    numbers = {0: 0, 2: 1}
    given = [
        dataclasses.replace(f, labels=[numbers[LABELS[i]] for i in f.labeled], class_names=["a", "c"]) for f in files
    ]
    unlabeled = np.where(np.isin(np.arange(90), SPLIT.labeled), LABELS, -1)
    again = list(replay(given, data_of(unlabeled), SPLIT, banks_of("semantic", "distinctive")))
    assert [agreed for _, agreed in again] == [len(cycle.result.indices) for cycle in cycles]


def test_files_that_do_not_follow_from_each_other_are_refused() -> None:
    _, files = queried("ccal")
    files[2] = dataclasses.replace(files[2], queried=files[1].queried)
    with pytest.raises(InputError, match="of cycle 2 do not follow"):
        list(replay(files, data_of(), SPLIT, banks_of("semantic", "distinctive")))


def test_what_is_known_comes_from_labels_then_scores_then_answers() -> None:
    file = IndexFile("npz", 0.5, "d", [0, 2], "ccal", 1, [0, 1], [1, 5], [5])
    answers = known_truth([file], None, [])
    assert answers.of(np.array([5, 0, 7, 1])).tolist() == [OTHER, TARGET, UNKNOWN, TARGET]
    labels = np.array([0, 2, 1, -1, -1, -1, 0])
    known = known_truth([file], data_of(labels), [])
    assert known.of(np.arange(8)).tolist() == [TARGET, TARGET, OTHER, UNKNOWN, UNKNOWN, OTHER, TARGET, UNKNOWN]
    huge = dataclasses.replace(file, set_aside=[2**61])  # no table of that length is made
    assert known_truth([huge], None, []).of(np.array([2**61, 3])).tolist() == [OTHER, UNKNOWN]


def saved(folder: Path, **changes: np.ndarray | None) -> tuple[Path, IndexFile]:
    """A file of --save_score for five images, of which 7 and 9 are queried."""
    arrays: dict[str, np.ndarray | None] = {
        "indices": np.array([3, 5, 7, 8, 9]),
        "is_target": np.array([True, False, True, False, False]),
        "query_score": np.array([0.1, 0.2, 0.9, 0.3, 0.8]),
        "semantic": np.array([0.0, 0.0, 0.5, 0.0, 0.5]),
        "pseudo_class": np.array([0, 1, 0, 1, 1]),
        "distinctive": np.arange(10.0).reshape(5, 2),
    }
    path = folder / "cycle_1.npz"
    np.savez(path, **{name: value for name, value in {**arrays, **changes}.items() if value is not None})
    return path, IndexFile("npz", 0.5, "d", [0, 1], "ccal", 1, [0], [9, 7], [])


def test_kept_scores_are_read_with_each_images_own_class(tmp_path: Path) -> None:
    cycle = read_scores(*saved(tmp_path))
    assert cycle.distinctive.tolist() == [0, 3, 4, 7, 9]
    assert cycle.is_queried.tolist() == [False, False, True, False, True]
    assert cycle.truth.tolist() == [TARGET, OTHER, TARGET, OTHER, OTHER]
    assert read_scores(*saved(tmp_path, is_target=None)).truth is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"indices": np.array([3, 5, 7, 8, 8])}, "lacks an image"),
        ({"query_score": np.zeros(4)}, "do not belong together"),
        ({"indices": np.arange(5.0)}, "do not belong together"),
        ({"semantic": np.zeros(3)}, "missing for some"),
        ({"pseudo_class": np.array([0, 1, 0, 1, 2])}, "damaged"),
        ({"semantic": np.array(list("abcde"))}, "damaged"),
        ({"pseudo_class": None}, "lacks pseudo_class"),
    ],
)
def test_other_files_are_no_scores(tmp_path: Path, changes: dict, why: str) -> None:
    path, content = saved(tmp_path, **changes)
    with pytest.raises(InputError, match=why) as caught:
        read_scores(path, content)
    assert str(path) in str(caught.value)


def encoder(folder: Path, *, digest: str = SPLIT.digest) -> EncoderRun:
    folder.mkdir(parents=True)
    (folder / "last.model").write_bytes(b"")
    arguments = {"mode": "semantic", "dataset": "npz", "data_path": "nowhere.npz", "mismatch": 0.3}
    checkpoint.write_args(folder, arguments, split_digest=digest, processes=1)
    return EncoderRun("semantic", folder, folder.name, {"arguments": arguments, "split_digest": digest}, [])


def run_of(folder: Path, encoders: list[EncoderRun], settings: dict) -> tuple[Run, Query]:
    file = IndexFile("npz", 0.3, SPLIT.digest, [0, 2], "semantic", 0, [0, 2], [], [], settings=settings)
    query = Query(folder / "query", "query", [file])
    return Run("run", folder, encoders, [query], [], None, None, []), query


def test_the_encoder_is_the_one_named_else_the_only_one(tmp_path: Path) -> None:
    one, two = encoder(tmp_path / "one"), encoder(tmp_path / "two")
    named = {"checkpoints": {"semantic": str(tmp_path / "two" / "last.model")}}
    assert encoder_of(*run_of(tmp_path, [one, two], named), "semantic") is two
    assert encoder_of(*run_of(tmp_path, [one], named), "semantic") is one  # a copied run: the original is elsewhere
    assert encoder_of(*run_of(tmp_path, [], named), "semantic").folder == tmp_path / "two"
    with pytest.raises(InputError, match="several checkpoints"):
        encoder_of(*run_of(tmp_path, [one, two], {}), "semantic")
    with pytest.raises(InputError, match="no checkpoint"):
        encoder_of(*run_of(tmp_path, [encoder(tmp_path / "three", digest="other")], {}), "semantic")


def test_what_cannot_be_loaded_has_a_reason(tmp_path: Path) -> None:
    run, query = run_of(tmp_path, [encoder(tmp_path / "one")], {})
    why = gather(run, query, data_path=None, features="auto", device=torch.device("cpu")).why
    assert "needs --target_classes" in why["data"]
    run.encoders[0].arguments.update(target_classes=[0, 2], initial_budget=10)
    why = gather(run, query, data_path=None, features="auto", device=torch.device("cpu")).why
    assert "nowhere.npz" in why["data"] and "nowhere.npz" in why["features"] and "--save_score" in why["scores"]
    np.savez(tmp_path / "other.npz", **{f"{p}_{k}": v for p in ("train", "test") for k, v in arrays(60).items()})
    why = gather(run, query, data_path=str(tmp_path / "other.npz"), features="auto", device=torch.device("cpu")).why
    assert "gives another split" in why["data"]
    run.encoders[0].arguments["dataset"] = "cifar10"
    why = gather(run, query, data_path=str(tmp_path), features="auto", device=torch.device("cpu")).why
    assert "nothing is downloaded here" in why["data"]


def arrays(count: int) -> dict[str, np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return {"images": images, "labels": np.arange(count) % 3}


def test_a_fresh_material_knows_nothing() -> None:
    assert Material().truth.of(np.array([0, 5])).tolist() == [UNKNOWN, UNKNOWN]
    assert Truth(np.array([5]), np.array([1])).of(np.array([], dtype=np.int64)).tolist() == []
