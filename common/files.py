"""Files that others may have made, read without trusting what they say of themselves.

A zip archive or an array header of a few bytes may declare terabytes. Nothing here takes memory on such a word: sizes
are compared with the file's size, with each other and with the machine's memory first. Nothing is ever unpickled or
extracted to disk.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np

from utils import InputError, memory_size

DEFLATE_RATIO = 1032  # deflate stores no more than this many bytes in one
HEADER_LIMIT = 10_000  # bytes of an npy header; it holds a type, a flag and a shape
SMALL_JSON = 2**24  # bytes of a record of settings: it holds tens of them, and no list of images


def check_fields(path: Path, content: Any, checks: dict[str, Callable[[Any], bool]], *, remedy: str) -> None:
    """Checks a JSON object's fields; others may stand beside them.

    Args:
        path: The file, for the message.
        content: What it holds.
        checks: What must be true of each field.
        remedy: What the user should do, the end of the message.

    Raises:
        InputError: The content is no object, or a field is missing or fails its check; the message names it.
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
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value) and low <= value <= high
    except OverflowError:  # a whole number beyond every float
        return False


def is_text(value: Any) -> bool:
    """Whether a JSON value is text."""
    return isinstance(value, str)


def check_archive(file: BinaryIO, path: Path, *, stored: bool) -> zipfile.ZipFile:
    """Opens a zip archive whose members' declared sizes are possible.

    Args:
        file: The archive, open.
        path: Its name, for the message.
        stored: Whether every member must stand there uncompressed, so that all together are no larger than the file.

    Raises:
        InputError: A name stands there twice, or a size is impossible.
        zipfile.BadZipFile: It is no archive; so do OSError, ValueError and NotImplementedError.
    """
    size = file.seek(0, io.SEEK_END)
    archive = zipfile.ZipFile(file)
    members = archive.infolist()
    if len({member.filename for member in members}) != len(members):
        raise InputError(f"{path} holds two members of one name; write it again")
    packed = sum(member.compress_size for member in members)
    if packed > size:
        raise InputError(f"{path} declares {packed} bytes of members and has {size}; copy or write it again")
    for member in members:
        most = member.compress_size * (1 if stored else DEFLATE_RATIO)
        if member.file_size > most or (stored and member.compress_type != zipfile.ZIP_STORED):
            raise InputError(
                f"{path}: {member.filename} declares {member.file_size} bytes, made of {member.compress_size} in the "
                "file, which cannot be; copy or write it again"
            )
    return archive


def read_npz(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads arrays from an npz file, once their sizes are known to be true and to fit into memory.

    Raises:
        InputError: The file is damaged, an array is missing or made of Python objects, or a size is impossible or more
            than this machine's memory.
    """
    try:
        with open(path, "rb") as file, check_archive(file, path, stored=False) as archive:
            inside = set(archive.namelist())
            missing = [name for name in names if f"{name}.npy" not in inside]
            if missing:
                raise InputError(f"{path} lacks {', '.join(missing)}; it must hold {', '.join(names)}")
            total = sum(archive.getinfo(f"{name}.npy").file_size for name in names)
            if total > memory_size():
                raise InputError(
                    f"{path} declares arrays of {total / 1e9:.4g} GB, and this machine has {memory_size() / 1e9:.4g} "
                    "GB of memory; give a smaller file"
                )
            return {name: _read_member(archive, name) for name in names}
    except InputError:
        raise
    except Exception as error:  # a damaged file can raise almost anything in NumPy, zipfile, zlib and tokenize
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} cannot be read as an npz file without pickle ({reason})") from None


def _read_member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as file:
        count = check_header(file)
        if file.tell() + count != member.file_size:
            raise ValueError(
                f"the header of {name} declares {count} bytes, and {member.file_size - file.tell()} follow"
            )
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False, max_header_size=HEADER_LIMIT)


def check_header(file: IO[bytes]) -> int:
    """Reads an npy header, and leaves the file where the array begins.

    Returns:
        Bytes of the array that it declares.

    Raises:
        ValueError: It is no header, or one of Python objects, which only pickle could read.
    """
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"format version {version[0]}.{version[1]} of npy is for arrays of named fields")
    shape, _, dtype = readers[version](file, max_header_size=HEADER_LIMIT)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which only pickle could read")
    if any(length < 0 for length in shape):
        raise ValueError(f"its shape is {shape}")
    return math.prod(shape) * dtype.itemsize
