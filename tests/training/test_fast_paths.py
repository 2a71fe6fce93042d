"""What makes training fast changes nothing but rounding: bfloat16, CUDA graphs, and a host that does not wait."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common.acceleration import FP32, Precision
from common.session import StopRequest
from common.settings import TrainingSettings
from models import ContrastiveEncoder, build_encoder
from models.transform_layers import Augmentation
from training.engine import Batches, make_forward, train_one_epoch
from training.objectives import Batch, DistinctiveObjective, SemanticObjective
from training.optim import LearningRate, build_optimizer, build_optimizers

SHIFTS = {"semantic": 1, "distinctive": 4}
BF16 = Precision("bf16", "cpu")
GPU = torch.device("cuda")


def make_objective(name: str, precision: Precision = FP32):
    kind = {"semantic": SemanticObjective, "distinctive": DistinctiveObjective}[name]
    return kind(Augmentation(0.54, True), precision=precision)


def make_encoder(name: str, device: torch.device | str = "cpu") -> ContrastiveEncoder:
    encoder = build_encoder("resnet8", num_classes=3, shifts=SHIFTS[name], simclr_dim=16, seed=0)
    return encoder.to(device, memory_format=torch.channels_last).train()


def make_data(count: int = 20, device: torch.device | str = "cpu", size: int = 8):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    return images.to(device), (torch.arange(count) % 3).to(device)


def make_optimizers(encoder):
    settings = TrainingSettings(mode="semantic", lr_init=0.01, weight_decay=1e-3, epochs=4, warmup=1)
    return build_optimizers(encoder, settings)


# A host that does not wait, on a device without values: reading one is an error there, as is where it would be a wait


class Copies(TorchDispatchMode):
    """Names the operators that take a tensor of the host to the device, which are waits as well."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        taken, made = (
            {leaf.device.type for leaf in tree_leaves(part) if isinstance(leaf, torch.Tensor)}
            for part in ((args, kwargs), result)
        )
        if "cpu" in taken and "meta" in taken | made:
            self.found.append(str(operator))
        return result


def epoch_without_values(objective, name: str, optimizer_name: str) -> tuple[int, Copies]:
    """Updates that an epoch of five steps makes before the host first reads a value, and its copies."""
    images = torch.zeros(20, 3, 8, 8, dtype=torch.uint8, device="meta")
    labels, indices = (torch.zeros(20, dtype=torch.int64, device="meta") for _ in range(2))
    encoder = make_encoder(name, "meta")
    optimizer = build_optimizer(optimizer_name, encoder.parameters(), lr=0.01, weight_decay=1e-3)
    rate = LearningRate(optimizer, optimizer_name=optimizer_name, kind="cosine", epochs=4, warmup=1)
    positions, copies = [], Copies()
    set_rate = rate.set
    rate.set = lambda e: (positions.append(e), set_rate(e))
    forward = make_forward(encoder, objective, images, labels)
    settings = {"optimizers": (optimizer,), "learning_rate": rate, "epoch": 1, "seed": 0}
    with copies, pytest.raises(RuntimeError, match="meta tensor"):
        train_one_epoch(encoder, forward, indices, Batches(20, 4), **settings)
    return len(positions), copies


@pytest.mark.parametrize(("name", "optimizer_name"), [("semantic", "sgd"), ("distinctive", "lars")])
def test_no_step_reads_a_value_or_copies_from_the_host(name, optimizer_name):
    steps, copies = epoch_without_values(make_objective(name), name, optimizer_name)
    assert steps == 5
    assert copies.found == []


def test_a_step_that_reads_a_value_or_copies_from_the_host_is_found_out():
    objective = make_objective("semantic")

    def slow(encoder, batch):
        loss, stats = objective(encoder, batch)
        loss = loss * torch.tensor([0.5, 0.5]).to(loss.device).sum()
        loss.item()
        return loss, stats

    steps, copies = epoch_without_values(slow, "semantic", "sgd")
    assert steps == 0 and copies.found == ["aten._to_copy.default"]


# bfloat16


class Outputs(NamedTuple):
    class_logits: torch.Tensor
    projection: torch.Tensor
    shift_logits: torch.Tensor


class Recorder(torch.nn.Module):
    """Keeps what it is shown, and answers with given outputs."""

    def __init__(self, outputs: Outputs) -> None:
        super().__init__()
        self.outputs, self.seen, self.reduced = outputs, [], []

    def forward(self, views):
        self.seen.append(views)
        self.reduced.append(torch.is_autocast_enabled("cpu"))
        return self.outputs


@pytest.mark.parametrize("name", list(SHIFTS))
def test_augmentation_and_losses_are_float32(name):
    """Under bf16 the encoder sees float32's views, bit for bit, and its outputs make float32's losses and gradients."""
    images, labels = make_data(5)
    batch = Batch(images.float() / 255, labels, torch.arange(5), 3)
    rows = 2 * SHIFTS[name] * 5
    found, seen, reduced = [], [], []
    for precision in (FP32, BF16):
        generator = torch.Generator().manual_seed(4)
        leaves = [torch.randn(rows, width, generator=generator).requires_grad_() for width in (3, 16, 4)]
        recorder = Recorder(Outputs(*leaves))
        loss, stats = make_objective(name, precision)(recorder, batch)
        loss.backward()
        found.append([loss, *stats.values(), *(leaf.grad for leaf in leaves if leaf.grad is not None)])
        seen += recorder.seen
        reduced += recorder.reduced
    assert reduced == [False, True]  # of the encoder alone bf16 is asked
    assert seen[0].dtype == seen[1].dtype == torch.float32
    assert torch.equal(*seen)
    assert all(value.dtype == torch.float32 for value in found[1])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("name", list(SHIFTS))
def test_a_bf16_step_is_nearly_float32s(name):
    """bfloat16 rounds to 0.2 %: a loss within 5 %, gradients in float32's direction, on any hardware."""
    images, labels = make_data(16, size=32)
    losses, gradients = [], []
    for precision in (FP32, BF16):
        encoder = make_encoder(name)
        forward = make_forward(encoder, make_objective(name, precision), images, labels)
        loss, stats = forward(torch.arange(16), torch.full((), 1))
        loss.backward()
        losses.append(stats["loss"].item())
        used = [p.grad.flatten() for p in encoder.parameters() if p.grad is not None]
        assert {gradient.dtype for gradient in used} == {torch.float32}
        gradients.append(torch.cat(used))
    assert losses[1] == pytest.approx(losses[0], rel=5e-2)
    assert losses[1] != losses[0]
    assert F.cosine_similarity(*gradients, dim=0) > 0.95


# On a GPU


class Watched:
    """Makes every wait of the host an error between the first step's forward pass and the last step's new rate."""

    def __init__(self, forward, rate: LearningRate, steps: int) -> None:
        self._forward, self._rate, self._left = forward, rate, steps

    def __call__(self, chosen, epoch):
        torch.cuda.set_sync_debug_mode("error")
        return self._forward(chosen, epoch)

    def set(self, e: float) -> None:
        self._rate.set(e)
        self._left -= 1
        if not self._left:
            torch.cuda.set_sync_debug_mode("default")

    @property
    def value(self) -> float:
        return self._rate.value


def watched_epoch(objective, name: str) -> dict[str, float]:
    (images, labels), indices = make_data(20, GPU, 32), torch.arange(20, device=GPU)
    encoder = make_encoder(name, GPU)
    optimizers, rate = make_optimizers(encoder)
    forward, settings = make_forward(encoder, objective, images, labels), {"optimizers": optimizers, "seed": 0}
    # The first epoch, unwatched, makes the optimizers' state and picks the kernels.
    train_one_epoch(encoder, forward, indices, Batches(20, 4), learning_rate=rate, epoch=1, **settings)
    watched = Watched(forward, rate, steps=5)
    try:
        with StopRequest(max_minutes=1000) as stop:
            settings |= {"learning_rate": watched, "stop": stop.agreed}
            return train_one_epoch(encoder, watched, indices, Batches(20, 4), epoch=2, **settings)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", list(SHIFTS))
def test_no_step_waits_for_the_gpu(name, precision):
    stats = watched_epoch(make_objective(name, Precision(precision, "cuda")), name)
    assert torch.isfinite(torch.tensor(stats["loss"]))


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(SHIFTS))
def test_five_steps_as_cuda_graphs_are_the_plain_ones(name, capsys):
    exact = Precision("fp32", "cuda")
    exact.apply_to_products()
    losses, weights = [], []
    for compiled in (False, True):
        (images, labels), encoder = make_data(20, GPU, 32), make_encoder(name, GPU)
        optimizers, _ = make_optimizers(encoder)
        example = torch.arange(4, device=GPU) if compiled else None
        forward = make_forward(encoder, make_objective(name, exact), images, labels, compiled_for=example)
        assert capsys.readouterr().out == ""  # no warning that it failed
        found = []
        for step in range(5):
            chosen = torch.arange(4 * step, 4 * step + 4, device=GPU)
            loss, _ = forward(chosen, torch.full((), 1 + step, device=GPU))
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            found.append(loss.detach().clone())
        losses.append(torch.stack(found))
        weights.append(torch.cat([p.detach().flatten() for p in encoder.parameters()]))
    torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=1e-4)
