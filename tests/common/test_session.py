"""common/session.py: stop requests, the lock of a folder, determinism, and errors as one line and an exit status."""

import errno
import fcntl
import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from common import session as module
from common.flags import Parser
from common.session import (
    CUBLAS_WORKSPACE,
    LOCK_FILE,
    ONE_REQUEST,
    SIGNALS,
    StopRequest,
    deterministic,
    folder_lock,
    run_command,
    session,
)
from common.settings import ProcessSettings
from tests.processes import run_processes
from utils import InputError, Interrupted, ProcessLost

CPU = torch.device("cpu")


def raising(error):
    def main(words):
        raise error

    return main


def send(number):
    os.kill(os.getpid(), number)


def handlers():
    return [signal.getsignal(number) for number in SIGNALS]


# Errors


OUT_OF_MEMORY = "out of memory ({}): free some, or give smaller batches or data"


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("two\n  lines"), 2, "two lines"),
        (ProcessLost("rank 0 lost another process"), 3, "rank 0 lost another process"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.npz"), 2, "No such file or directory: a.npz"),
        (OSError("no errno, no file"), 2, "no errno, no file"),
        (OSError(errno.ENOSPC, "No space left on device", "c"), 3, "No space left on device: c"),
        (OSError(errno.EMFILE, "Too many open files"), 3, "Too many open files"),
        (MemoryError(), 3, OUT_OF_MEMORY.format("no details")),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), 3, OUT_OF_MEMORY.format("CUDA out of memory. Tried")),
        (RuntimeError("CPU: can't allocate memory"), 3, OUT_OF_MEMORY.format("CPU: can't allocate memory")),
        (InputError("a\x1b[2Jb\x00\u202e é 画像"), 2, "a\\x1b[2Jb\\x00\\u202e é 画像"),
        (InputError("x" * 992 + "y" * 9999 + "z" * 999), 2, "x" * 992 + "y ... y" + "z" * 999),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C; what was finished is on disk"),
    ],
)
def test_an_error_is_one_line_and_a_status(monkeypatch, capsys, error, status, line):
    monkeypatch.setattr("sys.argv", ["/somewhere/active_main.py"])
    assert run_command(raising(error), []) == status
    assert capsys.readouterr() == ("", f"active_main.py: error: {line}\n")
    with pytest.raises(type(error)) as caught:
        run_command(raising(error), ["--debug"])
    assert caught.value is error


@pytest.mark.parametrize(
    ("path", "spec", "name"),
    [
        ("/x/contrast_main.py", None, "contrast_main.py"),
        ("/x/train_classifier/main.py", "train_classifier.main", "main.py"),
        ("/x/evals/report/__main__.py", "evals.report.__main__", "evals.report"),  # python -m evals.report
        ("/x/evals/report/__main__.py", None, "__main__.py"),  # the file itself
    ],
)
def test_a_command_has_the_name_under_which_it_was_started(monkeypatch, capsys, path, spec, name):
    monkeypatch.setattr("sys.argv", [path])
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=spec and SimpleNamespace(name=spec)))
    assert run_command(raising(InputError("no")), []) == 2
    assert capsys.readouterr().err == f"{name}: error: no\n"
    with pytest.raises(SystemExit):
        Parser("Does nothing.").parse(["--what"])
    assert capsys.readouterr().err.startswith(f"{name}: error: unrecognized arguments: --what")


def test_success_is_silent_and_bugs_keep_their_traceback(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr("sys.argv", ["main.py", "--b"])
    assert [run_command(seen.append, ("--a", "1")), run_command(seen.append)] == [0, 0]
    assert seen == [["--a", "1"], ["--b"]]
    assert capsys.readouterr() == ("", "")
    for bug in (ZeroDivisionError(), RuntimeError("a bug"), SystemExit(2)):
        with pytest.raises(type(bug)):
            run_command(raising(bug), [])


@pytest.mark.parametrize("ends", [True, False])
def test_the_first_process_of_a_machine_speaks_and_another_one_where_that_lives_on(monkeypatch, capsys, ends):
    class Ended(BaseException):
        """What a launcher's signal does to a process that waits."""

    def wait(seconds):
        if ends:
            raise Ended

    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module.time, "sleep", wait)
    if ends:
        with pytest.raises(Ended):
            run_command(raising(InputError("bad")), [])
        assert capsys.readouterr().err == ""
    else:
        assert run_command(raising(InputError("bad")), []) == 2
        assert capsys.readouterr().err.endswith("error: bad\n")


def test_under_torchrun_a_fault_is_on_record_for_the_launchers_report_and_bad_input_is_not(tmp_path, monkeypatch):
    path = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    assert run_command(raising(InputError("--k must be above 0")), []) == 2
    assert run_command(raising(Interrupted("stopped", 143)), []) == 143
    assert not path.exists()
    assert run_command(raising(ProcessLost("rank 1 is gone")), []) == 3
    assert "rank 1 is gone" in path.read_text()


# Stop requests


@pytest.mark.parametrize(
    ("number", "status", "name"),
    [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "SIGINT"), (signal.SIGUSR1, 0, "SIGUSR1")],
)
def test_a_signal_is_a_request_that_ends_in_one_line_and_its_status(number, status, name, capfd, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/contrast_main.py"])
    before, steps = handlers(), []

    def main(words):
        with StopRequest() as stop:
            for step in range(5):
                steps.append(step)
                if step == 2:
                    send(number)
                if stop.agreed():
                    raise stop.interrupted("epoch 3 is in\nlast.ckpt")

    assert run_command(main, ["--debug"]) == status  # it is not an error, so there is no traceback to show
    assert steps == [0, 1, 2]
    lines = capfd.readouterr().err.splitlines()
    assert lines[-1] == f"contrast_main.py: stopped by {name}: epoch 3 is in last.ckpt"
    assert len(lines) == 1 + (status == 130)  # Ctrl-C is answered at once
    assert handlers() == before


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 0), (signal.SIGALRM, 0)]
)
def test_a_command_whose_files_are_whole_is_stopped_at_once(number, status):
    before = handlers()
    with pytest.raises(Interrupted, match="stopped by .*: cycle 2 is on disk") as caught:
        with StopRequest(max_minutes=100, raises=True) as stop:
            stop.kept = "cycle 2 is on disk"
            send(number)
            pytest.fail("still here")
    assert caught.value.status == status
    assert handlers() == before


def test_the_time_limit_comes_early_enough_for_saving(monkeypatch):
    armed = []
    monkeypatch.setattr(signal, "setitimer", lambda kind, seconds: armed.append(seconds))
    with StopRequest(max_minutes=2) as stop:
        stop.reserve(30)
        send(signal.SIGALRM)
        assert stop.agreed()
        assert str(stop.interrupted("all is saved")) == "stopped by --max_minutes 2: all is saved"
    with StopRequest(max_minutes=2, raises=True):
        pass
    with StopRequest():
        pass
    assert armed == pytest.approx([115, 90, 0, 120, 0, 0], abs=1)


def test_a_time_limit_stops_by_itself():
    start = time.monotonic()
    with pytest.raises(Interrupted, match="max_minutes 0.005"), StopRequest(max_minutes=0.005, raises=True):
        time.sleep(60)
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(("second", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_one_ends_at_once_unless_it_comes_with_the_first(second, status, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    with pytest.raises(Interrupted, match="ended at once by a second SIG") as caught, StopRequest() as stop:
        send(signal.SIGINT)
        clock[0] += ONE_REQUEST
        send(second)  # a launcher's, beside the terminal's own
        assert stop.agreed()
        clock[0] += 0.01
        send(signal.SIGUSR1)  # a queue's, no sign of impatience
        send(second)
        pytest.fail("still here")
    assert caught.value.status == status


def test_the_sterner_of_two_requests_counts():
    with StopRequest() as stop:
        send(signal.SIGTERM)
        send(signal.SIGUSR1)
        assert stop.agreed() and stop.interrupted("x").status == 143


def test_off_the_main_thread_there_are_no_handlers():
    before, found = handlers(), []

    def work():
        with StopRequest(max_minutes=1):
            found.append(handlers() == before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True]


def stop_in_turn(words, rank):
    """Process 1 gets SIGUSR1 at step 2, process 0 SIGTERM at step 3; both stop at step 2."""
    with session(ProcessSettings(device="cpu"), on_stop="finish") as run:
        assert run.processes == 2
        for step in range(6):
            if (rank, step) == (1, 2):
                send(signal.SIGUSR1)
            time.sleep(0.02 * rank)
            assert run.stop.agreed() == (step >= 2), (rank, step)
            if (rank, step) == (0, 3):
                send(signal.SIGTERM)
        raise run.stop.interrupted("saved")


def test_two_processes_agree_at_one_step_on_the_sterner_request(tmp_path):
    ended = run_processes(stop_in_turn, tmp_path)
    assert [process.status for process in ended] == [143, 143], ended[0].told
    assert ended[0].lines[-1] == "main.py: stopped by SIGTERM: saved"


# The lock of a folder


def hold(folder, locked):
    with folder_lock(folder):
        locked.set()
        time.sleep(600)


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of tmp_path/run."""
    context = multiprocessing.get_context("fork")
    locked = context.Event()
    process = context.Process(target=hold, args=(tmp_path / "run", locked))
    process.start()
    assert locked.wait(60)
    yield process
    process.kill()
    process.join()


def test_the_second_process_stops_and_names_the_first_until_that_ends_however_it_does(tmp_path, holder):
    wanted = rf"run is in use by process {holder.pid} on {re.escape(socket.gethostname())}, started at \d{{4}}-.*;"
    with pytest.raises(InputError, match=wanted), folder_lock(tmp_path / "run"):
        pytest.fail("two are in")
    with folder_lock(tmp_path / "other"):
        pass
    holder.kill()
    holder.join()
    assert os.listdir(tmp_path / "run") == [LOCK_FILE]
    with folder_lock(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK_FILE).read_text().startswith(f"process {os.getpid()} on ")
    assert os.listdir(tmp_path / "run") == []


def test_folders_that_stay_empty_go_and_others_stay(tmp_path):
    with folder_lock(tmp_path / "a" / "b"), folder_lock(tmp_path / "a"):
        assert (tmp_path / "a" / "b").is_dir()
        with pytest.raises(InputError, match=f"in use by process {os.getpid()}"), folder_lock(tmp_path / "a"):
            pytest.fail("two are in")
    assert os.listdir(tmp_path) == []
    with pytest.raises(ZeroDivisionError), folder_lock(tmp_path / "a" / "b"):
        (tmp_path / "a" / "file").write_text("mine")
        raise ZeroDivisionError
    assert os.listdir(tmp_path / "a") == ["file"]


@pytest.mark.parametrize(
    ("content", "named"), [(b"", "another process"), (b"\xff", "\ufffd"), (b"x" * 20_000, "x" * 300)]
)
def test_a_holder_may_have_written_anything(content, named, tmp_path):
    handle = os.open(tmp_path / LOCK_FILE, os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    os.write(handle, content)
    with pytest.raises(InputError, match=f"is in use by {named}; wait for it"), folder_lock(tmp_path):
        pytest.fail("two are in")
    os.close(handle)


def test_a_lock_file_removed_between_opening_and_locking_is_opened_again(tmp_path, monkeypatch):
    """What an ending run does at the worst moment: a lock on its removed file would keep nobody out."""
    flock, opened = fcntl.flock, []

    def late(handle, operation):
        if not opened:
            os.unlink(tmp_path / LOCK_FILE)
        opened.append(handle)
        flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with folder_lock(tmp_path):
        assert len(opened) == 2


@pytest.mark.parametrize(("number", "warns"), [(errno.ENOLCK, True), (errno.EIO, False)])
def test_a_file_system_without_locks_is_said_and_other_errors_are_the_systems(
    tmp_path, monkeypatch, capsys, number, warns
):
    def refuse(handle, operation):
        raise OSError(number, "refused")

    monkeypatch.setattr(fcntl, "flock", refuse)
    if warns:
        with folder_lock(tmp_path / "run"):
            (tmp_path / "run" / "file").write_text("mine")
        assert "run cannot be locked (refused): start no second run in it" in capsys.readouterr().out
        assert os.listdir(tmp_path / "run") == ["file"]
    else:
        with pytest.raises(OSError, match="refused"), folder_lock(tmp_path):
            pytest.fail("in")


@pytest.mark.parametrize("kind", ["link", "hard link", "pipe", "folder"])
def test_whatever_else_has_the_locks_name_is_left_as_it_is(tmp_path, kind):
    """Through a link the lock's text would overwrite a file outside of the folder; a pipe would be waited for."""
    folder, other = tmp_path / "run", tmp_path / "other"
    folder.mkdir()
    other.write_text("precious")
    path = folder / LOCK_FILE
    makes = {"link": path.symlink_to, "hard link": path.hardlink_to}
    makes[kind](other) if kind in makes else os.mkfifo(path) if kind == "pipe" else path.mkdir()
    with pytest.raises(InputError, match="is not a regular file"), folder_lock(folder):
        pass
    assert other.read_text() == "precious"
    assert os.path.lexists(path)


def lock_together(words, rank, folders):
    with session(ProcessSettings(device="cpu"), on_stop="raise"):
        for folder in folders:
            try:
                with folder_lock(folder):
                    print("in", flush=True)
            except (InputError, OSError) as error:
                print(type(error).__name__, flush=True)


def test_the_processes_of_one_run_take_it_once_and_stop_together(tmp_path, holder):
    (tmp_path / "file").write_text("mine")
    folders = [tmp_path / name for name in ("free", "run", "file/run")]
    ended = run_processes(lock_together, tmp_path, folders)
    assert [process.status for process in ended] == [0, 0]
    assert [process.told.split() for process in ended] == [["in", "InputError", "NotADirectoryError"]] * 2


# Determinism


def torch_settings():
    cudnn = torch.backends.cudnn
    return torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark


@pytest.fixture
def workspace(monkeypatch):
    monkeypatch.delenv(CUBLAS_WORKSPACE, raising=False)
    yield
    os.environ.pop(CUBLAS_WORKSPACE, None)


def test_the_block_is_in_a_fixed_order_and_what_is_around_it_as_before(workspace, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = torch_settings()
    with deterministic(False, CPU):
        assert torch_settings() == before and CUBLAS_WORKSPACE not in os.environ
    with pytest.raises(ZeroDivisionError), deterministic(True, CPU):
        assert torch_settings() == (True, True, False)
        assert os.environ[CUBLAS_WORKSPACE] == ":4096:8"
        raise ZeroDivisionError
    assert torch_settings() == before


def test_an_operation_in_no_fixed_order_is_one_line(workspace):
    message = "cumsum_cuda_kernel does not have a deterministic implementation, but you set 'torch.use_deter...'. Turn"
    with pytest.raises(InputError, match="leave it out here"), deterministic(True, CPU):
        raise RuntimeError(message)
    with pytest.raises(RuntimeError, match="sizes"), deterministic(True, CPU):
        raise RuntimeError("sizes differ")
