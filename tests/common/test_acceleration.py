"""common/acceleration.py: which format is chosen, what it leaves as it is, and compilation with its way back."""

from __future__ import annotations

import shutil
from typing import NamedTuple

import pytest
import torch

from common import acceleration
from common.acceleration import (
    FP32,
    Precision,
    compile_step,
    has_native_bf16,
    keep_freed_memory,
    wants_compilation,
)
from models import build_encoder
from models.transform_layers import Augmentation
from training.engine import make_forward
from training.objectives import DistinctiveObjective, SemanticObjective
from utils import InputError

CPU, GPU = torch.device("cpu"), torch.device("cuda")
BF16 = Precision("bf16", "cpu")
SHIFTS = {"semantic": 1, "distinctive": 4}


def make_objective(name: str, precision: Precision = FP32):
    kind = {"semantic": SemanticObjective, "distinctive": DistinctiveObjective}[name]
    return kind(Augmentation(0.54, True), precision=precision)


def make_encoder(name: str):
    return build_encoder("resnet8", num_classes=3, shifts=SHIFTS[name], simclr_dim=16, seed=0).train()


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


def test_a_torch_that_cannot_tell_means_no_bfloat16(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert has_native_bf16(CPU) is False


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_the_cpu_computes_what_is_asked_for(native, name, bf16):
    native({"avx512_bf16": bf16})
    assert Precision.resolve(name, CPU) == Precision(name, "cpu")


@pytest.mark.parametrize("bf16", [False, True])
def test_tf32_is_refused_on_the_cpu(native, bf16):
    native({"avx512_bf16": bf16})
    with pytest.raises(InputError, match="--precision tf32 is a format of GPUs; on the CPU choose auto, fp32 or bf16"):
        Precision.resolve("tf32", CPU)


@pytest.mark.parametrize(
    ("name", "bf16", "expected"),
    [
        ("auto", True, "bf16"),
        ("auto", False, "fp32"),
        ("bf16", True, "bf16"),
        ("tf32", False, "tf32"),
        ("tf32", True, "tf32"),
        ("fp32", True, "fp32"),
    ],
)
def test_a_gpu_computes_what_it_can(native, name, bf16, expected):
    native({}, gpu=bf16)
    assert Precision.resolve(name, GPU) == Precision(expected, "cuda")


def test_bf16_is_refused_on_a_gpu_that_would_emulate_it(native):
    native({"avx512_bf16": True}, gpu=False)
    with pytest.raises(InputError, match="--precision bf16: this GPU has no bfloat16 .*; choose tf32 or fp32"):
        Precision.resolve("bf16", GPU)


@pytest.mark.parametrize(("name", "cudnn"), [("fp32", False), ("tf32", True), ("bf16", True)])
def test_convolutions_on_gpus_are_what_the_name_says_and_similarities_stay_exact(name, cudnn):
    before, matmul = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32), "highest"
    try:
        torch.set_float32_matmul_precision("medium")
        Precision("tf32" if name == "fp32" else "fp32", "cuda").apply_to_products()
        Precision(name, "cuda").apply_to_products()
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == (matmul, cudnn)
        Precision("fp32" if name == "tf32" else "bf16", "cpu").apply_to_products()  # of the CPU: nothing changes
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == (matmul, cudnn)
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize(
    ("choice", "device", "processes", "expected"),
    [
        ("auto", CPU, 1, False),
        ("auto", CPU, 2, False),
        ("auto", GPU, 1, True),
        ("auto", GPU, 2, False),
        ("on", CPU, 1, True),
        ("on", GPU, 1, True),
        ("off", CPU, 1, False),
        ("off", GPU, 1, False),
        ("off", GPU, 2, False),
    ],
)
def test_where_a_step_is_compiled(choice, device, processes, expected):
    assert wants_compilation(choice, device, processes=processes) is expected


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
def test_compilation_in_several_processes_is_refused(device):
    with pytest.raises(InputError, match="--compile on works in one process; with several, leave it at auto"):
        wants_compilation("on", device, processes=2)


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
    encoder = Product()
    images = torch.tensor([[2.0, 4.0]])
    output = BF16.encode(encoder, images)
    assert type(output) is Output and encoder.formats == [torch.bfloat16]
    assert output.projection.dtype == output.features.dtype == torch.float32
    assert output.projection.tolist() == [[2 * (1 + 2**-7), 4.0]]
    exact = FP32.encode(encoder, images)
    assert encoder.formats[1] == torch.float32
    assert exact.projection.tolist() == [[2 * (1 + 2**-7), 4 * (1 + 2**-9)]]
    assert encoder.weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("training", [False, True])
def test_an_encoders_bf16_output_is_close_to_float32s(training):
    """Within 3 % of the output's scale; weights and BatchNorm's statistics stay float32 and nearly the same."""
    images = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    outputs, states = [], []
    for precision in (FP32, BF16):
        encoder = make_encoder("distinctive").train(training)
        output = precision.encode(encoder, images)
        output.projection.sum().backward()
        outputs.append(output)
        states.append(encoder.state_dict())
        assert {value.dtype for value in encoder.state_dict().values()} <= {torch.float32, torch.int64}
        assert {p.grad.dtype for p in encoder.parameters() if p.grad is not None} == {torch.float32}
    for name, exact, rounded in zip(outputs[0]._fields, *outputs):
        assert rounded.dtype == torch.float32, name
        assert (rounded - exact).abs().max() < 0.03 * exact.abs().max(), name
        assert not torch.equal(rounded, exact), name
    for name, exact in states[0].items():
        assert (states[1][name] - exact).abs().max() <= 0.01 * exact.abs().max(), name


def test_float32_is_the_encoders_own_output():
    encoder = make_encoder("semantic").eval()
    images = torch.rand(4, 3, 8, 8)
    for precision in (FP32, Precision("tf32", "cuda")):
        for ours, own in zip(precision.encode(encoder, images), encoder(images)):
            assert torch.equal(ours, own)


# A compiled step

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("g++", "c++", "clang++")), reason="torch.compile needs a C++ compiler here"
)


def one_step(name: str, *, compiled: bool):
    """Loss, statistics, gradients and buffers of a step; compiled after a trial on other images."""
    encoder, (images, labels) = make_encoder(name), make_data()
    forward = make_forward(encoder, make_objective(name), images, labels)
    if compiled:
        buffers = [buffer.clone() for buffer in encoder.buffers()]
        plain = forward
        forward = compile_step(
            plain,
            (torch.arange(4), torch.ones((), dtype=torch.int64)),
            parameters=encoder.parameters(),
            buffers=encoder.buffers(),
            device=CPU,
        )
        assert forward is not plain
        assert all(map(torch.equal, encoder.buffers(), buffers))  # the trial left no trace
        assert all(p.grad is None for p in encoder.parameters())
    loss, stats = forward(torch.tensor([11, 3, 6, 8]), torch.full((), 5))
    loss.backward()
    gradients = {key: p.grad for key, p in encoder.named_parameters() if p.grad is not None}
    return loss.detach(), stats, gradients, dict(encoder.named_buffers())


@needs_compiler
def test_a_compiled_network_is_the_plain_one():
    """A convolution, BatchNorm and a loss over a choice of images, small enough to be compiled in every test run."""
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
        images = make_data()[0]

        def step(chosen, network=network, images=images):
            output = network(images[chosen].float() / 255)
            return output.square().mean((0, 2, 3)).log1p().sum() + output.amax(), {"loss": output.mean()}

        if compiled:
            parameters, buffers = network.parameters(), network.buffers()
            before = [buffer.clone() for buffer in network.buffers()]
            plain = step
            step = compile_step(plain, (torch.arange(4),), parameters=parameters, buffers=buffers, device=CPU)
            assert step is not plain
            assert all(map(torch.equal, network.buffers(), before)) and network[0].weight.grad is None
        loss, stats = step(torch.tensor([11, 3, 6, 8]))
        loss.backward()
        found.append(
            [loss.detach(), stats["loss"].detach(), *(p.grad for p in network.parameters()), *network.buffers()]
        )
    for own, ours in zip(*found):
        torch.testing.assert_close(ours, own, rtol=1e-5, atol=1e-5)


@pytest.mark.slow  # half a minute to a minute and a half each
@needs_compiler
@pytest.mark.parametrize("name", list(SHIFTS))
def test_a_compiled_step_is_the_plain_one(name, capsys):
    plain, compiled = one_step(name, compiled=False), one_step(name, compiled=True)
    assert capsys.readouterr().out == ""
    assert compiled[0].item() == pytest.approx(plain[0].item(), abs=1e-5)
    for ours, own, tolerance in zip(compiled[1:], plain[1:], (1e-4, 1e-4, 1e-5)):
        assert ours.keys() == own.keys()
        for key in own:
            scale = max(1.0, own[key].abs().max().item())
            torch.testing.assert_close(ours[key], own[key], rtol=0, atol=tolerance * scale, msg=key)


def failing_step(monkeypatch, failure):
    """A step whose compiled form fails as ``failure`` says, after it has changed buffers and gradients."""
    parameter, buffer = torch.nn.Parameter(torch.tensor([2.0])), torch.tensor([5.0])
    calls = []

    def step(chosen):
        buffer.add_(1)
        return (parameter * chosen).sum(), {"loss": torch.tensor(1.0)}

    def compile(function, **settings):
        calls.append(settings)

        def compiled(*arguments):
            result = function(*arguments)
            return failure(*result)

        return compiled

    monkeypatch.setattr(torch, "compile", compile)
    example = (torch.tensor([3.0]),)
    found = compile_step(step, example, parameters=iter([parameter]), buffers=iter([buffer]), device=CPU)
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
    ("failure", "reason"),
    [
        (broken, "RuntimeError: no compiler in sight x x"),
        (lambda loss, stats: (Backward.apply(loss), stats), "OSError: the backward pass is lost"),
    ],
    ids=["forward", "backward"],
)
def test_a_failed_compilation_is_one_warning_and_the_plain_step(monkeypatch, capsys, failure, reason):
    step, found, parameter, buffer, _ = failing_step(monkeypatch, failure)
    assert found is step
    assert buffer.tolist() == [5.0] and parameter.grad is None
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and len(lines[0]) < 350
    assert lines[0].startswith(f"warning: torch.compile failed ({reason}")
    assert lines[0].endswith("; training goes on without it, with the same result")


def test_a_compilation_that_works_leaves_no_trace_and_says_nothing(monkeypatch, capsys):
    step, found, parameter, buffer, calls = failing_step(monkeypatch, lambda *result: result)
    assert found is not step and calls == [{"mode": "default", "dynamic": False}]
    assert buffer.tolist() == [5.0] and parameter.grad is None
    loss, stats = found(torch.tensor([4.0]))
    assert loss.item() == 8.0 and stats == {"loss": torch.tensor(1.0)} and buffer.tolist() == [6.0]
    assert capsys.readouterr().out == ""


def test_an_interrupt_in_the_trial_is_no_failed_compilation(monkeypatch):
    def interrupt(*result):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        failing_step(monkeypatch, interrupt)


# Memory


def test_keeping_freed_memory_changes_no_result():
    values = torch.arange(1_000_000.0)
    expected = (values * 2).sum().item()
    for _ in range(2):
        assert keep_freed_memory() is None
        assert (torch.arange(1_000_000.0) * 2).sum().item() == expected


@pytest.mark.parametrize("failure", [AttributeError, OSError, TypeError])
def test_a_system_without_mallopt_is_no_error(monkeypatch, failure):
    def fail(name):
        raise failure("no such library")

    monkeypatch.setattr(acceleration.ctypes, "CDLL", fail)
    assert keep_freed_memory() is None
