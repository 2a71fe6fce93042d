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
BATCH = 100  # tries per process
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
        end, batch = time.monotonic() + seconds, tries or BATCH
        for first in itertools.count(0, batch):
            for target in targets:
                if first and time.monotonic() > end:
                    return tally
                outcomes = attempts(target, kept, range(first, first + batch), seed=seed, out=out)
                tally.update((target.name, outcome) for outcome in outcomes)


def attempts(target: Target, kept: dict[Path, bytes], numbers: range, *, seed: int, out: Path) -> list[str]:
    """The outcomes of some tries, made in a child process that the reader may bring down."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        _work(target, kept, numbers, seed=seed, out=out, writing=writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        outcomes = [OUTCOMES[number] for number in file.read()]
    os.waitpid(child, 0)
    if len(outcomes) == len(numbers):
        return outcomes
    dead = numbers[len(outcomes)]
    _keep(_damage(target, kept, seed, dead), f"{target.name}-{dead}", "the process ended", out)
    return [*outcomes, "broken", *attempts(target, kept, range(dead + 1, numbers.stop), seed=seed, out=out)]


def _damage(target: Target, kept: dict[Path, bytes], seed: int, number: int) -> Path:
    """Writes the files of a target, one of them damaged, and returns that one."""
    rng = np.random.default_rng([seed, number, *target.name.encode()])
    path = target.files[rng.integers(len(target.files))]
    for file in target.files:
        file.write_bytes(kept[file])
    path.write_bytes(mutated(kept[path], rng, list(kept.values())))
    return path


def _keep(path: Path, name: str, why: str, out: Path) -> None:
    (out / name).write_bytes(path.read_bytes())
    (out / f"{name}.txt").write_text(why)


def _work(target: Target, kept: dict, numbers: range, *, seed: int, out: Path, writing: int) -> None:
    """The child: writes a byte per try, the outcome's number."""
    try:
        torch.set_num_threads(1)
        sys.stdout = sys.stderr = io.StringIO()
        signal.signal(signal.SIGALRM, _too_long)
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
        for number in numbers:
            path, outcome = _damage(target, kept, seed, number), 0
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            try:
                target.read(path)
            except BaseException as error:
                outcome = 1 if isinstance(error, InputError) and 0 < len(str(error)) < 5000 else 2
                if outcome == 2:
                    _keep(path, f"{target.name}-{number}", traceback.format_exc(), out)
            signal.setitimer(signal.ITIMER_REAL, 0)
            os.write(writing, bytes([outcome]))
    finally:
        os._exit(0)


def _too_long(*_: object) -> None:
    raise TimeoutError(f"more than {SECONDS:g} s")


if __name__ == "__main__":
    sys.exit(main())
