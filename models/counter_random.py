"""Uniform numbers by key instead of by position in a stream.

An augmentation must depend on the image it is for, not on the batch, process or order in which the image comes. So
every draw is a hash of a key (seed, purpose, epoch, image, view, shift) and of the draw's number: nothing has a state,
a resumed run needs none, and CPU and GPU give the same bits. The hash is the finaliser of SplitMix64 (Steele, Lea and
Flood, OOPSLA 2014), applied once per part of the key. torch and NumPy have no generator that is keyed per row.
"""

from __future__ import annotations

import enum
from typing import TypeVar

import torch
from torch import Tensor

Number = TypeVar("Number", int, Tensor)


class Purpose(enum.IntEnum):
    """What a draw is for: the part of a key that keeps draws of one seed apart."""

    TRAINING = 1  # views in contrastive training
    ORDER = 2  # of the images of an epoch
    QUERY = 3  # views whose features are averaged


def _signed(value: int) -> int:
    value %= 2**64
    return value - 2**64 if value >= 2**63 else value


GOLDEN = _signed(0x9E3779B97F4A7C15)
FIRST = _signed(0xBF58476D1CE4E5B9)
SECOND = _signed(0x94D049BB133111EB)
MANTISSA_BITS = 24  # a float32 holds them exactly


def _shift_right(x: Number, bits: int) -> Number:
    """Logical shift of int64, for which torch only has the arithmetic one."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Number) -> Number:
    x = _wrap((x ^ _shift_right(x, 30)) * FIRST)
    x = _wrap((x ^ _shift_right(x, 27)) * SECOND)
    return x ^ _shift_right(x, 31)


def _wrap(x: Number) -> Number:
    """A product or sum in 64 bits: tensors wrap by themselves, Python's whole numbers have no end."""
    return x if isinstance(x, Tensor) else _signed(x)


# Opaque to torch.compile, whose whole numbers do not wrap at 64 bits (Inductor folds an arange's products exactly).
# It plans with the strides that register_fake promises, whatever the keys' own are.
@torch.library.custom_op("ccal::hash_part", mutates_args=())
def _hash_part(keys: Tensor, part: Tensor) -> Tensor:
    # The multiplication keeps the parts apart: without it a seed and a part that are equal would cancel out.
    return _mix((keys * FIRST ^ _mix(part + GOLDEN)) + GOLDEN).contiguous()


@_hash_part.register_fake
def _(keys: Tensor, part: Tensor) -> Tensor:
    return torch.empty(torch.broadcast_shapes(keys.shape, part.shape), dtype=torch.int64, device=part.device)


@torch.library.custom_op("ccal::uniform", mutates_args=())
def _uniform(keys: Tensor, draws: int) -> Tensor:
    counters = torch.arange(1, draws + 1, device=keys.device) * GOLDEN
    bits = _shift_right(_mix(keys[..., None] + counters), 64 - MANTISSA_BITS)
    return (bits.float() * 2.0**-MANTISSA_BITS).contiguous()


@_uniform.register_fake
def _(keys: Tensor, draws: int) -> Tensor:
    return torch.empty((*keys.shape, draws), dtype=torch.float32, device=keys.device)


def make_keys(seed: int, *parts: int | Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Hashes a seed and further parts into keys.

    Args:
        seed: Any whole number.
        parts: Whole numbers or int64 tensors, which broadcast against each other.
        device: Where the keys live if no part is a tensor.

    Returns:
        int64 keys of the broadcast shape.
    """
    # Whole numbers are hashed by Python: as tensors each would be a copy to the device, for which the host waits.
    keys: int | Tensor = _mix(_signed(seed + GOLDEN))
    for part in parts:
        if isinstance(keys, int) and isinstance(part, int):
            keys = _mix(_signed((_signed(keys * FIRST) ^ _mix(_signed(part + GOLDEN))) + GOLDEN))
            continue
        place = part.device if isinstance(part, Tensor) else keys.device
        keys, part = (
            x if isinstance(x, Tensor) else torch.full((), _signed(x), dtype=torch.int64, device=place)
            for x in (keys, part)
        )
        keys = _hash_part(keys, part)
    return keys if isinstance(keys, Tensor) else torch.full((), keys, dtype=torch.int64, device=device)


def uniform(keys: Tensor, draws: int) -> Tensor:
    """Uniform float32 numbers in [0, 1), ``draws`` per key: (...) to (..., draws)."""
    return _uniform(keys, draws)
