"""Kills, fills disks and tears files under the commands, continues them, and compares: python -m tests.faults."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; more threads only wait for each other here

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Imported for the processes that are forked from this one, which need not import them again.
import active_main  # noqa: F401
import contrast_main  # noqa: F401
import train_classifier.main  # noqa: F401
from common.provenance import git_commit, versions
from tests.faults import inject
from tests.faults.inject import Fault
from tests.faults.jobs import JOBS, Job
from tests.processes import free_port

ROOT = Path(__file__).resolve().parents[2]
TIME_LIMIT, GRACE = 600.0, 10.0  # seconds until a launch counts as hanging; those left once one process has failed
MOST_FAULTS = 3  # in a run, one after another
WEIGHTS = {"kill": 40, "kill in a write": 25, "signal": 15, "full disk": 10, "torn file": 10}
COLUMNS = (*WEIGHTS, "launches", "runs", "equal")


@dataclass(frozen=True)
class Launch:
    """One launch of a command: exit status, where the fault happened (if it did), steps of writing and seconds."""

    status: int
    fault: str | None
    steps: int
    seconds: float
    printed: str


def launch(script: Path, words: Sequence[str], fault: Fault, folder: Path, *, processes: int = 1) -> Launch:
    """Runs a command once, with a fault, in processes that are forked from this one.

    The folder is emptied; it is the working directory, and gets the records and what is printed. A launch that hangs is
    killed after TIME_LIMIT; where one process has failed, the others are after GRACE, as by a launcher.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
    running, statuses = [], []
    for rank in range(processes):
        variables = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        running.append(_fork(script, words, fault if rank == fault.rank else Fault(), folder / f"{rank}", variables))
    end = time.monotonic() + TIME_LIMIT
    while running:
        time.sleep(0.01)
        for process in list(running):
            ended, state = os.waitpid(process, os.WNOHANG)
            if ended:
                running.remove(process)
                statuses.append(os.waitstatus_to_exitcode(state))
                end = min(end, time.monotonic() + GRACE) if statuses[-1] else end
            elif time.monotonic() > end:
                os.kill(process, signal.SIGKILL)
                statuses.insert(0, statuses[0] if any(statuses) else 1)  # one that hangs by itself has failed
    record = folder / f"{fault.rank}"
    lines = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    where = next((line["where"] for line in lines if line["event"] == "fault"), None)
    last = lines[-1] if lines else {"steps": 0, "seconds": 0.0}
    status = next((status for status in statuses if status), 0)
    return Launch(status, where, last["steps"], last["seconds"], (folder / "printed").read_text(errors="replace"))


def _fork(script: Path, words: Sequence[str], fault: Fault, record: Path, variables: dict[str, str]) -> int:
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        output = os.open(record.with_name("printed"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = sys.stderr = open(output, "w", buffering=1)
        os.chdir(record.parent)
        os.environ |= variables
        status = inject.run(script, list(words), fault, record)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


class Campaign:
    """The undisturbed runs of some jobs, and disturbed ones that are compared with them.

    Attributes:
        counts: By (job, column of the table).
        problems: What went wrong, a line each.
    """

    def __init__(self, folder: Path, jobs: Sequence[Job], *, seed: int) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.problems: list[str] = []
        self._folder, self._jobs, self._random = folder, jobs, random.Random(seed)
        self._whole: dict[str, tuple[Launch, dict]] = {}  # each undisturbed run and its result

    def run(self, faults: int) -> None:
        """Disturbs the jobs in turn until so many faults have happened."""
        needed = {name for job in self._jobs for name in job.needs}
        for job in {**{name: JOBS[name] for name in sorted(needed)}, **{job.name: job for job in self._jobs}}.values():
            out = self._folder / "reference" / job.name
            done = self._launch(job, out, Fault())
            if done.status:
                raise RuntimeError(f"{job.name} failed without a fault: {done.printed[-2000:]}")
            self._whole[job.name] = done, job.result(out)
            print(f"{job.name}: {done.seconds:.1f} s, {done.steps} steps of writing without a fault", flush=True)
        number = 0
        while (left := faults - sum(count for (_, column), count in self.counts.items() if column in WEIGHTS)) > 0:
            self._disturb(self._jobs[number % len(self._jobs)], self._folder / f"run-{number}", most=left)
            number += 1

    def table(self) -> str:
        """One row per job, and their sum, as Markdown."""
        rows = [[job.name, *(self.counts[job.name, column] for column in COLUMNS)] for job in self._jobs]
        rows.append(["all", *(sum(column) for column in zip(*(row[1:] for row in rows)))])
        lines = [["job", *COLUMNS], ["---"] * (1 + len(COLUMNS)), *rows]
        return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)

    def _launch(self, job: Job, out: Path, fault: Fault) -> Launch:
        self.counts[job.name, "launches"] += 1
        words = [word.format(out=out, reference=self._folder / "reference") for word in job.flags.split()]
        return launch(ROOT / job.script, words, fault, Path(f"{out}.launch"), processes=job.processes)

    def _disturb(self, job: Job, out: Path, *, most: int) -> None:
        (whole, expected), happened, steps, seconds = self._whole[job.name], [], 0, 0.0
        for number in range(self._random.randint(1, min(most, MOST_FAULTS))):
            # What earlier launches have done need not be done again: the end comes sooner.
            left = max(2, whole.steps - steps), max(0.2 * whole.seconds, whole.seconds - seconds)
            kind, fault = self._draw(job, steps=left[0], seconds=left[1], first=number == 0)
            done = self._launch(job, out, fault)
            steps, seconds = steps + done.steps, seconds + done.seconds
            if done.fault is None:  # it ended before the fault
                break
            self.counts[job.name, kind] += 1
            happened.append(f"{fault.action} {done.fault}")
            if done.status in (1, 2):  # a traceback, or a refusal of what the user did not do
                self.problems.append(f"{job.name}: {happened[-1]}: status {done.status}: {done.printed[-500:]}")
        else:
            done = self._launch(job, out, Fault())
        found = {"status": f"{done.status}: {done.printed[-500:]}"} if done.status else job.result(out)
        differing = [name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)]
        story = f"{job.name}: {', then '.join(happened) or 'no fault in time'}: "
        story += f"DIFFERS in {differing[:5]} {found.get('status', '')}" if differing else "equal"
        self.problems += [story] if differing else []
        self.counts.update({(job.name, "runs"): 1, (job.name, "equal"): not differing})
        print(story, flush=True)
        shutil.rmtree(out, ignore_errors=True)

    def _draw(self, job: Job, *, steps: int, seconds: float, first: bool) -> tuple[str, Fault]:
        draw = self._random
        [kind] = draw.choices(list(WEIGHTS), list(WEIGHTS.values()))
        rank, moment, step = draw.randrange(job.processes), draw.uniform(0, seconds), draw.randint(1, steps)
        if kind == "torn file" and job.torn and first:
            return kind, Fault("torn", step=job.torn[1], file=job.torn[0])
        if kind in ("kill in a write", "full disk"):
            return kind, Fault("full" if kind == "full disk" else "SIGKILL", step=step)
        action = draw.choice(("SIGTERM", "SIGINT", "SIGUSR1")) if kind == "signal" else "SIGKILL"
        return kind if kind == "signal" else "kill", Fault(action, seconds=moment, rank=rank)


def main() -> int:
    """Exit status 0 if every run ended as it should with the undisturbed run's result, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=50, metavar="N", help="faults that are to happen")
    parser.add_argument("--seed", type=int, default=0, help="of every draw")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS), metavar="JOB", help=", ".join(JOBS))
    args = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults.") as folder:
        campaign = Campaign(Path(folder), [JOBS[name] for name in args.jobs], seed=args.seed)
        campaign.run(args.kills)
    print(campaign.table())
    print(f"{(time.monotonic() - start) / 60:.0f} minutes, commit {git_commit()}, {versions()}")
    print("\n".join(campaign.problems), file=sys.stderr)
    return int(bool(campaign.problems))


if __name__ == "__main__":
    sys.exit(main())
