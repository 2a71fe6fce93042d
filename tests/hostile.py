"""Crafted files: checkpoints and archives that lie about themselves or would run code, for tests of what reads them."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION


class Payload:
    """Makes a folder when a loader that executes pickles reads it."""

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.trace,)


class Data:
    """Stands for a tensor's data in a crafted pickle: whatever its record says."""

    def __init__(
        self, key: Any = "0", *, count: Any = 4, storage: Any = torch.FloatStorage, kind: str = "storage"
    ) -> None:
        self.pid = (kind, storage, key, "cpu", count)


class Crafted:
    """Stands for a tensor in a crafted pickle: whatever offset, size and stride say."""

    def __init__(self, data: Any, *, offset: Any = 0, size: Any = (4,), stride: Any = (1,)) -> None:
        self.arguments = (data, offset, size, stride, False, OrderedDict())

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor_v2, self.arguments


class Call:
    """A call of anything, when a loader that executes pickles reads it."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.parts = function, arguments

    def __reduce__(self) -> Any:
        return self.parts


def crafted_pickle(content: Any, *, view: Any = (), protocol: int = 2) -> bytes:
    """A pickle in which Data stands as torch.save writes a tensor's data, with a part of it in the older format."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing: Any) -> Any:
            return (*thing.pid, *view) if isinstance(thing, Data) else None

    buffer = io.BytesIO()
    Pickler(buffer, protocol).dump(content)
    return buffer.getvalue()


def write_zip(path: Path, content: bytes, records: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> Path:
    """A file of torch.save's format from a pickle and the tensors' data, which may be compressed."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", content)
        file.writestr("archive/byteorder", "little")
        for key, data in records.items():
            file.writestr(f"archive/data/{key}", data, compression)
        file.writestr("archive/version", "3\n")
    return path


def write_sequence(path: Path, content: bytes, records: dict[str, bytes], *, item: int = 4) -> Path:
    """The same in the format before torch 1.6."""
    with open(path, "wb") as file:
        for value in (MAGIC_NUMBER, PROTOCOL_VERSION, {"little_endian": True}):
            pickle.dump(value, file, 2)
        file.write(content)
        pickle.dump(list(records), file, 2)
        for data in records.values():
            file.write((len(data) // item).to_bytes(8, "little") + data)
    return path


def npy(descr: str, shape: Any, data: bytes = b"", *, version: tuple[int, int] = (1, 0)) -> bytes:
    """An npy file whose header says anything."""
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}\n".encode()
    length = len(header).to_bytes(2 if version == (1, 0) else 4, "little")
    return b"\x93NUMPY" + bytes(version) + length + header + data


def pickled_npy(thing: Any) -> bytes:
    """An npy file of Python objects, which holds a pickle."""
    buffer = io.BytesIO()
    array = np.empty(1, dtype=object)
    array[0] = thing
    np.lib.format.write_array(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def with_declared_size(archive: bytes, name: str, size: int) -> bytes:
    """A zip archive in which a member's size once unpacked is another one, in both of the places that declare it."""
    raw = bytearray(archive)
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        local = file.getinfo(name).header_offset
    raw[local + 22 : local + 26] = size.to_bytes(4, "little")
    start = 0
    while (start := raw.find(b"PK\x01\x02", start)) >= 0:
        length = int.from_bytes(raw[start + 28 : start + 30], "little")
        if bytes(raw[start + 46 : start + 46 + length]).decode() == name:
            raw[start + 24 : start + 28] = size.to_bytes(4, "little")
        start += 4
    return bytes(raw)
