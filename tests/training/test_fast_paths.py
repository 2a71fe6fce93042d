"""What makes training fast changes nothing but rounding: the loop by hand, bfloat16, and a host that does not wait."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common.acceleration import FP32, Precision, compile_step
from common.interruption import Interruption
from models import ContrastiveEncoder, build_encoder
from models.transform_layers import Augmentation
from training.engine import _stop_if_bad, epoch_batches, make_forward, train_one_epoch
from training.objectives import Batch, DistinctiveObjective, SemanticObjective
from training.optim import LearningRate, build_optimizer
from utils import Diverged

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


def make_optimizers(encoder, name: str = "sgd"):
    main = [p for key, p in encoder.named_parameters() if not key.startswith("linear.")]
    return (
        build_optimizer(name, main, lr=0.01, weight_decay=1e-3),
        build_optimizer("adam", encoder.linear.parameters(), lr=1e-3, weight_decay=1e-6),
    )


def make_rate(optimizer) -> LearningRate:
    return LearningRate(optimizer, optimizer_name="sgd", kind="cosine", epochs=4, warmup=1)


# The loop


@pytest.mark.parametrize("name", list(SHIFTS))
def test_two_epochs_are_a_plain_loop_bit_for_bit(name):
    (images, labels), indices = make_data(), torch.arange(0, 19)
    trained = make_encoder(name)
    optimizers = make_optimizers(trained)
    rate = make_rate(optimizers[0])
    seen, averages = [], []
    forward = make_forward(trained, make_objective(name), images, labels)

    def recording(chosen, epoch):
        seen.append((int(epoch), chosen.clone()))
        return forward(chosen, epoch)

    for epoch in (1, 2):
        averages.append(
            train_one_epoch(
                trained, recording, indices,
                optimizers=optimizers, learning_rate=rate, batch_size=4, epoch=epoch, seed=3,
            )
        )  # fmt: skip

    orders = [torch.cat([chosen for number, chosen in seen if number == epoch]).tolist() for epoch in (1, 2)]
    for order in orders:  # 4 steps of 4 of the 19 images, each once
        assert len(order) == 16 == len(set(order)) and set(order) <= set(range(19))
    assert orders[0] != orders[1]

    plain, objective = make_encoder(name), make_objective(name)
    main = [p for key, p in plain.named_parameters() if not key.startswith("linear.")]
    sgd = torch.optim.SGD(main, lr=0.01, momentum=0.9, weight_decay=1e-3, fused=True)
    adam = torch.optim.Adam(plain.linear.parameters(), lr=1e-3, weight_decay=1e-6, fused=True)
    schedule = make_rate(sgd)
    for epoch, average in zip((1, 2), averages):
        losses = []
        for step in range(4):
            chosen = torch.tensor(orders[epoch - 1][4 * step : 4 * step + 4])
            pixels = torch.stack([images[number] for number in chosen]).float() / 255
            loss, stats = objective(plain, Batch(pixels, labels[chosen], chosen, epoch))
            losses.append(stats["loss"].item())
            plain.zero_grad()
            loss.backward()
            sgd.step()
            adam.step()
            schedule.set(epoch - 1 + step / 4)
        assert average["loss"] == pytest.approx(sum(losses) / 4, abs=1e-9)
        assert average["lr"] == pytest.approx(0.01 * (1 + 9 * (3 / 4)) if epoch == 1 else schedule.value)
    for key, value in plain.state_dict().items():
        assert torch.equal(trained.state_dict()[key], value), key
    assert not torch.equal(trained.state_dict()["linear.weight"], make_encoder(name).state_dict()["linear.weight"])


def test_every_image_comes_at_every_place_equally_often():
    """Chi-square of 2000 epochs of 10 images, with (10 - 1)^2 degrees of freedom: mean 81, deviation 13."""
    counts = torch.zeros(10, 10)
    for epoch in range(1, 2001):
        batches = epoch_batches(torch.arange(10), batch_size=5, rank=0, processes=1, seed=7, epoch=epoch)
        order = torch.cat(list(batches))
        assert order.sort().values.tolist() == list(range(10))
        counts[order, torch.arange(10)] += 1
    statistic = float(((counts - 200) ** 2 / 200).sum()) * 9 / 10
    assert 81 - 3 * math.sqrt(2 * 81) < statistic < 81 + 3 * math.sqrt(2 * 81)


@pytest.mark.parametrize(
    ("bad", "step", "rate"),
    [([3, 4], 3, 0.01 * (1 + 9 * 1.4 / 4)), ([0], 0, 0.01 * (1 + 9 * 0.8 / 4)), ([1, 2], 1, 0.01 * (1 + 9 * 1.0 / 4))],
)
def test_an_epoch_that_went_wrong_names_its_first_bad_step_and_that_steps_rate(bad, step, rate):
    """Epoch 2 of 5 steps, of a warm-up over 4 epochs; update n has the rate set after update n - 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    learning_rate = LearningRate(optimizer, optimizer_name="sgd", kind="cosine", epochs=9, warmup=4)
    learning_rate.set(2.0)
    losses = torch.ones(5, dtype=torch.float64)
    losses[bad] = torch.tensor([math.nan, math.inf][: len(bad)], dtype=torch.float64)
    with pytest.raises(Diverged, match=rf"at epoch 2, step {step}, learning rate {rate:.4g}; lower --lr_init"):
        _stop_if_bad(losses, epoch=2, steps=5, learning_rate=learning_rate)
    assert learning_rate.value == pytest.approx(rate)


def test_an_epoch_of_finite_losses_goes_on():
    _stop_if_bad(torch.tensor([0.0, -1e300], dtype=torch.float64), epoch=2, steps=2, learning_rate=None)


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
    if optimizer_name == "lars":
        optimizer = build_optimizer("lars", encoder.parameters(), lr=0.01, weight_decay=1e-3)
    else:  # fused updates exist on real devices alone
        optimizer = torch.optim.SGD(encoder.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-3)
    rate, positions, copies = make_rate(optimizer), [], Copies()
    set_rate = rate.set
    rate.set = lambda e: (positions.append(e), set_rate(e))
    forward = make_forward(encoder, objective, images, labels)
    settings = {"optimizers": (optimizer,), "learning_rate": rate, "batch_size": 4, "epoch": 1, "seed": 0}
    with copies, pytest.raises(RuntimeError, match="meta tensor"):
        train_one_epoch(encoder, forward, indices, **settings)
    return len(positions), copies


@pytest.mark.parametrize("optimizer_name", ["sgd", "lars"])
@pytest.mark.parametrize("name", list(SHIFTS))
def test_no_step_reads_a_value_or_copies_from_the_host(name, optimizer_name):
    steps, copies = epoch_without_values(make_objective(name), name, optimizer_name)
    assert steps == 5
    assert copies.found == []


def reading(loss):
    loss.item()


def branching(loss):
    if loss > 1:
        loss.add_(0)


@pytest.mark.parametrize("wait", [reading, branching])
def test_a_step_that_reads_a_value_is_found_out(wait):
    objective = make_objective("semantic")

    def waiting(encoder, batch):
        loss, stats = objective(encoder, batch)
        wait(loss)
        return loss, stats

    assert epoch_without_values(waiting, "semantic", "sgd")[0] == 0


def test_a_step_that_copies_from_the_host_is_found_out():
    objective = make_objective("semantic")

    def copying(encoder, batch):
        loss, stats = objective(encoder, batch)
        return loss * torch.tensor([0.5, 0.5]).to(loss.device).sum(), stats

    steps, copies = epoch_without_values(copying, "semantic", "sgd")
    assert steps == 5
    assert copies.found == ["aten._to_copy.default"] * 5


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
    """Loss within 2 %, gradients of the encoder in float32's direction: cosine above 0.99."""
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
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)
    assert losses[1] != losses[0]
    assert F.cosine_similarity(*gradients, dim=0) > 0.99


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
    optimizers = make_optimizers(encoder)
    forward, rate = make_forward(encoder, objective, images, labels), make_rate(optimizers[0])
    settings = {"optimizers": optimizers, "batch_size": 4, "seed": 0}
    # The first epoch, unwatched, makes the optimizers' state and picks the kernels.
    train_one_epoch(encoder, forward, indices, learning_rate=rate, epoch=1, **settings)
    watched = Watched(forward, rate, steps=5)
    try:
        with Interruption(max_minutes=1000) as interruption:
            settings["stop"] = interruption.agreed
            return train_one_epoch(encoder, watched, indices, learning_rate=watched, epoch=2, **settings)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", list(SHIFTS))
def test_no_step_waits_for_the_gpu(name, precision):
    stats = watched_epoch(make_objective(name, Precision(precision, "cuda")), name)
    assert torch.isfinite(torch.tensor(stats["loss"]))


@pytest.mark.gpu
def test_a_step_that_waits_is_found_out():
    objective = make_objective("semantic")

    def waiting(encoder, batch):
        loss, stats = objective(encoder, batch)
        loss.item()
        return loss, stats

    with pytest.raises(RuntimeError, match="synchroniz"):
        watched_epoch(waiting, "semantic")


@pytest.mark.gpu
def test_a_gpu_tells_of_a_bad_loss_at_the_end_of_the_epoch():
    objective, seen = make_objective("semantic"), []

    def spoiled(encoder, batch):
        loss, stats = objective(encoder, batch)
        seen.append(len(batch.labels))
        return loss * (math.inf if len(seen) == 5 + 3 else 1.0), stats  # step 2 of the second epoch of 5

    with pytest.raises(Diverged, match=r"not finite at epoch 2, step 2, learning rate 0\.09938; lower"):
        watched_epoch(spoiled, "semantic")
    assert seen == [4] * 10


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(SHIFTS))
def test_five_steps_as_cuda_graphs_are_the_plain_ones(name, capsys):
    exact = Precision("fp32", "cuda")
    exact.apply_to_products()
    losses, weights = [], []
    for compiled in (False, True):
        (images, labels), encoder = make_data(20, GPU, 32), make_encoder(name, GPU)
        optimizers = make_optimizers(encoder)
        forward = make_forward(encoder, make_objective(name, exact), images, labels)
        if compiled:
            plain = forward
            forward = compile_step(
                plain,
                (torch.arange(4, device=GPU), torch.ones((), dtype=torch.int64, device=GPU)),
                parameters=encoder.parameters(),
                buffers=encoder.buffers(),
                device=GPU,
            )
            assert forward is not plain, capsys.readouterr().out
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


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_updates_take_channels_last_weights_with_1x1_kernels(name):
    """Each update is that of the same layers in the usual layout and with torch's default kernels."""
    weights = []
    for ours in (True, False):
        torch.manual_seed(0)
        layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 5, 1, bias=False), torch.nn.Conv2d(5, 1, 3)
        )
        layers = layers.to(GPU, memory_format=torch.channels_last if ours else torch.contiguous_format)
        if ours:
            optimizer = build_optimizer(name, layers.parameters(), lr=0.01, weight_decay=1e-3)
        else:
            kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[name]
            more = {"momentum": 0.9} if name == "sgd" else {}
            optimizer = kind(layers.parameters(), lr=0.01, weight_decay=1e-3, **more)
        pictures = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(3)).to(GPU)
        for _ in range(3):
            optimizer.zero_grad()
            layers(pictures).square().mean().backward()
            optimizer.step()
        weights.append([p.detach().contiguous() for p in layers.parameters()])
    for ours, own in zip(*weights):
        torch.testing.assert_close(ours, own, rtol=0, atol=1e-3 if name == "adam" else 1e-5)


@pytest.mark.gpu
def test_auto_is_bf16_where_the_gpu_has_it():
    native = torch.cuda.get_device_capability() >= (8, 0)
    assert Precision.resolve("auto", GPU) == Precision("bf16" if native else "fp32", "cuda")
