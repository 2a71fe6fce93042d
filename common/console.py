"""What a command shows: lines, warnings, progress and its last words."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any, TypeVar

import rich.progress
from rich.console import Console

from utils import is_first_process

WITHIN = "CCAL_WITHIN"  # environment variable of the processes that are stages of a larger command
LINE_INTERVAL = 30  # seconds between two lines of progress in a log
LONGEST_LINE = 2000  # characters of an error
T = TypeVar("T")


class _Output:
    quiet = False  # nothing but warnings and results
    bars: Any = None  # the rich.progress.Progress on the terminal


def set_quiet(quiet: bool) -> None:
    """Whether ``log`` and ``progress`` keep silent; called by main() functions only."""
    _Output.quiet = quiet


def log(message: str, *, always: bool = False) -> None:
    """Prints from the first process, past a progress bar if one is drawn; under --quiet only what ``always`` says."""
    if not is_first_process() or (_Output.quiet and not always):
        return
    encoding = sys.stdout.encoding or "utf-8"
    message = message.encode(encoding, "backslashreplace").decode(encoding)  # names of files may hold any bytes
    if _Output.bars is not None and sys.stdout.isatty():
        _Output.bars.console.print(message, markup=False, highlight=False, soft_wrap=True)
    else:
        print(message, flush=True)


def warn(message: str) -> None:
    """Prints a warning from the first process, under --quiet, too."""
    log(f"warning: {message}", always=True)


def finish(wrote: Sequence[str | os.PathLike], *, then: str = "") -> None:
    """A command's last words: the files that it wrote, under --quiet, too, and the command to run next."""
    *others, last = map(str, wrote)
    log(f"wrote {', '.join(others)} and {last}" if others else f"wrote {last}", always=True)
    if then and WITHIN not in os.environ:
        log(f"next: {then}")


@contextlib.contextmanager
def as_a_stage() -> Iterator[None]:
    """Commands called within the block, or started from it, are part of a larger one and propose no next command."""
    before = os.environ.get(WITHIN)
    os.environ[WITHIN] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[WITHIN]


def progress(iterable: Iterable[T], *, description: str, total: int | None = None, unit: str = "it") -> Iterator[T]:
    """Passes an iterable on and shows how far it is, how fast and how long it will take, from the first process.

    On a terminal that is a bar; elsewhere, in a log say, a line each half minute. ``total`` is the length of an
    iterable that cannot tell its own.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    if not is_first_process() or _Output.quiet:
        return iter(iterable)
    shown = _bar if sys.stderr.isatty() else _lines
    return shown(iterable, description=description, total=total, unit=unit)


def _bar(iterable: Iterable[T], *, description: str, total: int | None, unit: str) -> Iterator[T]:
    if _Output.bars is None:
        # The streams stay as they are: what goes into a file must not pass through the terminal's drawing.
        streams = {"console": Console(stderr=True), "redirect_stdout": False, "redirect_stderr": False}
        _Output.bars = rich.progress.Progress(
            "{task.description}",
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            "{task.fields[rate]}",
            rich.progress.TimeRemainingColumn(),
            transient=True,
            refresh_per_second=4,
            **streams,
        )
        _Output.bars.start()
    bars = _Output.bars
    task, start = bars.add_task(description, total=total, rate=""), time.perf_counter()
    try:
        for done, item in enumerate(iterable, start=1):
            yield item
            bars.update(task, completed=done, rate=_rate(done, time.perf_counter() - start, unit))
    finally:
        bars.remove_task(task)
        if not bars.tasks:
            clear_progress()


def clear_progress() -> None:
    """Takes the progress bars off the terminal, so that an error's line stands alone."""
    if _Output.bars is not None:
        _Output.bars.stop()
        _Output.bars = None


def _lines(iterable: Iterable[T], *, description: str, total: int | None, unit: str) -> Iterator[T]:
    start = told = time.perf_counter()
    for done, item in enumerate(iterable, start=1):
        yield item
        now = time.perf_counter()
        if now - told >= LINE_INTERVAL:
            told = now
            of = f" of {total}" if total else ""
            left = f", {duration((now - start) / done * (total - done))} left" if total else ""
            log(f"{description}: {done}{of}, {_rate(done, now - start, unit)}{left}")


def _rate(done: int, seconds: float, unit: str) -> str:
    each = seconds / done
    return f"{each:.1f} s/{unit}" if each > 1 else f"{1 / max(each, 1e-9):.3g} {unit}/s"


def duration(seconds: float) -> str:
    """A time in words: 45 s, 12.3 min, 3.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 120 * 60 else f"{seconds / 3600:.1f} h"


def one_line(message: str) -> str:
    """A message in one line of reasonable length, in which what came out of a file cannot steer a terminal."""
    line = shown(" ".join(message.split()))
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 2 :]}"


def shown(text: str) -> str:
    """Text whose characters that cannot be printed are escaped, such as the name of a file."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def listed(names: Sequence[object], most: int = 3) -> str:
    """Names in a line: the first ones, and how many there are more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shown(str(name)) for name in names[:most]) + more
