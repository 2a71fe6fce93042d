"""The folder of index files: what it refuses, in which order it is made ready, and what a file says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from common.files import read_json, write_json
from common.settings import DataSettings
from datasets import load_data_and_split
from datasets.index_files import index_path, read_index_file, write_index_file
from evals import index_folder
from evals.cycles import QueryLoop, simulate
from evals.index_folder import begin, check_folder, index_file
from evals.strategies import STRATEGIES
from utils import InputError

SETTINGS = {"k": 3.0}


@pytest.fixture(scope="module")
def digits():
    return load_data_and_split(DataSettings(dataset="digits"))


def content_of(digits, cycle=None):
    data, split = digits
    return index_file(data, cycle.split if cycle else split, strategy="random", settings=SETTINGS, cycle=cycle)


def cycles_of(digits, count):
    data, split = digits
    return simulate(QueryLoop({}, split, data.train_labels, STRATEGIES["random"]), cycles=count, queries_per_class=5)


def fill(folder: Path, digits) -> None:
    """An earlier query of three cycles, with what is kept beside it."""
    begin(folder, content_of(digits))
    for cycle in cycles_of(digits, 3):
        write_index_file(folder, content_of(digits, cycle))
    for name in ("scores/cycle_3.npz", "scores/cycle_3.png", "features/semantic.npy", "notes.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("earlier")


def names_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_a_file_says_of_its_cycle(digits, tmp_path):
    data, split = digits
    initial = content_of(digits)
    assert (initial.cycle, initial.queried, initial.set_aside, initial.seconds) == (0, [], [], 0.0)
    assert initial.labeled == split.labeled.tolist() and initial.settings == SETTINGS
    assert initial.metrics == {"labeled": 20, "pool": len(split.unlabeled)}
    first, second = cycles_of(digits, 2)
    content = read_index_file(write_index_file(tmp_path, content_of(digits, second)), n_images=len(data.train_labels))
    assert (content.cycle, content.strategy, content.split_digest) == (2, "random", split.digest)
    assert content.queried == second.result.indices.tolist() and len(content.queried) == 10
    assert content.metrics == second.metrics
    found = np.concatenate([cycle.result.indices for cycle in (first, second)])
    is_target = np.isin(data.train_labels[found], split.target_classes)
    assert content.labeled == split.labeled.tolist() + found[is_target].tolist()
    assert content.set_aside == found[~is_target].tolist()


def test_a_mixed_pools_sources_are_counted(digits):
    data, split = digits
    numbers = np.arange(len(data.train_labels)) % 2
    mixed = dataclasses.replace(data, sources=("digits", "more"), source_numbers=numbers), split
    odd = int((split.unlabeled % 2).sum())
    assert content_of(mixed).metrics["pool_by_source"] == {"digits": len(split.unlabeled) - odd, "more": odd}
    cycle = next(cycles_of(digits, 1))
    odd = int((cycle.result.indices % 2).sum())
    assert content_of(mixed, cycle).metrics["queried_by_source"] == {"digits": 10 - odd, "more": odd}


def test_an_earlier_query_is_replaced_only_if_asked(digits, tmp_path):
    check_folder(tmp_path / "missing", overwrite=False)
    fill(tmp_path, digits)
    index_path(tmp_path, 2).write_text("{")  # damaged: there is nothing in it to protect
    with pytest.raises(InputError, match=r"already holds index files \(cycle_0.json, .*--overwrite"):
        check_folder(tmp_path, overwrite=False)
    check_folder(tmp_path, overwrite=True)
    (tmp_path / ".cycle_2.json.killed.tmp").write_text("{")
    begin(tmp_path, content_of(digits))
    assert names_in(tmp_path) == ["cycle_0.json", "features/semantic.npy", "notes.txt"]
    assert read_json(index_path(tmp_path, 0))["labeled"] == digits[1].labeled.tolist()


@pytest.mark.parametrize("overwrite", [False, True])
def test_labels_that_people_gave_are_never_replaced(digits, tmp_path, overwrite):
    fill(tmp_path, digits)
    write_json(index_path(tmp_path, 2), read_json(index_path(tmp_path, 2)) | {"files": {"labeled": []}})
    with pytest.raises(InputError, match=r"cycle_2.json holds labels that people gave"):
        check_folder(tmp_path, overwrite=overwrite)


def test_a_kill_while_files_are_removed_leaves_no_gap(digits, tmp_path, monkeypatch):
    fill(tmp_path, digits)
    real, removed = Path.unlink, []

    def unlink(path, **more):
        removed.append(path.name)
        if path.name == "cycle_1.json":
            raise KeyboardInterrupt
        real(path, **more)

    monkeypatch.setattr(index_folder.Path, "unlink", unlink)
    with pytest.raises(KeyboardInterrupt):
        begin(tmp_path, content_of(digits))
    assert [name for name in names_in(tmp_path) if name.startswith("cycle")] == ["cycle_0.json", "cycle_1.json"]
