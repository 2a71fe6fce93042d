"""common/cli.py: errors as one line and an exit status."""

import errno

import pytest
import torch

from common.cli import mark_speaker, run_cli
from utils import (
    InputError,
    ProcessLost,
)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


OUT_OF_MEMORY = "out of memory ({}): free some, or give smaller batches or data"


def raising(error):
    def main(words):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("--k must be above 0"), 2, "--k must be above 0"),
        (InputError("two\n  lines"), 2, "two lines"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.npz"), 2, "No such file or directory: a.npz"),
        (PermissionError(errno.EACCES, "Permission denied", "b"), 2, "Permission denied: b"),
        (OSError("no errno, no file"), 2, "no errno, no file"),
        (OSError(errno.ENOSPC, "No space left on device", "c"), 3, "No space left on device: c"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 3, "Disk quota exceeded"),
        (OSError(errno.EIO, "Input/output error"), 3, "Input/output error"),
        (OSError(errno.EROFS, "Read-only file system", "d"), 3, "Read-only file system: d"),
        (OSError(errno.EMFILE, "Too many open files"), 3, "Too many open files"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 3, "Cannot allocate memory"),
        (MemoryError(), 3, OUT_OF_MEMORY.format("no details")),
        (
            MemoryError("Unable to allocate 9 TiB"),
            3,
            "out of memory (Unable to allocate 9 TiB): free some, or give smaller batches or data",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory.\nTried"),
            3,
            "out of memory (CUDA out of memory. Tried): free some, or give smaller batches or data",
        ),
        (RuntimeError("CPU: can't allocate memory"), 3, OUT_OF_MEMORY.format("CPU: can't allocate memory")),
        (InputError("a\x1b[2Jb\x00\u202e"), 2, "a\\x1b[2Jb\\x00\\u202e"),
        (InputError("x" * 992 + "y" * 9999 + "z" * 999), 2, "x" * 992 + "y ... y" + "z" * 999),
        (InputError("é 画像"), 2, "é 画像"),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C; what was finished is on disk"),
    ],
)
def test_run_cli_turns_an_error_into_one_line_and_a_status(monkeypatch, capsys, error, status, line):
    monkeypatch.setattr("sys.argv", ["/somewhere/active_main.py"])
    assert run_cli(raising(error), []) == status
    shown = capsys.readouterr()
    assert shown.err == f"active_main.py: error: {line}\n"
    assert shown.out == ""
    with pytest.raises(type(error)) as caught:
        run_cli(raising(error), ["--k", "1", "--debug"])
    assert caught.value is error
    assert capsys.readouterr().err == ""


def test_run_cli_of_a_success_is_silent_and_passes_the_words(monkeypatch, capsys):
    seen = []
    assert run_cli(seen.append, ("--a", "1")) == 0
    monkeypatch.setattr("sys.argv", ["main.py", "--b"])
    assert run_cli(seen.append) == 0
    assert seen == [["--a", "1"], ["--b"]]
    assert capsys.readouterr() == ("", "")


def test_run_cli_lets_bugs_and_the_parsers_exit_through():
    with pytest.raises(ZeroDivisionError):
        run_cli(raising(ZeroDivisionError()), [])
    with pytest.raises(RuntimeError, match="a bug"):
        run_cli(raising(RuntimeError("a bug")), [])
    with pytest.raises(SystemExit) as caught:
        run_cli(raising(SystemExit(2)), [])
    assert caught.value.code == 2


class Ended(BaseException):
    """What a launcher's signal does to a process that waits."""


def test_run_cli_speaks_from_one_process_of_a_machine(monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("common.cli.wait_for_the_first_process", lambda: raising(Ended())([]))
    with pytest.raises(Ended):
        run_cli(raising(InputError("bad")), [])
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert run_cli(raising(InputError("bad")), []) == 2
    assert capsys.readouterr().err.endswith("error: bad\n")


def test_run_cli_speaks_from_another_process_where_the_first_does_not_fail(monkeypatch, capsys):
    waits = []
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("common.cli.wait_for_the_first_process", lambda: waits.append(1))
    assert run_cli(raising(InputError("bad")), []) == 2
    assert capsys.readouterr().err.endswith("error: bad\n") and waits == [1]


@pytest.mark.parametrize("local_rank", ["0", "1"])
def test_run_cli_speaks_from_the_process_that_is_settled_on(monkeypatch, capsys, local_rank):
    waits = []
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setattr("common.cli.wait_for_the_first_process", lambda: waits.append(1))
    for speaks, line in ((True, "error: rank 1 is lost\n"), (False, "")):
        error = ProcessLost("rank 1\nis lost")
        mark_speaker(error, speaks, afterwards=lambda: waits.append("shown"))
        assert run_cli(raising(error), []) == 3
        told = capsys.readouterr().err
        assert told.endswith(line) and bool(told) == speaks
    assert waits == ["shown", 1]
