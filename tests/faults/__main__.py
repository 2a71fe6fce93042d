"""Kills, fills disks and tears files under the commands, continues them, and compares: python -m tests.faults."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; more threads only wait for each other here

import argparse
import shlex
import sys
import tempfile
import time
from pathlib import Path

# Imported for the processes that are forked from this one, which need not import them again.
import active_main  # noqa: F401
import contrast_main  # noqa: F401
import train_classifier.main  # noqa: F401
from common.files import atomic_write
from common.flags import positive_int
from common.settings import seed_number
from tests.faults.campaign import Campaign
from tests.faults.jobs import JOBS
from tests.faults.report import page, table


def main() -> int:
    """Exit status 0 if every run ended as it should with the undisturbed run's result, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=positive_int, default=50, metavar="N", help="faults that are to happen")
    parser.add_argument("--seed", type=seed_number, default=0, help="of every draw")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS), metavar="JOB", help=", ".join(JOBS))
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="where the table is written, too")
    args = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults.") as folder:
        jobs = [JOBS[name] for name in args.jobs]
        campaign = Campaign(Path(folder), jobs, seed=args.seed, say=lambda line: print(line, flush=True))
        campaign.run(args.kills)
    tallies, seconds = campaign.tallies, time.monotonic() - start
    print(table(tallies))
    if args.out:
        command = shlex.join(["python", "-m", "tests.faults", *sys.argv[1:]])
        text = page(tallies, command=command, seconds=seconds, launches=campaign.launches)
        with atomic_write(args.out) as file:
            file.write(text.encode())
    problems = [f"{name}: {text}" for name, tally in tallies.items() for text in tally.problems]
    print("\n".join(problems), file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
