"""training/engine.py: steps, the order of an epoch, the loop and the probe's accuracy."""

import math
from itertools import chain

import pytest
import torch

from common.settings import TrainingSettings
from models import ContrastiveEncoder, build_encoder
from models.transform_layers import Augmentation
from training.engine import (
    Batches,
    make_forward,
    probe_accuracy,
    require_finite_losses,
    train_one_epoch,
    weighted_means,
)
from training.objectives import Batch, DistinctiveObjective, SemanticObjective
from training.optim import LearningRate, build_optimizers
from utils import Diverged, InputError


class PixelEncoder(ContrastiveEncoder):
    """Penultimate features are the pixels of 2 x 2 images."""

    feature_dim = 12

    def penultimate(self, images):
        return images.flatten(1)


class Rate:
    """Stands in for LearningRate and keeps the positions it is set to."""

    value = 0.25

    def __init__(self):
        self.positions = []

    def set(self, e):
        self.positions.append(e)


def make_data(count, size=2):
    images = torch.randint(
        0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return images, torch.arange(count) % 3


def drawn(batches, *, rank=0, seed=0, epoch=1):
    """One process's batches of an epoch of images 0, 10, 20 ..."""
    indices = torch.arange(batches.count) * 10
    return [batch.tolist() for batch in batches.draw(indices, rank=rank, seed=seed, epoch=epoch)]


def joined(lists):
    return list(chain.from_iterable(lists))


# Steps and order


@pytest.mark.parametrize(
    ("count", "size", "processes", "steps"),
    [(46801, 32, 1, 1462), (46801, 32, 4, 366), (64, 32, 2, 1), (65, 32, 2, 2), (65, 64, 1, 1), (3, 5, 2, 1)],
)
def test_steps_per_epoch(count, size, processes, steps):
    assert Batches(count, size, processes).steps == steps


def plan(count, *, processes=1, mode="distinctive", **sizes):
    return Batches.plan(count, TrainingSettings(mode=mode, **sizes), processes=processes)


@pytest.mark.parametrize(
    ("sizes", "processes", "expected"),
    [
        ({"batch_size": 7}, 3, Batches(64, 7, 3)),
        ({"batch_size": 7, "global_batch_size": 12}, 1, Batches(64, 12, 1, whole=True)),
        ({"global_batch_size": 12}, 3, Batches(64, 4, 3, whole=True)),
    ],
)
def test_the_share_of_a_process(sizes, processes, expected):
    found = plan(64, processes=processes, **sizes)
    assert found == expected and found.together == expected.size * processes


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch_size": 65}, "--batch_size 65 is larger than the 64 training images"),
        ({"global_batch_size": 66, "processes": 3}, "--global_batch_size 66 is larger than the 64 training images"),
        ({"global_batch_size": 64, "processes": 3}, "among 3 processes: give a multiple of 3, such as 66"),
        ({"batch_size": 1, "mode": "semantic"}, "--batch_size 1 with one process leaves SimCLR no negatives"),
    ],
)
def test_batches_that_cannot_be_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        plan(64, **given)
    assert plan(64, batch_size=1, processes=2, mode="semantic").together == 2


@pytest.mark.parametrize(("count", "size", "left_out"), [(12, 4, 0), (13, 4, 1), (47, 5, 2)])
def test_one_process_sees_each_image_once_but_for_a_short_last_batch(count, size, left_out):
    found = drawn(Batches(count, size))
    assert all(len(batch) == size for batch in found)
    flat = joined(found)
    assert len(set(flat)) == len(flat) == count - left_out
    assert set(flat) <= {10 * number for number in range(count)}


@pytest.mark.parametrize(
    ("count", "processes", "size"), [(13, 4, 3), (47, 4, 5), (9, 2, 2), (24, 3, 4), (3, 4, 2), (2, 7, 1)]
)
def test_several_processes_keep_the_last_batch_and_fill_up_from_the_start(count, processes, size):
    shares = [drawn(Batches(count, size, processes), rank=rank) for rank in range(processes)]
    share = math.ceil(count / processes)
    assert all(sum(len(batch) for batch in mine) == share for mine in shares)
    together = joined(joined(parts) for parts in zip(*shares))
    assert set(together[:count]) == {10 * number for number in range(count)}
    assert together == (together[:count] * (share * processes // count + 1))[: share * processes]


@pytest.mark.parametrize("count", [24, 25, 31, 100])
def test_whole_global_batches_are_the_same_images_with_any_number_of_processes(count):
    expected = drawn(Batches(count, 8), epoch=2)
    assert len(expected) == count // 8
    for processes in (1, 2, 4, 8):
        batches = Batches(count, 8 // processes, processes, whole=True)
        parts = [drawn(batches, rank=rank, epoch=2) for rank in range(processes)]
        assert [joined(step) for step in zip(*parts)] == expected
        assert batches.steps == len(expected)


def test_the_order_depends_on_seed_and_epoch_and_on_nothing_else():
    batches = Batches(40, 8)
    first = drawn(batches)
    torch.manual_seed(5)
    assert drawn(batches) == first
    assert drawn(batches, epoch=2) != first != drawn(batches, seed=1)
    assert joined(drawn(Batches(40, 10))) == joined(first) != sorted(joined(first))


# The loop


@pytest.mark.parametrize("name", ["semantic", "distinctive"])
def test_two_epochs_are_a_plain_loop_bit_for_bit(name):
    kind, shifts = {"semantic": (SemanticObjective, 1), "distinctive": (DistinctiveObjective, 4)}[name]
    objective, (images, labels) = kind(Augmentation(0.54, True)), make_data(20, size=8)
    trained, plain = (
        build_encoder("resnet8", num_classes=3, shifts=shifts, simclr_dim=16).to(memory_format=torch.channels_last)
        for _ in range(2)
    )
    settings = TrainingSettings(mode=name, lr_init=0.01, weight_decay=1e-3, epochs=4, warmup=1)
    optimizers, rate = build_optimizers(trained, settings)
    forward, seen = make_forward(trained, objective, images, labels), []

    def recording(chosen, epoch):
        seen.append((int(epoch), chosen.tolist()))
        return forward(chosen, epoch)

    averages = [
        train_one_epoch(
            trained, recording, torch.arange(19), Batches(19, 4),
            optimizers=optimizers, learning_rate=rate, epoch=epoch, seed=3,
        )
        for epoch in (1, 2)
    ]  # fmt: skip

    orders = [joined(chosen for number, chosen in seen if number == epoch) for epoch in (1, 2)]
    for order in orders:  # 4 steps of 4 of the 19 images, each once
        assert len(order) == 16 == len(set(order)) and set(order) <= set(range(19))
    assert orders[0] != orders[1]

    main = [p for key, p in plain.named_parameters() if not key.startswith("linear.") and p.requires_grad]
    sgd = torch.optim.SGD(main, lr=0.01, momentum=0.9, weight_decay=1e-3, fused=True)
    adam = torch.optim.Adam(plain.linear.parameters(), lr=1e-3, weight_decay=1e-6, fused=True)
    schedule = LearningRate(sgd, optimizer_name="sgd", kind="cosine", epochs=4, warmup=1)
    for epoch, average in zip((1, 2), averages):
        losses = []
        for step in range(4):
            chosen = torch.tensor(orders[epoch - 1][4 * step : 4 * step + 4])
            pixels = torch.stack([images[number] for number in chosen]).float() / 255
            loss, stats = objective(plain.train(), Batch(pixels, labels[chosen], chosen, epoch))
            losses.append(stats["loss"].item())
            plain.zero_grad()
            loss.backward()
            sgd.step()
            adam.step()
            schedule.set(epoch - 1 + step / 4)
        assert average["loss"] == pytest.approx(sum(losses) / 4, abs=1e-9)
        assert average["lr"] == pytest.approx(0.01 * (1 + 9 * (3 / 4)) if epoch == 1 else schedule.value)
        assert average["images_per_second"] == pytest.approx(16 / average["seconds"])
    for key, value in plain.state_dict().items():
        assert torch.equal(trained.state_dict()[key], value), key
    assert not torch.equal(trained.linear.weight, build_encoder("resnet8", num_classes=3, shifts=1).linear.weight)


def run_epoch(objective, *, encoder=None, **settings):
    """The third epoch, of five steps of two images."""
    encoder = encoder or PixelEncoder(num_classes=3, shifts=1)
    settings = {"learning_rate": Rate(), "epoch": 3, "seed": 0, **settings}
    settings["optimizers"] = (torch.optim.SGD(encoder.parameters(), lr=0.1),)
    forward = make_forward(encoder, objective, *make_data(10))
    return train_one_epoch(encoder, forward, torch.arange(10), Batches(10, 2), **settings)


def test_an_epoch_is_given_up_where_it_is_asked_to_and_never_after_its_last_step():
    asked, rate = [], Rate()

    def objective(model, batch):
        return model.linear.bias.sum(), {"loss": torch.tensor(1.0)}

    def stop(after):
        asked.append(len(rate.positions))
        return len(rate.positions) == after

    assert run_epoch(objective, stop=lambda: stop(3), learning_rate=rate) is None
    assert asked == [1, 2, 3] and len(rate.positions) == 3
    asked.clear(), rate.positions.clear()
    assert run_epoch(objective, stop=lambda: stop(5), learning_rate=rate)["loss"] == 1.0
    assert asked == [1, 2, 3, 4]


def test_statistics_are_averaged_over_the_steps_that_have_them():
    values = torch.tensor([[100.0, 1.0], [math.nan, 2.0], [50.0, 3.0], [math.nan, 4.0]], dtype=torch.float64)
    weights = torch.tensor([8.0, 8.0, 2.0, 8.0], dtype=torch.float64)
    assert weighted_means(values, weights).tolist() == pytest.approx([(800 + 100) / 10, (8 + 16 + 6 + 32) / 26])
    none = weighted_means(values[1:2], weights[1:2]).tolist()
    assert math.isnan(none[0]) and none[1] == 2


@pytest.mark.parametrize(
    ("bad", "step", "rate"),
    [([3, 4], 3, 0.01 * (1 + 9 * 1.4 / 4)), ([0], 0, 0.01 * (1 + 9 * 0.8 / 4)), ([1, 2], 1, 0.01 * (1 + 9 * 1.0 / 4))],
)
def test_an_epoch_that_went_wrong_names_its_first_bad_step_and_that_steps_rate(bad, step, rate):
    """Epoch 2 of 5 steps, of a warm-up over 4 epochs; update n has the rate set after update n - 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    learning_rate = LearningRate(optimizer, optimizer_name="sgd", kind="cosine", epochs=9, warmup=4)
    losses = torch.tensor([0.0, -1e300, 1.0, 1.0, 1.0], dtype=torch.float64)
    require_finite_losses(losses, epoch=2, steps=5, learning_rate=learning_rate)
    learning_rate.set(2.0)
    losses[bad] = torch.tensor([math.nan, math.inf][: len(bad)], dtype=torch.float64)
    with pytest.raises(Diverged, match=rf"at epoch 2, step {step}, learning rate {rate:.4g}; lower --lr_init"):
        require_finite_losses(losses, epoch=2, steps=5, learning_rate=learning_rate)
    assert learning_rate.value == pytest.approx(rate)


# The probe's accuracy


def slow_accuracy(encoder, images, labels):
    hits = 0
    for picture, label in zip(images.tolist(), labels.tolist()):
        pixels = [value / 255 * 2 - 1 for channel in picture for row in channel for value in row]
        logits = [
            sum(weight * pixel for weight, pixel in zip(row, pixels)) + bias
            for row, bias in zip(encoder.linear.weight.tolist(), encoder.linear.bias.tolist())
        ]
        hits += logits.index(max(logits)) == label
    return 100 * hits / len(labels)


@pytest.mark.parametrize("batch_size", [7, 500])
def test_probe_accuracy_equals_a_slow_loop(batch_size):
    torch.manual_seed(0)
    encoder = PixelEncoder(num_classes=3, shifts=1)
    images, labels = make_data(50)
    expected = slow_accuracy(encoder, images, labels)
    assert 0 < expected < 100
    assert probe_accuracy(encoder, images, labels, batch_size=batch_size) == pytest.approx(expected)
