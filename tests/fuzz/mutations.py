"""Damage to the bytes, the text, the fields and the members of a valid file."""

import copy
import io
import json
import re
import warnings
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np

INTEGERS = (0, 1, 2**15 - 1, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
WORDS = "0 -1 1.5 -0 1e999 -1e999 1e-999 NaN Infinity nan 9223372036854775808 true null [] {} 1_0 é \x1b[2J".split()
WORDS += ["9" * 400, "9" * 5000, "", '"../../x"', '"\\u0000"']
VALUES: list[Any] = [None, True, 0, -1, 1.5, 2**62, 2**64, 10**400, float("nan"), float("inf"), "", "x", "../../x"]
VALUES += ["\x00", "\x1b[2J", "x" * 10_000, [], {}, [0], [-1], ["x"], {"": None}, [1.5], [None]]


def mutated(data: bytes, rng: np.random.Generator, others: Sequence[bytes]) -> bytes:
    """A valid file with one to three kinds of damage, some of it spliced in from other files.

    An archive is often damaged in such a way that its checksums fit.
    """
    for _ in range(rng.integers(1, 4)):
        if data[:2] == b"PK" and rng.integers(3):
            data = change_members(data, rng)
        elif data[:1] in (b"{", b"[") and rng.integers(3):
            data = change_fields(data, rng)
        else:
            data = change_bytes(data, rng, others)
    return data


def change_bytes(data: bytes, rng: np.random.Generator, others: Sequence[bytes]) -> bytes:
    """Bits flipped, numbers replaced, a piece cut out, repeated or inserted, the end cut off or of another file."""
    start, stop = sorted(int(place) for place in rng.integers(0, len(data) + 1, 2))
    kind = rng.integers(10)
    if kind == 0:
        raw = bytearray(data)
        for place in rng.integers(0, 8 * len(raw), rng.integers(1, 9)) if raw else ():
            raw[place // 8] ^= 1 << (place % 8)
        return bytes(raw)
    if kind == 1:  # an extreme number over 1 to 8 bytes
        width = int(rng.choice([1, 2, 4, 8]))
        value = INTEGERS[rng.integers(len(INTEGERS))] % 2 ** (8 * width)
        return data[:start] + value.to_bytes(width, str(rng.choice(["little", "big"]))) + data[start + width :]
    if kind == 2:  # another word in the place of a number in text
        numbers = list(re.finditer(rb"-?\d+(\.\d+)?", data[:100_000]))
        found = numbers[rng.integers(len(numbers))].span() if numbers else (0, 0)
        return data[: found[0]] + WORDS[rng.integers(len(WORDS))].encode() + data[found[1] :]
    other = others[rng.integers(len(others))]
    there = int(rng.integers(0, len(other) + 1))
    return [
        data[:start],
        data[:start] + data[stop:],
        data[:stop] + data[start : min(stop, start + 4096)] * int(rng.integers(1, 5)) + data[stop:],
        data[:start] + rng.bytes(int(rng.integers(1, 64))) + data[start:],
        data[:start] + other[there:],
        other[:there] + data[start:],
        other,
    ][kind - 3]


def change_fields(data: bytes, rng: np.random.Generator) -> bytes:
    """Fields of a JSON file replaced, removed, doubled, nested, or put in the place of another."""
    try:
        content = json.loads(data)
        for _ in range(rng.integers(1, 4)):
            (holder, key), (other, there) = _field(content, rng), _field(content, rng)
            value = copy.deepcopy(VALUES[rng.integers(len(VALUES))])
            if kind := rng.integers(5):
                holder[key] = [value, value, other[there], [holder[key], holder[key]]][kind - 1]
            else:
                del holder[key]
        return json.dumps(content).encode()
    except (ValueError, TypeError, LookupError, RecursionError):  # no JSON any more, or no field is left
        return data


def _field(content: Any, rng: np.random.Generator) -> tuple[Any, Any]:
    """A container in the content, and a key of it."""
    holder = key = None
    while isinstance(content, (dict, list)) and content and (holder is None or rng.integers(3)):
        keys = list(content) if isinstance(content, dict) else range(len(content))
        holder, key = content, keys[rng.integers(len(keys))]
        content = holder[key]
    return holder, key


def change_members(data: bytes, rng: np.random.Generator) -> bytes:
    """A zip archive whose checksums fit, with members changed, renamed, doubled, removed, swapped or compressed."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            members = [(name, file.read(name)) for name in file.namelist()]
        at, other = (int(rng.integers(len(members))) for _ in range(2))
    except Exception:  # not an archive any more
        return data
    (name, content), kind = members[at], rng.integers(7)
    if kind == 0:
        del members[at]
    elif kind == 1:
        members[at], members[other] = (name, members[other][1]), (members[other][0], content)
    elif kind == 2:
        members[at] = ["../x", "/x", "x", name + "x", "x" * 300, members[other][0]][rng.integers(6)], content
    elif kind == 3:
        members[at] = name, bytes(int(rng.choice([0, 10**6, 10**7])))
    else:
        members[at] = name, change_bytes(content, rng, [inside for _, inside in members])
    buffer, packing = io.BytesIO(), zipfile.ZIP_DEFLATED if rng.integers(3) == 0 else zipfile.ZIP_STORED
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", packing) as file:
        warnings.simplefilter("ignore")  # two members of one name
        for member, inside in members:
            file.writestr(member, inside)
    return buffer.getvalue()
