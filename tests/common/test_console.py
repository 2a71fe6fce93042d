"""common/console.py: lines, progress, --quiet and last words."""

import os

import pytest

from common import console
from common.console import log, progress


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_log_prints_from_the_first_process_only(monkeypatch, capsys):
    log("one")
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    log("two")
    assert capsys.readouterr().out == "one\n"


def test_progress_off_a_terminal_says_little(capsys):
    assert list(progress(range(3), description="batches")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_progress_in_a_log_is_a_line_each_half_minute(capsys, monkeypatch):
    now = iter([0.0, 20.0, 31.0, 50.0, 62.0])  # start, and after each item
    monkeypatch.setattr(console.time, "perf_counter", lambda: next(now))
    assert list(progress("abcd", description="batches", unit="batch")) == list("abcd")
    assert capsys.readouterr().out == (
        "batches: 2 of 4, 15.5 s/batch, 31 s left\nbatches: 4 of 4, 15.5 s/batch, 0 s left\n"
    )


def test_progress_of_an_unknown_length_says_no_time_left(capsys, monkeypatch):
    now = iter([0.0, 0.1, 40.0])
    monkeypatch.setattr(console.time, "perf_counter", lambda: next(now))
    assert list(progress(iter("ab"), description="files", unit="file")) == ["a", "b"]
    assert capsys.readouterr().out == "files: 2, 20.0 s/file\n"


@pytest.fixture
def quiet():
    console.set_quiet(True)
    yield
    console.set_quiet(False)


def test_quiet_leaves_warnings_and_what_was_written(quiet, capsys, monkeypatch):
    monkeypatch.setattr(console, "LINE_INTERVAL", 0)
    log("not this")
    assert list(progress(range(2), description="nor this")) == [0, 1]
    console.warn("this")
    console.finish(["a", "b"], then="nor this")
    assert capsys.readouterr().out == "warning: this\nwrote a and b\n"


def test_a_stage_of_a_larger_command_proposes_nothing(capsys):
    with console.as_a_stage():
        with console.as_a_stage():
            pass
        console.finish(["a"], then="b")
    console.finish(["c"], then="d")
    assert capsys.readouterr().out == "wrote a\nwrote c\nnext: d\n"


TERMINAL = """
import utils
from common import console, session
def fail(words):
    raise utils.InputError("bad")
for outer in console.progress(range(4), description="outer", unit="step"):
    for inner in console.progress(range(2), description="inner"):
        pass
    console.log(f"line {outer} [red]")
for broken in console.progress(range(4), description="broken"):
    session.run_command(fail, [])
    break
"""


def test_bars_on_a_terminal_leave_lines_and_errors_whole(root):
    """Under a terminal of its own (pty): bars with a rate, log lines as they are, and nothing left of the bars."""
    import pty
    import subprocess
    import sys

    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(
        [sys.executable, "-c", TERMINAL],
        cwd=root,
        stdout=follower,
        stderr=follower,
        env=environment,
    ) as process:
        os.close(follower)
        shown = b""
        while True:
            try:
                chunk = os.read(leader, 65536)
            except OSError:  # the other end is closed
                break
            if not chunk:
                break
            shown += chunk
    os.close(leader)
    text = shown.decode()
    assert process.returncode == 0
    for number in range(4):
        assert f"line {number} [red]" in text
    assert "outer" in text and "step/s" in text
    assert "error: bad" in text


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (119, "119 s"), (120, "2.0 min"), (7199, "120.0 min"), (7200, "2.0 h")]
)
def test_durations(seconds, words):
    assert console.duration(seconds) == words
