"""Training and evaluation of one classifier on one labeled set."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from models.transform_layers import horizontal_flip
from utils import Diverged, InputError, progress

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
EVALUATION_BATCH = 500


@dataclass(frozen=True)
class Settings:
    """How a classifier is trained.

    Attributes:
        recipe: ``proper``, or ``original``: BatchNorm uses the statistics of epoch 1 ever after, and every epoch
            repeats the order and the flips of epoch 1.
        epochs: Passes over the labeled images.
        batch_size: Images per step, at least 2.
        lr: Adam's learning rate.
    """

    recipe: str
    epochs: int
    batch_size: int
    lr: float


@dataclass(frozen=True)
class LabeledImages:
    """Images that stay on the training device for the whole run.

    Attributes:
        images: uint8, (N, 3, H, W).
        labels: The classifier's class numbers, int64, (N,).
    """

    images: Tensor
    labels: Tensor

    @classmethod
    def from_numpy(cls, images: np.ndarray, labels: np.ndarray, device: torch.device) -> LabeledImages:
        """Copies images, uint8 (N, H, W, 3), and labels, (N,), to the device."""
        return cls(
            torch.from_numpy(images).to(device).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels).to(device)
        )


def normalize(images: Tensor) -> Tensor:
    """(x / 255 - mean) / std with ImageNet's mean and std per channel: uint8 (B, 3, H, W) to float32."""
    mean, std = _channel_constants(images.device)
    return (images.float() / 255 - mean) / std


@functools.cache
def _channel_constants(device: torch.device) -> tuple[Tensor, Tensor]:
    # Kept per device: a copy from the host at every step would make the GPU wait for it.
    return tuple(torch.tensor(values, device=device).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """The source of one epoch's order and flips; on the CPU, so that all devices draw the same."""
    mixed = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed))


def train(
    network: nn.Module, data: LabeledImages, test: LabeledImages, *, seed: int, settings: Settings
) -> list[float]:
    """Trains a network in place and returns its test accuracy after each epoch, in percent.

    Args:
        network: On the device of the images.
        data: What to train on, at least 2 images.
        test: What the accuracy is measured on.
        seed: Seed of the orders and the flips.
        settings: The recipe and its numbers.

    Raises:
        Diverged: The loss is not finite.
        InputError: There are too few images.
    """
    # Fused: on a CPU the update of 11 M weights costs as much as the batch otherwise.
    fused = True if data.labels.device.type == "cpu" else None
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.lr, fused=fused)
    accuracies = []
    # Some of the GPU's convolutions add up in varying order; without them a seed repeats to the bit.
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        epochs = range(1, settings.epochs + 1)
        for epoch in progress(epochs, description=f"seed {seed}", total=settings.epochs, unit="epoch"):
            repeats = settings.recipe == "original" and epoch > 1
            generator = epoch_generator(seed, 1 if repeats else epoch)
            # The network has no dropout, so eval mode freezes BatchNorm's statistics and nothing else.
            network.train(not repeats)
            train_one_epoch(network, optimizer, data, generator=generator, batch_size=settings.batch_size, epoch=epoch)
            accuracies.append(evaluate(network, test))
    return accuracies


def train_one_epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: LabeledImages,
    *,
    generator: torch.Generator,
    batch_size: int,
    epoch: int,
) -> dict[str, float]:
    """One pass over the images in a drawn order, in the mode (train or eval) in which the network is.

    A last batch of a single image is left out: in train mode BatchNorm has no variance to divide by where the maps
    have become 1x1.

    Args:
        generator: On the CPU; gives the order, then one flip per image.
        epoch: For the error message.

    Returns:
        ``loss``: mean cross-entropy of the images trained on.

    Raises:
        Diverged: The loss of a step is not finite.
        InputError: No batch has two images.
    """
    count = len(data.labels)
    device = data.labels.device
    order = torch.randperm(count, generator=generator).to(device)
    flips = (torch.rand(count, generator=generator) < 0.5).to(device)
    batches = [
        batch for batch in zip(order.split(batch_size), flips.split(batch_size), strict=True) if len(batch[0]) > 1
    ]
    if not batches:
        raise InputError(f"training needs two images or more in a batch; got {count} images in batches of {batch_size}")
    losses = []
    for indices, flip in batches:
        logits = network(normalize(horizontal_flip(data.images[indices], flip)))
        loss = nn.functional.cross_entropy(logits, data.labels[indices])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    # Read once per epoch: a look at every step would make the GPU wait for the host.
    values = torch.stack(losses).double().cpu()
    _check_finite(values, epoch=epoch, lr=optimizer.param_groups[0]["lr"])
    sizes = torch.tensor([len(indices) for indices, _ in batches], dtype=torch.float64)
    return {"loss": float((values * sizes).sum() / sizes.sum())}


def _check_finite(losses: Tensor, *, epoch: int, lr: float) -> None:
    bad = torch.nonzero(~torch.isfinite(losses))
    if len(bad):
        step = int(bad[0])
        raise Diverged(
            f"the loss became {float(losses[step])} in epoch {epoch}, step {step + 1}, at learning rate {lr:g}; "
            "lower --lr"
        )


@torch.no_grad()
def evaluate(network: nn.Module, test: LabeledImages) -> float:
    """Accuracy on the test images in percent; leaves the network in eval mode."""
    network.eval()
    correct = torch.zeros((), dtype=torch.int64, device=test.labels.device)
    for images, labels in zip(test.images.split(EVALUATION_BATCH), test.labels.split(EVALUATION_BATCH), strict=True):
        correct += (network(normalize(images)).argmax(1) == labels).sum()
    return 100 * int(correct) / len(test.labels)
