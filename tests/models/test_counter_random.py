"""models/counter_random.py: SplitMix64 against Python's whole numbers, and whether its numbers look random."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models import counter_random
from models.counter_random import Purpose, make_keys, uniform

MASK = 2**64 - 1


def mix64(z):
    """The finaliser of SplitMix64 in whole numbers without a sign."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def key64(seed, *parts):
    key = mix64((seed + 0x9E3779B97F4A7C15) & MASK)
    for part in parts:
        hashed = mix64((part + 0x9E3779B97F4A7C15) & MASK)
        key = mix64(((key * 0xBF58476D1CE4E5B9 ^ hashed) + 0x9E3779B97F4A7C15) & MASK)
    return key


def signed(value):
    return value - 2**64 if value >= 2**63 else value


@pytest.mark.parametrize(
    ("seed", "first"),
    [(0, 0xE220A8397B1DCDAF), (1234567, 6457827717110365317)],  # the published first outputs of SplitMix64
)
def test_the_key_of_a_seed_is_splitmix64s_first_output(seed, first):
    assert make_keys(seed).item() == signed(first)


def test_the_draws_of_a_key_are_the_top_bits_of_splitmix64s_outputs():
    outputs = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert uniform(torch.tensor(1234567), 4).tolist() == [(output >> 40) / 2**24 for output in outputs]


@pytest.mark.parametrize("seed", [0, 7, -1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("parts", [(), (1,), (1, 2, 3), (-1, 2**63 - 1), (2**64 - 5,)])
def test_keys_hash_each_part_in_turn(seed, parts):
    assert make_keys(seed, *parts).item() == signed(key64(seed & MASK, *(part & MASK for part in parts)))


def test_the_purposes_of_draws_keep_their_numbers():
    """They are part of every key: another number would be another result."""
    assert {purpose.name: purpose.value for purpose in Purpose} == {"TRAINING": 1, "ORDER": 2, "QUERY": 3}
    assert make_keys(0, Purpose.ORDER, 5).item() == make_keys(0, 2, 5).item()


def test_draws_depend_on_nothing_but_key_and_number():
    keys = make_keys(4, torch.arange(100))
    together = uniform(keys, 8)
    torch.manual_seed(123)
    torch.rand(10)
    assert torch.equal(uniform(keys, 8), together)
    assert torch.equal(uniform(keys, 3), together[:, :3])
    order = torch.randperm(100)
    assert torch.equal(uniform(keys[order], 8), together[order])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("across", ["keys", "draws"])
def test_numbers_are_uniform(seed, across):
    keys, draws = (100_000, 1) if across == "keys" else (10, 10_000)
    numbers = uniform(make_keys(seed, 1, 1, torch.arange(keys)), draws).double().flatten()
    n = len(numbers)
    assert abs(numbers.mean() - 1 / 2) < 4 * math.sqrt(1 / 12 / n)
    assert abs(numbers.var() - 1 / 12) < 4 * math.sqrt(1 / 180 / n)
    counts = torch.histc(numbers, 100, 0, 1)
    chi_square = ((counts - n / 100) ** 2 / (n / 100)).sum()  # 99 degrees of freedom: mean 99, deviation 14
    assert 99 - 4 * 14 < chi_square < 99 + 4 * 14


@pytest.mark.parametrize("part", ["seed", "epoch", "image", "view"])
def test_neighbouring_keys_are_independent(part):
    n = 20_000
    values = torch.arange(n)
    keys = {
        "seed": torch.stack([make_keys(seed, 1, 1, 0) for seed in range(n // 10)]) if part == "seed" else None,
        "epoch": make_keys(0, 1, values, 7),
        "image": make_keys(0, 1, 1, values),
        "view": make_keys(0, 1, 1, values[:, None], torch.arange(2)).flatten(),
    }[part]
    numbers = uniform(keys, 4).double() - 0.5
    tolerance = 4.5 / math.sqrt(len(numbers))
    neighbours = 12 * (numbers[1:, :, None] * numbers[:-1, None, :]).mean(0)  # of one key's draws with the next one's
    assert neighbours.abs().max() < tolerance
    draws = 12 * (numbers[:, :, None] * numbers[:, None, :]).mean(0)
    assert (draws - torch.diag(draws.diag())).abs().max() < tolerance


def test_one_changed_bit_changes_half_of_the_key():
    keys = make_keys(0, torch.arange(500))
    for bit in range(64):
        changed = make_keys(0, torch.arange(500) ^ signed(1 << bit)) ^ keys
        flipped = sum(((changed >> place) & 1).sum() for place in range(64))
        assert abs(flipped / 500 - 32) < 1


# Whole numbers and tensors together, and the operators that torch.compile sees


@pytest.mark.parametrize("seed", [0, -3, 2**64 - 1])
@pytest.mark.parametrize("where", [(0,), (1,), (3,), (0, 1), (1, 3), (0, 1, 2, 3), ()])
def test_whole_numbers_and_tensors_give_the_same_keys(seed, where):
    """Each part as a number or as a tensor: Python's hash and torch's are one."""
    parts = [7, -1, 2**63 - 1, 2**64 - 5]
    mixed = [torch.tensor(signed(part & MASK)) if place in where else part for place, part in enumerate(parts)]
    keys = make_keys(seed, *mixed)
    assert keys.dtype == torch.int64 and keys.shape == ()
    assert keys.item() == signed(key64(seed & MASK, *(part & MASK for part in parts)))


@pytest.mark.parametrize(("keys", "part"), [((), (5,)), ((3, 1, 4), (2, 1)), ((5,), (0, 1))])
def test_the_hash_is_a_sound_operator(keys, part):
    generator = torch.Generator().manual_seed(0)
    arguments = [torch.randint(-(2**63), 2**63 - 1, shape, generator=generator) for shape in (keys, part)]
    torch.library.opcheck(torch.ops.ccal.hash_part.default, arguments)


@pytest.mark.parametrize(("shape", "draws"), [((), 1), ((2, 3), 8), ((0,), 8)])
def test_the_draws_are_a_sound_operator(shape, draws):
    keys = torch.randint(-(2**63), 2**63 - 1, shape, generator=torch.Generator().manual_seed(0))
    torch.library.opcheck(torch.ops.ccal.uniform.default, (keys, draws))


def test_the_hash_keeps_the_strides_it_promises():
    """What torch.compile plans with: the operators' outputs are laid out in rows even for transposed keys."""
    keys = make_keys(0, torch.arange(4)[:, None], torch.arange(3)).T
    torch.library.opcheck(torch.ops.ccal.hash_part.default, (keys, torch.tensor(2)))
    torch.library.opcheck(torch.ops.ccal.uniform.default, (keys, 2))


class Recorder(TorchDispatchMode):
    """Names the operators that make a tensor of the device out of one of the host."""

    def __init__(self):
        super().__init__()
        self.copies, self.operators = [], []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        places = [
            {leaf.device.type for leaf in tree_leaves(part) if isinstance(leaf, torch.Tensor)}
            for part in ((args, kwargs), result)
        ]
        self.operators.append(str(operator))
        if "cpu" in places[0] or places[1] != {"meta"}:
            self.copies.append(str(operator))
        return result


def test_no_key_and_no_draw_is_copied_from_the_host():
    """On a device that is not the host (meta computes shapes alone), whole numbers among the parts or not."""
    indices = torch.empty(5, dtype=torch.int64, device="meta")
    epoch = torch.empty((), dtype=torch.int64, device="meta")
    with Recorder() as recorder:
        keys = make_keys(3, 1, epoch, indices, 0, torch.arange(4, device="meta")[:, None])
        uniform(keys, 7)
        counter_random._hash_part._init_fn(keys, epoch)  # what the operators hide from the recorder
        counter_random._uniform._init_fn(keys, 7)
    assert {"ccal.hash_part.default", "ccal.uniform.default", "aten.bitwise_xor.Tensor"} <= {*recorder.operators}
    assert recorder.copies == []
