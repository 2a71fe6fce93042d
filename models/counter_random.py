"""Uniform numbers by key instead of by position in a stream.

An augmentation must depend on the image it is for, not on the batch, process or order in which the image comes. So
every draw is a hash of a key (seed, purpose, epoch, image, view, shift) and of the draw's number: nothing has a state,
a resumed run needs none, and CPU and GPU give the same bits. The hash is the finaliser of SplitMix64 (Steele, Lea and
Flood, OOPSLA 2014), applied once per part of the key. torch and NumPy have no generator that is keyed per row.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _signed(value: int) -> int:
    value %= 2**64
    return value - 2**64 if value >= 2**63 else value


GOLDEN = _signed(0x9E3779B97F4A7C15)
FIRST = _signed(0xBF58476D1CE4E5B9)
SECOND = _signed(0x94D049BB133111EB)
MANTISSA_BITS = 24  # a float32 holds them exactly


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift of int64, for which torch only has the arithmetic one."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * FIRST
    x = (x ^ _shift_right(x, 27)) * SECOND
    return x ^ _shift_right(x, 31)


def make_keys(seed: int, *parts: int | Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Hashes a seed and further parts into keys.

    Args:
        seed: Any whole number.
        parts: Whole numbers or int64 tensors, which broadcast against each other.
        device: Where the keys live if no part is a tensor.

    Returns:
        int64 keys of the broadcast shape.
    """
    tensors = [part for part in parts if isinstance(part, Tensor)]
    device = tensors[0].device if tensors else torch.device(device)
    keys = _mix(torch.tensor(_signed(seed), device=device) + GOLDEN)
    for part in parts:
        part = part if isinstance(part, Tensor) else torch.tensor(_signed(part), device=device)
        # The multiplication keeps the parts apart: without it a seed and a part that are equal would cancel out.
        keys = _mix((keys * FIRST ^ _mix(part + GOLDEN)) + GOLDEN)
    return keys


def uniform(keys: Tensor, draws: int) -> Tensor:
    """Uniform float32 numbers in [0, 1), ``draws`` per key: (...) to (..., draws)."""
    counters = torch.arange(1, draws + 1, device=keys.device) * GOLDEN
    bits = _shift_right(_mix(keys[..., None] + counters), 64 - MANTISSA_BITS)
    return bits.float() * 2.0**-MANTISSA_BITS
