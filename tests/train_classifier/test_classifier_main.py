"""The classifier's command: what it reads, writes, keeps and refuses."""

from __future__ import annotations

import csv
import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from common.cli import run_cli
from common.lock import folder_lock
from common.provenance import int64_digest
from datasets import Split, load_data_and_split
from datasets.index_files import IndexFile, default_index_dir, index_path, write_index_file
from datasets.results_file import COLUMNS, Row, append_row, format_table, read_rows, summarize
from train_classifier import engine
from train_classifier import main as command
from train_classifier.main import ROOT, build_parser, folders, main
from utils import Diverged


@dataclasses.dataclass
class Place:
    """A tiny data set of 8x8 images, its split, and two cycles' index files."""

    data: Path
    indices: Path
    out: Path
    split: Split

    def words(self, *more: str) -> list[str]:
        words = f"--dataset npz --data_path {self.data} --target_classes 2 0 --initial_budget 6 --mismatch 0.25"
        words += f" --index_dir {self.indices} --out_path {self.out} --split 1 --runs 2 --epochs 1 --batch_size 4"
        return [*words.split(), "--device", "cpu", *more]

    def file(self, number: int, labeled: list[int], **changes) -> IndexFile:
        content = IndexFile(
            dataset="npz",
            mismatch=0.25,
            split_digest=self.split.digest,
            target_classes=[2, 0],
            strategy="ccal",
            cycle=number,
            labeled=labeled,
            queried=[],
            set_aside=[],
        )
        return dataclasses.replace(content, **changes)


@pytest.fixture
def place(tmp_path) -> Place:
    path = tmp_path / "tiny.npz"
    write_data(path, seed=0)
    _, split = load_data_and_split("npz", path, mismatch=0.25, target_classes=[2, 0], initial_budget=6)
    place = Place(path, tmp_path / "indices", tmp_path / "out", split)
    initial = split.labeled.tolist()
    targets = [index for index in split.unlabeled.tolist() if index % 3 != 1]
    write_index_file(place.indices, place.file(0, initial))
    write_index_file(place.indices, place.file(1, initial + targets[:3]))
    return place


def write_data(path: Path, *, seed: int) -> None:
    draw = np.random.default_rng(seed)
    arrays = {}
    for part, count in (("train", 36), ("test", 12)):
        arrays[f"{part}_images"] = draw.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.arange(count) % 3
    np.savez(path, **arrays)


@pytest.fixture
def never_trains(monkeypatch) -> None:
    def refuse(*_, **__):
        raise AssertionError("training began")

    monkeypatch.setattr(command, "train_together", refuse)


@pytest.fixture
def trains_at_once(monkeypatch) -> None:
    def train(networks, data, test, *, seeds, settings, check):
        return [[60.0 + seed, 50.0 + seed] for seed in seeds]

    monkeypatch.setattr(command, "train_together", train)


def table(place: Place) -> list[dict[str, str]]:
    with open(place.out / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def refused(place: Place, capfd, *more: str) -> str:
    """Runs the command, which must stop with status 2 and one line; returns the line."""
    assert run_cli(main, place.words(*more)) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_all_cycles_and_seeds_in_order(place, capfd):
    main(place.words())
    rows = table(place)
    assert tuple(rows[0]) == COLUMNS
    assert [(row["cycle"], row["seed"], row["labeled"]) for row in rows] == [
        ("0", "0", "6"),
        ("0", "1", "6"),
        ("1", "0", "9"),
        ("1", "1", "9"),
    ]
    assert rows[0]["index_digest"] == int64_digest(place.split.labeled)
    assert (place.out / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    printed = capfd.readouterr().out
    assert printed.count("(best epoch, picked on the test set)") == 2
    assert f"wrote {place.out / 'results.csv'} and {place.out / 'accuracy.png'}" in printed


def test_class_numbers_are_places_among_the_target_classes(place, monkeypatch):
    seen = {}

    def note(networks, data, test, *, seeds, settings, check):
        seen.update(train=data.labels.tolist(), test=test.labels.tolist(), outputs=networks[0].fc.out_features)
        return [[50.0] for _ in seeds]

    monkeypatch.setattr(command, "train_together", note)
    main(place.words("--number", "0"))
    assert seen["train"] == [{2: 0, 0: 1}[index % 3] for index in place.split.labeled]
    assert seen["test"] == [1, 0] * 4  # test labels 0 2 0 2 ...; class 2 is named first
    assert seen["outputs"] == 2


def test_a_restart_trains_only_what_is_missing_and_to_the_same_bit(place, capfd):
    main(place.words())
    results = place.out / "results.csv"
    lines = results.read_text().splitlines(keepends=True)
    results.write_text("".join(lines[:2] + lines[3:]))
    capfd.readouterr()
    main(place.words())
    again = results.read_text().splitlines(keepends=True)
    assert again[:4] == lines[:2] + lines[3:]
    without_seconds = [line.rsplit(",", 1)[0] for line in (lines[2], again[4])]
    assert len(again) == 5 and without_seconds[0] == without_seconds[1]
    assert capfd.readouterr().out.count("kept from results.csv") == 3


def without_seconds(place: Place) -> list[dict[str, str]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in table(place)]


@pytest.mark.parametrize("together", ["2", "5"])
def test_seeds_trained_together_give_the_same_rows(place, capfd, together):
    main(place.words())
    alone = without_seconds(place)
    (place.out / "results.csv").unlink()
    capfd.readouterr()
    main(place.words("--seeds_together", together))
    assert without_seconds(place) == alone
    printed = capfd.readouterr().out
    assert "2 at a time" in printed and printed.count("(of 2 together)") == 4


def test_in_a_fixed_order_the_rows_on_the_cpu_are_the_same(place, capfd):
    main(place.words("--deterministic"))
    assert "--deterministic: on the CPU two runs" in capfd.readouterr().out
    fixed = without_seconds(place)
    (place.out / "results.csv").unlink()
    main(place.words())
    assert without_seconds(place) == fixed


def test_only_missing_seeds_are_trained_together(place, monkeypatch):
    groups = []

    def note(networks, data, test, *, seeds, settings, check):
        groups.append(list(seeds))
        return [[50.0] for _ in seeds]

    monkeypatch.setattr(command, "train_together", note)
    main(place.words("--number", "0", "--runs", "1", "--seed", "2"))
    main(place.words("--number", "0", "--runs", "5", "--seeds_together", "3"))
    assert groups == [[2], [0, 1, 3], [4]]


def test_rows_of_other_settings_are_kept(place, trains_at_once):
    main(place.words("--number", "0"))
    before = (place.out / "results.csv").read_text()
    main(place.words("--number", "0", "--recipe", "original"))
    after = (place.out / "results.csv").read_text()
    assert after.startswith(before)
    assert [row["recipe"] for row in table(place)] == ["proper", "proper", "original", "original"]


def test_seeds_start_at_seed(place, trains_at_once):
    main(place.words("--number", "0", "--seed", "7"))
    assert [(row["seed"], row["accuracy"], row["best_epoch_accuracy"]) for row in table(place)] == [
        ("7", "57.0", "67.0"),
        ("8", "58.0", "68.0"),
    ]


def test_other_indices_or_other_images_are_trained_anew(place, trains_at_once):
    main(place.words("--number", "0", "--runs", "1"))
    write_index_file(place.indices, place.file(0, place.split.labeled.tolist()[::-1]))
    main(place.words("--number", "0", "--runs", "1"))
    write_data(place.data, seed=1)
    main(place.words("--number", "0", "--runs", "1"))
    rows = table(place)
    assert len(rows) == 3
    assert rows[0]["index_digest"] != rows[1]["index_digest"] == rows[2]["index_digest"]
    assert rows[1]["data_digest"] != rows[2]["data_digest"]


def test_one_cycle_needs_only_its_file_and_the_table_grows(place, capfd, trains_at_once):
    main(place.words("--number", "0", "--runs", "1"))
    index_path(place.indices, 0).rename(place.indices / "away.json")
    main(place.words("--number", "1", "--runs", "1"))
    assert capfd.readouterr().out.count("(best epoch") == 2
    (place.indices / "away.json").rename(index_path(place.indices, 0))
    main(place.words("--number", "1", "--runs", "1"))
    lines = [line.split() for line in capfd.readouterr().out.splitlines() if "(best epoch" in line]
    assert [(line[0], line[1], line[5]) for line in lines] == [("0", "6", "-"), ("1", "9", "-")]


def make_row(accuracy: float, best: float) -> Row:
    return Row("npz", 0.5, "ccal", "proper", 1, 4, 5e-4, 3, 900, 0, accuracy, best, "a", "b", 1.0)


def test_mean_and_deviation_by_hand():
    summary = summarize([make_row(90.0, 91.0), make_row(92.0, 95.0), make_row(97.0, 99.0)])
    assert (summary.mean, summary.best_mean, summary.runs) == (93.0, 95.0, 3)
    assert summary.std == pytest.approx(13**0.5)  # (9 + 1 + 16) / (3 - 1)
    assert format_table([summary]).splitlines()[1].split()[:6] == ["3", "900", "3", "93.00", "+-", "3.61"]
    assert summarize([make_row(90.0, 91.0)]).std is None
    assert "90.00 +- - " in format_table([summarize([make_row(90.0, 91.0)])])


def test_rows_survive_writing_to_the_bit(tmp_path):
    row = make_row(100 / 3, 200 / 3)
    append_row(tmp_path / "results.csv", row)
    assert read_rows(tmp_path / "results.csv") == [row]


@pytest.mark.parametrize("damage", ["cut", "empty", "columns", "word", "infinite", "binary"])
def test_a_damaged_table_is_reported_and_left_alone(place, capfd, never_trains, damage):
    results = place.out / "results.csv"
    append_row(results, make_row(90.0, 91.0))
    whole = results.read_bytes()
    content = {
        "cut": whole[:-3],
        "empty": b"",
        "columns": whole.replace(b"accuracy", b"score"),
        "word": whole.replace(b"900", b"many"),
        "infinite": whole.replace(b"90.0", b"inf"),
        "binary": b"\xff\xfe" + whole,
    }[damage]
    results.write_bytes(content)
    assert f"{results} is damaged" in refused(place, capfd)
    assert results.read_bytes() == content


def test_every_file_is_checked_before_training(place, capfd, never_trains):
    index_path(place.indices, 1).unlink()
    line = refused(place, capfd)
    assert f"{index_path(place.indices, 1)} does not exist; run active_main.py first" in line
    assert not place.out.exists()


@pytest.mark.parametrize(
    ("labeled", "changes", "message"),
    [
        (None, {"split_digest": "0" * 64}, "belongs to another split"),
        (None, {"dataset": "digits"}, "is of digits, cycle 1; expected npz, cycle 1"),
        (None, {"cycle": 5}, "is of npz, cycle 5; expected npz, cycle 1"),
        (None, {"strategy": "random"}, "mixes the index files of ccal and random"),
        ([0, 2, 36], {}, "labeled holds index 36, but the data set has 36 images"),
        ([0, 2, 4], {}, "labeled image 4 is of class 1, which is no target class"),
        ([0], {}, "has 1 labeled image; training needs at least 2"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(place, capfd, never_trains, labeled, changes, message):
    content = place.file(1, labeled or [0, 2], **changes)
    write_index_file(place.indices, content).rename(index_path(place.indices, 1))
    assert message in refused(place, capfd)
    assert not place.out.exists()


def test_a_single_class_is_refused(place, capfd, never_trains):
    words = place.words()
    words.remove("0")
    assert run_cli(main, words) == 2
    assert "--target_classes 2: a classifier needs at least two classes" in capfd.readouterr().err


def test_cuda_without_a_gpu(place, capfd, never_trains, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = [word for word in place.words() if word not in ("--device", "cpu")]
    assert run_cli(main, [*words, "--cuda"]) == 2
    assert "leave --cuda out" in capfd.readouterr().err
    assert "contradict" in refused(place, capfd, "--cuda")


def test_folders_do_not_depend_on_where_the_command_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = {"dataset": "cifar10", "mismatch": 0.8, "strategy": "random"}
    home = ROOT / "train_classifier"
    index, out = folders(None, None, **named)
    assert index == default_index_dir(ROOT, "cifar10", 0.8, "random")
    assert out == home / "results" / "get_index_80" / "cifar10" / "random"
    assert folders("mine/", None, **named) == (Path("mine"), home / "results" / "mine")
    assert folders("mine", "there", **named) == (Path("mine"), Path("there"))


def test_the_originals_command_parses():
    words = "--cuda --split 5 --dataset cifar10 --mismatch 0.8 --number 1 --epoch 100"
    args = build_parser().parse_args(words.split())
    assert (args.cuda, args.split, args.number, args.epochs, args.batch_size, args.lr) == (True, 5, 1, 100, 32, 5e-4)


@pytest.mark.parametrize("way", ["script", "module"])
def test_both_ways_of_launching(place, way):
    launch, folder = (["main.py"], "train_classifier") if way == "script" else (["-m", "train_classifier.main"], ".")
    done = subprocess.run(
        [sys.executable, *launch, *place.words("--number", "0", "--runs", "1")],
        cwd=ROOT / folder,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(table(place)) == 1


def test_a_file_that_is_no_index_file(place, capfd, never_trains):
    index_path(place.indices, 0).write_text(json.dumps({"format_version": 1}))
    assert f"{index_path(place.indices, 0)}: wrong fields" in refused(place, capfd)


# Stopped and continued


STOPS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 0}


def stop_at_step(monkeypatch, number: signal.Signals, step: int) -> None:
    """Sends this process a signal before a training step, counted over the whole command."""
    seen, train = [], engine._train_on_batch

    def train_on_batch(*arguments):
        seen.append(1)
        if len(seen) == step:
            signal.raise_signal(number)
        return train(*arguments)

    monkeypatch.setattr(engine, "_train_on_batch", train_on_batch)


@pytest.mark.parametrize("number", STOPS, ids=lambda number: number.name)
def test_a_signal_loses_the_classifier_in_training_alone(place, monkeypatch, capfd, number):
    main(place.words())
    alone = without_seconds(place)
    (place.out / "results.csv").unlink()
    capfd.readouterr()
    with monkeypatch.context() as patch:
        stop_at_step(patch, number, 6)  # 6 and 9 images in batches of 4: 2 + 2 steps of cycle 0, then the first of 1
        assert run_cli(main, place.words()) == STOPS[number]
    [line] = capfd.readouterr().err.splitlines()[-1:]
    assert f": stopped by {number.name}: finished classifiers are in {place.out / 'results.csv'}; " in line
    assert line.endswith("what was trained of cycle 1, seed 0 is lost; the same command continues")
    assert without_seconds(place) == alone[:2]
    assert run_cli(main, place.words()) == 0
    assert without_seconds(place) == alone
    assert capfd.readouterr().out.count("kept from results.csv") == 2


def test_a_group_of_seeds_is_lost_together_and_continued(place, monkeypatch, capfd):
    main(place.words())
    alone = without_seconds(place)
    (place.out / "results.csv").unlink()
    words = place.words("--seeds_together", "2")
    with monkeypatch.context() as patch:
        stop_at_step(patch, signal.SIGTERM, 6)
        assert run_cli(main, words) == 143
    assert "cycle 1, seed 0, 1 is lost" in capfd.readouterr().err
    assert without_seconds(place) == alone[:2]
    main(words)
    assert without_seconds(place) == alone


def test_the_time_limit_ends_the_classifier_with_status_0(place, capfd):
    assert run_cli(main, place.words("--max_minutes", "1e-6")) == 0
    expected = "stopped by --max_minutes 1e-06: no classifier is finished; what was trained of cycle 0, seed 0 is lost"
    assert expected in capfd.readouterr().err
    assert not place.out.exists()


def test_a_second_classifier_on_one_folder_names_the_first(place, capfd, never_trains):
    with folder_lock(place.out):
        line = refused(place, capfd)
    assert f"{place.out} is in use by process {os.getpid()} on " in line


def test_what_kills_left_goes(place, trains_at_once):
    main(place.words("--number", "0"))
    for name in (".results.csv.abcdefgh.tmp", ".accuracy.png.abcdefgh.tmp", ".notes.tmp"):
        (place.out / name).write_text("half")
    main(place.words("--number", "0"))
    assert sorted(path.name for path in place.out.iterdir()) == [".notes.tmp", "accuracy.png", "results.csv"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_an_end_while_results_are_written_keeps_the_rows_before(place, monkeypatch, capfd, trains_at_once, function):
    main(place.words("--number", "0"))
    before = (place.out / "results.csv").read_bytes()

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, function, refuse)
        assert run_cli(main, place.words("--number", "1")) == 3
    assert f"No space left on device: {place.out / 'results.csv'}" in capfd.readouterr().err
    assert (place.out / "results.csv").read_bytes() == before
    main(place.words("--number", "1"))
    assert (place.out / "results.csv").read_bytes().startswith(before)


def test_seeds_beside_one_that_diverges_are_kept(place, monkeypatch, capfd):
    def train(networks, data, test, *, seeds, settings, check):
        return [Diverged(f"seed {seed}: the loss became nan") if seed == 1 else [60.0 + seed] for seed in seeds]

    monkeypatch.setattr(command, "train_together", train)
    line = refused(place, capfd, "--runs", "3", "--seeds_together", "3")
    assert line.endswith("seed 1: the loss became nan")
    assert [(row["cycle"], row["seed"]) for row in table(place)] == [("0", "0"), ("0", "2")]
