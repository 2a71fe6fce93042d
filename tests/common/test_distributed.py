"""common/distributed.py and utils.launcher: one process, and several on this machine."""

import os
import signal
import time

import pytest
import torch

from common import distributed
from tests.processes import run_processes
from utils import InputError, Launcher, ProcessLost, is_first_process, launcher


def test_one_process_is_first_and_alone():
    with distributed.process_group("cpu") as device:
        assert device == torch.device("cpu")
        assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
        rows = torch.arange(6.0).view(3, 2)
        assert distributed.all_gather(rows) is rows and distributed.gather_rows(rows) is rows
        assert distributed.gather_objects("value") == ["value"] and distributed.largest(3) == 3
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, Launcher()),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, Launcher(3, 4, 1, 4)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, Launcher(3, 4, 1, 2)),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK=1 but no RANK"),
        ({"RANK": "3"}, "RANK=3 but no WORLD_SIZE"),
        ({"RANK": "0", "WORLD_SIZE": "", "LOCAL_RANK": "0"}, "'WORLD_SIZE=', which is not a whole number"),
        ({"RANK": "-1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "'RANK=-1', which is not a whole number"),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "cannot all be true"),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "1"}, "cannot all be true"),
    ],
)
def test_what_a_launcher_says_is_checked(variables, expected, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if isinstance(expected, Launcher):
        assert launcher() == expected
        assert is_first_process() == (expected.rank == 0)
        assert is_first_process(on_this_machine=True) == (expected.local_rank == 0)
    else:
        with pytest.raises(InputError, match=expected):
            launcher()
        assert is_first_process()  # so that somebody says it


def test_more_processes_than_gpus_are_refused_before_they_meet(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"4 processes on this machine and 1 GPU\(s\)"):
        distributed.choose_device("auto")


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (RuntimeError("[/gloo/transport/tcp/pair.cc:561] Connection closed by peer [::1]:1"), ProcessLost),
        (torch.distributed.DistBackendError("NCCL error"), ProcessLost),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), RuntimeError),
        (InputError("gloo.npz does not exist"), InputError),
        (OSError("Connection reset by peer"), OSError),
    ],
)
def test_what_counts_as_the_loss_of_a_process(error, raised):
    with pytest.raises(raised) as caught, distributed.process_group("cpu"):
        raise error
    assert type(caught.value) is raised or raised is not ProcessLost


def enter_in_turn(words, rank, path):
    """Four processes, as of two machines with two each."""
    os.environ["LOCAL_RANK"] = str(rank % 2)
    with distributed.process_group("cpu"):
        with distributed.first_here():
            if rank in (0, 2):
                time.sleep(0.3)
            with open(path, "a") as file:
                file.write(f"{rank}\n")
        assert is_first_process(on_this_machine=True) == (rank in (0, 2))


def test_the_first_of_each_machine_goes_before_its_others_and_the_first_of_all_before_all(tmp_path):
    ended = run_processes(enter_in_turn, tmp_path, tmp_path / "order", size=4)
    assert [process.status for process in ended] == [0] * 4, ended[0].told
    order = (tmp_path / "order").read_text().split()
    assert order[:2] == ["0", "2"] and sorted(order[2:]) == ["1", "3"]


def exchange(words, rank, what):
    """Everything that processes exchange; ``what`` is how it ends."""
    with distributed.process_group("cpu", timeout_minutes=0.05):
        assert distributed.from_first(lambda: {"rank": rank}) == {"rank": 0}
        assert distributed.gather_objects(rank) == [0, 1]
        assert [distributed.largest(value) for value in (rank, 5 - rank, 7)] == [1, 5, 7]
        rows = distributed.gather_rows(torch.full((1 + rank, 2), float(rank)))
        assert rows.tolist() == [[0, 0], [1, 1], [1, 1]]
        assert distributed.gather_rows(torch.arange(2 * rank)).tolist() == [0, 1]  # none here, two there
        distributed.require_same("x", "the words")
        if what == "other":
            distributed.require_same(f"x{rank}", "the words are not the same")
        if what == "error":
            distributed.from_first(lambda: open("/nowhere/at/all"))
        if what in ("killed", "stopped") and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL if what == "killed" else signal.SIGSTOP)
        distributed.barrier()


@pytest.mark.parametrize(
    ("what", "status", "line"),
    [
        ("well", [0, 0], None),
        ("other", [2, 2], "the words are not the same: rank 0 finds x0 and rank 1 finds x1; give both the same"),
        ("error", [2, 2], "No such file or directory: /nowhere/at/all"),
        ("killed", [3, -signal.SIGKILL], "rank 0 lost another process"),
        ("stopped", [3, -signal.SIGKILL], "or waited 0.05 minutes (--timeout_minutes) for it in vain"),
    ],
)
def test_how_two_processes_end(tmp_path, what, status, line):
    ended = run_processes(exchange, tmp_path, what, stopped=[1] if what == "stopped" else [])
    assert [process.status for process in ended] == status, ended[0].told
    lines = ended[0].lines
    assert len(lines) == (line is not None), ended[0].told
    assert line is None or line in lines[0]


def wait_alone(words, rank):
    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29611",
    }
    with distributed.process_group("cpu", timeout_minutes=0.02):
        pytest.fail("nobody else is there")


def test_a_process_that_nobody_meets_says_where_it_waited(tmp_path):
    [ended] = run_processes(wait_alone, tmp_path, size=1)
    assert ended.status == 3
    assert "rank 0 did not meet the other processes at 127.0.0.1:29611 within 0.02 minutes" in ended.lines[0]
