"""Small helpers that every layer may use: errors, files, seeds and the run's log."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

LOG_FILE = "log.jsonl"
JSON_SHARE = 64  # of the memory, for the text of a JSON file


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


ENVIRONMENT_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENOMEM}


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


def read_regular(path: str | os.PathLike, *, limit: int | None = None) -> bytes:
    """The content of a regular file; a pipe would be waited for, and a device may have no end.

    Args:
        path: The file.
        limit: The most bytes that it may have; by default a share of memory.

    Raises:
        InputError: It is missing, too large, or no regular file.
    """
    limit = memory_size() // JSON_SHARE if limit is None else limit
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path} is no regular file; restore it or write it again")
    if found.st_size > limit:
        raise InputError(f"{path} has {found.st_size} bytes and such a file has {limit} at most; write it again")
    return Path(path).read_bytes()


def read_json(path: str | os.PathLike, *, limit: int | None = None) -> Any:
    """Reads a JSON file.

    Args:
        path: The file.
        limit: The most bytes that it may have; by default a share of memory that leaves room for its content, of which
            the shortest elements, such as [], take more than twenty times as much as their text.

    Raises:
        InputError: The file is missing, too large, or no JSON.
    """
    content = read_regular(path, limit=limit)
    try:
        return json.loads(content.decode())
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
        there = os.path.lexists(self._path)
        lines = read_regular(self._path).decode(errors="replace").splitlines() if there else []
        kept = [line for line in lines if _epoch_of(line) <= done]
        if len(kept) != len(lines) or self._path.is_symlink():  # lines must not go where a link leads
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
