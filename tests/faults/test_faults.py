"""The fault campaign: that its faults happen, that it sees a wrong result, and a short one of the real commands."""

import signal
from pathlib import Path

import pytest

from tests.faults.__main__ import WEIGHTS, Campaign, Launch, launch
from tests.faults.inject import Fault
from tests.faults.jobs import JOBS, Job

# Replaces a file twice and appends to another; the steps of writing are numbered on the right.
SCRIPT = """
import os, time

def replace(name, text):
    with open("half", "wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())                # 1, 4
    os.replace("half", name)                   # 2, 5

replace("file", b"first.")
with open("log", "a") as file:
    file.write("line\\n")                      # 3
replace("file", b"second")
time.sleep(SLEEP)
"""
WHOLE = {"file": "second", "log": "line\n"}


def run(folder: Path, fault: Fault, *, sleep: float = 0) -> tuple[Launch, dict[str, str]]:
    """What became of the script, and the files that it left."""
    script, work = folder / "script.py", folder / "work"
    script.write_text(SCRIPT.replace("SLEEP", str(sleep)))
    done = launch(script, [], fault, work)
    return done, {name: (work / name).read_text() for name in ("file", "log", "half") if (work / name).exists()}


@pytest.mark.parametrize("fault", [Fault(), Fault("SIGKILL", step=6), Fault("torn", step=3, file="file")])
def test_a_fault_that_does_not_come_to_pass(tmp_path, fault):
    done, files = run(tmp_path, fault)
    assert (done.status, done.fault, done.steps, files) == (0, None, 5, WHOLE)


@pytest.mark.parametrize(
    ("step", "files"),
    [
        (1, {"half": "first."}),
        (3, {"file": "first.", "log": "li"}),
        (5, {"file": "first.", "log": "line\n", "half": "second"}),
    ],
)
def test_a_kill_or_a_full_disk_at_a_step_of_writing(tmp_path, step, files):
    for action, status in (("SIGKILL", -signal.SIGKILL), ("full", 1)):  # 1: of the traceback
        done, found = run(tmp_path, Fault(action, step=step))
        assert (done.status, done.steps, done.fault is None, found) == (status, step, False, files)


def test_a_torn_file_has_its_final_name_and_a_signal_comes_after_some_time(tmp_path):
    done, files = run(tmp_path, Fault("torn", step=2, file="file"))
    assert (done.status, done.fault, files) == (-signal.SIGKILL, "file", {"file": "sec", "log": "line\n"})
    done, files = run(tmp_path, Fault("SIGTERM", seconds=0.3), sleep=30)
    assert (done.status, files) == (-signal.SIGTERM, WHOLE)
    assert 0.3 <= done.seconds < 20


def test_a_command_that_continues_wrongly_is_found(tmp_path):
    """Launched again, it appends its lines again."""
    script = tmp_path / "forgetful.py"
    script.write_text(
        "import os, sys\nos.makedirs(sys.argv[1], exist_ok=True)\n"
        "with open(sys.argv[1] + '/log', 'a') as file:\n    [print(n, file=file, flush=True) for n in range(9)]\n"
    )
    job = Job("forgetful", str(script), "{out}", lambda out: {"log": (out / "log").read_text()})
    campaign = Campaign(tmp_path / "runs", [job], seed=3)
    campaign.run(4)
    assert campaign.counts["forgetful", "equal"] < campaign.counts["forgetful", "runs"]
    assert any("DIFFERS in ['log']" in text for text in campaign.problems)


@pytest.mark.parametrize("name", ["random-query", pytest.param("semantic", marks=pytest.mark.slow)])
def test_a_short_campaign(name, tmp_path):
    """Of one command; python -m tests.faults takes all of them, two ranks among them."""
    campaign = Campaign(tmp_path, [JOBS[name]], seed=1)
    campaign.run(3)
    assert not campaign.problems
    assert sum(campaign.counts[name, kind] for kind in WEIGHTS) == 3
    assert campaign.counts[name, "equal"] == campaign.counts[name, "runs"] >= 1
