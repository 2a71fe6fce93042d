"""common/acceleration.py: which format is chosen, what it leaves as it is, and compilation with its way back."""

from __future__ import annotations

import shutil
from typing import NamedTuple

import pytest
import torch

from common import acceleration
from common.acceleration import FP32, Precision, compile_step, has_native_bf16, keep_freed_memory, wants_compilation
from models import build_encoder
from models.transform_layers import Augmentation
from training.engine import make_forward
from training.objectives import DistinctiveObjective, SemanticObjective
from utils import InputError

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SHIFTS = {"semantic": 1, "distinctive": 4}


def make_data(count: int = 12, size: int = 8):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    return images, torch.arange(count) % 3


# Choice


@pytest.fixture
def native(monkeypatch):
    """Says what the processor and a GPU can do."""

    def say(capabilities: dict, gpu: bool = False) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu or including_emulation)

    return say


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({}, False),
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True, "avx512_bf16": False}, True),
        ({"bf16": True}, True),
    ],
)
def test_the_processors_bfloat16(native, capabilities, expected):
    native(capabilities)
    assert has_native_bf16(CPU) is expected
    assert Precision.resolve("auto", CPU) == Precision("bf16" if expected else "fp32", "cpu")
    for name in ("fp32", "bf16"):  # what is asked for is computed, natively or not
        assert Precision.resolve(name, CPU) == Precision(name, "cpu")


@pytest.mark.parametrize(
    ("name", "bf16", "expected"),
    [("auto", True, "bf16"), ("auto", False, "fp32"), ("bf16", True, "bf16"), ("tf32", False, "tf32")],
)
def test_a_gpu_computes_what_it_can(native, name, bf16, expected):
    native({}, gpu=bf16)
    assert Precision.resolve(name, GPU) == Precision(expected, "cuda")


@pytest.mark.parametrize(
    ("name", "device", "message"),
    [("tf32", CPU, "--precision tf32 is a format of GPUs"), ("bf16", GPU, "this GPU has no bfloat16")],
)
def test_a_format_that_the_device_lacks_is_refused(native, name, device, message):
    native({"avx512_bf16": True}, gpu=False)
    with pytest.raises(InputError, match=message):
        Precision.resolve(name, device)


@pytest.mark.parametrize(("name", "cudnn"), [("fp32", False), ("tf32", True), ("bf16", True)])
def test_convolutions_on_gpus_are_what_the_name_says_and_similarities_stay_exact(name, cudnn):
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("medium")
        Precision("tf32" if name == "fp32" else "fp32", "cuda").apply_to_products()
        Precision(name, "cuda").apply_to_products()
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("highest", cudnn)
        Precision("fp32" if name == "tf32" else "bf16", "cpu").apply_to_products()  # of the CPU: nothing changes
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("highest", cudnn)
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize(
    ("choice", "device", "settings", "expected"),
    [
        ("auto", CPU, {"processes": 1}, False),
        ("auto", GPU, {"processes": 1}, True),
        ("auto", GPU, {"processes": 2}, False),
        ("auto", GPU, {"processes": 1, "deterministic": True}, False),
        ("on", CPU, {"processes": 1, "deterministic": True}, True),
        ("off", GPU, {"processes": 1}, False),
        ("on", CPU, {"processes": 2}, "--compile on works in one process"),
        ("on", GPU, {"processes": 1, "deterministic": True}, "--deterministic wants the same"),
    ],
)
def test_where_a_step_is_compiled(choice, device, settings, expected):
    if isinstance(expected, bool):
        assert wants_compilation(choice, device, **settings) is expected
    else:
        with pytest.raises(InputError, match=expected):
            wants_compilation(choice, device, **settings)


# Formats


class Output(NamedTuple):
    features: torch.Tensor
    projection: torch.Tensor


class Product(torch.nn.Module):
    """One matrix product, and the format in which it came."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([[1 + 2**-7, 0.0], [0.0, 1 + 2**-9]]))
        self.formats = []

    def forward(self, images):
        product = images @ self.weight
        self.formats.append(product.dtype)
        return Output(images, product)


def test_bf16_rounds_the_factors_and_returns_float32():
    """1 + 2^-7 is a bfloat16, 1 + 2^-9 is not."""
    encoder, images = Product(), torch.tensor([[2.0, 4.0]])
    output = Precision("bf16", "cpu").encode(encoder, images)
    assert type(output) is Output and encoder.formats == [torch.bfloat16]
    assert output.projection.dtype == output.features.dtype == torch.float32
    assert output.projection.tolist() == [[2 * (1 + 2**-7), 4.0]]
    for precision in (FP32, Precision("tf32", "cuda")):
        exact = precision.encode(encoder, images)
        assert encoder.formats[-1] == torch.float32
        assert exact.projection.tolist() == [[2 * (1 + 2**-7), 4 * (1 + 2**-9)]]
    assert encoder.weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


# A compiled step

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("g++", "c++", "clang++")), reason="torch.compile needs a C++ compiler here"
)


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("semantic", "aot_eager"),  # traced, with the operators as they are
        # Half a minute to a minute and a half each:
        pytest.param("semantic", "inductor", marks=[pytest.mark.slow, needs_compiler]),
        pytest.param("distinctive", "inductor", marks=[pytest.mark.slow, needs_compiler]),
    ],
)
def test_a_compiled_step_is_the_plain_one(name, backend, capsys, monkeypatch):
    """Loss, statistics, gradients and buffers, after a trial on other images that left no trace."""
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda step, **_: compile(step, backend=backend, dynamic=False))
    found = []
    for compiled in (False, True):
        encoder = build_encoder("resnet8", num_classes=3, shifts=SHIFTS[name], simclr_dim=16, seed=0).train()
        objective = {"semantic": SemanticObjective, "distinctive": DistinctiveObjective}[name](Augmentation(0.54, True))
        buffers = [buffer.clone() for buffer in encoder.buffers()]
        example = torch.arange(4) if compiled else None
        forward = make_forward(encoder, objective, *make_data(), compiled_for=example)
        assert all(map(torch.equal, encoder.buffers(), buffers))
        assert all(p.grad is None for p in encoder.parameters())
        loss, stats = forward(torch.tensor([11, 3, 6, 8]), torch.full((), 5))
        loss.backward()
        gradients = {key: p.grad for key, p in encoder.named_parameters() if p.grad is not None}
        found.append({"total": loss.detach(), **stats, **gradients, **dict(encoder.named_buffers())})
    assert capsys.readouterr().out == "" and found[0].keys() == found[1].keys()
    for key, own in found[0].items():
        scale = max(1.0, own.abs().max().item())
        torch.testing.assert_close(found[1][key], own, rtol=0, atol=1e-4 * scale, msg=key)


def run_step(monkeypatch, compiled_form):
    """A step, what compile_step makes of it, and the parameter and buffer that it changes; with a stand-in compiler."""
    parameter, buffer = torch.nn.Parameter(torch.tensor([2.0])), torch.tensor([5.0])
    calls = []

    def step(chosen):
        buffer.add_(1)
        return (parameter * chosen).sum(), {"loss": torch.tensor(1.0)}

    def compile(function, **settings):
        calls.append(settings)
        return lambda *arguments: compiled_form(*function(*arguments))

    monkeypatch.setattr(torch, "compile", compile)
    found = compile_step(step, (torch.tensor([3.0]),), parameters=iter([parameter]), buffers=iter([buffer]), device=CPU)
    return step, found, parameter, buffer, calls


def broken(loss, stats):
    raise RuntimeError("no compiler\n  in   sight" + " x" * 500)


class Backward(torch.autograd.Function):
    @staticmethod
    def forward(context, value):
        return value.clone()

    @staticmethod
    def backward(context, gradient):
        raise OSError("the backward pass is lost")


@pytest.mark.parametrize(
    ("compiled_form", "reason"),
    [
        (broken, "RuntimeError: no compiler in sight x x"),
        (lambda loss, stats: (Backward.apply(loss), stats), "OSError: the backward pass is lost"),
    ],
    ids=["forward", "backward"],
)
def test_a_failed_compilation_is_one_warning_and_the_plain_step(monkeypatch, capsys, compiled_form, reason):
    step, found, parameter, buffer, _ = run_step(monkeypatch, compiled_form)
    assert found is step
    assert buffer.tolist() == [5.0] and parameter.grad is None
    (line,) = capsys.readouterr().out.splitlines()
    assert len(line) < 350 and line.startswith(f"warning: torch.compile failed ({reason}")


def test_a_compilation_that_works_leaves_no_trace_and_says_nothing(monkeypatch, capsys):
    step, found, parameter, buffer, calls = run_step(monkeypatch, lambda *result: result)
    assert found is not step and calls == [{"mode": "default", "dynamic": False}]
    assert buffer.tolist() == [5.0] and parameter.grad is None
    loss, stats = found(torch.tensor([4.0]))
    assert loss.item() == 8.0 and stats == {"loss": torch.tensor(1.0)} and buffer.tolist() == [6.0]
    assert capsys.readouterr().out == ""


# Memory


@pytest.mark.parametrize("failure", [AttributeError, OSError, TypeError])
def test_a_system_without_mallopt_is_no_error(monkeypatch, failure):
    def fail(name):
        raise failure("no such library")

    monkeypatch.setattr(acceleration.ctypes, "CDLL", fail)
    assert keep_freed_memory() is None
