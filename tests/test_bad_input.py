"""Bad input to every command: one line that says what is wrong, exit status 2, and nothing lost.

Bounds of flags are tested in tests/common/test_flags.py, damage to each kind of file where its reader lives; here each
kind of bad input meets a whole command once.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import active_main
import contrast_main
import evals.report.__main__
import evals.summary
import reproduce
import train_classifier.main
from common.files import read_json, write_json
from common.session import run_command

COMMANDS = {
    "contrast": contrast_main.main,
    "active": active_main.main,
    "classifier": train_classifier.main.main,
    "reproduce": reproduce.main,
    "summary": evals.summary.main,
    "report": evals.report.__main__.main,
}
DATA = "--dataset digits --mismatch 0.1 --device cpu"  # 325 images
NET = f"{DATA} --model resnet8 --simclr_dim 16 --precision fp32"
TRAIN = f"{NET} --epochs 1 --warmup 0 --batch_size 64 --mode semantic"
SHORT = "--views 1 --queries_per_class 9 --cycles 1"
# Each succeeds on the files of the fixture if nothing is wrong with them; a later flag overrides an earlier one.
WORDS = {
    "contrast": f"{TRAIN} --logdir new",
    "active": f"{NET} --shift_trans_type rotation --load_path model {SHORT} --index_dir new",
    "classifier": f"{DATA} --cycles 1 --runs 1 --epochs 1 --index_dir query --out_path new",
    "reproduce": f"{DATA} --model resnet8 --scale 0.002 --out new",
    "summary": "--index_dir query --random_dir random --results classifier/results.csv --out_path new",
    "report": "",
}
NPZ = "--dataset npz --data_path data.npz --target_classes 0 1 --initial_budget 6 --mismatch 0.2 --batch_size 8"
CKPT, MODEL, ARGS = (f"model/semantic/{name}" for name in ("last.ckpt", "last.model", "args.json"))
FIRST, SECOND, RESULTS = "query/cycle_0.json", "query/cycle_1.json", "classifier/results.csv"


@dataclass(frozen=True)
class Case:
    """One way to go wrong.

    Attributes:
        command: Of COMMANDS.
        pattern: What the line must hold.
        words: Added to the command's; those of a run that is resumed replace them.
        damage: Done to the folder of a finished run, which is the working directory.
    """

    command: str
    pattern: str
    words: str = ""
    damage: Callable[[], object] = lambda: None


def resume(pattern: str, damage: Callable[[], object] = lambda: None, words: str = "") -> Case:
    """A run that is to be continued; its checkpoint has none before it."""
    return Case("contrast", pattern, f"--logdir model/semantic --resume_path model/semantic {words}", damage)


def cut(path: str) -> Callable[[], object]:
    return lambda: os.truncate(path, os.path.getsize(path) // 2)


def garbage(path: str) -> Callable[[], object]:
    return lambda: Path(path).write_bytes(np.random.default_rng(0).bytes(5000))


def copied(source: str, path: str) -> Callable[[], object]:
    return lambda: shutil.copy(source, path)


def fields(path: str, **changes: object) -> Callable[[], object]:
    """Other values in a JSON file; one may be a function of the file's content."""

    def damage() -> None:
        content = read_json(path)
        write_json(path, content | {name: new(content) if callable(new) else new for name, new in changes.items()})

    return damage


def arrays() -> None:
    """An npz data set of four classes."""
    draw = np.random.default_rng(0)
    parts = {
        f"{part}_images": draw.integers(0, 256, (n, 8, 8, 3), np.uint8) for part, n in (("train", 40), ("test", 8))
    }
    np.savez("data.npz", **parts, train_labels=np.arange(40) % 4, test_labels=np.arange(8) % 4)


CASES = {
    # flags: one of each kind; their bounds are a matter of the parser
    "a flag missing": Case("report", "RUN_DIR|runs"),
    "a flag unknown": Case("active", "--tarrget", "--tarrget 750"),
    "a number beyond its bounds": Case("contrast", "--temperature.* above 0", "--temperature nan"),
    "a choice unknown": Case("contrast", "--optimizer.*'rmsprop'", "--optimizer rmsprop"),
    "a class that is not there": Case("contrast", "class 12 .*0, 1, 2", "--target_classes 0 12"),
    "a mismatch beyond the data": Case("contrast", r"largest possible .* 0\.\d+", "--mismatch 0.99"),
    "a budget beyond the targets": Case("contrast", r"--initial_budget .* 1 to \d+", "--initial_budget 9999"),
    "a query beyond the pool": Case("active", r"largest .*\d+", "--queries_per_class 9999"),
    "one labeled image in each class": Case("active", "needs two", "--initial_budget 2 --split_seed 2"),
    "a GPU and none": Case("classifier", "--cuda", "--cuda"),
    # folders
    "a file in place of the run's folder": Case("contrast", "--logdir", f"--logdir {MODEL}"),
    "the folder of another run": Case("contrast", "already holds a run", "--logdir model/semantic"),
    "nothing to resume": Case("contrast", r"holds no last\.ckpt", "--logdir new --resume_path new"),
    "a file in place of the index folder": Case("active", "--index_dir", f"--index_dir {MODEL}"),
    "the index folder of another query": Case("active", "--overwrite", "--index_dir query"),
    "a file in place of the features": Case("active", "--feature_cache", f"--feature_cache {MODEL}"),
    "a file in place of the results": Case("classifier", "--out_path", f"--out_path {MODEL}"),
    "a file in place of the experiment": Case("reproduce", "--out", f"--out {MODEL}"),
    "no index files": Case("summary", "cycle_0.json", "--index_dir model"),
    "index files of another split": Case("summary", "different splits", "--random_dir other"),
    "no results": Case("summary", r"nowhere\.csv does not exist", "--results nowhere.csv"),
    "no folder of a run": Case("report", "nowhere", "nowhere"),
    "a page that is not a page": Case("report", "--out", "query --out page.png"),
    # data
    "no data": Case("contrast", r"data\.npz", NPZ),
    "cut off data": Case("contrast", r"data\.npz cannot be read", NPZ, lambda: (arrays(), cut("data.npz")())),
    "data of another kind": Case("contrast", r"data\.npz lacks train_images", NPZ, copied(MODEL, "data.npz")),
    # a checkpoint to continue from
    "a checkpoint that is cut off": resume(r"last\.ckpt is damaged", cut(CKPT)),
    "a checkpoint of other settings": resume("--seed was 0, is 3", words="--seed 3"),
    # weights, and what is recorded beside them
    "no weights": Case("active", "semantic checkpoint .*does not exist", "--load_path nowhere"),
    "a folder as weights": Case("active", "does not exist", "--load_semantic_path model"),
    "a checkpoint as weights": Case("active", r"last\.model", f"--load_semantic_path {CKPT}"),
    "weights that are cut off": Case("active", r"last\.model is damaged", damage=cut(MODEL)),
    "another network": Case("active", "--model was resnet8, is resnet20", "--model resnet20"),
    "another data set": Case("active", "another split", "--split_seed 1"),
    "settings that are cut off": Case("active", r"args\.json is not valid JSON", damage=cut(ARGS)),
    # index files
    "no index file": Case("classifier", r"cycle_9\.json does not exist", "--number 9"),
    "an index file that is cut off": Case("classifier", r"cycle_1\.json is not valid JSON", damage=cut(SECOND)),
    "an index file that is a folder": Case(
        "classifier", r"cycle_1\.json", damage=lambda: (Path(SECOND).unlink(), Path(SECOND).mkdir())
    ),
    "an index file of another split": Case("classifier", "another split", "--split_seed 5"),
    "an index beyond the data": Case("classifier", "1437 images", damage=fields(SECOND, labeled=[5, 1437])),
    "a labeled image of another class": Case(
        "classifier", "target class", damage=fields(SECOND, labeled=lambda file: file["set_aside"], set_aside=[])
    ),
    # results.csv
    "results of another kind": Case("summary", r"results\.csv", damage=copied(FIRST, RESULTS)),
    "results that are garbage": Case("classifier", r"results\.csv", "--out_path classifier", garbage(RESULTS)),
}


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """A folder with all that the commands write: both encoders, index files of three queries, results."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command, words in (
            ("contrast", "--logdir model/semantic"),
            ("contrast", "--mode distinctive --shift_trans_type rotation --logdir model/distinctive"),
            ("active", "--index_dir query --no_feature_cache"),
            ("active", "--index_dir random --strategy random"),
            ("active", "--index_dir other --strategy random --split_seed 1"),
            ("classifier", "--out_path classifier"),
        ):
            COMMANDS[command](shlex.split(f"{WORDS[command]} {words}"))
    return folder


@pytest.fixture
def place(template, tmp_path, monkeypatch) -> Path:
    """A copy of the folder, in which the test runs."""
    folder = Path(shutil.copytree(template, tmp_path / "run"))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["command.py"])
    return folder


def contents(folder: Path) -> dict[str, str | None]:
    """Digests of all files by path; None for a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def status_of(command: str, words: str) -> int:
    try:
        return run_command(COMMANDS[command], shlex.split(f"{WORDS[command]} {words}"))
    except SystemExit as stop:
        return stop.code


def the_line(capsys: pytest.CaptureFixture) -> str:
    shown = capsys.readouterr()
    [line] = shown.err.splitlines()
    assert re.match(r"\S+: error: ", line) and "Traceback" not in shown.out
    return line


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bad_input_is_one_line_and_loses_nothing(place, capsys, case):
    case.damage()
    before = contents(place)
    assert status_of(case.command, case.words) == 2
    assert re.search(case.pattern, the_line(capsys))
    assert contents(place) == before


# What each command writes, and the folder of an earlier run that it would replace.
WRITES = {
    "contrast": ("--logdir new", "model"),
    "active": ("--index_dir query --overwrite", "query"),
    "classifier": ("--out_path classifier --epochs 2", "classifier"),
    "summary": ("--out_path query", "query"),
}


@pytest.mark.parametrize("command", WRITES)
def test_a_full_disk_is_one_line_and_leaves_what_was_there(place, capsys, monkeypatch, command):
    """Every flush to disk fails."""

    def fail(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    words, kept = WRITES[command]
    before = contents(place / kept)
    monkeypatch.setattr(os, "fsync", fail)
    assert status_of(command, words) == 3
    assert "No space left on device" in the_line(capsys)
    assert {name: digest for name, digest in contents(place / kept).items() if name in before} == before
