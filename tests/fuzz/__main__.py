"""Damages valid files of every kind at random, and reads them: a reader may accept or refuse, and nothing else.

Usage: python -m tests.fuzz [--minutes 10] [--tries N] [--seed 0] [--only KIND] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from common import cli, console
from tests.fuzz.mutations import mutated
from tests.fuzz.targets import Target, make_targets
from utils import InputError

SECONDS, MEMORY = 10, 2**30  # that a try may take, and bytes of memory beside what the process has
BATCH = 200  # tries per process; one that dies loses no more than its last


class TooLong(BaseException):
    """A reader took longer than SECONDS."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default: 10)")
    parser.add_argument("--tries", type=int, help="how many tries of each kind, instead of --minutes")
    parser.add_argument("--seed", type=int, default=0, help="of the damage; a try is repeated by seed, kind and number")
    parser.add_argument("--only", help="kind of file, such as npz")
    parser.add_argument("--out", type=Path, help="where files that broke a reader go (default: a temporary folder)")
    args = parser.parse_args(argv)
    out = args.out or Path(tempfile.mkdtemp(prefix="fuzz-"))
    out.mkdir(parents=True, exist_ok=True)
    tally = fuzz(out, seconds=60 * args.minutes, tries=args.tries, seed=args.seed, only=args.only)
    print(table(tally))
    broken = sum(count for (_, outcome), count in tally.items() if outcome == "broken")
    if broken:
        print(f"{broken} files broke a reader, see {out}")
    return int(broken > 0)


def fuzz(out: Path, *, seconds: float, tries: int | None, seed: int, only: str | None = None) -> Counter:
    """Tries by (kind, outcome); the outcome is accepted, refused or broken.

    Args:
        out: Where files that broke a reader go, each with its traceback.
        seconds: How long, where ``tries`` is None.
        tries: Of each kind.
        seed: Of the damage.
        only: One kind.
    """
    tally: Counter = Counter()
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()):
            targets = [target for target in make_targets(Path(folder)) if only in (None, target.name)]
            for target in targets:
                target.read()  # what is damaged below is whole to begin with
        others = [path.read_bytes() for target in targets for path in target.kept]
        end = time.monotonic() + seconds
        for start in range(0, tries or sys.maxsize, BATCH):
            for target in targets:
                if tries is None and time.monotonic() > end:
                    return tally
                numbers = range(start, start + min(BATCH, (tries or sys.maxsize) - start))
                tally += in_a_process(target, others, numbers, seed=seed, out=out)
    return tally


def in_a_process(target: Target, others: list[bytes], numbers: range, *, seed: int, out: Path) -> Counter:
    """Tries in a child process, which a reader may bring down."""
    kept = {path: path.read_bytes() for path in target.kept}
    tally: Counter = Counter()
    numbers_left = iter(numbers)
    while (first := next(numbers_left, None)) is not None:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            work(target, kept, others, range(first, numbers.stop), seed=seed, out=out, writing=writing)
        os.close(writing)
        with os.fdopen(reading) as lines:
            outcomes = [line.rstrip("\n") for line in lines]
        status = os.waitpid(child, 0)[1]
        tally.update((target.name, outcome) for outcome in outcomes)
        done = len(outcomes)
        if status and first + done < numbers.stop:
            tally[target.name, "broken"] += 1
            data = damaged(target, kept, others, seed=seed, number=first + done)[1]
            report(out, target.name, first + done, data, f"the process ended with wait status {status}")
            done += 1
        numbers_left = iter(range(first + done, numbers.stop))
    for path, content in kept.items():
        path.write_bytes(content)
    return tally


def work(
    target: Target,
    kept: dict[Path, bytes],
    others: list[bytes],
    numbers: range,
    *,
    seed: int,
    out: Path,
    writing: int,
) -> None:
    """The child: makes the tries, writes an outcome per line, and ends."""
    status = 1
    try:
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        console.set_quiet(True)
        sys.stdout = io.StringIO()
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
        with os.fdopen(writing, "w", buffering=1) as lines:
            for number in numbers:
                lines.write(attempt(target, kept, others, seed=seed, number=number, out=out) + "\n")
        status = 0
    finally:
        os._exit(status)


def attempt(target: Target, kept: dict[Path, bytes], others: list[bytes], *, seed: int, number: int, out: Path) -> str:
    """One try; whatever is neither accepted nor refused is reported."""
    path, data = damaged(target, kept, others, seed=seed, number=number)
    for file, content in kept.items():
        file.write_bytes(content)
    path.write_bytes(data)
    try:
        with within(SECONDS):
            target.read()
        return "accepted"
    except InputError as error:
        if len(cli.one_line(str(error))) > 2100 or not str(error).strip():
            report(out, target.name, number, data, f"a message of {len(str(error))} characters")
            return "broken"
        return "refused"
    except BaseException:
        report(out, target.name, number, data, traceback.format_exc())
        return "broken"


def damaged(
    target: Target, kept: dict[Path, bytes], others: list[bytes], *, seed: int, number: int
) -> tuple[Path, bytes]:
    """The file that a try damages, and what becomes of it."""
    rng = np.random.default_rng([seed, number, *target.name.encode()])
    path = target.damaged[rng.integers(len(target.damaged))]
    return path, mutated(kept[path], rng, others)


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Ends a block that takes too long."""

    def stop(*_: object) -> None:
        raise TooLong

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def report(out: Path, name: str, number: int, data: bytes, why: str) -> None:
    """Keeps a file that broke a reader, and how."""
    stem = f"{name.replace(' ', '_')}-{number}"
    (out / stem).write_bytes(data)
    (out / f"{stem}.txt").write_text(why)


def table(tally: Counter) -> str:
    """The tally as a table of Markdown."""
    lines = ["| file | tries | accepted | refused | broken |", "| --- | --- | --- | --- | --- |"]
    names = list(dict.fromkeys(name for name, _ in tally))
    for name in [*names, "all"]:
        counts = [
            sum(tally[kind, outcome] for kind in (names if name == "all" else [name]))
            for outcome in ("accepted", "refused", "broken")
        ]
        lines.append(f"| {name} | {sum(counts)} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
