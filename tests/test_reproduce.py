"""reproduce.py: one tiny run from start to end, what later starts do with it, refusals, and how stages are run."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import active_main
import contrast_main
import reproduce
import train_classifier.main
from common.paper import Recipe
from common.session import StopRequest, run_command
from common.settings import as_record
from reproduce import run as run_stage
from utils import InputError, Interrupted

CYCLES, RUNS = 2, 2
SCRIPTS = {"contrast_main.py": contrast_main, "active_main.py": active_main, "main.py": train_classifier.main}
ALL = ["contrast_main.py", "contrast_main.py", "active_main.py", "active_main.py", "main.py"]


def words(tiny_data: Path, folder: Path, *more: str) -> list[str]:
    """2 epochs of each encoder and 1 of the classifier; of a flag given twice the last counts."""
    split = f"--dataset npz --data_path {tiny_data} --target_classes 2 0 --initial_budget 12 --mismatch 0.5"
    recipe = f"--model resnet8 --batch_size 32 --queries_per_class 5 --cycles {CYCLES} --runs {RUNS} --views 1"
    return [*split.split(), *recipe.split(), *f"--scale 0.003 --device cpu --out {folder}".split(), *more]


@pytest.fixture(scope="module", autouse=True)
def in_this_process() -> Iterator[list[list[str]]]:
    """Has the stages run in this process, which spares their start; the commands that were run, in order."""
    commands: list[list[str]] = []

    def run(command: list[str]) -> None:
        commands.append(command)
        SCRIPTS[Path(command[0]).name].main(command[1:])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reproduce, "run", run)
        patch.setattr("evals.report.figures.tsne_map", lambda features: features[:, 0, :2])
        yield commands


@pytest.fixture
def started(in_this_process: list[list[str]]) -> list[list[str]]:
    """The commands that a test runs."""
    in_this_process.clear()
    return in_this_process


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, in_this_process: list) -> tuple[Path, str]:
    """The folder of a run from start to end, and what it printed."""
    folder, printed = tmp_path_factory.mktemp("runs") / "run", io.StringIO()
    with contextlib.redirect_stdout(printed):
        reproduce.main(words(tiny_data, folder))
    assert names(in_this_process) == ALL
    return folder, printed.getvalue()


@pytest.fixture
def copied(finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run; the report at the end of further starts is left out."""
    monkeypatch.setattr(reproduce, "write_report", lambda argv: None)
    return Path(shutil.copytree(finished[0], tmp_path / "run"))


def names(commands: list[list[str]]) -> list[str]:
    return [Path(command[0]).name for command in commands]


def contents(folder: Path) -> dict[str, bytes]:
    """What the stages wrote, without tensorboard's files, of which every start makes one."""
    paths = [path for path in folder.rglob("*") if path.is_file() and "tensorboard" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_the_result_repeats_what_the_stages_wrote(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    with open(folder / "result.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    with open(folder / "classifier" / "results.csv", newline="") as file:
        accuracies = [(int(row["cycle"]), float(row["accuracy"])) for row in csv.DictReader(file)]
    for cycle in range(CYCLES + 1):
        files = [folder / "query" / strategy / f"cycle_{cycle}.json" for strategy in ("ccal", "random")]
        ccal, random = (json.loads(path.read_text()) for path in files)
        row, measured = rows[cycle], [accuracy for number, accuracy in accuracies if number == cycle]
        assert (int(row["labeled"]), int(row["queried"])) == (len(ccal["labeled"]), 10 if cycle else 0)
        assert len(measured) == RUNS and float(row["accuracy"]) == pytest.approx(np.mean(measured))
        assert float(row["deviation"]) == pytest.approx(np.std(measured, ddof=1))
        if cycle:
            assert float(row["precision"]) == pytest.approx(10 * ccal["metrics"]["found"])
            assert float(row["random_precision"]) == pytest.approx(10 * random["metrics"]["found"])
    page = (folder / "result.md").read_text()
    shortened = "scale 0.003, in epochs: semantic encoder 2 of 700, distinctive encoder 2 of 700, their warm-up 1 of 10"
    assert shortened in page and shortened in printed and "published" not in page + printed
    assert page.count("\npython ") == len(ALL)
    assert (folder / "result.png").read_bytes().startswith(b"\x89PNG")
    assert "<html" in (folder / "report.html").read_text()


def test_a_second_start_trains_and_queries_nothing(copied: Path, tiny_data: Path, started: list, monkeypatch) -> None:
    before = contents(copied)
    monkeypatch.setattr(contrast_main, "train_one_epoch", None)
    monkeypatch.setattr(train_classifier.main, "train_together", None)
    reproduce.main(words(tiny_data, copied))
    assert names(started) == [name for name in ALL if name != "active_main.py"]
    after = contents(copied)
    changed = {name for name in before if after[name] != before[name]}
    assert after.keys() == before.keys() and changed <= {"classifier/accuracy.png", "result.md", "result.png"}


@pytest.mark.parametrize("damage", ["missing", "cut", "of another encoder"])
def test_a_query_that_is_not_whole_is_made_again(copied: Path, tiny_data: Path, started: list, damage: str) -> None:
    first, *_, last = (copied / "query" / "ccal" / f"cycle_{cycle}.json" for cycle in range(CYCLES + 1))
    before = json.loads(last.read_text())
    if damage == "missing":
        last.unlink()
    elif damage == "cut":
        last.write_bytes(last.read_bytes()[:-20])
    else:
        first.write_text(first.read_text().replace(before["settings"]["checkpoint_digests"]["semantic"], "0" * 64))
    reproduce.main(words(tiny_data, copied))
    assert names(started).count("active_main.py") == 1
    assert json.loads(last.read_text())["queried"] == before["queried"]


@pytest.mark.parametrize(
    ("more", "message"),
    [("--scale 0.006", "--epochs was 2, is 4"), ("--k 50", "--k was 100.0, is 50.0"), ("--model resnet20", "--model")],
)
def test_a_finished_run_is_not_continued_with_other_settings(copied: Path, tiny_data: Path, capsys, more, message):
    before = contents(copied)
    assert run_command(reproduce.main, words(tiny_data, copied, *more.split())) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
    assert contents(copied) == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--queries_per_class 60", "asks for 120 images"),
        ("--batch_size 1", "no negatives"),
    ],
)
def test_what_a_later_stage_would_refuse_is_refused_at_once(tiny_data: Path, tmp_path: Path, capsys, more, message):
    assert run_command(reproduce.main, words(tiny_data, tmp_path / "run", *more.split())) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_launcher_is_refused(tiny_data: Path, tmp_path: Path, monkeypatch) -> None:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="without a launcher"):
        reproduce.main(words(tiny_data, tmp_path / "run"))


def test_the_commands_are_the_papers() -> None:
    given = reproduce.build_parser().parse(["--out", "run", "--precision", "bf16"])
    stages = reproduce.stages_of(Path("run"), Recipe(), given)
    expected = {
        "semantic": {"mode": "semantic", "epochs": 700, "global_batch_size": 128, "warmup": 10, "precision": "bf16"},
        "distinctive": {"mode": "distinctive", "shift_trans_type": "rotation", "logdir": "run/distinctive"},
        "query/ccal": {"queries_per_class": 750, "cycles": 5, "views": 10, "k": 100.0, "t": 0.9, "load_path": "run"},
        "query/random": {"strategy": "random", "resize_factor": 0.54, "resize_fix": True, "precision": "bf16"},
        "classifier": {"cycles": 5, "runs": 5, "epochs": 100, "batch_size": None, "recipe": "proper"},
    }
    for name, values in expected.items():
        assert values.items() <= as_record(*stages[name]).items()
        assert Path(reproduce.command(name, stages[name], Recipe(), given)[0]).is_file()


@pytest.mark.parametrize(("batch", "gpus", "processes"), [(128, 4, 4), (128, 6, 4), (7, 4, 1), (128, 0, 1)])
def test_an_encoder_has_as_many_processes_as_share_its_batch(monkeypatch, batch, gpus, processes) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    given, recipe = reproduce.build_parser().parse(["--out", "run"]), Recipe(global_batch_size=batch)
    stages = reproduce.stages_of(Path("run"), recipe, given)
    encoder, query = (reproduce.command(name, stages[name], recipe, given) for name in ("semantic", "query/ccal"))
    assert (f"--nproc_per_node={processes}" in encoder) == (processes > 1)
    assert Path(query[0]).name == "active_main.py"


def test_the_status_of_a_stage_that_fails_is_that_of_the_command() -> None:
    for code, status in (("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)):
        with pytest.raises(SystemExit) as caught:
            run_stage(["-c", code])
        assert caught.value.code == status


SAVES = """
import pathlib, signal, sys, time
def save(number, frame):
    time.sleep(0.3)
    pathlib.Path(sys.argv[1]).write_text(signal.Signals(number).name)
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
pathlib.Path(sys.argv[1]).write_text("running")
time.sleep(60)
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGUSR1, 0), (None, 0)])
def test_asked_to_stop_a_stage_saves_first(tmp_path: Path, number: signal.Signals | None, status: int) -> None:
    file = tmp_path / "file"

    def ask() -> None:
        while not file.exists():
            time.sleep(0.01)
        if number:
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=ask)
    with StopRequest(max_minutes=None if number else 0.02, raises=True), pytest.raises(Interrupted) as caught:
        thread.start()
        run_stage(["-c", SAVES, str(file)])
    thread.join()
    assert caught.value.status == status and file.read_text() == "SIGTERM"
