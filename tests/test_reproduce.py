"""reproduce.py: the whole experiment, its continuation after a kill, its refusals, and the scale for a budget."""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import io
import json
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import active_main
import contrast_main
import reproduce
import train_classifier.main
from common import checkpoint, provenance
from common.cli import run_cli
from common.experiment import (
    Experiment,
    Recipe,
    data_flags,
    largest_divisor,
    launcher_command,
    recipe_for,
    run_launcher,
)
from common.interruption import Interruption
from common.lock import folder_lock
from common.record import Record
from common.schedule import GRID, RESERVE, Measured, Sizes, fit_scale, pick_scale, predict
from datasets import load_data_and_split
from datasets.index_files import IndexFile
from datasets.split import make_split
from evals import outcome
from utils import InputError, Interrupted

CYCLES, RUNS = 2, 2
SCALE = 0.003  # 2 epochs of each encoder and 1 of the classifier
STAGES = ["semantic", "distinctive", "query (ccal)", "query (random)", "classifier"]
EXPERIMENT = Experiment(
    folder=Path("run"),
    recipe=Recipe(),
    model="resnet18",
    data=data_flags("cifar10", "data", mismatch=0.8, target_classes=[0, 1], initial_budget=800, split_seed=0),
    device="auto",
    seed=3,
    precision="bf16",
    processes=1,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 train and 40 test images of 8 x 8 pixels, 4 classes with a gray level each."""
    path = tmp_path_factory.mktemp("data") / "data.npz"
    rng, arrays = np.random.default_rng(0), {}
    for part, count in (("train", 120), ("test", 40)):
        labels = np.arange(count) % 4
        noise = rng.integers(0, 40, (count, 8, 8, 3))
        arrays |= {f"{part}_labels": labels, f"{part}_images": (noise + 50 * labels[:, None, None, None])}
    np.savez(path, **{name: array.astype(np.uint8) for name, array in arrays.items()})
    return path


def words(data: Path, folder: Path, *more: object, scale: float | None = SCALE) -> list[str]:
    split = f"--dataset npz --data_path {data} --target_classes 2 0 --initial_budget 12 --mismatch 0.5"
    recipe = f"--model resnet8 --batch_size 32 --target 5 --split {CYCLES} --runs {RUNS} --ood_samples 1 --device cpu"
    length = [] if scale is None else ["--scale", str(scale)]
    return [*split.split(), *recipe.split(), "--out", str(folder), *length, *map(str, more)]


def start(flags: list[str]) -> str:
    """Runs the command in this process and returns what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        reproduce.main(flags)
    return printed.getvalue()


def table_of(printed: str) -> list[str]:
    lines = printed.splitlines()
    first = next(n for n, line in enumerate(lines) if "random query" in line)
    return lines[first - 2 : first + CYCLES + 2]


def times(folder: Path) -> dict[str, int]:
    """When each file of the stages was written."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for name in ("semantic", "distinctive", "features", "query", "classifier")
        for path in (folder / name).rglob("*")
        if path.is_file()
    }


@pytest.fixture(autouse=True)
def without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts within a test draw no report again; those of the fixtures below, which are made before, do."""
    monkeypatch.setattr(reproduce.report, "main", lambda flags: None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: Path) -> tuple[Path, str]:
    """The folder of a run from start to end, and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return folder, start(words(data, folder))


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory, data: Path) -> tuple[Path, list[str], list[dict[str, int]]]:
    """A run killed before the first checkpoint, once more in the second encoder, and then left alone.

    What each start printed (the first two until they were killed), and the files' times after each.
    """
    folder = tmp_path_factory.mktemp("runs") / "interrupted"
    printed, written = [], []
    for kill in (("semantic", 1), ("distinctive", 2), None):
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as text:
            if kill:
                kill_in(patch, *kill)
            with pytest.raises(KeyboardInterrupt) if kill else contextlib.nullcontext():
                reproduce.main(words(data, folder))
        printed.append(text.getvalue())
        written.append(times(folder))
    return folder, printed, written


def stop_at_once() -> None:
    raise KeyboardInterrupt


def kill_in(patch: pytest.MonkeyPatch, encoder: str, epoch: int, how: Callable[[], None] = stop_at_once) -> None:
    train, build = contrast_main.train_one_epoch, contrast_main.build_objective
    building: list[str] = []

    def build_objective(mode: str, **settings: object) -> object:
        building.append(mode)
        return build(mode, **settings)

    def train_one_epoch(*rest: object, **settings: object) -> dict[str, float]:
        if (building[-1], settings["epoch"]) == (encoder, epoch):
            how()
        return train(*rest, **settings)

    patch.setattr(contrast_main, "build_objective", build_objective)
    patch.setattr(contrast_main, "train_one_epoch", train_one_epoch)


def index_files(folder: Path, strategy: str) -> list[dict]:
    return [json.loads((folder / "query" / strategy / f"cycle_{n}.json").read_text()) for n in range(CYCLES + 1)]


def csv_rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_result_repeats_what_the_stages_wrote(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    rows, ccal, random = csv_rows(folder / "result.csv"), index_files(folder, "ccal"), index_files(folder, "random")
    accuracies = csv_rows(folder / "classifier" / "results.csv")
    assert len(rows) == CYCLES + 1
    for row, content, beside in zip(rows, ccal, random, strict=True):
        cycle = content["cycle"]
        assert (int(row["cycle"]), int(row["labeled"])) == (cycle, len(content["labeled"]))
        measured = [float(line["accuracy"]) for line in accuracies if int(line["cycle"]) == cycle]
        assert len(measured) == RUNS
        assert float(row["accuracy"]) == pytest.approx(np.mean(measured))
        assert float(row["deviation"]) == pytest.approx(np.std(measured, ddof=1))
        if cycle:
            assert int(row["queried"]) == 10
            assert float(row["precision"]) == pytest.approx(10 * content["metrics"]["found"])
            assert float(row["random_precision"]) == pytest.approx(10 * beside["metrics"]["found"])
            assert float(row["auroc_semantic"]) == content["metrics"]["auroc_semantic"]
            assert float(row["auroc_joint"]) == content["metrics"]["auroc_utility"]
        assert row["published_found"] == row["published_precision"] == ""


def test_the_result_says_what_it_rests_on(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    page = (folder / "result.md").read_text()
    shortened = "scale 0.003, in epochs: semantic encoder 2 of 700, distinctive encoder 2 of 700, their warm-up 1 of 10"
    assert shortened in page
    assert shortened in table_of(printed)[0]
    assert "published" not in page + printed
    for stage in STAGES:
        assert f"| {stage} |" in page
    for name, value in {"k": "100.0", "target": "5", "mismatch": "0.5", "torch": torch.__version__}.items():
        assert f"| {name} | {value} |" in page
    assert provenance.git_commit().removesuffix("-dirty") in page
    assert (folder / "result.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_is_made_at_the_end_from_the_kept_features(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    page = (folder / "report.html").read_text()
    assert str(folder / "report.html") in printed.splitlines()[-2]
    assert "Scores computed again from the features." in page
    assert "would query" not in page
    assert (folder / "report_figures" / "map_run1_semantic_class.png").is_file()
    for stage in STAGES:
        assert f"<td>{stage}</td>" in page


def test_an_encoder_is_what_its_command_makes_of_the_recipe(finished: tuple[Path, str], data: Path, tmp_path) -> None:
    flags = f"--mode semantic --dataset npz --data_path {data} --target_classes 2 0 --initial_budget 12 --mismatch 0.5"
    flags += " --model resnet8 --batch_size 32 --epochs 2 --warmup 1 --optimizer sgd --lr_init 0.1 --temperature 0.5"
    contrast_main.main([*flags.split(), "--device", "cpu", "--logdir", str(tmp_path / "semantic")])
    same_weights(tmp_path / "semantic" / "last.model", finished[0] / "semantic" / "last.model")


def same_weights(path: Path, other: Path) -> None:
    own, theirs = checkpoint.load(path), checkpoint.load(other)
    assert own.keys() == theirs.keys()
    for key, value in own.items():
        assert torch.equal(value, theirs[key]), key


def test_a_second_start_trains_nothing_and_prints_the_same(finished: tuple[Path, str], data: Path, monkeypatch) -> None:
    folder, printed = finished
    before, record = times(folder), (folder / "reproduce.json").read_bytes()
    for module in (contrast_main, active_main, train_classifier.main):
        monkeypatch.setattr(module, "main", lambda flags: pytest.fail(f"called with {flags}"))
    again = start(words(data, folder))
    assert times(folder) == before
    assert (folder / "reproduce.json").read_bytes() == record
    assert table_of(again) == table_of(printed)
    assert again.count("done before") == len(STAGES)


def test_a_half_begun_encoder_is_trained_anew(interrupted: tuple) -> None:
    _, printed, written = interrupted
    assert "semantic/args.json" in written[0]
    assert "semantic/last.ckpt" not in written[0]
    assert "epochs 1 to 2" in printed[1]
    assert "semantic/last.ckpt" in written[1]


def test_a_run_stopped_by_signals_in_both_encoders_ends_as_an_uninterrupted_one(
    data: Path, finished: tuple[Path, str], tmp_path: Path, capsys, monkeypatch
) -> None:
    folder = tmp_path / "run"
    monkeypatch.setattr("sys.argv", ["reproduce.py"])
    for encoder, number, status in (("semantic", signal.SIGTERM, 143), ("distinctive", signal.SIGUSR1, 0)):
        with pytest.MonkeyPatch.context() as patch:
            kill_in(patch, encoder, 1, lambda number=number: os.kill(os.getpid(), number))
            assert run_cli(reproduce.main, words(data, folder)) == status
        shown = capsys.readouterr()
        name = signal.Signals(number).name
        expected = f"reproduce.py: stopped by {name}: what is done is in {folder}; the same command continues it\n"
        assert shown.err == expected and f"{encoder}: done in" not in shown.out
        steps = checkpoint.load(folder / encoder / "last.ckpt")["gathered"][0]["sizes"]
        assert len(steps) == 1  # stopped within the first epoch
    printed = start(words(data, folder))
    assert "distinctive encoder resnet8" in printed and "continued from epoch 1, step 1" in printed
    for encoder in ("semantic", "distinctive"):
        same_weights(folder / encoder / "last.model", finished[0] / encoder / "last.model")
    assert (folder / "result.csv").read_text() == (finished[0] / "result.csv").read_text()


def test_a_time_limit_stops_the_stage_at_hand(data: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "run"
    assert run_cli(reproduce.main, words(data, folder, "--max_minutes", 1e-9)) == 0
    assert f"stopped by --max_minutes 1e-09: what is done is in {folder}; the same" in capsys.readouterr().err
    assert len(checkpoint.load(folder / "semantic" / "last.ckpt")["gathered"][0]["sizes"]) == 1


def test_a_second_run_in_the_folder_is_one_line(data: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "run"
    with folder_lock(folder):
        assert run_cli(reproduce.main, words(data, folder)) == 2
    assert f"{folder} is in use by process {os.getpid()} on" in capsys.readouterr().err
    assert not folder.exists()


WORKER = """
import pathlib, signal, sys, time
def save(number, frame):
    time.sleep(0.3)
    pathlib.Path(sys.argv[1]).write_text(signal.Signals(number).name)
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGINT, save)
pathlib.Path(sys.argv[1]).write_text("running")
time.sleep(60)
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (None, 0)])
def test_launched_processes_are_asked_to_save_and_waited_for(number, status, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("common.experiment.LAUNCHER_PATIENCE", 0.0)
    file = tmp_path / "file"

    def ask() -> None:
        while not file.exists():
            time.sleep(0.01)
        if number:
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=ask)
    thread.start()
    with Interruption(max_minutes=None if number else 0.05), pytest.raises(Interrupted) as caught:
        run_launcher([sys.executable, "-c", WORKER, str(file)])
    thread.join()
    assert caught.value.status == status and file.read_text() == "SIGTERM"


def test_launched_processes_that_end_by_themselves_give_their_status() -> None:
    assert run_launcher([sys.executable, "-c", "raise SystemExit(7)"]) == 7


def test_a_killed_run_continues_behind_its_finished_encoder(interrupted: tuple) -> None:
    _, printed, written = interrupted
    assert "semantic: done before, 2 epochs" in printed[2]
    for name in ("last.ckpt", "last.model", "log.jsonl"):
        assert written[1][f"semantic/{name}"] == written[2][f"semantic/{name}"]
    assert "epochs 2 to 2" in printed[2]  # of the distinctive encoder


def test_an_interrupted_run_ends_as_an_uninterrupted_one(interrupted: tuple, finished: tuple[Path, str]) -> None:
    for encoder in ("semantic", "distinctive"):
        same_weights(interrupted[0] / encoder / "last.model", finished[0] / encoder / "last.model")
    assert (interrupted[0] / "result.csv").read_text() == (finished[0] / "result.csv").read_text()


@pytest.fixture
def copied(finished: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of the finished run to damage."""
    return Path(shutil.copytree(finished[0], tmp_path / "run"))


def test_a_query_without_its_last_cycle_is_made_again(copied: Path, finished: tuple[Path, str], data: Path) -> None:
    (copied / "query" / "ccal" / f"cycle_{CYCLES}.json").unlink()
    before = times(copied)
    printed = start(words(data, copied))
    assert "query (ccal): done in" in printed
    assert printed.count(": kept from") == 2  # the features
    assert "classifier: done before" in printed
    assert [c["labeled"] for c in index_files(copied, "ccal")] == [
        c["labeled"] for c in index_files(finished[0], "ccal")
    ]
    after = times(copied)
    assert {name for name in before if before[name] != after[name]} <= {
        f"query/ccal/cycle_{n}.json" for n in range(CYCLES + 1)
    }


def test_only_missing_classifiers_are_trained(copied: Path, data: Path) -> None:
    path = copied / "classifier" / "results.csv"
    rows = path.read_text().splitlines(keepends=True)
    path.write_text("".join(rows[:-1]))
    printed = start(words(data, copied))
    assert printed.count("kept from results.csv") == (CYCLES + 1) * RUNS - 1
    assert len(csv_rows(path)) == (CYCLES + 1) * RUNS


def test_an_older_model_file_is_brought_up_to_date(copied: Path, finished: tuple[Path, str], data: Path) -> None:
    """A kill between the two files of the last save leaves last.model one save behind."""
    path = copied / "semantic" / "last.model"
    weights = checkpoint.load(path)
    checkpoint.save(path, {key: value + 1 for key, value in weights.items()})
    start(words(data, copied))
    same_weights(path, finished[0] / "semantic" / "last.model")


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--k", "50"], "k was 100.0, is 50.0"),
        (["--seed", "1"], "seed was 0, is 1"),
        (["--split", "3"], "cycles was 2, is 3"),
        (["--optimizer", "adam", "--t", "0.8"], "optimizer was sgd, is adam; t was 0.9, is 0.8"),
        (["--scale", "0.5"], "scale was 0.003, is 0.5"),
        (["--mismatch", "0.4"], "mismatch was 0.5, is 0.4"),
    ],
)
def test_other_settings_are_refused(
    finished: tuple[Path, str], data: Path, capsys, more: list[str], named: str
) -> None:
    folder, _ = finished
    before = times(folder)
    assert run_cli(reproduce.main, words(data, folder, *more)) == 2
    said = capsys.readouterr().err
    assert named in said
    assert said.count("\n") == 1
    assert times(folder) == before


def test_a_budget_does_not_continue_a_scale(finished: tuple[Path, str], data: Path, capsys) -> None:
    flags = words(data, finished[0], "--budget_minutes", 5, scale=None)
    assert run_cli(reproduce.main, flags) == 2
    assert "budget_minutes was None, is 5.0; scale was 0.003, is None" in capsys.readouterr().err


def test_other_images_are_refused(finished: tuple[Path, str], data: Path, tmp_path: Path, capsys) -> None:
    with np.load(data) as file:
        arrays = dict(file)
    arrays["train_images"] = 255 - arrays["train_images"]
    np.savez(tmp_path / "other.npz", **arrays)
    assert run_cli(reproduce.main, words(tmp_path / "other.npz", finished[0])) == 2
    assert "images was" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--target", "60"], "--target 60 asks for 120 images"),
        (["--target_classes", "2"], "at least two classes"),
        (["--batch_size", "500"], "--batch_size 500 is larger than"),
        (["--batch_size", "1"], "no negatives"),
    ],
)
def test_what_a_later_stage_would_refuse_is_refused_at_once(data: Path, tmp_path: Path, capsys, more, named) -> None:
    assert run_cli(reproduce.main, words(data, tmp_path / "run", *more)) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_folder_of_something_else_is_refused(data: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "precious").write_text("x")
    assert run_cli(reproduce.main, words(data, tmp_path)) == 2
    assert "holds files but no reproduce.json" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.parametrize("text", ["{}", "[1]", '{"format_version": 0}', "nonsense"])
def test_a_damaged_record_is_refused(data: Path, tmp_path: Path, capsys, text: str) -> None:
    (tmp_path / "reproduce.json").write_text(text)
    assert run_cli(reproduce.main, words(data, tmp_path)) == 2
    assert "reproduce.json" in capsys.readouterr().err


def test_a_launcher_is_refused(data: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="without a launcher"):
        reproduce.main(words(data, tmp_path / "run"))


def test_scale_and_budget_exclude_each_other(data: Path, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        reproduce.main(words(data, tmp_path / "run", "--budget_minutes", "5"))
    assert "not allowed with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("dataset", "scale", "expected"),
    [
        ("cifar10", 1.0, (700, 700, 10, 100)),
        ("cifar10", 0.1, (70, 70, 1, 10)),
        ("cifar10", 0.5, (350, 350, 5, 50)),
        ("cifar10", 0.25, (175, 175, 2, 25)),  # a warm-up of 2.5 epochs is rounded to the even number
        ("cifar10", 0.0001, (1, 1, 1, 1)),
        ("cifar100", 1.0, (2000, 700, 10, 100)),
        ("cifar100", 0.03, (60, 21, 1, 3)),
        ("digits", 0.01, (7, 7, 1, 1)),
    ],
)
def test_a_scale_shortens_every_schedule(dataset: str, scale: float, expected: tuple[int, ...]) -> None:
    full = recipe_for(dataset, pool=1000, classes=2)
    scaled = full.scaled(scale)
    schedules = ("semantic_epochs", "distinctive_epochs", "warmup", "classifier_epochs")
    assert tuple(getattr(scaled, name) for name in schedules) == expected
    kept = {name: getattr(full, name) for name in schedules}
    assert dataclasses.replace(scaled, **kept) == full


@pytest.mark.parametrize(
    ("dataset", "pool", "classes", "target"),
    [
        ("cifar10", 11500, 2, 750),
        ("cifar100", 46001, 20, 75),
        ("npz", 46001, 2, 750),  # the paper's share of the pool
        ("npz", 46001, 20, 75),
        ("digits", 1346, 2, 22),
        ("npz", 10, 5, 1),
    ],
)
def test_the_query_takes_the_papers_share_of_a_pool(dataset: str, pool: int, classes: int, target: int) -> None:
    assert recipe_for(dataset, pool=pool, classes=classes).target == target


SIZES = Sizes(images=1000, steps=10, probed=200, tested=50, labeled=20, most_labeled=100, classes=2)
MEASURED = Measured(
    setup={"semantic": 3.0, "distinctive": 5.0},
    step={"semantic": 0.1, "distinctive": 0.4},
    view={"semantic": 0.001, "distinctive": 0.004},
    probe=0.001,
    classifier=2.0,
    classifier_image=0.01,
)


def test_a_prediction_worked_by_hand() -> None:
    recipe = Recipe(semantic_epochs=12, distinctive_epochs=10, classifier_epochs=3, target=15, cycles=3, runs=2)
    assert predict(recipe, SIZES, MEASURED) == pytest.approx(
        {
            "semantic": 3 + 12 * 10 * 0.1 + 3 * 200 * 0.001,  # the probe after epochs 5, 10 and 12
            "distinctive": 5 + 10 * 10 * 0.4 + 2 * 200 * 0.001,
            "query": 1000 * 10 * 0.005,
            "classifier": 2 * (4 * 2 + 3 * 0.01 * (20 + 50 + 80 + 100)),  # cycle 3 cannot have 110
        }
    )


@pytest.mark.parametrize("minutes", [4, 10, 20, 40, 55.5])
def test_the_picked_scale_fits_and_is_the_largest(minutes: float) -> None:
    scale, predicted = fit_scale(Recipe(target=15), SIZES, MEASURED, minutes=minutes, spent=30.0)

    def cost(scale: float) -> float:
        return sum(predict(Recipe(target=15).scaled(scale), SIZES, MEASURED).values())

    usable = (1 - RESERVE) * (60 * minutes - 30)
    assert sum(predicted.values()) == cost(scale) <= usable
    assert scale == 1 or cost(scale + 1 / GRID) > usable
    assert all(cost(n / GRID) > usable for n in range(round(scale * GRID) + 1, GRID + 1, 7))


def test_plenty_of_time_is_the_full_schedule() -> None:
    assert fit_scale(Recipe(), SIZES, MEASURED, minutes=1e6, spent=0.0)[0] == 1


def test_too_little_time_is_refused_with_what_is_needed() -> None:
    with pytest.raises(InputError, match="at least") as caught:
        fit_scale(Recipe(target=15), SIZES, MEASURED, minutes=1, spent=30.0)
    [least] = [int(word) for word in str(caught.value).split("at least ")[1].split() if word.isdigit()][:1]
    assert fit_scale(Recipe(target=15), SIZES, MEASURED, minutes=least, spent=30.0)[0] > 0
    with pytest.raises(InputError):
        fit_scale(Recipe(target=15), SIZES, MEASURED, minutes=least - 1, spent=30.0)


def test_no_scale_fits_into_no_time() -> None:
    assert pick_scale(lambda scale: 1.0, 0.0) is None
    assert pick_scale(lambda scale: 0.95, 1.0) == 1


def test_a_budget_keeps_its_scale(data: Path, tmp_path: Path, monkeypatch) -> None:
    def stop(*rest: object) -> None:
        raise KeyboardInterrupt

    calls = []
    monkeypatch.setattr(reproduce, "train_encoder", stop)
    monkeypatch.setattr(reproduce, "measure", lambda *rest, **settings: calls.append(1) or MEASURED)
    flags = words(data, tmp_path / "run", "--budget_minutes", 3, scale=None)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            start(flags)
    record = json.loads((tmp_path / "run" / "reproduce.json").read_text())
    assert calls == [1]
    assert 0 < record["scale"] < 1
    assert record["recipe"]["semantic_epochs"] == round(700 * record["scale"])
    assert sum(record["budget"]["predicted"].values()) < 180
    with pytest.raises(InputError, match=r"budget_minutes was 3.0, is 4.0"):
        reproduce.main(words(data, tmp_path / "run", "--budget_minutes", 4, scale=None))


def test_a_budget_that_is_too_short_leaves_no_folder(data: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(reproduce, "measure", lambda *rest, **settings: MEASURED)
    flags = words(data, tmp_path / "run", "--budget_minutes", 0.1, scale=None)
    assert run_cli(reproduce.main, flags) == 2
    assert "--budget_minutes 0.1 is too short" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_measuring_times_every_part_in_its_own_folder(data: Path, tmp_path: Path) -> None:
    flags = data_flags("npz", data, mismatch=0.5, target_classes=[2, 0], initial_budget=12, split_seed=0)
    recipe = Recipe(batch_size=8, target=5, cycles=1, runs=1, ood_samples=1)
    trial = dataclasses.replace(
        EXPERIMENT, folder=tmp_path, recipe=recipe, model="resnet8", data=flags, device="cpu", precision="fp32"
    )
    images, split = load_data_and_split("npz", data, mismatch=0.5, target_classes=[2, 0], initial_budget=12)
    sizes = reproduce.check_experiment(trial, images, split)
    assert sizes == Sizes(images=108, steps=13, probed=40, tested=20, labeled=12, most_labeled=60, classes=2)
    with contextlib.redirect_stdout(io.StringIO()):
        measured = reproduce.measure(trial, images, sizes, device=torch.device("cpu"))
    for seconds in (measured.setup, measured.step, measured.view):
        assert seconds.keys() == {"semantic", "distinctive"}
        assert all(0 < value < 60 for value in seconds.values())
    assert measured.probe > 0
    assert measured.classifier + measured.classifier_image > 0


def test_the_result_tells_prediction_and_time(tmp_path: Path) -> None:
    budget = {"spent": 30.0, "predicted": {"semantic": 600.0, "query": 60.0}, "measured": {}}
    content = {"settings": {"budget_minutes": 12.0}, "budget": budget, "stages": {"semantic": {"seconds": 510.0}}}
    assert reproduce.time_line(Record(tmp_path / "x", content)) == (
        "--budget_minutes 12: predicted 11.5 min, took 9.0 min, both with 30 s for measuring"
    )


def parsed(module, flags: list[str]) -> argparse.Namespace:
    return module.build_parser().parse_args(flags)


@pytest.mark.parametrize(("encoder", "shift"), [("semantic", "none"), ("distinctive", "rotation")])
def test_an_encoders_flags_are_the_papers(encoder: str, shift: str) -> None:
    args = parsed(contrast_main, EXPERIMENT.encoder_flags(encoder))
    expected = {
        "dataset": "cifar10", "mismatch": 0.8, "target_classes": [0, 1], "initial_budget": 800, "model": "resnet18",
        "mode": encoder, "shift_trans_type": shift, "epochs": 700, "warmup": 10, "batch_size": 128, "optimizer": "sgd",
        "lr_init": 0.1, "lr_scheduler": "cosine", "temperature": 0.5, "sim_lambda": 1.0, "weight_decay": 1e-6,
        "simclr_dim": 128, "resize_factor": 0.08, "resize_fix": False, "save_step": 10, "error_step": 5, "seed": 3,
        "precision": "bf16", "device": "auto", "logdir": f"run/{encoder}", "resume": "auto",
    }  # fmt: skip
    assert {name: getattr(args, name) for name in expected} == expected


def test_the_querys_flags_are_the_papers() -> None:
    args = parsed(active_main, EXPERIMENT.query_flags("ccal", features=Path("run/features/x")))
    expected = {
        "dataset": "cifar10", "mismatch": 0.8, "model": "resnet18", "strategy": "ccal", "shift_trans_type": "rotation",
        "target": 750, "split": 5, "ood_samples": 10, "resize_factor": 0.54, "resize_fix": True, "k": 100.0, "t": 0.9,
        "load_path": "run", "index_dir": "run/query/ccal", "overwrite": True, "feature_cache": "run/features/x",
        "seed": 3, "precision": "bf16",
    }  # fmt: skip
    assert {name: getattr(args, name) for name in expected} == expected
    assert parsed(active_main, EXPERIMENT.query_flags("random")).feature_cache is None


def test_the_classifiers_flags_are_the_papers() -> None:
    args = parsed(train_classifier.main, EXPERIMENT.classifier_flags("ccal", 5))
    expected = {
        "dataset": "cifar10", "mismatch": 0.8, "split": 5, "number": None, "runs": 5, "epochs": 100, "batch_size": 32,
        "lr": 5e-4, "recipe": "proper", "index_dir": "run/query/ccal", "out_path": "run/classifier", "seed": 3,
    }  # fmt: skip
    assert {name: getattr(args, name) for name in expected} == expected


def test_several_gpus_share_the_batch_through_a_launcher() -> None:
    shared = dataclasses.replace(EXPERIMENT, processes=4)
    flags = shared.encoder_flags("semantic")
    command = launcher_command(Path("contrast_main.py"), flags, processes=4)
    assert command[1:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=4"]
    assert command[5] == "contrast_main.py"
    assert parsed(contrast_main, command[6:]).batch_size == 32


@pytest.mark.parametrize(("batch", "gpus", "expected"), [(128, 1, 1), (128, 4, 4), (128, 6, 4), (128, 3, 2), (7, 4, 1)])
def test_as_many_processes_as_divide_the_batch(batch: int, gpus: int, expected: int) -> None:
    assert largest_divisor(batch, gpus) == expected


def test_gpus_that_stay_idle_are_named(monkeypatch, capsys) -> None:
    monkeypatch.setattr(reproduce.distributed, "setup", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 6)
    assert reproduce.choose_processes("auto", 128) == (torch.device("cuda", 0), 4)
    assert "the encoders train on 4 of 6 GPUs" in capsys.readouterr().out


def test_a_failed_launch_is_an_error(monkeypatch) -> None:
    monkeypatch.setattr(reproduce, "launcher_command", lambda script, flags, processes: ["false"])
    with pytest.raises(InputError, match="semantic encoder ended with status 1"):
        reproduce.run_encoder(dataclasses.replace(EXPERIMENT, processes=2), "semantic")


def test_a_command_leaves_torchs_settings_alone() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    def change(flags: list[str]) -> None:
        torch.set_float32_matmul_precision("medium")
        torch.backends.cudnn.allow_tf32 = not before[1]
        raise InputError("x")

    with pytest.raises(InputError):
        reproduce.run_command(change, [])
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


def test_published_values_belong_to_one_split(shared: Path) -> None:
    labels = np.load(shared / "data" / "labels_cifar10_train.npy")

    def split(**changes: object):
        settings = {"target_classes": (0, 1), "mismatch": 0.8, "initial_budget": 800, "seed": 0, **changes}
        return make_split(labels, np.arange(10), **settings)

    assert outcome.published_found(split(), target=750) == (1421, 1395, 1395, 1422, 1390, 1171, 439)
    assert outcome.published_found(split(), target=75) == ()
    for changes in ({"mismatch": 0.6}, {"seed": 1}, {"initial_budget": 801}, {"target_classes": (0, 2)}):
        assert outcome.published_found(split(**changes), target=750) == ()
    hundred = np.load(shared / "data" / "labels_cifar100_train.npy")
    other = make_split(hundred, np.arange(100), target_classes=range(20), mismatch=0.7, initial_budget=800)
    assert outcome.published_found(other, target=75) == ()


def index_file(cycle: int, **metrics: float) -> IndexFile:
    queried = list(range(1500)) if cycle else []
    return IndexFile("cifar10", 0.8, "d", [0, 1], "ccal", cycle, list(range(800 + cycle)), queried, [], metrics=metrics)


def test_the_published_column_stands_beside_the_cycles() -> None:
    files = [index_file(0), index_file(1, found=1400, precision=93.33, auroc_semantic=0.97, auroc_utility=0.95)]
    rows = outcome.result_rows(files, [], {}, published=outcome.PUBLISHED_FOUND)
    assert [row.published_found for row in rows] == [None, 1421]
    assert math.isclose(rows[1].published_precision, 100 * 1421 / 1500)
    cells = outcome.table_cells(rows)
    assert cells[0][-2:] == ["published found", "published precision"]
    assert cells[2] == ["1", "1500", "1400", "93.3 %", "-", "0.9700", "0.9500", "801", "-", "1421", "94.7 %"]
    assert len({len(line) for line in outcome.plain_table(cells).splitlines()}) == 1
    assert outcome.markdown_table(cells).splitlines()[1] == "| " + " | ".join(["---"] * 11) + " |"
    without = outcome.table_cells(outcome.result_rows(files, [], {}, published=()))
    assert len(without[0]) == 9
