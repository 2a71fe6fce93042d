"""Several processes of which one fails, ends or hangs: the others end too, and one line tells why (gloo)."""

import dataclasses
import multiprocessing
import os
import re
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
import torch

import utils
from common import distributed
from utils import InputError, Interrupted, run_cli

MINUTES = 0.05  # of the time-out: 3 s
PATIENCE = 60.0  # seconds after which a process counts as hanging


@dataclasses.dataclass
class Ended:
    """How one process ended."""

    status: int
    told: str
    pid: int
    seconds: float


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


def work(scenario, rank, size, port, folder):
    """One process of a scenario: a command in small."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    told = os.open(Path(folder) / str(rank), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(told, 1)
    os.dup2(told, 2)
    sys.argv = ["main.py"]
    utils.wait_for_the_first_process = lambda: time.sleep(0.2)

    def main(words):
        with distributed.session("cpu", timeout_minutes=MINUTES):
            scenario(rank)

    sys.exit(run_cli(main, []))


@pytest.fixture(scope="module")
def server():
    """Forks processes that have the imports behind them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["common.distributed", "diffdist.functional"])
    return context


@pytest.fixture
def run(server, tmp_path):
    """Runs a scenario and returns how each process ended; a stopped one is killed once the others are gone."""

    def run(scenario, size=2, stopped=()):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        start = time.monotonic()
        running = [server.Process(target=work, args=(scenario, rank, size, port, tmp_path)) for rank in range(size)]
        for process in running:
            process.start()
        try:
            for rank, process in enumerate(running):
                if rank not in stopped:
                    process.join(max(0.0, start + PATIENCE - time.monotonic()))
            seconds = time.monotonic() - start
        finally:
            for process in running:
                process.kill()
        for process in running:
            process.join()
        return [
            Ended(process.exitcode, (tmp_path / str(rank)).read_text(), process.pid, seconds)
            for rank, process in enumerate(running)
        ]

    return run


def lines(ended):
    """What the command itself has said, without torch's warnings about connections that are gone."""
    return [line for line in ended.told.splitlines() if line.startswith("main.py: ")]


@pytest.mark.parametrize("scenario", [file_missing_on_the_second, file_missing_on_the_first])
def test_an_error_of_one_process_is_told_by_it_alone_and_ends_the_others(run, scenario):
    guilty = 1 if scenario is file_missing_on_the_second else 0
    ended = run(scenario)
    assert lines(ended[guilty]) == ["main.py: error: b.npz does not exist; name another --data_path"]
    assert ended[guilty].status == 2
    assert ended[1 - guilty].status == 3
    if guilty == 1:  # the first keeps the store, so that with it the reason is gone
        assert lines(ended[0]) == []
    assert ended[0].seconds < 20 and "Traceback" not in ended[0].told + ended[1].told


def test_an_error_that_all_meet_is_told_once(run):
    ended = run(all_meet_the_same, size=3)
    assert [process.status for process in ended] == [2, 2, 2]
    assert sorted(line for process in ended for line in lines(process)) == ["main.py: error: --k is too small"]


def test_a_full_disk_at_the_first_process_ends_all_with_its_line(run):
    ended = run(full_disk_on_the_first)
    assert [process.status for process in ended] == [3, 3]
    assert lines(ended[0]) == ["main.py: error: No space left on device: last.ckpt"]


def test_a_bug_gives_one_traceback(run):
    ended = run(bug_on_the_second)
    assert ended[1].status == 1 and ended[1].told.count("Traceback") == 1 and "a slip of ours" in ended[1].told
    assert ended[0].status == 3 and lines(ended[0]) == [] and "Traceback" not in ended[0].told


def test_a_killed_process_is_named_by_one_of_the_others(run):
    ended = run(killed, size=3)
    assert [process.status for process in ended] == [3, -signal.SIGKILL, 3]
    told = [line for process in ended for line in lines(process)]
    assert len(told) == 1, told
    expected = (
        rf"main.py: error: rank [02] lost rank 1 \(process {ended[1].pid} on {re.escape(socket.gethostname())}\) in "
        r"epoch 3: it ended without a word; see there whether it was killed or the memory ran out"
    )
    assert re.match(expected, told[0]), told
    assert ended[0].seconds < 20


def test_a_stopped_process_ends_the_others_by_the_time_out(run):
    ended = run(stopped, size=3, stopped=[1])
    assert [process.status for process in ended] == [3, -signal.SIGKILL, 3]
    told = [line for process in ended for line in lines(process)]
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
    assert lines(ended[0]) == ["main.py: error: cifar10 could not be downloaded"]
    assert ended[0].seconds < 20


def test_a_process_that_never_comes_is_one_line(server, tmp_path):
    process = server.Process(target=work, args=(ends_well, 1, 2, 1, tmp_path))  # nobody listens at port 1
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == 3
    told = (tmp_path / "1").read_text().splitlines()
    shown = [line for line in told if line.startswith("main.py: ")]
    assert len(shown) == 1, told
    assert "error: rank 1 did not meet the other processes at 127.0.0.1:1 within 0.05 minutes: " in shown[0]


def test_a_request_to_stop_is_no_failure(run):
    ended = run(stops_early)
    assert [process.status for process in ended] == [143, 143]
    assert lines(ended[0]) == ["main.py: stopped by SIGTERM: saved"] and lines(ended[1]) == []


def test_a_good_end_is_silent(run):
    ended = run(ends_well, size=3)
    assert [(process.status, process.told) for process in ended] == [(0, "")] * 3
