"""Damage to the bytes, the text, the fields and the members of a valid file."""

from __future__ import annotations

import hashlib
import io
import json
import re
import warnings
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from common.checkpoint import SEAL

BYTES = (0x00, 0x01, 0x7F, 0x80, 0xFF)
INTEGERS = (0, 1, 2**15 - 1, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
WORDS = (
    "0", "-1", "1.5", "-0", "1e999", "-1e999", "1e-999", "NaN", "Infinity", "nan", "2147483648", "9223372036854775808",
    "9" * 400, "9" * 5000, "true", "null", '""', "[]", "{}", '"../../x"', '"\\u0000"', "\x1b[2J", "", "1_0", "é",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 1.5, 2**62, 2**63, 2**64, 10**400, -(10**400), float("nan"), float("inf"), "", "x",
    "../../x", "/etc/passwd", "\x00", "\x1b[2J", "x" * 10_000, [], {}, [0], [-1], ["x"], {"": None}, [1.5], [None],
)  # fmt: skip

Mutation = Callable[[bytes, np.random.Generator, Sequence[bytes]], bytes]


def flip_bits(data: bytes, rng: np.random.Generator, others: Sequence[bytes]) -> bytes:
    raw = bytearray(data)
    for place in rng.integers(0, 8 * len(raw), rng.integers(1, 9)) if raw else ():
        raw[place // 8] ^= 1 << (place % 8)
    return bytes(raw)


def set_bytes(data: bytes, rng: np.random.Generator, others: Sequence[bytes]) -> bytes:
    raw = bytearray(data)
    for place in rng.integers(0, len(raw), rng.integers(1, 5)) if raw else ():
        raw[place] = int(rng.choice(BYTES))
    return bytes(raw)


def set_integer(data: bytes, rng: np.random.Generator, others: Sequence[bytes]) -> bytes:
    """An extreme number over 2, 4 or 8 bytes."""
    width = int(rng.choice([2, 4, 8]))
    at = int(rng.integers(0, max(1, len(data) - width)))
    value = INTEGERS[rng.integers(len(INTEGERS))] % 2 ** (8 * width)
    return data[:at] + value.to_bytes(width, str(rng.choice(["little", "big"]))) + data[at + width :]


def truncate(data: bytes, rng: np.random.Generator, others: Sequence[bytes]) -> bytes:
    return data[: rng.integers(0, len(data) + 1)]


def cut_out(data: bytes, rng: np.random.Generator, others: Sequence[bytes]) -> bytes:
    start, stop = sorted(rng.integers(0, len(data) + 1, 2))
    return data[:start] + data[stop:]


def repeat(data: bytes, rng: np.random.Generator, others: Sequence[bytes]) -> bytes:
    start, stop = sorted(rng.integers(0, len(data) + 1, 2))
    return data[:stop] + data[start : min(stop, start + 4096)] * int(rng.integers(1, 5)) + data[stop:]


def insert(data: bytes, rng: np.random.Generator, others: Sequence[bytes]) -> bytes:
    at = int(rng.integers(0, len(data) + 1))
    return data[:at] + rng.bytes(int(rng.integers(1, 64))) + data[at:]


def splice(data: bytes, rng: np.random.Generator, others: Sequence[bytes]) -> bytes:
    """The beginning of this file and the end of another, or the other way round, or a piece of it within."""
    other = others[rng.integers(len(others))]
    at, there = int(rng.integers(0, len(data) + 1)), int(rng.integers(0, len(other) + 1))
    kind = rng.integers(4)
    if kind == 0:
        return data[:at] + other[there:]
    if kind == 1:
        return other[:there] + data[at:]
    if kind == 2:
        return data[:at] + other[there : there + 100] + data[at:]
    return other


def set_number(data: bytes, rng: np.random.Generator, others: Sequence[bytes]) -> bytes:
    """Another word in the place of a number in text."""
    numbers = list(re.finditer(rb"-?\d+(\.\d+)?", data[:100_000]))
    if not numbers:
        return data
    found = numbers[rng.integers(len(numbers))]
    return data[: found.start()] + WORDS[rng.integers(len(WORDS))].encode() + data[found.end() :]


ANYWHERE: tuple[Mutation, ...] = (
    flip_bits, set_bytes, set_integer, truncate, cut_out, repeat, insert, splice, set_number,
)  # fmt: skip


def change_fields(data: bytes, rng: np.random.Generator, others: Sequence[bytes]) -> bytes:
    """Fields of a JSON file swapped, replaced, removed, doubled, or nested."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return data
    places = list(_places(content, 400))
    for _ in range(rng.integers(1, 4)) if places else ():
        (holder, key), (other, there) = (places[rng.integers(len(places))] for _ in range(2))
        try:
            kind = rng.integers(6)
            if kind <= 1:
                holder[key] = VALUES[rng.integers(len(VALUES))]
            elif kind == 2:
                holder[key], other[there] = other[there], holder[key]
            elif kind == 3:
                del holder[key]
            elif kind == 4:
                holder[key] = [holder[key], holder[key]]
            elif isinstance(holder, list):
                holder.append(holder[key])
            else:
                holder[str(there)] = holder[key]
        except (KeyError, IndexError):
            continue  # an earlier change has removed it
    try:
        return json.dumps(content).encode()
    except (ValueError, RecursionError):  # a container that holds itself
        return data


def _places(content: Any, most: int) -> list[tuple[Any, Any]]:
    """Containers and the keys in them, outer ones first."""
    found: list[tuple[Any, Any]] = []
    queue = [content]
    while queue and len(found) < most:
        holder = queue.pop(0)
        items = list(holder.items()) if isinstance(holder, dict) else list(enumerate(holder))[:50]
        found += [(holder, key) for key, _ in items]
        queue += [value for _, value in items if isinstance(value, (dict, list))]
    return found


def change_members(data: bytes, rng: np.random.Generator, others: Sequence[bytes]) -> bytes:
    """A zip archive whose checksums fit, with members changed, renamed, doubled, removed, swapped or compressed."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            members = [(name, file.read(name)) for name in file.namelist()]
    except Exception:  # it is none, or damaged already
        return data
    at, other = (int(rng.integers(len(members))) for _ in range(2))
    name, content = members[at]
    kind = rng.integers(8)
    if kind <= 2:
        members[at] = name, ANYWHERE[rng.integers(len(ANYWHERE))](content, rng, [other for _, other in members])
    elif kind == 3:
        members[at] = ["../x", "/x", "", name + "x", "x" * 300, members[other][0]][rng.integers(6)], content
    elif kind == 4:
        del members[at]
    elif kind == 5:
        members[at], members[other] = (name, members[other][1]), (members[other][0], content)
    elif kind == 6:
        members[at] = name, bytes(int(rng.choice([0, 10**6, 10**7])))
    buffer = io.BytesIO()
    compression = zipfile.ZIP_DEFLATED if rng.integers(3) == 0 else zipfile.ZIP_STORED
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", compression) as file:
        warnings.simplefilter("ignore")  # two members of one name
        for member, inside in members:
            file.writestr(member or "x", inside)
    return buffer.getvalue()


def mutated(data: bytes, rng: np.random.Generator, others: Sequence[bytes]) -> bytes:
    """A valid file with one to three kinds of damage; often in such a way that its checksums fit.

    Args:
        data: The valid file.
        rng: Of the damage.
        others: Files of other kinds, to splice in.
    """
    if data.startswith(SEAL) and rng.integers(4):
        payload = mutated(data.partition(b"\n")[2], rng, others)
        return SEAL + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload
    for _ in range(rng.integers(1, 4)):
        if data[:2] == b"PK" and rng.integers(3):
            data = change_members(data, rng, others)
        elif data[:1] in (b"{", b"[") and rng.integers(3):
            data = change_fields(data, rng, others)
        else:
            data = ANYWHERE[rng.integers(len(ANYWHERE))](data, rng, others)
    return data
