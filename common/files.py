"""Files written whole or not at all, and files that others may have made, read within bounds and never unpickled.

A zip archive of a few bytes may declare terabytes: sizes are compared with the file's size and the machine's memory.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import stat
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from utils import ENVIRONMENT_ERRNOS, InputError

DEFLATE_RATIO = 1032  # deflate stores no more than this many bytes in one
HEADER_LIMIT = 10_000  # bytes of an npy header; it holds a type, a flag and a shape
SMALL_JSON = 2**24  # bytes of a record of settings: it holds tens of them, and no list of images
JSON_SHARE = 64  # of the memory, for the text of a JSON file, of which short elements take twenty times as much


def require_writable(folder: str | os.PathLike, flag: str) -> None:
    """Checks that a folder can be written or made, without making it.

    Raises:
        InputError: Nothing can be made in the nearest existing folder; the message names ``flag``.
    """
    folder = Path(folder).absolute()
    place = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        os.rmdir(tempfile.mkdtemp(dir=place, prefix=".probe."))
    except OSError as error:  # permissions alone do not tell: nobody can make anything in /proc
        if error.errno in ENVIRONMENT_ERRNOS - {errno.EROFS}:
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

    A reader sees the old file or the new one, never half of it; on an error, which names the file, the old one stays.
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
            mask = os.umask(0)  # which can only be read by setting it
            os.umask(mask)
            os.chmod(temporary, 0o666 & ~mask)
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


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes ``content`` as indented JSON, atomically."""
    text = json.dumps(content, indent=2, default=_plain, allow_nan=False) + "\n"
    with atomic_write(path) as file:
        file.write(text.encode())


def memory_size() -> int:
    """Bytes of memory that this process may have: the machine's, or its container's limit."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            limits.append(int(Path(limit).read_text()))
    return min(limits)


def read_regular(path: str | os.PathLike, *, limit: int | None = None) -> bytes:
    """The content of a regular file; a pipe would be waited for, and a device may have no end.

    Raises:
        InputError: It is missing, not a regular file, or has more than ``limit`` bytes (by default a share of memory).
    """
    limit = memory_size() // JSON_SHARE if limit is None else limit
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path} is not a regular file; restore it or write it again")
    if found.st_size > limit:
        raise InputError(f"{path} has {found.st_size} bytes and such a file has {limit} at most; write it again")
    return Path(path).read_bytes()


def read_json(path: str | os.PathLike, *, limit: int | None = None) -> Any:
    """Reads a JSON file of at most ``limit`` bytes.

    Raises:
        InputError: The file is missing, too large, or not JSON.
    """
    content = read_regular(path, limit=limit)
    try:
        return json.loads(content.decode("utf-8-sig"))  # editors may put a byte order mark in front
    except (ValueError, RecursionError) as error:  # no text, no JSON, a number too long, or nested too deep
        raise InputError(f"{path} is not valid JSON ({error}); restore it or write it again") from None


def _plain(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def check_fields(path: Path, content: Any, checks: dict[str, Callable[[Any], bool]], *, remedy: str) -> None:
    """Checks the fields of a JSON file's content; others may stand beside them.

    Raises:
        InputError: It is not an object, or a field is missing or fails its check; the message ends with ``remedy``.
    """
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object; {remedy}")
    for name, check in checks.items():
        if name not in content:
            raise InputError(f"{path} lacks {name}; {remedy}")
        if not check(content[name]):
            raise InputError(f"{path}: {name} has a wrong type or value; {remedy}")


def is_count(value: Any) -> bool:
    """Whether a JSON value is a whole number from 0 that fits into 62 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether a JSON value is a finite number within the bounds."""
    is_real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_real and low <= value <= high and abs(value) <= sys.float_info.max


def is_text(value: Any) -> bool:
    """Whether a JSON value is text."""
    return isinstance(value, str)


def check_archive(file: BinaryIO, path: Path, *, stored: bool) -> zipfile.ZipFile:
    """Opens a zip archive whose members' declared sizes are possible; if ``stored``, all must be uncompressed.

    Raises:
        InputError: Two members have one name, or a size is impossible.
        zipfile.BadZipFile: It is not an archive; OSError, ValueError and NotImplementedError may say so, too.
    """
    size = file.seek(0, io.SEEK_END)
    archive = zipfile.ZipFile(file)
    members = archive.infolist()
    if len({member.filename for member in members}) != len(members):
        raise InputError(f"{path} holds two members of one name; write it again")
    ratio = 1 if stored else DEFLATE_RATIO
    if (
        sum(member.compress_size for member in members) > size
        or any(member.file_size > member.compress_size * ratio for member in members)
        or (stored and any(member.compress_type != zipfile.ZIP_STORED for member in members))
    ):
        raise InputError(f"{path} declares sizes of its members that cannot be; copy or write it again")
    return archive


def read_npz(path: Path, names: Sequence[str], *, optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Reads arrays from an npz file, once their sizes are known to be true and to fit into memory.

    Those that are ``optional`` may be missing, there and in the result.

    Raises:
        InputError: The file is damaged, an array is missing or made of Python objects, or a size is impossible or more
            than this machine's memory.
    """
    try:
        with open(path, "rb") as file, check_archive(file, path, stored=False) as archive:
            inside = set(archive.namelist())
            if missing := [name for name in names if f"{name}.npy" not in inside and name not in optional]:
                raise InputError(f"{path} lacks {', '.join(missing)}; it must hold {', '.join(names)}")
            names = [name for name in names if f"{name}.npy" in inside]
            total = sum(archive.getinfo(f"{name}.npy").file_size for name in names)
            if total > memory_size():
                sizes = f"{total / 1e9:.4g} GB, and this machine has {memory_size() / 1e9:.4g} GB of memory"
                raise InputError(f"{path} declares arrays of {sizes}; give a smaller file")
            return {name: _read_member(archive, name) for name in names}
    except InputError:
        raise
    except Exception as error:  # a damaged file can raise almost anything in NumPy, zipfile, zlib and tokenize
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} cannot be read as an npz file without pickle ({reason})") from None


def _read_member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as file:
        array = np.lib.format.read_array(file, allow_pickle=False, max_header_size=HEADER_LIMIT)
        if file.read(1):  # reading to the end also checks the member's checksum
            raise ValueError(f"{name} holds more than its header declares")
    return array
