"""common/interruption.py: signals, time limits, impatience, nesting, agreement and exit statuses."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from common import distributed
from common.cli import run_cli
from common.interruption import ONE_REQUEST, SIGNALS, Interruption
from utils import Interrupted


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)


class Clock:
    """Stands in for time.monotonic."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def send(number):
    os.kill(os.getpid(), number)


def handlers():
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.mark.parametrize(
    ("number", "status", "name"),
    [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "SIGINT"), (signal.SIGUSR1, 0, "SIGUSR1")],
)
def test_a_signal_is_a_request_that_ends_in_one_line_and_its_status(number, status, name, capfd, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/contrast_main.py"])
    before, steps = handlers(), []

    def main(words):
        with Interruption() as interruption:
            for step in range(5):
                steps.append(step)
                if step == 2:
                    send(number)
                assert interruption.due() == interruption.agreed() == (step == 2)
                if interruption.due():
                    raise interruption.stop("epoch 3 is in\nlast.ckpt")

    assert run_cli(main, ["--debug"]) == status  # no error, so there is no traceback to show
    assert steps == [0, 1, 2]
    lines = capfd.readouterr().err.splitlines()
    assert lines[-1] == f"contrast_main.py: stopped by {name}: epoch 3 is in last.ckpt"
    assert lines[:-1] == (["Ctrl-C: stopping as soon as the work is saved; once more stops at once"] * (status == 130))
    assert handlers() == before


def test_without_a_request_nothing_is_due_and_the_handlers_come_back():
    before = handlers()
    with Interruption(max_minutes=1000) as interruption:
        assert handlers() != before
        assert not interruption.due() and not interruption.agreed()
    with pytest.raises(ZeroDivisionError), Interruption():
        raise ZeroDivisionError
    assert handlers() == before


def test_a_handler_that_python_does_not_know_is_the_default_afterwards(monkeypatch):
    set_handler, seen = signal.signal, []
    monkeypatch.setattr(signal, "signal", lambda number, handler: seen.append((number, handler)))
    with Interruption():
        del seen[:]
    assert seen == [(number, signal.SIG_DFL) for number in SIGNALS]
    assert set_handler is not signal.signal


def test_the_time_limit_counts_from_the_start_and_keeps_the_margin(clock):
    with Interruption(max_minutes=2) as interruption:
        assert interruption.limited
        clock.now += 109.9
        assert not interruption.due()
        interruption.margin = 10.2
        assert interruption.due() and interruption.agreed()
        interruption.margin = 10.0
        assert not interruption.due()
        clock.now += 0.1
        assert interruption.due()
        stop = interruption.stop("all is saved")
    assert (str(stop), stop.status) == ("stopped by --max_minutes 2: all is saved", 0)
    with Interruption() as interruption:
        clock.now += 1e9
        assert not interruption.limited and not interruption.due()


def test_what_comes_before_the_next_question_must_still_fit(clock):
    with Interruption(max_minutes=1) as interruption:
        clock.now += 20  # setting up is not repeated
        found = []
        for seconds in (0, 12, 5, 5, 5):  # asked at 20, 32, 37, 42, 47 seconds
            clock.now += seconds
            found.append(interruption.due())
        assert found == [False, False, False, False, False]
        clock.now += 1  # 48 + the longest, 12
        assert interruption.due()


def test_the_time_limit_and_an_earlier_request_of_the_outer_command_count(clock):
    with Interruption(max_minutes=1):
        clock.now += 30
        with Interruption() as inner, Interruption(max_minutes=5) as innermost:
            assert inner.limited and not inner.due() and not innermost.due()
            clock.now += 30
            assert inner.due() and innermost.due()
            assert str(innermost.stop("x")) == "stopped by --max_minutes 1: x"
    with Interruption(max_minutes=1), Interruption(max_minutes=0.1) as inner:
        clock.now += 6
        assert str(inner.stop("x")) == "stopped by --max_minutes 0.1: x"
    with Interruption():
        send(signal.SIGTERM)
        with Interruption() as inner:
            assert inner.due() and inner.stop("x").status == 143


def test_the_sterner_of_two_requests_counts(clock):
    with Interruption(max_minutes=1) as interruption:
        clock.now += 60
        send(signal.SIGTERM)
        send(signal.SIGUSR1)
        assert interruption.stop("x").status == 143


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("second", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_one_ends_at_once_unless_it_comes_with_the_first(first, second, status, clock, capfd):
    before = handlers()
    with pytest.raises(Interrupted, match="ended at once by a second SIG") as caught, Interruption() as interruption:
        send(first)
        clock.now += ONE_REQUEST
        send(second)
        assert interruption.due()
        clock.now += 0.01
        send(signal.SIGUSR1)  # no sign of impatience
        send(second)
        pytest.fail("still here")
    assert caught.value.status == status
    assert handlers() == before
    assert capfd.readouterr().err.count("Ctrl-C") == (first == signal.SIGINT)


def test_a_late_sigterm_after_sigusr1_is_the_first_of_its_kind(clock):
    with Interruption() as interruption:
        send(signal.SIGUSR1)
        clock.now += 100
        send(signal.SIGTERM)
        assert interruption.stop("x").status == 143


def test_a_request_that_the_inner_command_has_not_served_goes_on_to_the_outer_one():
    with Interruption() as outer:
        with Interruption():
            send(signal.SIGTERM)  # in its last moment: it is done all the same
        assert outer.due() and outer.stop("x").status == 143
    with Interruption() as outer:
        with pytest.raises(Interrupted), Interruption() as inner:
            send(signal.SIGTERM)
            raise inner.stop("x")
        assert not outer.due()


def test_a_request_left_over_at_the_end_is_dropped():
    with Interruption():
        send(signal.SIGTERM)


def test_off_the_main_thread_only_the_time_limit_works(clock):
    before, found = handlers(), []

    def work():
        with Interruption(max_minutes=1) as interruption:
            found.append(handlers() == before)
            found.append(interruption.due())
            clock.now += 60
            found.append(interruption.due())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True, False, True]


def test_other_processes_stay_silent_and_let_the_first_speak(monkeypatch, capfd):
    waits = []
    monkeypatch.setattr("common.cli.wait_for_the_first_process", lambda: waits.append(1))
    monkeypatch.setenv("LOCAL_RANK", "1")

    def main(words):
        with Interruption() as interruption:
            send(signal.SIGINT)
            raise interruption.stop("x")

    assert run_cli(main, []) == 130
    assert capfd.readouterr().err == "" and waits == [1]


TWO = """
import os, signal, sys, time
from common import distributed
from common.interruption import Interruption
from common.cli import run_cli

def main(words):
    with Interruption() as interruption, distributed.session("cpu"):
        rank = distributed.rank()
        assert [distributed.largest(n) for n in (rank, 5 - rank, 7)] == [1, 5, 7]
        for step in range(6):
            if (rank, step) == (1, 2):
                os.kill(os.getpid(), signal.SIGUSR1)
            if (rank, step) == (0, 3):
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.02 * rank)
            stop = interruption.agreed()
            assert stop == (step >= 2), (rank, step)
        print(rank, interruption.stop("saved"), flush=True)
        raise interruption.stop("saved")

sys.exit(run_cli(main))
"""


def test_two_processes_agree_at_one_step_on_the_sterner_request(root, free_port):
    environment = {**os.environ, "PYTHONPATH": str(root), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", TWO],
            env={**environment, "MASTER_PORT": str(free_port), "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    told = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [143, 143], told
    assert [out for out, _ in told] == [f"{rank} stopped by SIGTERM: saved\n" for rank in range(2)]


def test_one_process_is_its_own_majority():
    assert distributed.largest(3) == 3
