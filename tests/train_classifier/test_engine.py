"""The classifier's training, against slow loops and hand-worked numbers."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from common.settings import ClassifierSettings
from train_classifier import engine
from train_classifier.engine import (
    LabeledImages,
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
CASES = pytest.mark.parametrize(("recipe", "count"), [("proper", 8), ("original", 7), ("proper", 5)])


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
