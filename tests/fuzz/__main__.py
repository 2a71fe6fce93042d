"""Damages valid files of every kind at random, and reads them: a reader may accept or refuse, and nothing else."""

import argparse
import contextlib
import io
import itertools
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tests.fuzz.mutations import mutated
from tests.fuzz.targets import Target, make_targets
from utils import InputError

SECONDS, MEMORY = 10.0, 2**30  # that a try may take, and bytes of memory beside what the process has
OUTCOMES = ("accepted", "refused", "broken")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the damage; a try is repeated by seed, kind and number")
    args = parser.parse_args(argv)
    out = Path(tempfile.mkdtemp(prefix="fuzz-"))
    tally = fuzz(out, seconds=60 * args.minutes, seed=args.seed)
    print("| file | tries | accepted | refused | broken |\n| --- | --- | --- | --- | --- |")
    for name in [*dict.fromkeys(name for name, _ in tally), "all"]:
        counts = [sum(n for (kind, end), n in tally.items() if name in (kind, "all") and end == e) for e in OUTCOMES]
        print(f"| {name} | {sum(counts)} | {' | '.join(map(str, counts))} |")
    broken = any(outcome == "broken" for _, outcome in tally)
    print(f"files that broke a reader are in {out}" if broken else "no file broke a reader")
    return int(broken)


def fuzz(out: Path, *, seconds: float = 0, tries: int | None = None, seed: int = 0) -> Counter[tuple[str, str]]:
    """Tries by (kind, outcome): for some time, or so many of each kind; ``out`` gets the files that broke a reader."""
    tally: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        targets = make_targets(Path(folder))
        kept = {path: path.read_bytes() for target in targets for path in target.files}
        for target in targets:
            for file in target.files:
                target.read(file)  # what is damaged below is whole to begin with
        end = time.monotonic() + seconds
        for number in itertools.count() if tries is None else range(tries):
            for target in targets:
                if tries is None and time.monotonic() > end:
                    return tally
                tally[target.name, attempt(target, kept, seed=seed, number=number, out=out)] += 1
    return tally


def attempt(target: Target, kept: dict[Path, bytes], *, seed: int, number: int, out: Path) -> str:
    """One try, in a child process that the reader may bring down; a file that breaks it is kept, with the reason."""
    rng = np.random.default_rng([seed, number, *target.name.encode()])
    path = target.files[rng.integers(len(target.files))]
    for file in target.files:
        file.write_bytes(kept[file])
    path.write_bytes(mutated(kept[path], rng, list(kept.values())))
    report = out / f"{target.name.replace(' ', '_')}-{number}"
    child = os.fork()
    if not child:
        _read(target, path, report.with_suffix(".txt"))
    outcome = dict(enumerate(OUTCOMES)).get(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), "broken")
    if outcome == "broken":
        report.write_bytes(path.read_bytes())
    return outcome


def _read(target: Target, path: Path, report: Path) -> None:
    """The child: ends with the outcome's number."""
    outcome = 2
    try:
        torch.set_num_threads(1)
        sys.stdout = sys.stderr = io.StringIO()
        signal.signal(signal.SIGALRM, _too_long)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
        target.read(path)
        outcome = 0
    except InputError as error:
        assert 0 < len(str(error)) < 5000
        outcome = 1
    except BaseException:
        report.write_text(traceback.format_exc())
    finally:
        os._exit(outcome)


def _too_long(*_: object) -> None:
    raise TimeoutError(f"more than {SECONDS:g} s")


if __name__ == "__main__":
    sys.exit(main())
