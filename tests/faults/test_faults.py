"""The fault campaign: that its faults happen, that it sees a wrong result, and a short one of the real commands."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.faults import inject
from tests.faults.campaign import WEIGHTS, Tally
from tests.faults.inject import Fault
from tests.faults.jobs import differences
from tests.faults.report import table

# Replaces a file twice and appends to another, without torch; the steps of writing are numbered on the right.
SCRIPT = """
import os, sys, tempfile

def replace(name, text):
    handle, temporary = tempfile.mkstemp(dir=".", suffix=".tmp")
    with os.fdopen(handle, "wb") as file:
        file.write(text)                       # 1, 6
        file.flush()
        os.fsync(file.fileno())                # 2, 7
    os.replace(temporary, name)                # 3 and 4, 8 and 9

if __name__ == "__main__":
    replace("file", b"first.")
    with open("log", "a") as file:
        file.write("line\\n")                  # 5
    replace("file", b"second")
    print("whole")
"""
STEPS = 9


@pytest.fixture
def script(tmp_path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def run(script: Path, fault: Fault) -> tuple[int, list[dict], dict[str, str]]:
    """Exit status, record, and the files that the script left."""
    folder = script.parent / "work"
    folder.mkdir(exist_ok=True)
    asked = {"fault": dataclasses.asdict(fault), "record": str(script.parent / "record")}
    done = subprocess.run(
        [sys.executable, inject.__file__, str(script)],
        cwd=folder,
        env={**os.environ, inject.VARIABLE: json.dumps(asked), "RANK": "0"},
        capture_output=True,
        timeout=60,
    )
    lines = [json.loads(line) for line in (script.parent / "record.0").read_text().splitlines()]
    files = {path.name if path.suffix != ".tmp" else "half": path.read_text() for path in folder.iterdir()}
    return done.returncode, lines, files


def test_without_a_fault_the_steps_are_counted(script):
    status, lines, files = run(script, Fault())
    assert status == 0 and files == {"file": "second", "log": "line\n"}
    assert [(line["event"], line["steps"]) for line in lines] == [("end", STEPS)]


# What there is after a kill at each step: half of what was to be written is written.
KILLED = {
    1: {"half": "fir"},
    2: {"half": "first."},
    3: {"half": "first."},
    4: {"file": "first."},
    5: {"file": "first.", "log": "li"},
    6: {"file": "first.", "log": "line\n", "half": "sec"},
    7: {"file": "first.", "log": "line\n", "half": "second"},
    8: {"file": "first.", "log": "line\n", "half": "second"},
    9: {"file": "second", "log": "line\n"},
}


@pytest.mark.parametrize("step", KILLED)
def test_a_kill_within_a_write(script, step):
    status, [line], files = run(script, Fault("step", "SIGKILL", step))
    assert status == -signal.SIGKILL and files == KILLED[step]
    assert (line["event"], line["steps"], line["writing"]) == ("fault", step, True)


@pytest.mark.parametrize("step", [1, 4, 5, 8])
def test_a_disk_that_is_full_stays_full(script, step):
    status, lines, files = run(script, Fault("step", "full", step))
    assert status == 1  # of the traceback
    expected = {1: {"half": "fir"}, 4: {"file": "first.", "log": "li"}, 5: {"file": "first.", "log": "li"}}
    assert files == expected.get(step, {"file": "first.", "log": "line\n", "half": "second"})
    assert [line["event"] for line in lines] == ["fault"]


def test_a_torn_file_has_its_name(script):
    status, [line], files = run(script, Fault("torn", "SIGKILL", 2, "file"))
    assert status == -signal.SIGKILL and files == {"file": "sec", "log": "line\n"}
    assert line["where"] == "torn file"


@pytest.mark.parametrize("action", ["SIGKILL", "SIGTERM", "SIGUSR1"])
def test_a_signal_after_some_time(script, action):
    script.write_text(SCRIPT.replace('print("whole")', "import time; time.sleep(30)"))
    status, [line], files = run(script, Fault("time", action, 0.3))
    assert status == -getattr(signal, action) and files["file"] == "second"
    assert line["seconds"] >= 0.3 and not line["writing"]


def test_another_rank_is_left_alone(script):
    assert run(script, Fault("step", "SIGKILL", 1, rank=1))[0] == 0


def test_differences_are_to_the_bit():
    expected = {"a": torch.tensor([1.0, 2.0]), "b": [{"x": 1}], "c": "text"}
    assert differences({**expected, "a": expected["a"].clone()}, expected) == []
    moved = torch.nextafter(expected["a"], torch.tensor(3.0))
    assert differences({**expected, "a": moved, "b": [{"x": 2}], "d": 1}, expected) == ["a", "b", "d"]
    assert differences({"b": [{"x": 1.0 + 1e-9}]}, {"b": [{"x": 1.0}]}) == ["b"]


def test_the_tables_last_row_is_the_sum():
    tallies = {"one": Tally(runs=2, equal=2, resumes=3), "two": Tally(runs=4, equal=3, resumes=4)}
    tallies["one"].faults.update({"kill": 5})
    tallies["two"].faults.update({"kill": 1, "signal": 2})
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table(tallies).splitlines()]
    assert rows[0] == ["run", "runs", *WEIGHTS, "resumes", "equal"]
    assert rows[2:] == [
        ["one", "2", "5", "0", "0", "0", "0", "3", "2"],
        ["two", "4", "1", "0", "2", "0", "0", "4", "3"],
        ["all", "6", "6", "0", "2", "0", "0", "7", "5"],
    ]


FORGETFUL = """
import sys
from tests.faults import campaign
from tests.faults.jobs import Job

job = Job("forgetful", sys.argv[1], "", lambda out: {"log": open(sys.argv[2]).read()})
undisturbed = campaign.Campaign._run_undisturbed
def run_undisturbed(self, job):
    undisturbed(self, job)
    open(sys.argv[2], "w").close()
campaign.Campaign._run_undisturbed = run_undisturbed
found = campaign.Campaign(__import__("pathlib").Path(sys.argv[3]), [job], seed=3, say=print)
found.run(4)
tally = found.tallies["forgetful"]
print("problems", len(tally.problems), "runs", tally.runs, "equal", tally.equal)
"""


def test_a_command_that_continues_wrongly_is_found(tmp_path, root):
    """It appends five lines and, continued, appends them again."""
    script = tmp_path / "forgetful.py"
    script.write_text(
        f"with open({str(tmp_path / 'log')!r}, 'a') as file:\n    print(*range(5), file=file, flush=True)\n"
    )
    (tmp_path / "runs").mkdir()
    words = [sys.executable, "-c", FORGETFUL, str(script), str(tmp_path / "log"), str(tmp_path / "runs")]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    *_, problems, _, runs, _, equal = done.stdout.split()
    assert int(problems) >= int(runs) - int(equal) > 0


def test_a_short_campaign(tmp_path, root):
    """Training, query and classifier; python -m tests.faults without flags takes all, two ranks among them."""
    page = tmp_path / "faults.md"
    words = "-m tests.faults --kills 6 --seed 1 --jobs random-query classifier semantic"
    done = subprocess.run(
        [sys.executable, *words.split(), "--out", str(page)], cwd=root, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    total = [line for line in done.stdout.splitlines() if line.startswith("| all")][0].strip("|").split("|")[1:]
    runs, *faults, resumes, equal = map(int, total)
    assert sum(faults) == 6 and equal == runs >= 2 and resumes >= 6 - runs
    text = page.read_text()
    assert "Nothing went otherwise" in text and f"python {words}" in text
    assert str(tmp_path) not in text.replace(str(page), "")
