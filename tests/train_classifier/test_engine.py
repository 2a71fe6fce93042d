"""The classifier's training, against slow loops and hand-worked numbers."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
import torchvision
from torch import nn

from common.settings import ClassifierSettings
from train_classifier import engine, graphs
from train_classifier.engine import (
    LabeledImages,
    crop,
    draw_epoch,
    epoch_generator,
    evaluate,
    make_counting_step,
    make_training_step,
    normalize,
    train_one_epoch,
    train_together,
)
from train_classifier.network import build_network
from utils import Diverged, InputError

CPU = torch.device("cpu")


def make_images(count: int, *, size: int = 8, seed: int = 0, device: torch.device = CPU) -> LabeledImages:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    return LabeledImages(images.to(device), (torch.arange(count) % 2).to(device))


def make_settings(**changes) -> ClassifierSettings:
    return ClassifierSettings(**{"recipe": "proper", "epochs": 1, "batch_size": 4, "lr": 5e-4, **changes})


def train(network: nn.Module, data: LabeledImages, test: LabeledImages, *, seed: int = 0, **changes) -> list[float]:
    """The test accuracies of one network that is trained alone."""
    return train_together([network], data, test, seeds=[seed], settings=make_settings(**changes))[0]


class Recorder(nn.Module):
    """A classifier with a BatchNorm that keeps what it was given while training was on."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 2)
        self.batches: list[torch.Tensor] = []
        self.modes: list[bool] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            self.batches.append(images.clone())
            self.modes.append(self.training)
        return self.head(self.norm(images).mean((2, 3)))


def record(*, count: int = 12, epochs: int = 1, **changes) -> tuple[Recorder, list[list[torch.Tensor]]]:
    """The network after training, and the batches that it saw, epoch by epoch."""
    network = Recorder()
    train(network, make_images(count), make_images(6, seed=1), epochs=epochs, **changes)
    steps = len(network.batches) // epochs
    return network, [network.batches[start : start + steps] for start in range(0, len(network.batches), steps)]


def equal_states(first: nn.Module, second: nn.Module) -> bool:
    others = second.state_dict()
    return all(torch.equal(value, others[name]) for name, value in first.state_dict().items())


def assert_close_states(first: nn.Module, second: nn.Module) -> None:
    others = second.state_dict()
    for name, value in first.state_dict().items():
        torch.testing.assert_close(value, others[name], rtol=1e-5, atol=1e-5)


def test_network_is_torchvisions_and_leaves_the_global_state():
    state = torch.get_rng_state()
    network = build_network(3, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert equal_states(network, torchvision.models.resnet18(num_classes=3))
    assert not torch.equal(network.conv1.weight, build_network(3, seed=6).conv1.weight)


def test_normalize_by_hand():
    images = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    # (0 - .485) / .229, (1 - .456) / .224, (.2 - .406) / .225
    expected = torch.tensor([-2.117904, 2.428571, -0.915556])
    assert torch.allclose(normalize(images).flatten(), expected, atol=1e-6)


def test_evaluate_equals_a_slow_loop(monkeypatch):
    monkeypatch.setattr(engine, "EVALUATION_BATCH", 10)
    networks, test = [build_network(2, seed=seed).train() for seed in (0, 1)], make_images(23)
    accuracies = evaluate(make_counting_step(networks, CPU), networks, test)
    for network, accuracy in zip(networks, accuracies, strict=True):
        network.eval()
        right = 0
        with torch.no_grad():
            for image, label in zip(test.images, test.labels, strict=True):
                right += int(network(normalize(image[None])).argmax()) == int(label)
        assert accuracy == 100 * right / 23


def test_one_epoch_equals_a_slow_loop():
    data, fast, slow = make_images(10), build_network(2, seed=0).train(), build_network(2, seed=0).train()
    orders, flips = draw_epoch([7], epoch=1, count=10)
    losses = train_one_epoch(make_training_step([fast], data, lr=1e-3), orders, flips, batch_size=4, device=CPU)
    generator = epoch_generator(7, 1)
    order, draws = torch.randperm(10, generator=generator).tolist(), torch.rand(10, generator=generator).tolist()
    optimizer = torch.optim.Adam(slow.parameters(), lr=1e-3, fused=True)
    slow_losses = []
    for start in (0, 4, 8):
        places = range(start, min(start + 4, 10))
        batch = [data.images[order[i]].flip(2) if draws[i] < 0.5 else data.images[order[i]] for i in places]
        labels = data.labels[[order[i] for i in places]]
        loss = nn.functional.cross_entropy(slow(normalize(torch.stack(batch))), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        slow_losses.append([loss.item()])
    assert equal_states(fast, slow)
    assert losses.tolist() == slow_losses


def train_alone_and_together(*, count: int, device: torch.device = CPU, **changes) -> list[list]:
    """For each of two seeds: networks and accuracies after training alone, and after training together."""
    data, test = make_images(count, device=device), make_images(7, seed=1, device=device)
    seeds = [4, 9]
    networks = [build_network(2, seed=seed).to(device) for seed in seeds]
    accuracies = train_together(networks, data, test, seeds=seeds, settings=make_settings(**changes))
    runs = []
    for seed, *together in zip(seeds, networks, accuracies, strict=True):
        alone = build_network(2, seed=seed).to(device)
        runs.append([alone, train(alone, data, test, seed=seed, **changes), *together])
    return runs


# The last batch of 4 is whole, shorter, or of one image, which is left out.
CASES = pytest.mark.parametrize(("recipe", "count"), [("proper", 8), ("original", 7), ("proper", 5), ("lfosa", 8)])


@CASES
def test_seeds_together_equal_seeds_alone_to_the_bit(recipe, count):
    runs = train_alone_and_together(recipe=recipe, epochs=2, count=count)
    for alone, alone_accuracies, together, together_accuracies in runs:
        assert equal_states(alone, together)
        assert alone_accuracies == together_accuracies and len(alone_accuracies) == 2
    assert not torch.equal(runs[0][0].conv1.weight, runs[1][0].conv1.weight)


@pytest.mark.gpu
@CASES
def test_seeds_together_equal_seeds_alone_on_a_gpu(recipe, count):
    device = torch.device("cuda", torch.cuda.current_device())
    runs = train_alone_and_together(recipe=recipe, epochs=2, count=count, device=device)
    for alone, alone_accuracies, together, together_accuracies in runs:
        assert_close_states(alone, together)
        assert alone_accuracies == together_accuracies


def test_seed_and_epoch_both_enter_the_order():
    orders = [torch.randperm(20, generator=epoch_generator(seed, epoch)).tolist() for seed, epoch in [(0, 1), (1, 0)]]
    assert orders[0] != orders[1]
    assert torch.randperm(20, generator=epoch_generator(0, 1)).tolist() == orders[0]


def test_a_last_batch_of_one_image_is_left_out():
    _, (epoch,) = record(batch_size=32, count=65)
    assert [len(batch) for batch in epoch] == [32, 32]
    _, (epoch,) = record(batch_size=32, count=66)
    assert [len(batch) for batch in epoch] == [32, 32, 2]
    with pytest.raises(InputError, match="got 1 images in batches of 32"):
        record(batch_size=32, count=1)


def test_recipe_proper_draws_each_epoch_anew():
    network, epochs = record(epochs=3)
    assert all(network.modes)
    assert not torch.equal(torch.cat(epochs[0]), torch.cat(epochs[1]))
    assert not torch.equal(torch.cat(epochs[1]), torch.cat(epochs[2]))
    assert int(network.norm.num_batches_tracked) == 9


def test_recipe_original_repeats_epoch_1_with_frozen_statistics():
    once, _ = record(recipe="original", epochs=1)
    network, epochs = record(recipe="original", epochs=3)
    assert torch.equal(torch.cat(epochs[0]), torch.cat(epochs[1]))
    assert torch.equal(torch.cat(epochs[0]), torch.cat(epochs[2]))
    assert network.modes == [True] * 3 + [False] * 6
    assert torch.equal(network.norm.running_mean, once.norm.running_mean)
    assert torch.equal(network.norm.running_var, once.norm.running_var)
    assert not torch.equal(network.norm.weight, once.norm.weight), "the weights still train"


def test_crops_by_hand():
    images = torch.tensor([[[1, 2], [3, 4]]] * 3, dtype=torch.uint8).expand(4, 3, 2, 2)
    corners = torch.tensor([[4, 4], [3, 5], [8, 4], [5, 4]])
    expected = [[[1, 2], [3, 4]], [[0, 0], [2, 0]], [[0, 0], [0, 0]], [[3, 4], [0, 0]]]
    assert crop(images, corners).tolist() == [[rows] * 3 for rows in expected]


def test_a_longer_order_is_drawn_on_from_reshuffled_passes():
    (order,), (flips,), (corners,) = draw_epoch([5], epoch=2, count=7, length=30, cropped=True)
    passes = [tuple(part.tolist()) for part in order.split(7)]
    assert [sorted(part) for part in passes[:4]] == [[*range(7)]] * 4 and len(set(passes[:4])) == 4
    assert len(set(passes[4])) == len(passes[4]) == 2
    assert len(flips) == len(corners) == 30 and 0 < flips.sum() < 30
    assert set(corners.flatten().tolist()) == set(range(9))
    (short,), _ = draw_epoch([5], epoch=2, count=7, length=3)
    assert short.tolist() == order[:3].tolist()


def test_the_crops_change_neither_order_nor_flips():
    plain, cropped = (draw_epoch([3, 4], epoch=1, count=9, cropped=cropped) for cropped in (False, True))
    assert len(plain) == 2 and all(torch.equal(*pair) for pair in zip(plain, cropped))


@pytest.mark.parametrize("count", [3, 500])
def test_recipe_mqnet_makes_a_hundred_whole_steps_an_epoch(count):
    network, epochs = record(recipe="mqnet", count=count, epochs=2)
    assert [[len(batch) for batch in epoch] for epoch in epochs] == [[4] * 100] * 2
    assert int(network.norm.num_batches_tracked) == 200


@pytest.fixture
def rates(monkeypatch):
    """The rate, the momentum and the weight decay at each of SGD's steps, and where the rate is."""
    seen = []

    class Spy(torch.optim.SGD):
        def step(self, closure=None):
            [group] = self.param_groups
            seen.append([group["lr"].data_ptr(), float(group["lr"]), group["momentum"], group["weight_decay"]])
            super().step(closure)

    monkeypatch.setattr(torch.optim, "SGD", Spy)
    return seen


@pytest.mark.parametrize(("recipe", "steps"), [("lfosa", 3), ("mqnet", 100)])
def test_the_schedule_changes_the_optimizers_rate_in_place(rates, recipe, steps):
    record(recipe=recipe, epochs=5, lr=0.5)
    halvings = [0, 1, 2, 3, 4] if recipe == "lfosa" else [0, 0, 0, 1, 2]
    assert [values[1:] for values in rates] == [[0.5 / 2**n, 0.9, 5e-4] for n in halvings for _ in range(steps)]
    assert len({address for address, *_ in rates}) == 1, "a recorded step would not see another tensor"


def test_recipe_lfosa_equals_a_slow_loop():
    data, fast = make_images(10), Recorder()
    slow = copy.deepcopy(fast)
    train(fast, data, data, seed=7, recipe="lfosa", epochs=5, lr=0.01)
    optimizer = torch.optim.SGD(slow.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    for epoch in range(1, 6):
        generator = epoch_generator(7, epoch)
        order, flips = torch.randperm(10, generator=generator), torch.rand(10, generator=generator) < 0.5
        corners = torch.randint(9, (10, 2), generator=generator).tolist()
        for places in torch.arange(10).split(4):
            batch = []
            for place in places.tolist():
                padded = torch.zeros(3, 16, 16, dtype=torch.uint8)
                image = data.images[order[place]]
                padded[:, 4:12, 4:12] = image.flip(2) if flips[place] else image
                row, column = corners[place]
                batch.append(padded[:, row : row + 8, column : column + 8])
            loss = nn.functional.cross_entropy(slow(normalize(torch.stack(batch))), data.labels[order[places]])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    assert len(fast.batches) == 15 and all(torch.equal(*pair) for pair in zip(fast.batches, slow.batches, strict=True))
    assert_close_states(fast, slow)


def train_recorded_and_plainly(monkeypatch, device: torch.device) -> list[nn.Module]:
    """A small network after training by lfosa with recorded steps, and after the same without."""
    first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    networks, data = [first.to(device), copy.deepcopy(first)], make_images(10, device=device)

    def graphed(*arguments, enabled: bool, **more) -> graphs.GraphedStep:
        return graphs.GraphedStep(*arguments, enabled=network is first, **more)

    monkeypatch.setattr(engine, "GraphedStep", graphed)
    for network in networks:
        train(network, data, data, recipe="lfosa", epochs=5, lr=0.1)
    return networks


def test_recorded_steps_of_sgd_equal_plain_ones_to_the_bit(monkeypatch):
    def stand_in(step, buffers):
        for _ in range(graphs.WARM_UP):
            output = step(*buffers)
        return functools.partial(step, *buffers), output

    monkeypatch.setattr(graphs, "record", stand_in)
    monkeypatch.setattr(graphs, "_replay", lambda call, output: call())
    assert equal_states(*train_recorded_and_plainly(monkeypatch, CPU))


@pytest.mark.gpu
def test_recorded_steps_of_sgd_follow_the_schedule_on_a_gpu(monkeypatch, capsys):
    device = torch.device("cuda", torch.cuda.current_device())
    assert_close_states(*train_recorded_and_plainly(monkeypatch, device))
    assert "warning" not in capsys.readouterr().out


def test_a_seed_that_diverges_is_named_and_stops_no_other():
    data = make_images(12)
    alone = [train(build_network(2, seed=0), data, data, seed=seed, epochs=2) for seed in (7, 9)]
    networks = [build_network(2, seed=0) for _ in range(3)]
    with torch.no_grad():
        networks[1].fc.bias[0] = float("nan")
    outcomes = train_together(networks, data, data, seeds=[7, 8, 9], settings=make_settings(epochs=2))
    assert [outcomes[0], outcomes[2]] == alone
    assert isinstance(outcomes[1], Diverged)
    assert str(outcomes[1]) == ("seed 8: the loss became nan in epoch 1, step 1, at learning rate 0.0005; lower --lr")


def test_training_ends_when_every_seed_has_diverged():
    networks, data, epochs = [build_network(2, seed=0) for _ in range(2)], make_images(12), []
    with torch.no_grad():
        for network in networks:
            network.fc.bias[0] = float("nan")
    networks[0].register_forward_pre_hook(lambda *_: epochs.append(1))
    outcomes = train_together(networks, data, data, seeds=[7, 8], settings=make_settings(epochs=5))
    assert [str(outcome)[:6] for outcome in outcomes] == ["seed 7", "seed 8"]
    assert len(epochs) == 3  # one epoch of three steps, and no evaluation
