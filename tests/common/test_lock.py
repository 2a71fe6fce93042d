"""common/lock.py: one run per folder, whoever comes second, and however the first one ends."""

import errno
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from common.lock import LOCK_FILE, folder_lock
from utils import InputError

HOLDER = """
import os, sys, time
from common.lock import folder_lock
with folder_lock(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(root):
    """Starts processes that hold a folder's lock until their input ends."""
    running = []

    def start(folder):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder)],
            env={**os.environ, "PYTHONPATH": str(root)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stdout.readline() == "locked\n"
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def test_the_second_process_stops_and_names_the_first(tmp_path, holder):
    first = holder(tmp_path / "run")
    wanted = (
        rf"{re.escape(str(tmp_path))}/run is in use by process {first.pid} on {re.escape(socket.gethostname())}, "
        rf"started at \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d: -c {re.escape(str(tmp_path))}/run; wait for it or stop it"
    )
    with pytest.raises(InputError, match=wanted), folder_lock(tmp_path / "run"):
        pytest.fail("two are in")
    with folder_lock(tmp_path / "other"):
        pass
    first.communicate("")
    assert first.returncode == 0 and not (tmp_path / "run").exists()
    with folder_lock(tmp_path / "run"):
        assert os.listdir(tmp_path / "run") == [".lock"]


def test_a_killed_process_holds_no_lock(tmp_path, holder):
    first = holder(tmp_path / "run")
    first.kill()
    assert first.wait(timeout=60) == -signal.SIGKILL
    assert os.listdir(tmp_path / "run") == [".lock"]
    with folder_lock(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / ".lock").read_text())["pid"] == os.getpid()
    assert os.listdir(tmp_path / "run") == []


def test_one_process_cannot_take_a_folder_twice(tmp_path):
    with folder_lock(tmp_path):
        with pytest.raises(InputError, match=f"in use by process {os.getpid()} on"), folder_lock(tmp_path):
            pytest.fail("two are in")
        assert (tmp_path / ".lock").exists()
    with folder_lock(tmp_path), folder_lock(tmp_path / "below"):
        pass


def test_folders_that_stay_empty_go_and_others_stay(tmp_path):
    with folder_lock(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert os.listdir(tmp_path) == []
    with pytest.raises(ZeroDivisionError), folder_lock(tmp_path / "a" / "b"):
        (tmp_path / "a" / "file").write_text("mine")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == ["a"] and os.listdir(tmp_path / "a") == ["file"]
    with folder_lock(tmp_path / "a"):
        pass
    assert os.listdir(tmp_path / "a") == ["file"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": "x"}', b"[" * 20_000, b"\xff"])
def test_a_holder_that_has_written_nothing_readable_is_another_process(content, tmp_path):
    handle = os.open(tmp_path / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    os.write(handle, content)
    with pytest.raises(InputError, match="is in use by another process; wait for it"), folder_lock(tmp_path):
        pytest.fail("two are in")
    os.close(handle)
    with folder_lock(tmp_path):
        pass


def test_a_lock_file_removed_between_opening_and_locking_is_opened_again(tmp_path, monkeypatch):
    """What an ending run does at the worst moment: a lock on its removed file would keep nobody out."""
    flock, opened = fcntl.flock, []

    def late(handle, how):
        if not opened:
            os.unlink(tmp_path / ".lock")
        opened.append(handle)
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with folder_lock(tmp_path):
        assert len(opened) == 2
        with pytest.raises(InputError, match="is in use"), folder_lock(tmp_path):
            pytest.fail("two are in")


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    def refuse(handle, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with folder_lock(tmp_path / "run"):
        (tmp_path / "run" / "file").write_text("mine")
    line = capsys.readouterr().out
    assert (
        line.startswith("warning: ") and "run cannot be locked (No locks available): start no second run in it" in line
    )
    assert os.listdir(tmp_path / "run") == ["file"]


def test_other_errors_are_the_systems_own(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError), folder_lock(tmp_path / "file" / "run"):
        pytest.fail("in")

    def fail(handle, how):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="Input/output"), folder_lock(tmp_path):
        pytest.fail("in")


def test_a_full_disk_leaves_the_lock_without_a_name(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with folder_lock(tmp_path):
        with pytest.raises(InputError, match="in use by another process"), folder_lock(tmp_path):
            pytest.fail("two are in")


TWO = """
import os, sys
from common import distributed
from common.lock import folder_lock
from utils import InputError
with distributed.session("cpu"):
    for folder in sys.argv[1:]:
        try:
            with folder_lock(folder):
                distributed.barrier()
                print("in", os.listdir(folder), flush=True)
                distributed.barrier()
        except (InputError, OSError) as error:
            print(type(error).__name__, error, flush=True)
"""


def test_the_processes_of_one_run_take_it_once_and_stop_together(root, tmp_path, holder, free_port):
    (tmp_path / "file").write_text("mine")
    first = holder(tmp_path / "held")
    environment = {**os.environ, "PYTHONPATH": str(root), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, *(str(tmp_path / name) for name in ("free", "held", "file/run"))],
            env={**environment, "MASTER_PORT": str(free_port), "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    told = [process.communicate(timeout=300)[0].splitlines() for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert told[0] == told[1]
    free, held, blocked = told[0]
    assert free == "in ['.lock']"
    assert held.startswith("InputError ") and f"in use by process {first.pid} on" in held
    assert blocked.startswith("NotADirectoryError ")


@pytest.mark.parametrize("kind", ["link", "hard link", "pipe", "folder"])
def test_whatever_else_has_the_locks_name_is_left_as_it_is(tmp_path, kind):
    """Through a link the lock's text would overwrite a file outside of the folder; a pipe would be waited for."""
    folder, other = tmp_path / "run", tmp_path / "other"
    folder.mkdir()
    other.write_text("precious")
    path = folder / LOCK_FILE
    if kind == "link":
        path.symlink_to(other)
    elif kind == "hard link":
        path.hardlink_to(other)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(InputError, match=r"\.lock is no regular file"), folder_lock(folder):
        pass
    assert other.read_text() == "precious"
    assert os.path.lexists(path)
