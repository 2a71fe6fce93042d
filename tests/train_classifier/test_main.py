"""The classifier's command: what it trains, keeps, writes and refuses."""

from __future__ import annotations

import csv
import dataclasses
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from common import checkpoint
from common.provenance import file_digest, image_digest, int64_digest
from common.session import run_command
from common.settings import ClassifierSettings, DataSettings
from datasets import Split, load_data_and_split
from datasets.index_files import IndexFile, default_index_dir, index_path, write_index_file
from datasets.results_file import COLUMNS
from models import build_encoder
from train_classifier import engine
from train_classifier import main as command
from train_classifier.engine import probabilities
from train_classifier.main import ROOT, choose_start, folders, main
from train_classifier.model_file import load_model
from utils import Diverged


@dataclass
class Run:
    """A data set of 36 train and 12 test images, its split, and index files of cycles 0 and 1 (6 and 9 images)."""

    data: Path
    split: Split
    index_dir: Path
    out: Path

    def words(self, *more: str) -> list[str]:
        words = f"--dataset npz --data_path {self.data} --target_classes 2 0 --initial_budget 6 --mismatch 0.25"
        words += f" --index_dir {self.index_dir} --out_path {self.out} --cycles 1 --runs 2 --epochs 1 --batch_size 4"
        return [*words.split(), "--device", "cpu", *more]

    def write(self, cycle: int, labeled: list[int], **changes: object) -> None:
        content = IndexFile("npz", 0.25, self.split.digest, [2, 0], "ccal", cycle, labeled, [], [])
        write_index_file(self.index_dir, dataclasses.replace(content, **changes))

    def rows(self) -> list[dict[str, str]]:
        """The rows of results.csv, without the seconds."""
        with open(self.out / "results.csv", newline="") as file:
            return [{name: row[name] for name in COLUMNS if name != "seconds"} for row in csv.DictReader(file)]

    def columns(self, *names: str) -> list[tuple[str, ...]]:
        return [tuple(row[name] for name in names) for row in self.rows()]


def write_data(path: Path, *, seed: int) -> None:
    draw, arrays = np.random.default_rng(seed), {}
    for part, count in (("train", 36), ("test", 12)):
        arrays[f"{part}_images"] = draw.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.arange(count) % 3
    np.savez(path, **arrays)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    path = tmp_path / "tiny.npz"
    write_data(path, seed=0)
    settings = DataSettings(dataset="npz", data_path=str(path), mismatch=0.25, target_classes=(2, 0), initial_budget=6)
    _, split = load_data_and_split(settings)
    run = Run(path, split, tmp_path / "indices", tmp_path / "out")
    labeled = split.labeled.tolist()
    run.write(0, labeled)
    run.write(1, labeled + [index for index in split.unlabeled.tolist() if index % 3 != 1][:3])
    return run


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Takes the training out: seed s reaches 60 + s, then 50 + s. The seeds that were trained together, in order."""
    seen = []

    def train(networks, data, test, *, seeds, settings, targets):
        seen.append(list(seeds))
        return [[60.0 + seed, 50.0 + seed] for seed in seeds]

    monkeypatch.setattr(command, "train_together", train)
    monkeypatch.setattr(command, "save_model", lambda path, *_, **__: path.touch())
    return seen


def refused(run: Run, capfd, *more: str) -> str:
    """The one line with which the command stops, with status 2."""
    assert run_command(main, run.words(*more)) == 2
    [line] = capfd.readouterr().err.splitlines()
    return line


def test_all_cycles_and_seeds_in_order(run: Run, capfd) -> None:
    main(run.words())
    assert ["".join(row) for row in run.columns("cycle", "seed", "labeled")] == ["006", "016", "109", "119"]
    assert run.rows()[0]["index_digest"] == int64_digest(run.split.labeled)
    assert (run.out / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    *_, wrote, then = capfd.readouterr().out.splitlines()
    results = run.out / "results.csv"
    assert wrote == f"wrote {results} and {run.out / 'accuracy.png'}"
    assert then == f"next: python -m evals.summary --index_dir {run.index_dir} --results {results}"


def test_only_missing_rows_are_trained_to_the_same_bit_in_step_or_not(run: Run, capfd) -> None:
    main(run.words())
    results, rows = run.out / "results.csv", run.rows()
    lines = results.read_text().splitlines(keepends=True)
    results.write_text("".join(lines[:2] + lines[3:]))
    capfd.readouterr()
    main(run.words())
    assert run.rows() == [rows[0], rows[2], rows[3], rows[1]]
    assert capfd.readouterr().out.count("kept from results.csv") == 3
    results.unlink()
    main(run.words("--seeds_together", "5"))
    assert run.rows() == rows
    printed = capfd.readouterr().out
    assert "2 at a time" in printed and printed.count("(of 2 together)") == 4


def test_missing_seeds_are_trained_in_groups(run: Run, groups: list[list[int]]) -> None:
    main(run.words("--number", "0", "--runs", "1", "--seed", "2"))
    main(run.words("--number", "0", "--runs", "5", "--seeds_together", "3"))
    assert groups == [[2], [0, 1, 3], [4]]
    assert run.columns("seed", "accuracy", "best_epoch_accuracy")[0] == ("2", "52.0", "62.0")


def test_other_settings_indices_or_images_make_rows_of_their_own(run: Run, groups: list[list[int]]) -> None:
    words = run.words("--number", "0", "--runs", "1")
    main(words)
    main([*words, "--recipe", "original"])
    run.write(0, run.split.labeled.tolist()[::-1])
    main(words)
    write_data(run.data, seed=1)
    main(words)
    main(words)
    assert [recipe for (recipe,) in run.columns("recipe")] == ["proper", "original", "proper", "proper"]
    first, _, reversed_order, other_images = run.columns("index_digest", "data_digest")
    assert first[0] != reversed_order[0] == other_images[0] and reversed_order[1] != other_images[1]


def without_numbers(run: Run, *more: str) -> list[str]:
    """The words of a command on cycle 0 that leaves epochs and batch size to the recipe."""
    return " ".join(run.words("--number", "0", "--runs", "1", *more)).replace("--epochs 1 --batch_size 4 ", "").split()


def test_the_recipes_own_numbers_are_recorded(run: Run, groups: list[list[int]]) -> None:
    for more in ("", "--recipe original", "--recipe lfosa", "--recipe mqnet", "--recipe mqnet --epochs 2 --lr 0.5"):
        for _ in range(2):  # the second finds the first one's row
            main(without_numbers(run, *more.split()))
    assert run.columns("recipe", "epochs", "batch_size", "lr") == [
        ("proper", "100", "32", "0.0005"),
        ("original", "100", "32", "0.0005"),
        ("lfosa", "100", "128", "0.01"),
        ("mqnet", "200", "64", "0.1"),
        ("mqnet", "2", "64", "0.5"),
    ]


@pytest.mark.parametrize("last", [None, "seconds"])
def test_rows_from_before_recipes_had_numbers_are_kept(
    run: Run, groups: list[list[int]], last: str | None, capfd
) -> None:
    main(without_numbers(run))
    results = run.out / "results.csv"
    with open(results, newline="") as file:
        [row] = csv.DictReader(file)
    names = COLUMNS[: COLUMNS.index(last) + 1] if last else COLUMNS  # files of the first versions end with the seconds
    row |= {"recipe": "proper", "epochs": "100", "batch_size": "32", "lr": "0.0005", "accuracy": "77.0"}
    results.write_text(f"{','.join(names)}\n{','.join(row[name] for name in names)}\n")
    main(without_numbers(run))
    assert groups == [[0]]
    assert "accuracy 77.00 % after epoch 100" in capfd.readouterr().out


def test_with_number_only_its_file_is_needed_and_the_table_grows(run: Run, capfd, groups: list[list[int]]) -> None:
    main(run.words("--number", "0"))
    hidden = run.index_dir / "hidden.json"
    index_path(run.index_dir, 0).rename(hidden)
    main(run.words("--number", "1", "--runs", "1"))
    hidden.rename(index_path(run.index_dir, 0))
    capfd.readouterr()
    main(run.words("--number", "1"))
    table = [line.split() for line in capfd.readouterr().out.splitlines() if line.endswith("60.50 %")]
    start = ["2", "50.50", "±", "0.71", "%"]
    assert [line[:7] for line in table] == [[cycle, count, *start] for cycle, count in ("06", "19")]


@pytest.mark.parametrize("rank", ["0", "1"])
def test_under_a_launcher_the_first_process_trains_alone(run: Run, groups: list[list[int]], monkeypatch, rank) -> None:
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    main(run.words())  # would wait for the other process if it joined it
    assert groups == ([[0], [1]] * 2 if rank == "0" else [])


def test_what_cannot_be_used_is_refused_before_the_training(run: Run, capfd, groups: list[list[int]]) -> None:
    main(run.words("--number", "0"))
    index_path(run.index_dir, 1).rename(run.index_dir / "hidden.json")
    assert f"{index_path(run.index_dir, 1)} does not exist; query first" in refused(run, capfd)
    (run.index_dir / "hidden.json").rename(index_path(run.index_dir, 1))
    damaged = (run.out / "results.csv").read_bytes()[:-3]
    (run.out / "results.csv").write_bytes(damaged)
    assert "results.csv is damaged" in refused(run, capfd)
    assert len(groups) == 2 and (run.out / "results.csv").read_bytes() == damaged


def test_other_pixels_than_those_that_were_queried_are_refused(run: Run, capfd, groups: list[list[int]]) -> None:
    everything = np.sort(np.concatenate([run.split.labeled, run.split.unlabeled]))
    with np.load(run.data) as arrays:
        digest = image_digest(arrays["train_images"], everything)
    run.write(0, run.split.labeled.tolist(), settings={"images_digest": digest})
    assert run_command(main, run.words("--number", "0")) == 0
    write_data(run.data, seed=1)  # the labels, and so the split, are the same
    assert "cycle_0.json was made with other settings (other images)" in refused(run, capfd, "--number", "0")


def test_a_single_class_needs_others(run: Run, capfd) -> None:
    words = [word for word in run.words("--number", "1", "--runs", "1") if word != "0"]
    settings = DataSettings(
        dataset="npz", data_path=str(run.data), mismatch=0.25, target_classes=(2,), initial_budget=6
    )
    _, split = load_data_and_split(settings)
    single = Run(run.data, split, run.index_dir, run.out)
    single.write(1, split.labeled.tolist(), target_classes=[2])
    assert run_command(main, words) == 2
    assert "2 is the only target class: a classifier needs a second one" in capfd.readouterr().err
    single.write(1, split.labeled.tolist(), target_classes=[2], set_aside=[1, 4, 7])
    assert run_command(main, words) == 0
    [row] = run.columns("other", "accuracy", "class_accuracies")
    assert row == ("class", "100.0", "100.00")
    [rejection] = run.columns("rejection")
    assert 0 <= float(rejection[0]) <= 100  # of the 8 test images of other classes


@pytest.mark.parametrize("recipe", ["proper", "lfosa"])
def test_the_last_cycles_weights_give_the_rows_accuracies(run: Run, capfd, recipe: str) -> None:
    run.write(1, run.split.labeled.tolist(), set_aside=[1, 4])
    main(run.words("--other", "class", "--recipe", recipe))
    assert sorted(path.name for path in run.out.glob("*.model")) == ["cycle_1_seed_0.model", "cycle_1_seed_1.model"]
    printed = capfd.readouterr().out
    assert f"python -m train_classifier.predict {run.out / 'cycle_1_seed_0.model'} IMAGES" in printed
    model = load_model(run.out / "cycle_1_seed_1.model")
    assert model.outputs == ("2", "0", "other") and model.image_size == (8, 8)
    with np.load(run.data) as arrays:
        images, labels = torch.from_numpy(arrays["test_images"]).permute(0, 3, 1, 2), arrays["test_labels"]
    values = probabilities(model.network, images)
    right = [100 * (values[labels == label][:, :2].argmax(1) == n).mean() for n, label in enumerate((2, 0))]
    row = run.rows()[-1]
    assert row["class_accuracies"] == " ".join(f"{share:.2f}" for share in right)
    assert float(row["balanced_accuracy"]) == pytest.approx(np.mean(right))
    threshold = np.sort(values[labels != 1][:, 2])[-1]  # of 8 targets all have to pass
    assert float(row["rejection"]) == 100 * (values[labels == 1][:, 2] > threshold).mean()


def test_an_encoder_to_start_from(run: Run, tmp_path: Path, capfd) -> None:
    path = tmp_path / "encoder.model"
    checkpoint.save(path, build_encoder("resnet8", num_classes=3, shifts=1, simclr_dim=16).state_dict())
    words = ("--number", "0", "--runs", "1", "--init", str(path))
    for tune in ("auto", "all"):
        main(run.words(*words, "--tune", tune))
    digest = file_digest(path)
    assert run.columns("start", "init_digest") == [("head", digest), ("all", digest)]
    assert f"classifiers start from the encoder {path}, and train all of it" in capfd.readouterr().out
    for recipe in ("original", "lfosa", "mqnet"):
        assert f"--recipe {recipe} starts from scratch" in refused(run, capfd, *words, "--recipe", recipe)
        assert "name one with --init" in refused(run, capfd, "--recipe", recipe, "--tune", "all")
    assert "name one with --init" in refused(run, capfd, "--tune", "head")
    path.write_bytes(b"no checkpoint")
    assert "encoder.model is damaged or not a checkpoint" in refused(run, capfd, *words)


@pytest.mark.parametrize("features", ["semantic", "penultimate"])  # the latter of posterior
def test_where_people_label_the_querys_encoder_is_the_start(tmp_path: Path, capsys, features) -> None:
    path = tmp_path / "last.model"
    path.write_bytes(b"weights")
    record = {"checkpoints": {features: str(path)}, "checkpoint_digests": {features: file_digest(path)}}
    assert choose_start(ClassifierSettings(), record, by_people=True) == path
    assert f"start from the encoder {path}, and train its head alone below 100" in capsys.readouterr().out
    others = [({"recipe": recipe}, True) for recipe in ("original", "lfosa", "mqnet")]
    for settings, by_people in (({}, False), ({"init": "none"}, True), *others):
        assert choose_start(ClassifierSettings(**settings), record, by_people=by_people) is None
    path.write_bytes(b"others")
    assert choose_start(ClassifierSettings(), record, by_people=True) is None
    assert f"the query's encoder {path} is gone or another by now" in capsys.readouterr().out
    for broken in ({}, {"checkpoints": 3}, {"checkpoints": {}}):  # a random query has none
        assert choose_start(ClassifierSettings(), broken, by_people=True) is None


def test_cuda_without_a_gpu(run: Run, capfd, monkeypatch) -> None:
    assert "contradict" in refused(run, capfd, "--cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "leave --cuda out" in refused(run, capfd, "--device", "auto", "--cuda")


def test_folders_do_not_depend_on_where_the_command_starts(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    home = ROOT / "train_classifier"

    def found(strategy: str = "random", **settings: str) -> tuple[Path, Path]:
        return folders(ClassifierSettings(strategy=strategy, **settings), dataset="cifar10", mismatch=0.8)

    index = default_index_dir(ROOT, "cifar10", 0.8, "random")
    assert found() == (index, home / "results" / "get_index_80" / "cifar10" / "random")
    assert found("their/strategies.py:random") == found()
    assert found(index_dir="mine/") == (Path("mine"), home / "results" / "mine")
    assert found(index_dir="mine", out_path="there") == (Path("mine"), Path("there"))


@pytest.mark.slow
def test_the_originals_way_of_launching(run: Run) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [sys.executable, "main.py", *run.words("--number", "0", "--runs", "1", "--split", "5", "--epoch", "1")]
    subprocess.run(words, cwd=ROOT / "train_classifier", env=environment, capture_output=True, check=True)
    assert run.columns("cycle", "seed") == [("0", "0")]


def send_at_step(monkeypatch: pytest.MonkeyPatch, number: signal.Signals, step: int) -> None:
    """Sends this process a signal before a training step, counted over the whole command."""
    seen, train = [], engine._train_on_batch

    def train_on_batch(*arguments):
        seen.append(1)
        if len(seen) == step:
            signal.raise_signal(number)
        return train(*arguments)

    monkeypatch.setattr(engine, "_train_on_batch", train_on_batch)


@pytest.mark.parametrize("together", ["1", "2"])
def test_a_signal_loses_the_classifiers_in_training_alone(run: Run, monkeypatch, capfd, together: str) -> None:
    words = run.words("--seeds_together", together)
    main(words)
    rows = run.rows()
    (run.out / "results.csv").unlink()
    with monkeypatch.context() as patch:
        send_at_step(patch, signal.SIGTERM, 6)  # 6 and 9 images in batches of 4: 2 + 2 steps of cycle 0, then cycle 1
        assert run_command(main, words) == 143
    results = run.out / "results.csv"
    expected = f"stopped by SIGTERM: classifiers that were finished are in {results}; the same command continues"
    assert expected in capfd.readouterr().err
    assert run.rows() == rows[:2]
    main(words)
    assert run.rows() == rows


def test_seeds_beside_one_that_diverges_are_kept(run: Run, monkeypatch, capfd) -> None:
    def train(networks, data, test, *, seeds, settings, targets):
        return [Diverged(f"seed {seed}: the loss became nan") if seed == 1 else [60.0] for seed in seeds]

    monkeypatch.setattr(command, "train_together", train)
    assert "seed 1: the loss became nan" in refused(run, capfd, "--runs", "3", "--seeds_together", "3")
    assert run.columns("cycle", "seed") == [("0", "0"), ("0", "2")]
