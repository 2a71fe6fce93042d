"""Several processes of which one fails, ends or hangs: the others end too, and one line tells why (gloo)."""

import os
import re
import signal
import socket
import time

import pytest
import torch

from common import distributed
from tests.processes import PATIENCE, free_port, run_processes
from utils import InputError, Interrupted

MINUTES = 0.05  # of the time-out: 3 s


# What the processes do, by rank; the store is kept by the first one, as without torchrun's agent.


def exchange_for_ever():
    while True:
        distributed.gather_rows(torch.ones(2, 3))
        time.sleep(0.01)


def file_missing_on_the_second(rank):
    distributed.gather_objects(rank)
    if rank == 1:
        raise InputError("b.npz does not exist;\nname another --data_path")
    exchange_for_ever()


def file_missing_on_the_first(rank):
    file_missing_on_the_second(1 - rank)


def all_meet_the_same(rank):
    distributed.barrier()
    raise InputError("--k is too small")


def full_disk_on_the_first(rank):
    distributed.barrier()
    if rank == 0:
        raise OSError(28, "No space left on device", "last.ckpt")
    exchange_for_ever()


def bug_on_the_second(rank):
    distributed.barrier()
    if rank == 1:
        raise KeyError("a slip of ours")
    exchange_for_ever()


def killed(rank):
    distributed.enter("epoch 3")
    distributed.barrier()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    exchange_for_ever()


def stopped(rank):
    distributed.enter("epoch 3")
    distributed.barrier()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    exchange_for_ever()


def first_one_of_the_machine_fails(rank):
    with distributed.first_here():
        if rank == 0:
            raise InputError("cifar10 could not be downloaded")
        time.sleep(PATIENCE)


def stops_early(rank):
    raise Interrupted("stopped by SIGTERM: saved", 143)


def ends_well(rank):
    time.sleep(0.3 * rank)
    distributed.gather_objects(rank)


def act(words, rank, scenario):
    """A command in small."""
    with distributed.session("cpu", timeout_minutes=MINUTES):
        scenario(rank)


@pytest.fixture
def run(tmp_path):
    """Runs a scenario and returns how each process ended."""
    return lambda scenario, **how: run_processes(act, tmp_path, scenario, **how)


def act_with_traceback(words, rank):
    try:
        act(words, rank, killed)
    except Exception as error:
        print("cause:", repr(error.__cause__))
        raise


@pytest.mark.parametrize("scenario", [file_missing_on_the_second, file_missing_on_the_first])
def test_an_error_of_one_process_is_told_by_it_alone_and_ends_the_others(run, scenario):
    guilty = 1 if scenario is file_missing_on_the_second else 0
    ended = run(scenario)
    assert ended[guilty].lines == ["main.py: error: b.npz does not exist; name another --data_path"]
    assert ended[guilty].status == 2
    assert ended[1 - guilty].status == 3
    if guilty == 1:  # the first keeps the store, so that with it the reason is gone
        assert ended[0].lines == []
    assert ended[0].seconds < 20 and "Traceback" not in ended[0].told + ended[1].told


def test_an_error_that_all_meet_is_told_once(run):
    ended = run(all_meet_the_same, size=3)
    assert [process.status for process in ended] == [2, 2, 2]
    assert sorted(line for process in ended for line in process.lines) == ["main.py: error: --k is too small"]


def test_a_full_disk_at_the_first_process_ends_all_with_its_line(run):
    ended = run(full_disk_on_the_first)
    assert [process.status for process in ended] == [3, 3]
    assert ended[0].lines == ["main.py: error: No space left on device: last.ckpt"]


def test_a_bug_gives_one_traceback(run):
    ended = run(bug_on_the_second)
    assert ended[1].status == 1 and ended[1].told.count("Traceback") == 1 and "a slip of ours" in ended[1].told
    assert ended[0].status == 3 and ended[0].lines == [] and "Traceback" not in ended[0].told


def test_a_killed_process_is_named_by_one_of_the_others(run):
    ended = run(killed, size=3)
    assert [process.status for process in ended] == [3, -signal.SIGKILL, 3]
    told = [line for process in ended for line in process.lines]
    assert len(told) == 1, told
    expected = (
        rf"main.py: error: rank [02] lost rank 1 \(process {ended[1].pid} on {re.escape(socket.gethostname())}\) in "
        r"epoch 3: it ended without a word; see there whether it was killed or the memory ran out"
    )
    assert re.match(expected, told[0]), told
    assert ended[0].seconds < 20


def test_what_torch_said_of_a_lost_process_is_kept_for_the_traceback(tmp_path):
    ended = run_processes(act_with_traceback, tmp_path)
    assert "cause: RuntimeError(" in ended[0].told and "gloo" in ended[0].told, ended[0].told


def test_a_stopped_process_ends_the_others_by_the_time_out(run):
    ended = run(stopped, size=3, stopped=[1])
    assert [process.status for process in ended] == [3, -signal.SIGKILL, 3]
    told = [line for process in ended for line in process.lines]
    assert len(told) == 1, told
    expected = (
        rf"main.py: error: rank [02] waited 0\.05 minutes \(--timeout_minutes\) in epoch 3 and rank 1 \(process "
        rf"{ended[1].pid} on {re.escape(socket.gethostname())}\) gave no answer: see there whether it is stopped"
    )
    assert re.match(expected, told[0]), told
    assert 3 <= ended[0].seconds < 20


def test_where_the_first_one_of_a_machine_fails_the_others_end(run):
    ended = run(first_one_of_the_machine_fails)
    assert [process.status for process in ended] == [2, 3]
    assert ended[0].lines == ["main.py: error: cifar10 could not be downloaded"]
    assert ended[0].seconds < 20


def test_a_process_that_comes_alone_is_one_line(tmp_path):
    ended = run_processes(come, tmp_path, free_port(), size=1)
    assert ended[0].status == 3
    assert len(ended[0].lines) == 1, ended[0].told
    assert "error: rank 1 did not meet the other processes at 127.0.0.1:" in ended[0].lines[0]
    assert " within 0.05 minutes: " in ended[0].lines[0]


def come(words, rank, port):
    os.environ |= {"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    act(words, 1, ends_well)


def test_a_request_to_stop_is_no_failure(run):
    ended = run(stops_early)
    assert [process.status for process in ended] == [143, 143]
    assert ended[0].lines == ["main.py: stopped by SIGTERM: saved"] and ended[1].lines == []


def test_a_good_end_is_silent(run):
    ended = run(ends_well, size=3)
    assert [(process.status, process.told) for process in ended] == [(0, "")] * 3
