"""Training and evaluation of classifiers on one labeled set, one per seed, in step with each other."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from common.console import progress
from common.settings import ClassifierSettings
from models.transform_layers import horizontal_flip
from train_classifier.graphs import GraphedStep, fork_join, make_streams
from train_classifier.recipes import PADDING, RECIPES, resolved
from utils import Diverged, InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
EVALUATION_BATCH = 500


@dataclass(frozen=True)
class LabeledImages:
    """Images that stay on the training device for the whole run, or what a frozen encoder makes of them.

    Attributes:
        images: uint8, (N, 3, H, W); or features, float32, (N, D).
        labels: The classifier's class numbers, int64, (N,).
        mirrored: Features of the mirrored images, (N, D); None where images are mirrored themselves.
    """

    images: Tensor
    labels: Tensor
    mirrored: Tensor | None = None

    @classmethod
    def from_numpy(cls, images: np.ndarray, labels: np.ndarray, device: torch.device) -> LabeledImages:
        """Copies images, uint8 (N, H, W, 3), and labels, (N,), to the device."""
        pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).contiguous()
        return cls(pixels, torch.from_numpy(labels).to(device))

    def part(self, chosen: np.ndarray) -> LabeledImages:
        """Those that ``chosen``, bool (N,), says."""
        rows = torch.from_numpy(np.flatnonzero(chosen)).to(self.labels.device)
        mirrored = None if self.mirrored is None else self.mirrored[rows]
        return LabeledImages(self.images[rows], self.labels[rows], mirrored)

    def batch(self, indices: Tensor, flips: Tensor, corners: Tensor | None = None) -> Tensor:
        """Some of the images, (B,), mirrored where ``flips``, (B,), is true, and cropped at ``corners`` if given."""
        if self.mirrored is None:
            images = horizontal_flip(self.images[indices], flips)
            return images if corners is None else crop(images, corners)
        return torch.where(flips[:, None], self.mirrored[indices], self.images[indices])


def crop(images: Tensor, corners: Tensor) -> Tensor:
    """Pads images, (B, 3, H, W), by PADDING and cuts H x W out of each, from row and column ``corners``, (B, 2), on."""
    windows = nn.functional.pad(images, [PADDING] * 4).unfold(2, images.shape[2], 1).unfold(3, images.shape[3], 1)
    return windows[torch.arange(len(images), device=images.device), :, corners[:, 0], corners[:, 1]]


def normalize(images: Tensor) -> Tensor:
    """(x / 255 - mean) / std with ImageNet's mean and std per channel: uint8 (B, 3, H, W) to float32.

    Features, (B, D), are what they are.
    """
    if images.dtype != torch.uint8:
        return images
    mean, std = channel_constants(images.device)
    return (images.float() / 255 - mean) / std


@functools.cache
def channel_constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """ImageNet's mean and std per channel, (3, 1, 1)."""
    # Kept per device: a copy from the host at every step would make the GPU wait for it.
    return tuple(torch.tensor(values, device=device).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """The source of one epoch's order and flips; on the CPU, so that all devices draw the same."""
    mixed = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed))


def train_together(
    networks: Sequence[nn.Module],
    data: LabeledImages,
    test: LabeledImages,
    *,
    seeds: Sequence[int],
    settings: ClassifierSettings,
    targets: int | None = None,
) -> list[list[float] | Diverged]:
    """Trains one network per seed in place, all in step, and returns their test accuracies.

    Each network ends as it would alone: on a CPU to the bit, on a GPU to rounding. On a GPU a step of all networks is
    one CUDA graph, in which they run beside each other.

    Args:
        networks: On the device of the images.
        data: What to train on, at least 2 images.
        test: What the accuracy is measured on.
        seeds: Seed of the orders and the flips of each network.
        settings: Recipe, see train_classifier/recipes.py, and epochs, batch size and learning rate, if not its own.
        targets: How many of the outputs, the first ones, the accuracy looks at; None for all.

    Returns:
        Accuracy after each epoch in percent, one list per network; for a network whose loss was not finite what to
        raise for it, in place of the list: the others go on without it.

    Raises:
        InputError: There are too few images.
    """
    settings, recipe = resolved(settings), RECIPES[settings.recipe]
    # One tensor, which SGD reads at every step: of a number, a recorded step would keep the first value.
    rate = torch.tensor(settings.lr, device=data.labels.device)
    step = make_training_step(networks, data, lr=rate if recipe.momentum else settings.lr, recipe=settings.recipe)
    about = {"count": len(data.labels), "length": recipe.steps and recipe.steps * settings.batch_size}
    count = make_counting_step(networks, data.labels.device, targets=targets)
    accuracies: list[list[float]] = []
    failures: dict[int, Diverged] = {}
    # Some of the GPU's convolutions add up in varying order; without them a seed repeats to the bit.
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        epochs, names = range(1, settings.epochs + 1), ", ".join(map(str, seeds))
        for epoch in progress(epochs, description=f"seed {names}", total=settings.epochs, unit="epoch"):
            repeats = recipe.repeats and epoch > 1
            lr = recipe.rate(epoch, lr=settings.lr, epochs=settings.epochs)
            rate.fill_(lr)
            draws = draw_epoch(seeds, epoch=1 if repeats else epoch, cropped=recipe.crop, **about)
            for network in networks:
                # The network has no dropout, so eval mode freezes BatchNorm's statistics and nothing else.
                network.train(not repeats)
            losses = train_one_epoch(step, *draws, batch_size=settings.batch_size, device=data.labels.device)
            failures = _diverged(losses, seeds=seeds, epoch=epoch, lr=lr) | failures
            if len(failures) == len(networks):
                break
            accuracies.append(evaluate(count, networks, test))
    return [failures.get(number) or [reached[number] for reached in accuracies] for number in range(len(networks))]


def draw_epoch(
    seeds: Sequence[int], *, epoch: int, count: int, length: int | None = None, cropped: bool = False
) -> tuple[Tensor, ...]:
    """Each seed's order of the images, int64 (S, N), whether to flip the image at each place in it, bool (S, N), and
    where images are ``cropped`` the corners, see crop, int64 (S, N, 2).

    N is the ``count`` of the images, or the ``length`` of the order, which then has several passes or ends within one.
    """
    length, draws = length or count, []
    for source in (epoch_generator(seed, epoch) for seed in seeds):
        passes = [torch.randperm(count, generator=source) for _ in range(0, length, count)]
        draws.append([torch.cat(passes)[:length], torch.rand(length, generator=source) < 0.5])
        if cropped:
            draws[-1].append(torch.randint(2 * PADDING + 1, (length, 2), generator=source))
    return tuple(map(torch.stack, zip(*draws, strict=True)))


def make_training_step(
    networks: Sequence[nn.Module], data: LabeledImages, *, lr: float | Tensor, recipe: str = "proper"
) -> GraphedStep:
    """A step of Adam, or SGD with its rate in a tensor, for S networks: draws, (S, B, ...), to losses, (S,)."""
    device = data.labels.device
    on_gpu, sgd = device.type == "cuda", RECIPES[recipe].momentum > 0
    # Fused: on a CPU the update of 11 M weights costs as much as the batch otherwise, and on a GPU SGD would ask for
    # the value of its rate, which cannot be recorded.
    options = {"lr": lr, "fused": True, "weight_decay": RECIPES[recipe].weight_decay}
    options |= {"momentum": RECIPES[recipe].momentum} if sgd else {"capturable": on_gpu}
    optimizer = torch.optim.SGD if sgd else torch.optim.Adam
    optimizers = [optimizer(network.parameters(), **options) for network in networks]
    streams = make_streams(len(networks), device)

    def step(*draws: Tensor) -> Tensor:
        seeds = zip(networks, optimizers, *draws)
        return torch.stack(fork_join([functools.partial(_train_on_batch, data, *seed) for seed in seeds], streams))

    return GraphedStep(step, modules=networks, optimizers=optimizers, enabled=on_gpu)


def _train_on_batch(
    data: LabeledImages, network: nn.Module, optimizer: torch.optim.Optimizer, indices: Tensor, *draws: Tensor
) -> Tensor:
    logits = network(normalize(data.batch(indices, *draws)))
    loss = nn.functional.cross_entropy(logits, data.labels[indices])
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


def train_one_epoch(step: GraphedStep, *draws: Tensor, batch_size: int, device: torch.device) -> Tensor:
    """One epoch of images in the orders that were drawn, in the mode (train or eval) in which the networks are.

    A last batch of a single image is left out: in train mode BatchNorm has no variance to divide by where the maps
    have become 1x1. For ``draws`` see draw_epoch.

    Returns:
        Mean cross-entropy of each step's batch, per network: float64, (steps, S), on the CPU.

    Raises:
        InputError: No batch has two images.
    """
    count = draws[0].shape[1]
    starts = [start for start in range(0, count, batch_size) if min(batch_size, count - start) > 1]
    if not starts:
        raise InputError(f"training needs two images or more in a batch; got {count} images in batches of {batch_size}")
    draws = [drawn.to(device) for drawn in draws]
    losses = [step(*(drawn[:, start : start + batch_size] for drawn in draws)) for start in starts]
    # Read once per epoch: a look at every step would make the GPU wait for the host.
    return torch.stack(losses).double().cpu()


def _diverged(losses: Tensor, *, seeds: Sequence[int], epoch: int, lr: float) -> dict[int, Diverged]:
    """What to raise, by number of the network, for those whose losses, (steps, S), are not all finite."""
    failures: dict[int, Diverged] = {}
    for step, number in torch.nonzero(~torch.isfinite(losses)).tolist():
        error = Diverged(
            f"seed {seeds[number]}: the loss became {float(losses[step, number])} in epoch {epoch}, step {step + 1}, "
            f"at learning rate {lr:g}; lower --lr"
        )
        failures.setdefault(number, error)
    return failures


def make_counting_step(
    networks: Sequence[nn.Module], device: torch.device, *, targets: int | None = None
) -> GraphedStep:
    """Images, uint8 (B, 3, H, W), and their labels, (B,), to the number that each of S networks gets right, (S,).

    The largest of the first ``targets`` outputs counts; None for all.
    """
    streams = make_streams(len(networks), device)

    @torch.no_grad()
    def count(images: Tensor, labels: Tensor) -> Tensor:
        inputs = normalize(images)
        calls = [functools.partial(_count_correct, network, inputs, labels, targets) for network in networks]
        return torch.stack(fork_join(calls, streams))

    return GraphedStep(count, modules=networks, enabled=device.type == "cuda")


def _count_correct(network: nn.Module, inputs: Tensor, labels: Tensor, targets: int | None) -> Tensor:
    return (network(inputs)[:, :targets].argmax(1) == labels).sum()


def evaluate(count: GraphedStep, networks: Sequence[nn.Module], test: LabeledImages) -> list[float]:
    """Each network's test accuracy in percent; ``count`` is of make_counting_step. Leaves them in eval mode."""
    for network in networks:
        network.eval()
    batches = zip(test.images.split(EVALUATION_BATCH), test.labels.split(EVALUATION_BATCH), strict=True)
    correct = [count(images, labels) for images, labels in batches]
    return [100 * number / len(test.labels) for number in torch.stack(correct).sum(0).tolist()]


@torch.no_grad()
def probabilities(network: nn.Module, images: Tensor) -> np.ndarray:
    """The softmax of a network's outputs, float64 (N, C), for images, uint8 (N, 3, H, W), or features; in eval mode."""
    network.eval()
    parts = [network(normalize(batch)).double().softmax(1).cpu() for batch in images.split(EVALUATION_BATCH)]
    return torch.cat(parts).numpy()
