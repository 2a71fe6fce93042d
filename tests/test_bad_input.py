"""Bad input to every command: one line that says what is wrong and what would be right, and nothing lost.

What tests/test_active_main.py, tests/test_contrast_main.py and tests/train_classifier/test_classifier_main.py refuse in
their own tables is not repeated here.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import active_main
import contrast_main
import evals.summary
import reproduce
import train_classifier.main
from common import checkpoint
from common.cli import run_cli
from common.files import read_json
from datasets.index_files import read_index_file
from tests.bad_input import ARGS, CACHE, CASES, CKPT, DATA, FIRST, MODEL, NET, NPZ, RECORD, SHORT, WORDS
from tests.hostile import Payload, crafted_pickle, pickled_npy, write_zip

COMMANDS = {
    "contrast": contrast_main.main,
    "active": active_main.main,
    "classifier": train_classifier.main.main,
    "reproduce": reproduce.main,
    "summary": evals.summary.main,
}


class Stop(Exception):
    """Ends the fixture's run of reproduce.py before its first stage."""


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """A folder with all that the commands write: both encoders, index files, kept features, results, a record."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run("contrast", "--logdir model/semantic")
        run("contrast", "--mode distinctive --shift_trans_type rotation --logdir model/distinctive")
        run("active", f"--index_dir query {CACHE}")
        run("active", "--index_dir random --strategy random")
        run("classifier", "--out_path classifier")
        run("summary", "")
        patch.setattr(reproduce, "train_encoder", lambda *_: (_ for _ in ()).throw(Stop()))
        with contextlib.suppress(Stop):
            run("reproduce", "")
        shutil.copytree("model/semantic", "whole/semantic")
        shutil.rmtree("new")
    return folder


def run(command: str, words: str) -> None:
    COMMANDS[command]([*shlex.split(WORDS[command]), *shlex.split(words)])


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


def status_of(command: str, words: list[str]) -> int:
    try:
        return run_cli(COMMANDS[command], words)
    except SystemExit as stop:
        return stop.code


def the_line(capsys: pytest.CaptureFixture) -> str:
    shown = capsys.readouterr()
    lines = shown.err.splitlines()
    assert len(lines) == 1, shown.err
    assert re.match(r"[\w.]+: error: ", lines[0]) and "Traceback" not in shown.out
    return lines[0]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bad_input_is_one_line_and_loses_nothing(place, capsys, case):
    if case.damage:
        case.damage()
    before = contents(place)
    words = shlex.split(case.words)
    if not case.whole:
        words = shlex.split(WORDS[case.command]) + words
    assert status_of(case.command, words) == case.status
    assert re.search(case.pattern, the_line(capsys))
    assert contents(place) == before


def test_there_are_enough_cases_for_every_command():
    counts = {command: sum(case.command == command for case in CASES.values()) for command in COMMANDS}
    assert len(CASES) >= 60 and min(counts.values()) >= 10, counts


@pytest.mark.parametrize("case", ["data truncated", "weights NaN", "index file truncated", "record garbage"])
def test_debug_shows_where_it_comes_from(place, case):
    CASES[case].damage()
    words = shlex.split(f"{WORDS[CASES[case].command]} {CASES[case].words} --debug")
    with pytest.raises(ValueError, match=CASES[case].pattern):
        run_cli(COMMANDS[CASES[case].command], words)


def payload_in(path: str) -> Callable[[Path], object]:
    """A file that would run code: in a checkpoint's pickle, an archive's array of objects, or as a bare pickle."""

    def write(trace: Path) -> None:
        thing = Payload(trace)
        if path.endswith(".npz"):
            with zipfile.ZipFile(path, "w") as file:
                for name in ("train_images", "train_labels", "test_images", "test_labels"):
                    file.writestr(f"{name}.npy", pickled_npy(thing))
        elif path.endswith(".npy"):
            Path(path).write_bytes(pickled_npy(thing))
        elif path.endswith((".model", ".ckpt")):
            write_zip(Path(path), crafted_pickle({"model": thing}), {})
        else:
            Path(path).write_bytes(pickle.dumps(thing, 2))

    return write


PAYLOADS = {
    MODEL: ("active", ""),
    "model/distinctive/last.model": ("active", ""),
    ARGS: ("active", ""),
    "cache/semantic.npy": ("active", CACHE),
    "cache/semantic.json": ("active", CACHE),
    CKPT: ("contrast", f"{SHORT} --resume_path model/semantic --logdir model/semantic"),
    "data.npz": ("contrast", NPZ),
    FIRST: ("classifier", ""),
    "classifier/results.csv": ("classifier", "--out_path classifier"),
    RECORD: ("reproduce", ""),
    "whole/semantic/last.ckpt": ("reproduce", ""),
    "query/cycle_2.json": ("summary", ""),
}


@pytest.mark.parametrize("path", PAYLOADS)
def test_no_command_executes_what_a_file_holds(place, capsys, tmp_path, path):
    trace, (command, words) = tmp_path / "executed", PAYLOADS[path]
    payload_in(path)(trace)
    assert status_of(command, shlex.split(f"{WORDS[command]} {words}")) == 2
    assert Path(path).name in the_line(capsys)
    assert not trace.exists()


# The environment fails

# What each command writes, and what of an earlier run it would replace.
WRITES = {
    "contrast": ("--logdir {}/new", []),
    "active": ("--index_dir {}/query --overwrite", ["query"]),
    "classifier": ("--out_path {}/classifier --epochs 2", ["classifier"]),
    "summary": ("--out_path {}/query", ["query"]),
    "reproduce": ("--out {}/fresh", []),
}


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A small file system in memory; the test is skipped where none may be mounted."""
    folder.mkdir(exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("command", WRITES)
def test_a_full_disk_is_one_line_and_leaves_what_was_there(place, capsys, command):
    words, replaced = WRITES[command]
    with mounted(Path("disk"), "size=512k"):
        for name in replaced:
            shutil.copytree(name, f"disk/{name}")
        free = os.statvfs("disk")
        Path("disk/filler").write_bytes(bytes(free.f_bavail * free.f_bsize))
        before = contents(place / "disk")
        assert status_of(command, shlex.split(f"{WORDS[command]} {words.format('disk')}")) == 3
        assert "No space left on device" in the_line(capsys)
        after = contents(place / "disk")
    assert {name: after.get(name) for name in before} == before
    assert all(Path(name).suffix != ".tmp" for name in after)


@pytest.mark.parametrize("command", WRITES)
def test_a_read_only_disk_is_one_line(place, capsys, command):
    words, replaced = WRITES[command]
    with mounted(Path("disk"), "size=4m"):
        for name in replaced:
            shutil.copytree(name, f"disk/{name}")
        subprocess.run(["mount", "-o", "remount,ro", "disk"], check=True)
        before = contents(place)
        status = status_of(command, shlex.split(f"{WORDS[command]} {words.format('disk')}"))
        line = the_line(capsys)
        assert contents(place) == before
    assert (status, "cannot be written" in line or "Read-only file system" in line) in ((2, True), (3, True)), line


@pytest.mark.parametrize("command", WRITES)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT], ids=errno.errorcode.get)
def test_a_write_that_fails_is_one_line_and_leaves_what_was_there(place, capsys, monkeypatch, command, number):
    """Without a mount: every flush to disk fails."""

    def fail(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    words, replaced = WRITES[command]
    before = {name: contents(place / name) for name in replaced}
    monkeypatch.setattr(os, "fsync", fail)
    assert status_of(command, shlex.split(f"{WORDS[command]} {words.format(place)}")) == 3
    assert os.strerror(number) in the_line(capsys)
    assert {name: contents(place / name) for name in replaced} == before


def test_a_resumed_run_keeps_its_checkpoint_on_a_full_disk(place, capsys, monkeypatch):
    """Two epochs more do not fit: what the first one left is still there, and resumes when there is room again."""
    words = shlex.split(f"{WORDS['contrast']} --epochs 2 --logdir longer --save_step 1")

    real = os.fsync

    def flush(handle: int) -> None:
        if Path("longer/last.model").exists():  # the last file of the first epoch's save
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", flush)
        assert status_of("contrast", words) == 3
    assert "No space left on device" in the_line(capsys)
    assert checkpoint.load(place / "longer" / "last.ckpt")["epoch"] == 1
    resumed = shlex.split(f"{DATA} {NET} {SHORT} --mode semantic --epochs 2 --resume_path longer")
    assert status_of("contrast", resumed) == 0
    assert checkpoint.load(place / "longer" / "last.ckpt")["epoch"] == 2


def test_the_files_of_the_fixture_are_good(template):
    """What the cases damage is whole to begin with."""
    assert len(read_index_file(template / FIRST).labeled) == 20
    assert checkpoint.load(template / CKPT)["epoch"] == 1
    assert {path.name for path in (template / "cache").iterdir()} >= {"semantic.npy", "distinctive.json"}
    assert (template / "classifier" / "results.csv").read_text().count("\n") == 4
    assert read_json(template / RECORD)["stages"] == {}
