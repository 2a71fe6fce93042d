"""What every command starts with: device, processes, number format, determinism, stop requests, folder lock and errors.

    with session(settings.process, precision="auto", on_stop="finish") as run, folder_lock(folder):
        ...

and at the end of a script ``sys.exit(run_command(main))``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from torch.distributed.elastic.multiprocessing.errors import record

from common import distributed
from common.acceleration import Precision
from common.console import clear_progress, log, one_line, set_quiet, warn
from common.settings import ProcessSettings
from utils import ENVIRONMENT_ERRNOS, InputError, Interrupted, ProcessLost, is_first_process, program

# Exit status by what asked for the stop; where several did, the later one here counts.
STATUS = {"--max_minutes": 0, "SIGUSR1": 0, "SIGINT": 130, "SIGTERM": 143}
REASONS = ("", *STATUS)  # the processes compare a reason's position here
SIGNALS = {signal.SIGALRM: "--max_minutes", **{getattr(signal, name): name for name in REASONS[2:]}}
# A launcher passes Ctrl-C on to processes that the terminal has told already: two so close together are one.
ONE_REQUEST = 2.0  # seconds
LEAST_MARGIN = 5.0  # seconds
PATIENCE = 3.0  # seconds for which the first process may speak alone: a launcher ends all as soon as one has failed
CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # cuBLAS reads it before its first product
LOCK_FILE = ".lock"
HELD = {errno.EAGAIN, errno.EACCES}
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP}  # on this file system


@dataclass(frozen=True)
class Session:
    """What a command runs on."""

    device: torch.device  # of this process
    precision: Precision  # of the encoders' products
    processes: int  # how many there are
    seed: int
    stop: StopRequest


@contextlib.contextmanager
def session(
    process: ProcessSettings, *, precision: str | None = None, on_stop: Literal["finish", "raise"], alone: bool = False
) -> Iterator[Session]:
    """Sets up what a command runs on, and takes it down.

    Args:
        process: The command's process settings.
        precision: --precision of the encoders; None leaves torch's own formats (TF32 in a GPU's convolutions).
        on_stop: What a signal or the time limit does: ``finish`` sets ``stop``, which the command asks when it is ready
            to save; ``raise`` raises Interrupted at once, for commands whose files are whole at every moment.
        alone: Whether this process works by itself, however many a launcher has started.

    Raises:
        InputError: The device or the number format is not there.
        ProcessLost: Another process is gone or does not answer.
    """
    set_quiet(process.quiet)
    with (
        StopRequest(max_minutes=process.max_minutes, raises=on_stop == "raise") as stop,
        distributed.process_group(process.device, timeout_minutes=process.timeout_minutes, alone=alone) as device,
        deterministic(process.deterministic, device),
    ):
        resolved = Precision.resolve(precision or "fp32", device)
        if precision is not None:
            resolved.apply_to_products()
        yield Session(device, resolved, distributed.world_size(), process.seed, stop)


@contextlib.contextmanager
def deterministic(wanted: bool, device: torch.device) -> Iterator[None]:
    """Within the block torch computes everything in a fixed order, if that is wanted.

    Raises:
        InputError: The block needs an operation that this device has in no fixed order.
    """
    if not wanted:
        yield
        return
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    os.environ.setdefault(CUBLAS_WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a help for finding bugs, which takes time
    cudnn.deterministic, cudnn.benchmark = True, False
    if device.type == "cuda":
        log("--deterministic: kernels that add in a fixed order, and no torch.compile by default: steps are slower")
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        reason = str(error).split(". ")[0]
        raise InputError(f"--deterministic is not possible on this device ({reason}); leave it out here") from None
    finally:
        torch.use_deterministic_algorithms(before[0])
        cudnn.deterministic, cudnn.benchmark = before[1:]


class StopRequest:
    """SIGTERM, SIGINT, SIGUSR1 and --max_minutes as requests to stop.

    A second SIGINT or SIGTERM, more than two seconds after the first, ends the command at once. On leaving the block
    the handlers are those from before. Off the main thread, where Python takes no handlers, it does nothing.

    Attributes:
        kept: What is on disk and how to go on, in a sentence, for ``raises``; the command keeps it up to date.

    Args:
        max_minutes: Time limit, from now; None for none.
        raises: Raise Interrupted at once.
    """

    def __init__(self, *, max_minutes: float | None = None, raises: bool = False) -> None:
        self.kept = "what was finished is on disk"
        self._limit, self._raises = max_minutes, raises
        self._end = time.monotonic() + 60 * (max_minutes or 0)
        self._asked = 0  # position of the reason in REASONS
        self._since: float | None = None  # of the first SIGINT or SIGTERM
        self._agreed = 0
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._handlers[number] = signal.signal(number, self._note) or signal.SIG_DFL
            self.reserve(0.0)
        return self

    def __exit__(self, *error: object) -> None:
        if self._handlers:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    def reserve(self, seconds: float) -> None:
        """Has the time limit count as reached early enough for what saving takes, ``seconds`` so far at the longest."""
        if self._limit is not None and self._handlers:
            margin = max(seconds, 0.0 if self._raises else LEAST_MARGIN)
            left = self._end - margin - time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, max(left, 1e-3))

    def _note(self, number: int, frame: FrameType | None) -> None:
        now, name = time.monotonic(), SIGNALS[signal.Signals(number)]
        if name in ("SIGINT", "SIGTERM"):
            if self._since is None:
                self._since = now
            elif now - self._since <= ONE_REQUEST:
                return
            else:
                raise Interrupted(f"ended at once by a second {name}: what was saved before is on disk", STATUS[name])
        self._asked = max(self._asked, REASONS.index(name))
        if self._raises:
            raise self.interrupted(self.kept)
        if name == "SIGINT" and is_first_process(on_this_machine=True):
            # print() must not be called within a print() that the signal came into.
            os.write(2, b"Ctrl-C: stopping as soon as the work is saved; once more stops at once\n")

    def agreed(self) -> bool:
        """Whether any process was asked to stop, with the same answer at all of them, which must all ask."""
        self._agreed = distributed.largest(self._asked)
        return self._agreed > 0

    def interrupted(self, kept: str) -> Interrupted:
        """What to raise once everything is saved; ``kept`` says what is on disk and how to go on."""
        reason = REASONS[self._agreed or self._asked]
        shown = f"--max_minutes {self._limit:g}" if reason == "--max_minutes" else reason
        return Interrupted(f"stopped by {shown}: {kept}", STATUS[reason])


@contextlib.contextmanager
def folder_lock(folder: str | os.PathLike) -> Iterator[None]:
    """Keeps other runs out of a folder for the length of the block; the system lifts the lock when a process ends.

    The folder is made where it is not there. The processes of one run take the lock once, so all of them must enter,
    within ``session``. The lock file goes with the lock, and so does a folder made for it that stayed empty.

    Raises:
        InputError: Another process has it; the message names that process.
    """
    folder, handle = Path(folder), None
    made: list[Path] = []

    def take() -> None:
        nonlocal handle
        made[:] = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        handle = _take_lock(folder / LOCK_FILE)

    distributed.from_first(take)
    try:
        yield
    finally:
        if handle is not None:
            with contextlib.suppress(OSError):
                os.unlink(folder / LOCK_FILE)
            os.close(handle)
        for path in made:
            with contextlib.suppress(OSError):  # it is no longer empty
                path.rmdir()


def _take_lock(path: Path) -> int | None:
    """The open, locked file; None where the file system has no locks."""
    while True:
        try:
            # A link would lead out of the folder, and a pipe would wait for its other end.
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise InputError(f"{path} is not a regular file; remove it, or give another folder") from None
            raise
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            os.close(handle)
            raise InputError(f"{path} is not a regular file of its own; remove it, or give another folder")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(handle, 300, 0).decode(errors="replace")
            os.close(handle)
            if error.errno in HELD:
                used = f"{path.parent} is in use by {holder or 'another process'}"
                raise InputError(f"{used}; wait for it or stop it, or give another folder") from None
            if error.errno not in NO_LOCKS:
                raise
            warn(f"{path.parent} cannot be locked ({error.strerror}): start no second run in it")
            with contextlib.suppress(OSError):
                os.unlink(path)
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(handle)):
                break
        os.close(handle)  # an ending run has just removed what was opened here
    with contextlib.suppress(OSError):  # a full disk: the lock holds all the same, and writing what matters will tell
        os.ftruncate(handle, 0)
        command = " ".join([program(), *sys.argv[1:]])
        holder = f"process {os.getpid()} on {socket.gethostname()}, started at {time.strftime('%F %T')}: {command}"
        os.pwrite(handle, holder.encode(errors="replace"), 0)
    return handle


def run_command(main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> int:
    """Runs a command and turns what goes wrong into one line and an exit status.

    Under torchrun a fault that is not the input's also goes on record for the launcher's report.

    Returns:
        0 on success, 2 for bad input, 3 for a failing environment (a full disk, a lost process), 130 for Ctrl-C, and
        what ``Interrupted`` says. ``--debug`` among the arguments lets the traceback of an error through instead.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        stopped = record(_return_stop)(main, words) if "TORCHELASTIC_ERROR_FILE" in os.environ else main(words)
        if stopped:
            raise stopped
        return 0
    except Interrupted as stop:
        _say(str(stop), wait=stop.status != 0)
        return stop.status
    except (KeyboardInterrupt, InputError, ProcessLost, OSError, MemoryError, RuntimeError) as error:
        status, message = _status_and_message(error)
        if status is None or "--debug" in words:
            raise
        _say(f"error: {message}")
        return status


def _return_stop(main: Callable[[Sequence[str]], None], words: Sequence[str]) -> BaseException | None:
    """Returns what says all in its one line, so that the launcher's report does not add a traceback of it."""
    try:
        main(words)
    except (InputError, Interrupted) as stop:
        return stop
    return None


def _status_and_message(error: BaseException) -> tuple[int | None, str]:
    """Exit status and one line of an error; None for a fault of ours, whose traceback matters."""
    if isinstance(error, KeyboardInterrupt):
        return 130, "stopped by Ctrl-C; what was finished is on disk"
    if isinstance(error, (InputError, ProcessLost)):
        return (2 if isinstance(error, InputError) else 3), str(error)
    if isinstance(error, OSError):
        status = 3 if error.errno in ENVIRONMENT_ERRNOS else 2
        return status, f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
    # torch says so on a GPU with an error of its own, and on a CPU with a RuntimeError.
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
        reason = " ".join(str(error).split())[:200] or "no details"
        return 3, f"out of memory ({reason}): free some, or give smaller batches or data"
    return None, ""


def _say(message: str, *, wait: bool = True) -> None:
    """Prints a command's last line; where several processes of a machine fail alike, the first one's alone is seen."""
    if not is_first_process(on_this_machine=True):
        if not wait:
            return
        time.sleep(PATIENCE)
    clear_progress()
    print(f"{program()}: {one_line(message)}", file=sys.stderr, flush=True)
