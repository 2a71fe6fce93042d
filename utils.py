"""Small helpers that every layer may use: errors, files, seeds, meters and logs."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import rich.progress
import torch
from rich.console import Console

LOG_FILE = "log.jsonl"
JSON_SHARE = 64  # of the memory, for the text of a JSON file
WITHIN = "CCAL_WITHIN"  # environment variable of the processes that are stages of a larger command
LINE_INTERVAL = 30  # seconds between two lines of progress in a log
T = TypeVar("T")


class InputError(ValueError):
    """Something the user gave cannot be used; the message says what was wrong and what would be right."""


class Diverged(InputError):
    """Training went wrong with the settings given."""


class ProcessLost(Exception):
    """This process cannot go on because another one of the run is gone, hangs or has failed."""


class Interrupted(Exception):
    """A command stops because it was asked to; the message says by what, and what is on disk.

    Attributes:
        status: Exit status of the command.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status

    @property
    def reason(self) -> str:
        """The message without what is on disk."""
        return str(self).split(":")[0]


LONGEST_LINE = 2000  # characters of an error
ENVIRONMENT_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENOMEM}


def run_cli(main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> int:
    """Runs a command and turns what goes wrong into one line and an exit status.

    Returns:
        0 on success, 2 for bad input, 3 for a failing environment (a full disk, a lost process), 130 for Ctrl-C, and
        what ``Interrupted`` says. ``--debug`` among the arguments lets the traceback of an error through instead.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        main(words)
        return 0
    except Interrupted as stop:
        _tell(str(stop), wait=stop.status != 0)
        return stop.status
    except KeyboardInterrupt as error:
        return _fail(error, "stopped by Ctrl-C; what was finished is on disk", 130, words)
    except InputError as error:
        return _fail(error, str(error), 2, words)
    except ProcessLost as error:
        return _fail(error, str(error), 3, words)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        status = 3 if error.errno in ENVIRONMENT_ERRNOS else 2
        return _fail(error, f"{error.strerror or error}{where}", status, words)
    except (MemoryError, RuntimeError) as error:
        # torch says so on a GPU with an error of its own, and on a CPU with a RuntimeError.
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "can't allocate memory" not in str(error):
            raise
        reason = " ".join(str(error).split())[:200]
        message = f"out of memory ({reason or 'no details'}): free some, or give smaller batches or data"
        return _fail(error, message, 3, words)


def mark_speaker(error: BaseException, speaks: bool, *, afterwards: Callable[[], None] = lambda: None) -> None:
    """Settles whether ``run_cli`` shows this error, where several processes have failed and one of them tells why.

    Args:
        error: What the command ends with.
        speaks: Whether this process shows it.
        afterwards: Called once it is shown.
    """
    error.speaks, error.afterwards = speaks, afterwards  # type: ignore[attr-defined]


def _fail(error: BaseException, message: str, status: int, words: Sequence[str]) -> int:
    if "--debug" in words:
        raise
    speaks = getattr(error, "speaks", None)
    if speaks is False or (speaks is None and not _first_here()):
        wait_for_the_first_process()
    if speaks is not False:  # undecided and still here: the first process has not failed, so none has told yet
        _print(f"error: {message}")
    if speaks:
        error.afterwards()  # type: ignore[attr-defined]
    return status


def _tell(message: str, *, wait: bool = True) -> None:
    # Every process of one machine meets the same; one of them says so.
    if _first_here():
        _print(message)
    elif wait:
        wait_for_the_first_process()


def _first_here() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _print(message: str) -> None:
    clear_progress()
    print(f"{Path(sys.argv[0]).name}: {one_line(message)}", file=sys.stderr, flush=True)


def one_line(message: str) -> str:
    """A message in one line of reasonable length, in which what came out of a file cannot steer a terminal."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(message.split()))
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 2 :]}"


def wait_for_the_first_process() -> None:
    """Lets the process that speaks go first: a launcher ends all processes as soon as one has failed."""
    time.sleep(3)


def set_seed(seed: int, *, rank: int = 0) -> None:
    """Seeds Python, NumPy and torch (all devices), each process with a stream of its own; for main() functions only."""
    if rank:
        seed = int(np.random.SeedSequence([seed, rank]).generate_state(1, np.uint64)[0]) >> 1
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def require_writable(folder: str | os.PathLike, flag: str) -> None:
    """Checks that a folder can be written or made, without making it.

    Raises:
        InputError: It, or the nearest folder above it that exists, is no writable folder; the message names ``flag``.
    """
    folder = Path(folder).absolute()
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise InputError(f"{folder} cannot be written: {place} is no writable folder; name another {flag}")
    try:
        os.rmdir(tempfile.mkdtemp(dir=place, prefix=".probe."))
    except OSError as error:  # permission is not all: /proc and the like let nobody make anything
        if error.errno in ENVIRONMENT_ERRNOS:
            raise
        raise InputError(f"{folder} cannot be written ({place}: {error.strerror}); name another {flag}") from None


@contextlib.contextmanager
def naming_file(path: str | os.PathLike) -> Iterator[None]:
    """Makes errors of the system that name no file, such as a full disk at a write, name ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # another text would get lost beside a name
            error.filename = error.filename or str(path)
        raise


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Opens a temporary file beside ``path`` and renames it to ``path`` once it is written and flushed to disk.

    A reader sees the old file or the new one, never a half of it; on an error, which names the file, the old file
    stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with naming_file(path):
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~current_umask())
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """Has a renamed file's new name survive a power failure."""
    with contextlib.suppress(OSError):  # not every file system can
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_leftovers(folder: str | os.PathLike, pattern: str) -> None:
    """Removes what atomic_write left of files named like ``pattern`` when its process was killed.

    For a folder in which nobody else writes: what a living process is writing would go, too.
    """
    for path in Path(folder).glob(f".{pattern}.*.tmp"):
        path.unlink(missing_ok=True)


def current_umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes ``content`` as indented JSON, atomically."""
    text = json.dumps(content, indent=2, default=_plain, allow_nan=False) + "\n"
    with atomic_write(path) as file:
        file.write(text.encode())


def memory_size() -> int:
    """Bytes of memory that this process may have: the machine's, or its container's limit."""
    limits = [2**63]
    if hasattr(os, "sysconf"):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            limits.append(int(Path(limit).read_text()))
    return min(limits)


def read_json(path: str | os.PathLike, *, limit: int | None = None) -> Any:
    """Reads a JSON file.

    Args:
        path: The file.
        limit: The most bytes that it may have; by default a share of memory that leaves room for its content, of which
            the shortest elements, such as [], take more than twenty times as much as their text.

    Raises:
        InputError: The file is missing, too large, or no JSON.
    """
    if limit is None:
        limit = memory_size() // JSON_SHARE
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path} is no regular file; restore it or write it again")
    if found.st_size > limit:
        raise InputError(f"{path} has {found.st_size} bytes and such a file has {limit} at most; write it again")
    try:
        return json.loads(Path(path).read_bytes().decode())
    except (ValueError, RecursionError) as error:  # no text, no JSON, a number too long, or nested too deep
        raise InputError(f"{path} is not valid JSON ({error}); restore it or write it again") from None


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def int64_digest(indices: np.ndarray | Sequence[int]) -> str:
    """SHA-256 of an index list, in order, as little-endian int64 bytes."""
    return hashlib.sha256(np.asarray(indices, dtype="<i8").tobytes()).hexdigest()


class _Output:
    """What this process shows: nothing but warnings and results if quiet; the progress bars on the terminal."""

    quiet = False
    bars: Any = None  # the rich.progress.Progress that is drawn


def set_quiet(quiet: bool) -> None:
    """Whether ``log`` and ``progress`` keep silent; called by main() functions only."""
    _Output.quiet = quiet


def log(message: str, *, always: bool = False) -> None:
    """Prints from the first process, past a progress bar if one is drawn; under --quiet only what ``always`` says."""
    if os.environ.get("RANK", "0") != "0" or (_Output.quiet and not always):
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

    On a terminal that is a bar; elsewhere, in a log say, a line each half minute.

    Args:
        iterable: What is worked through.
        description: What it is, in a word or two.
        total: Its length, where it cannot tell.
        unit: One of its items.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    if os.environ.get("RANK", "0") != "0" or _Output.quiet:
        return iter(iterable)
    shown = _bar if sys.stderr.isatty() else _lines
    return shown(iterable, description=description, total=total, unit=unit)


def _bar(iterable: Iterable[T], *, description: str, total: int | None, unit: str) -> Iterator[T]:
    if _Output.bars is None:
        columns = (
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[rate]}"),
            rich.progress.TimeRemainingColumn(),
        )
        # The streams stay as they are: what goes into a file must not pass through the terminal's drawing.
        _Output.bars = rich.progress.Progress(
            *columns,
            console=Console(stderr=True),
            transient=True,
            refresh_per_second=4,
            redirect_stdout=False,
            redirect_stderr=False,
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


class RunLog:
    """A run's written record: one JSON line per epoch in log.jsonl and the same values as tensorboard scalars.

    Args:
        folder: Where both go.
        enabled: False at all processes but the first.
        done: Epochs that a resumed run has finished; lines of later ones (trained, but lost with a kill before their
            checkpoint) are dropped, since they will be trained and written again.
    """

    def __init__(self, folder: str | os.PathLike, *, enabled: bool = True, done: int = 0) -> None:
        self._path = Path(folder) / LOG_FILE
        self._writer = None
        if enabled:
            from tensorboardX import SummaryWriter

            self._keep(done)
            self._writer = SummaryWriter(str(Path(folder) / "tensorboard"), purge_step=done + 1 if done else None)

    def _keep(self, done: int) -> None:
        # What is no text is no line of an epoch: it goes, as a line does that a kill cut short.
        lines = self._path.read_bytes().decode(errors="replace").splitlines() if self._path.exists() else []
        kept = [line for line in lines if _epoch_of(line) <= done]
        if len(kept) != len(lines):
            with atomic_write(self._path) as file:
                file.write("".join(line + "\n" for line in kept).encode())

    def write(self, epoch: int, values: dict[str, float]) -> None:
        """Appends the line {"epoch": epoch, **values} and adds each value as a scalar at that epoch."""
        if self._writer is None:
            return
        with naming_file(self._path), open(self._path, "a") as file:
            file.write(json.dumps({"epoch": epoch, **values}) + "\n")
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _epoch_of(line: str) -> float:
    try:
        return json.loads(line)["epoch"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return float("inf")  # a line that a kill cut short
