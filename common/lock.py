"""One run per folder: a lock that the system lifts when its process ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from common import distributed
from common.console import warn
from utils import InputError

LOCK_FILE = ".lock"
RESTART_PATIENCE = 60.0  # seconds
HELD = {errno.EAGAIN, errno.EACCES}
UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP}


@contextlib.contextmanager
def folder_lock(folder: str | os.PathLike, *, check: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Keeps other runs out of a folder for the length of the block; the folder is made where it is not there.

    The processes of one run take it once, so all of them must enter, within distributed.session. The lock file goes
    with the lock, and so does a folder made for it that stayed empty. Where the launcher restarts what has failed, it
    is waited for a moment: a process of before may still be ending.

    Args:
        folder: To lock; the first process's counts.
        check: Called by the first process before the folder is made; what it raises, all raise.

    Raises:
        InputError: Another process has it; the message names that process.
    """
    folder, handle, made = Path(folder), None, []

    def take() -> None:
        nonlocal handle, made
        check()
        made = _missing(folder)
        folder.mkdir(parents=True, exist_ok=True)
        handle = _take(folder / LOCK_FILE, patience=RESTART_PATIENCE if _restarts() else 0.0)

    distributed.enter(f"the locking of {folder}")
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


def _missing(folder: Path) -> list[Path]:
    """The folder and those above it that are not there, the deepest first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _restarts() -> bool:
    return os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"


def _take(path: Path, *, patience: float) -> int | None:
    """The open, locked file; None where the file system knows no locks."""
    end = time.monotonic() + patience
    while True:
        handle = _open(path)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(handle, 10_000, 0)
            os.close(handle)
            if error.errno in HELD and time.monotonic() < end:
                time.sleep(0.2)
                continue
            if error.errno in HELD:
                raise InputError(
                    f"{path.parent} is in use by {_describe(holder)}; wait for it or stop it, or give another folder"
                ) from None
            if error.errno in UNSUPPORTED:
                warn(f"{path.parent} cannot be locked ({error.strerror}): start no second run in it")
                with contextlib.suppress(OSError):
                    os.unlink(path)
                return None
            raise
        if _is_at(path, handle):
            break
        os.close(handle)  # an ending run has just removed what was opened here
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(_own()).encode(), 0)
    except OSError:  # a full disk: the lock holds all the same, and writing what matters will tell
        pass
    return handle


def _open(path: Path) -> int:
    """The file, made if need be; whatever else lies under its name is left as it is."""
    try:
        # A link would lead out of the folder, and a pipe would wait for its other end.
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise InputError(f"{path} is no regular file; remove it, or give another folder") from None
        raise
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(handle)
        raise InputError(f"{path} is no regular file of its own; remove it, or give another folder")
    return handle


def _is_at(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def _own() -> dict[str, object]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _describe(content: bytes) -> str:
    try:
        holder = json.loads(content)
        return (
            f"process {int(holder['pid'])} on {holder['host']}, started at {holder['since']}: "
            f"{str(holder['command'])[:200]}"
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return "another process"
