"""What a checkpoint may hold: tensors and plain values, no larger than the file says they are.

torch.load with weights_only executes nothing, but takes memory on a file's word: a compressed record may unfold a
thousandfold, a tensor repeat one number a billion times, a bytearray be made of a length alone. So a checkpoint is
first walked through without making anything.
"""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any, BinaryIO

from common.files import check_archive

PICKLE_LIMIT = 2**24  # bytes of all but the tensors' data: names, sizes and settings, some hundred for each tensor
# Bytes of an element, by the storage classes that torch.save names.
STORAGES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8, "IntStorage": 4,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1,
}  # fmt: skip


class Refused(ValueError):
    """A checkpoint holds what it may not; the message says what."""


def check_checkpoint(file: BinaryIO, path: Path) -> None:
    """Walks through a file of torch.save, in today's or the older format; nothing is made, let alone executed.

    Args:
        file: Open; it is left anywhere.
        path: Its name, for messages.

    Raises:
        InputError: A zip archive declares impossible sizes.
        Refused: It holds something else than tensors and plain values, or a tensor that its data cannot fill.
        Exception: It is no such file; a damaged pickle may raise almost anything.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    packed = file.read(4) == b"PK\x03\x04"  # as torch.load tells the formats apart
    file.seek(0)
    if packed:
        _check_zip(file, path)
    else:
        _check_sequence(_Bounded(file, min(size, PICKLE_LIMIT)), size)


def _check_zip(file: BinaryIO, path: Path) -> None:
    with check_archive(file, path, stored=True) as archive:
        names = archive.namelist()
        folder = names[0].split("/")[0] if names else ""
        content = archive.getinfo(f"{folder}/data.pkl")
        if content.file_size > PICKLE_LIMIT:
            raise Refused(f"it has {content.file_size} bytes beside its tensors")
        walker = _Walker(io.BytesIO(archive.read(content)))
        walker.load()
        for key, count in walker.storages.items():
            try:
                record = archive.getinfo(f"{folder}/data/{key}")
            except KeyError:
                raise Refused(f"the data of a tensor ({key}) is not there") from None
            if record.file_size != count:
                raise Refused(f"a tensor's data ({key}) should have {count} bytes and has {record.file_size}")


def _check_sequence(file: _Bounded, size: int) -> None:
    """The format before torch 1.6: five pickles, of which the fourth is the content, then the tensors' data."""
    for _ in range(3):
        _Walker(file).load()
    walker = _Walker(file)
    walker.load()
    _Walker(file).load()
    declared = sum(walker.storages.values())
    if declared > size - file.tell():
        raise Refused(f"tensors of {declared} bytes in the last {size - file.tell()} of the file")


class _Bounded:
    """The first bytes of a file, which is never asked for more than it has: Python would set the memory aside first."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size

    def read(self, count: int) -> bytes:
        return self._file.read(min(count, self._size - self.tell()))

    def readline(self) -> bytes:
        return self._file.readline(self._size - self.tell())

    def tell(self) -> int:
        return self._file.tell()


class _Name(tuple):
    """Stands for a class or function that a pickle names: (module, name). It cannot be changed from inside the file."""

    __slots__ = ()

    def __call__(self, *arguments: Any) -> Any:
        if self == ("collections", "OrderedDict") and not arguments:
            return _Mapping()
        if self == ("torch._utils", "_rebuild_tensor_v2") and len(arguments) >= 4:
            return _check_tensor(*arguments[:4])
        if self == ("torch._utils", "_rebuild_parameter") and isinstance(arguments[0], _Tensor):
            return arguments[0]
        if self == ("_codecs", "encode") and [type(value) for value in arguments] == [str, str]:
            return b""  # how protocol 2 writes bytes
        raise Refused(f"{self[0]}.{self[1]} in it is no plain tensor")


class _Mapping(dict):
    """Stands for an OrderedDict, to which a state_dict adds attributes."""


class _Storage(tuple):
    """Stands for the data of a tensor: (number of elements,)."""

    __slots__ = ()


class _Tensor(tuple):
    """Stands for a tensor."""

    __slots__ = ()


def _check_tensor(storage: Any, offset: Any, size: Any, stride: Any) -> _Tensor:
    numbers = (offset, *size, *stride) if type(size) is type(stride) is tuple else (None,)
    if not isinstance(storage, _Storage) or len(size) != len(stride) or any(type(n) is not int for n in numbers):
        raise Refused("a tensor in it has no plain size")
    elements = math.prod(size)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride)) if elements else offset
    if min(numbers) < 0 or elements > storage[0] or (elements and last >= storage[0]):
        raise Refused(f"a tensor of size {size} in it is larger than its data")
    return _Tensor()


def _check_keys(keys: list[Any]) -> None:
    if any(type(key) not in (str, int) for key in keys):
        raise Refused("a key in it is neither text nor a whole number")


class _Walker(pickle._Unpickler):  # the one in C makes room for as many objects as a file claims to have
    """Goes through a pickle and makes nothing but numbers, text and containers.

    Attributes:
        storages: Bytes of each tensor's data, by key.
    """

    # A bytearray is made at the length that the file claims; the extensions refer to objects outside of the file; and
    # a set hashes what is put into it, which takes 2^n steps for a tuple of a tuple ... of the same one, n deep.
    dispatch = {  # noqa: RUF012
        operation: step
        for operation, step in pickle._Unpickler.dispatch.items()
        if bytes([operation])
        not in (
            pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.EMPTY_SET,
            pickle.FROZENSET, pickle.ADDITEMS,
        )
    }  # fmt: skip

    def __init__(self, file: Any) -> None:
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, int] = {}

    def load_setitem(self) -> None:
        _check_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self) -> None:
        _check_keys(self.stack[::2])
        super().load_setitems()

    def load_dict(self) -> None:
        _check_keys(self.stack[::2])
        super().load_dict()

    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.DICT[0]] = load_dict

    def find_class(self, module: str, name: str) -> Any:
        allowed = {("collections", "OrderedDict"), ("torch._utils", "_rebuild_tensor_v2")}
        allowed |= {("torch._utils", "_rebuild_parameter"), ("_codecs", "encode")}
        allowed |= {*(("torch", storage) for storage in STORAGES)}
        if (module, name) not in allowed:
            raise Refused(f"{module}.{name} in it is no plain tensor")
        return _Name((module, name))

    def persistent_load(self, pid: Any) -> Any:
        kind, storage, key, _, count = pid[:5]
        if kind != "storage" or not isinstance(storage, _Name) or storage[0] != "torch":
            raise Refused("a tensor in it has no plain data")
        if type(key) is not str or type(count) is not int:
            raise Refused("a tensor in it has no plain data")
        size = count * STORAGES[storage[1]]
        if count < 0 or self.storages.setdefault(key, size) != size:
            raise Refused(f"a tensor's data ({key}) has two sizes, or one below 0")
        if len(pid) > 5 and pid[5] is not None:  # of the older format: a part of the data, (key, offset, elements)
            _, offset, count = pid[5]
            if min(offset, count) < 0 or (offset + count) * STORAGES[storage[1]] > size:
                raise Refused(f"a tensor's data ({key}) is part of too little")
        return _Storage((count,))
