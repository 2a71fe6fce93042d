"""Draws faults, launches the commands with them until they are done, and compares what they leave."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults import inject
from tests.faults.inject import Fault
from tests.faults.jobs import JOBS, ROOT, Job, differences

TIME_LIMIT = 600.0  # seconds of a launch before it counts as hanging
MOST_FAULTS = 3  # in a run, one after another
WEIGHTS = {"kill": 40, "kill in a write": 25, "signal": 15, "full disk": 10, "torn file": 10}
SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")
# What a launch may end with, beside 0, by what happened to it. A signal that comes before the command listens to it
# ends the process as the system does.
STATUSES = {
    "SIGKILL": {-signal.SIGKILL},
    "SIGTERM": {143, -signal.SIGTERM},
    "SIGINT": {130, -signal.SIGINT},
    "SIGUSR1": {-signal.SIGUSR1},
    "full": {3},
}


@dataclass(frozen=True)
class Launch:
    """What became of one launch of a command.

    Attributes:
        status: Exit status; the negative number of the signal that ended it.
        happened: The record of the fault, None where the command ended before it.
        steps: Of writing, until then.
        seconds: That it ran, likewise.
        printed: What it printed.
    """

    status: int
    happened: dict | None
    steps: int
    seconds: float
    printed: str


@dataclass
class Tally:
    """Counts of one job.

    Attributes:
        runs: Disturbed runs from the start to the end.
        equal: Runs whose result equals the undisturbed run's.
        resumes: Launches after a fault.
        faults: By kind.
        problems: What went otherwise than it should.
    """

    runs: int = 0
    equal: int = 0
    resumes: int = 0
    faults: collections.Counter[str] = field(default_factory=collections.Counter)
    problems: list[str] = field(default_factory=list)


def launch(job: Job, words: Sequence[str], fault: Fault, folder: Path) -> Launch:
    """Runs a command once, with a fault, and returns what became of it.

    A single process is forked from this one, which has imported the modules; several are started by torchrun.

    Args:
        job: The command.
        words: Its flags.
        fault: What goes wrong.
        folder: For the record and what is printed; emptied first.
    """
    record, printed = folder / "record.jsonl", folder / "printed.txt"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with open(printed, "wb") as output:
        if job.processes == 1:
            status = _forked(ROOT / job.script, list(words), fault, record, output.fileno())
        else:
            status = _launched(job, words, fault, record, output.fileno())
            record = record.with_name(f"{record.name}.{fault.rank}")
    lines = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    happened = next((line for line in lines if line["event"] == "fault"), None)
    last = lines[-1] if lines else {"steps": 0, "seconds": 0.0}
    text = printed.read_text(errors="replace").replace(str(folder.parent), "...")
    return Launch(status, happened, last["steps"], last["seconds"], text)


def _forked(script: Path, words: list[str], fault: Fault, record: Path, output: int) -> int:
    sys.stdout.flush()
    process = os.fork()
    if not process:
        status = 1
        try:
            os.setsid()
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.chdir(record.parent)
            status = inject.run(script, words, fault, record)
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(status)
    end = time.monotonic() + TIME_LIMIT
    while time.monotonic() < end:
        ended, state = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(state)
        time.sleep(0.01)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    raise TimeoutError(f"{script.name} did not end within {TIME_LIMIT:g} s after {fault}")


def _launched(job: Job, words: Sequence[str], fault: Fault, record: Path, output: int) -> int:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={job.processes}"]
    asked = json.dumps({"fault": dataclasses.asdict(fault), "record": str(record)})
    with subprocess.Popen(
        [*launcher, inject.__file__, str(ROOT / job.script), *words],
        cwd=record.parent,
        env={**os.environ, inject.VARIABLE: asked},
        stdout=output,
        stderr=output,
        start_new_session=True,
    ) as process:
        try:
            return process.wait(TIME_LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise TimeoutError(
                f"{job.script} under torchrun did not end within {TIME_LIMIT:g} s after {fault}"
            ) from None


class Campaign:
    """The undisturbed runs, and disturbed ones to be compared with them.

    Attributes:
        tallies: By job.
        launches: How many commands were launched.

    Args:
        folder: For all files; each run has a folder in it, and one for what its launches print.
        jobs: What to disturb.
        seed: Of every draw.
        say: Called with a line about each run.
    """

    def __init__(self, folder: Path, jobs: Sequence[Job], *, seed: int, say: Callable[[str], None]) -> None:
        self.tallies = {job.name: Tally() for job in jobs}
        self.launches = 0
        self._folder, self._jobs, self._say = folder, jobs, say
        self._reference = folder / "reference"
        self._random = random.Random(seed)
        self._whole: dict[str, Launch] = {}
        self._expected: dict[str, dict] = {}

    def run(self, faults: int) -> None:
        """Disturbs the jobs in turn until so many faults have happened."""
        needed = {name for job in self._jobs for name in job.needs}
        for job in [*(JOBS[name] for name in JOBS if name in needed), *self._jobs]:
            if job.name not in self._expected:
                self._run_undisturbed(job)
        number = 0
        while (left := faults - sum(sum(tally.faults.values()) for tally in self.tallies.values())) > 0:
            self._run_disturbed(self._jobs[number % len(self._jobs)], number, at_most=min(left, MOST_FAULTS))
            number += 1

    def _run_undisturbed(self, job: Job) -> None:
        out = self._reference / job.name
        self._reference.mkdir(exist_ok=True)
        done = self._launch(job, out, Fault())
        if done.status != 0:
            raise RuntimeError(f"{job.name} failed without a fault: {done.printed[-2000:]}")
        self._whole[job.name], self._expected[job.name] = done, job.result(out)
        self._say(f"{job.name}: {done.seconds:.1f} s and {done.steps} steps of writing without a fault")

    def _launch(self, job: Job, out: Path, fault: Fault) -> Launch:
        self.launches += 1
        return launch(job, job.words(out, self._reference), fault, Path(f"{out}.launch"))

    def _run_disturbed(self, job: Job, number: int, *, at_most: int) -> None:
        tally, out = self.tallies[job.name], self._folder / f"run-{number}"
        happened, whole = [], self._whole[job.name]
        steps, seconds = 0, 0.0
        for place in range(self._random.randint(1, at_most)):
            # What earlier launches have done, this one need not do again: its end comes sooner.
            left = max(2, whole.steps - steps), max(0.2 * whole.seconds, whole.seconds - seconds)
            kind, fault = self._draw(job, steps=left[0], seconds=left[1], first=place == 0)
            tally.resumes += place > 0
            done = self._launch(job, out, fault)
            steps, seconds = steps + done.steps, seconds + done.seconds
            if done.happened is None:  # it had ended before
                break
            if kind == "kill" and done.happened["writing"]:
                kind = "kill in a write"
            tally.faults[kind] += 1
            happened.append(f"{fault.action} {done.happened['where'] or f'after {fault.when:.2f} s'}")
            if job.processes == 1 and done.status not in {0, *STATUSES[fault.action]}:
                tally.problems.append(f"{happened[-1]}: exit status {done.status}: {done.printed[-500:]}")
        else:
            tally.resumes += 1
            done = self._launch(job, out, Fault())
        self._judge(job, out, done, happened)
        shutil.rmtree(out, ignore_errors=True)

    def _judge(self, job: Job, out: Path, done: Launch, happened: list[str]) -> None:
        tally, story = self.tallies[job.name], ", then ".join(happened) or "no fault in time"
        tally.runs += 1
        if done.status != 0:
            tally.problems.append(f"{story}: the last launch ended with {done.status}: {done.printed[-500:]}")
            verdict = "did not end"
        else:
            differing = differences(job.result(out), self._expected[job.name])
            tally.equal += not differing
            verdict = "equal" if not differing else f"DIFFERS in {', '.join(differing[:5])}"
            if differing:
                tally.problems.append(f"{story}: {verdict}")
        self._say(f"{job.name}: {story}: {verdict}")

    def _draw(self, job: Job, *, steps: int, seconds: float, first: bool) -> tuple[str, Fault]:
        draw = self._random
        [kind] = draw.choices(list(WEIGHTS), list(WEIGHTS.values()))
        rank = draw.randrange(job.processes)
        moment, step = draw.uniform(0, seconds), draw.randint(1, steps)
        action, torn = draw.choice(SIGNALS), draw.choice(job.torn or (("", 0),))
        if kind == "torn file" and job.torn and first:
            return kind, Fault("torn", "SIGKILL", torn[1], torn[0])
        if kind in ("kill in a write", "full disk"):
            return kind, Fault("step", "full" if kind == "full disk" else "SIGKILL", step)
        if kind == "signal":
            return kind, Fault("time", action, moment, rank=rank)
        return "kill", Fault("time", "SIGKILL", moment, rank=rank)
