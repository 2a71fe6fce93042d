"""training/engine.py: steps, the order of an epoch, the loop and the probe's accuracy."""

import math
from itertools import chain

import pytest
import torch

from models import ContrastiveEncoder
from training.engine import (
    Gathered,
    batch_per_process,
    epoch_batches,
    make_forward,
    probe_accuracy,
    steps_per_epoch,
    train_one_epoch,
)
from utils import InputError


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


def make_data(count=10):
    images = torch.randint(0, 256, (count, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return images, torch.arange(count) % 3


def batches(count, *, rank=0, processes=1, seed=0, epoch=1, **more):
    chosen = epoch_batches(torch.arange(count) * 10, rank=rank, processes=processes, seed=seed, epoch=epoch, **more)
    return [batch.tolist() for batch in chosen]


def joined(lists):
    return list(chain.from_iterable(lists))


# Steps and order


@pytest.mark.parametrize(
    ("count", "batch_size", "processes", "steps"),
    [
        (46801, 32, 1, 1462),
        (46801, 32, 4, 366),
        (46801, 128, 1, 365),
        (64, 32, 1, 2),
        (64, 32, 2, 1),
        (65, 32, 2, 2),
        (65, 64, 1, 1),
        (3, 5, 2, 1),
        (1, 1, 1, 1),
    ],
)
def test_steps_per_epoch(count, batch_size, processes, steps):
    assert steps_per_epoch(count, batch_size=batch_size, processes=processes) == steps


def test_a_batch_larger_than_the_data_is_refused_with_both_numbers():
    with pytest.raises(InputError, match="--batch_size 65 is larger than the 64 training images; make it smaller"):
        steps_per_epoch(64, batch_size=65, processes=1)


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [12, 13, 47])
@pytest.mark.parametrize("batch_size", [3, 4])
def test_as_many_batches_as_steps(count, batch_size, processes):
    steps = steps_per_epoch(count, batch_size=batch_size, processes=processes)
    for rank in range(processes):
        assert len(batches(count, batch_size=batch_size, rank=rank, processes=processes)) == steps


@pytest.mark.parametrize(("count", "batch_size", "left_out"), [(12, 4, 0), (13, 4, 1), (47, 5, 2)])
def test_one_process_sees_each_image_once_but_for_a_short_last_batch(count, batch_size, left_out):
    drawn = batches(count, batch_size=batch_size)
    assert all(len(batch) == batch_size for batch in drawn)
    flat = joined(drawn)
    assert len(set(flat)) == len(flat) == count - left_out
    assert set(flat) <= {10 * number for number in range(count)}


@pytest.mark.parametrize(("processes", "batch_size"), [(2, 4), (3, 5), (4, 2)])
def test_the_processes_batches_together_are_one_processs(processes, batch_size):
    count = 3 * processes * batch_size
    alone = batches(count, batch_size=processes * batch_size)
    shares = [batches(count, batch_size=batch_size, rank=rank, processes=processes) for rank in range(processes)]
    assert [joined(parts) for parts in zip(*shares)] == alone


@pytest.mark.parametrize(
    ("count", "processes", "batch_size"), [(13, 4, 3), (47, 4, 5), (9, 2, 2), (3, 4, 2), (2, 7, 1)]
)
def test_several_processes_keep_the_last_batch_and_fill_up_from_the_start(count, processes, batch_size):
    shares = [batches(count, batch_size=batch_size, rank=rank, processes=processes) for rank in range(processes)]
    share = math.ceil(count / processes)
    assert all(sum(len(batch) for batch in mine) == share for mine in shares)
    together = joined(joined(parts) for parts in zip(*shares))
    assert set(together[:count]) == {10 * number for number in range(count)}
    repeats = (together[:count] * (share * processes // count + 1))[: share * processes]
    assert together == repeats


@pytest.mark.parametrize("count", [24, 25, 31, 100])
@pytest.mark.parametrize("done", [0, 1, 3])
def test_whole_global_batches_are_the_same_images_with_any_number_of_processes(count, done):
    expected = batches(count, batch_size=8, epoch=2)
    assert len(expected) == count // 8
    for processes in (1, 2, 4, 8):
        shape = {"batch_size": 8 // processes, "processes": processes, "whole_batches": True}
        parts = [batches(count, rank=rank, done=done, epoch=2, **shape) for rank in range(processes)]
        assert [joined(step) for step in zip(*parts)] == expected[done:]
        assert steps_per_epoch(count, **shape) == len(expected)


def test_a_global_batch_larger_than_the_data_is_refused():
    with pytest.raises(InputError, match="--global_batch_size 12 is larger than the 11 training images"):
        steps_per_epoch(11, batch_size=4, processes=3, whole_batches=True)


@pytest.mark.parametrize(("given", "processes", "share"), [(None, 3, 7), (12, 1, 12), (12, 3, 4), (3, 3, 1)])
def test_the_share_of_a_process(given, processes, share):
    assert batch_per_process(7, given, processes=processes) == share


@pytest.mark.parametrize(
    ("given", "processes", "remedy"),
    [
        (128, 3, "give 126 or 129, or launch 1 or 2 process"),
        (60, 8, "give 56 or 64, or launch 3 or 4 or 5 or 6 process"),
        (2, 4, "give 4, or launch 1 or 2 process"),
    ],
)
def test_a_global_batch_that_cannot_be_shared_is_refused_with_what_can(given, processes, remedy):
    with pytest.raises(
        InputError, match=f"--global_batch_size {given} does not divide among {processes} processes"
    ) as e:
        batch_per_process(128, given, processes=processes)
    assert remedy in str(e.value)


def test_what_other_processes_gathered_is_their_mean():
    states = [
        {"names": ["loss"], "rows": torch.tensor([[1.0, 5.0], [2.0, 6.0]]), "sizes": [4, 4], "seconds": 2.0},
        {"names": ["loss"], "rows": torch.tensor([[3.0, 7.0], [2.0, 0.0]]), "sizes": [4, 4], "seconds": 2.5},
    ]
    found = Gathered.from_others(states, torch.device("cpu"), batch_size=8)
    assert [row.tolist() for row in found.rows] == [[2.0, 6.0], [2.0, 3.0]]
    assert (found.names, found.sizes, found.seconds) == (("loss",), [8, 8], 2.0)


def test_the_order_depends_on_seed_and_epoch_and_on_nothing_else():
    first = batches(40, batch_size=8)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert batches(40, batch_size=8) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert batches(40, batch_size=8, epoch=2) != first
    assert batches(40, batch_size=8, seed=1) != first
    assert joined(batches(40, batch_size=10)) == joined(first) != sorted(joined(first))


# The loop


def run_epoch(objective, *, images=None, labels=None, indices=None, batch_size=4, epoch=3, encoder=None, **settings):
    images, labels = make_data() if images is None else (images, labels)
    encoder = encoder or PixelEncoder(num_classes=3, shifts=1)
    optimizers = settings.pop("optimizers", (torch.optim.SGD(encoder.parameters(), lr=0.1),))
    rate = settings.pop("rate", Rate())
    indices = torch.arange(len(images)) if indices is None else indices
    return train_one_epoch(
        encoder, make_forward(encoder, objective, images, labels), indices,
        optimizers=optimizers, learning_rate=rate, batch_size=batch_size, epoch=epoch, seed=0,
    )  # fmt: skip


def test_the_objective_gets_the_chosen_images_scaled_with_labels_indices_and_epoch():
    images, labels = make_data()
    indices, seen = torch.tensor([9, 2, 4, 7, 0, 5]), []

    def objective(encoder, batch):
        assert encoder.training
        seen.append(batch)
        return encoder(batch.images).class_logits.sum(), {"loss": torch.tensor(1.0)}

    run_epoch(objective, images=images, labels=labels, indices=indices, batch_size=2)
    assert [int(batch.epoch) for batch in seen] == [3, 3, 3]
    chosen = torch.cat([batch.indices for batch in seen])
    assert sorted(chosen.tolist()) == sorted(indices.tolist())
    assert torch.equal(torch.cat([batch.images for batch in seen]), images[chosen].float() / 255)
    assert torch.equal(torch.cat([batch.labels for batch in seen]), labels[chosen])


def test_averages_rate_and_positions():
    rate, values = Rate(), iter([1.0, 2.0, 6.0])

    def objective(encoder, batch):
        return encoder(batch.images).class_logits.sum(), {
            "loss": torch.tensor(next(values)),
            "other": torch.tensor(4.0),
        }

    stats = run_epoch(objective, indices=torch.arange(9), batch_size=3, rate=rate)
    assert stats["loss"] == 3.0 and stats["other"] == 4.0 and stats["lr"] == 0.25
    assert stats["images_per_second"] == pytest.approx(9 / stats["seconds"])
    assert rate.positions == pytest.approx([2.0, 2 + 1 / 3, 2 + 2 / 3])


def test_each_step_updates_with_every_optimizer_from_fresh_gradients():
    encoder = PixelEncoder(num_classes=3, shifts=1)
    with torch.no_grad():
        encoder.linear.bias.fill_(0.0)
        encoder.shift_cls_layer.bias.fill_(0.0)
    encoder.shift_cls_layer.requires_grad_(True)
    optimizers = (
        torch.optim.SGD([encoder.linear.bias], lr=0.1),
        torch.optim.SGD([encoder.shift_cls_layer.bias], lr=0.01),
    )

    def objective(model, batch):
        return model.linear.bias.sum() + model.shift_cls_layer.bias.sum(), {"loss": torch.tensor(0.0)}

    run_epoch(objective, encoder=encoder, optimizers=optimizers, batch_size=5)  # two steps, each gradient 1
    assert encoder.linear.bias.tolist() == pytest.approx([-0.2] * 3)
    assert encoder.shift_cls_layer.bias.tolist() == pytest.approx([-0.02])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("step", [0, 2])
def test_a_loss_that_is_not_finite_stops_with_epoch_step_and_rate(bad, step):
    encoder = PixelEncoder(num_classes=3, shifts=1)
    count = 0

    def objective(model, batch):
        nonlocal count
        loss = model.linear.bias.sum() * (bad if count == step else 1.0)
        count += 1
        return loss + (bad if count == step + 1 else 0.0), {"loss": loss.detach()}

    with pytest.raises(InputError, match=rf"not finite at epoch 3, step {step}, learning rate 0\.25; lower --lr_init"):
        run_epoch(objective, encoder=encoder, batch_size=2)
    assert count == step + 1
    assert all(p.isfinite().all() for p in encoder.parameters())  # stopped before the bad update


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


@pytest.mark.parametrize("batch_size", [1, 7, 50, 500])
def test_probe_accuracy_equals_a_slow_loop(batch_size):
    torch.manual_seed(0)
    encoder = PixelEncoder(num_classes=3, shifts=1)
    images, labels = make_data(50)
    expected = slow_accuracy(encoder, images, labels)
    assert 0 < expected < 100
    assert probe_accuracy(encoder, images, labels, batch_size=batch_size) == pytest.approx(expected)


def test_probe_accuracy_is_measured_in_eval_mode_and_without_gradients():
    encoder = PixelEncoder(num_classes=3, shifts=1).train()
    seen = []
    encoder.register_forward_hook(
        lambda module, inputs, output: seen.append((module.training, output[0].requires_grad))
    )
    probe_accuracy(encoder, *make_data())
    assert seen == [(False, False)]
