"""The training loop that both encoders share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from common import distributed
from models.counter_random import make_keys
from training.objectives import Batch
from training.optim import LearningRate
from utils import AverageMeter, Diverged, InputError, progress

ORDER = 2  # the purpose part of a key
CHECK_EVERY = 50  # steps between looks at the loss on a GPU, where each look makes the host wait

Objective = Callable[[nn.Module, Batch], tuple[Tensor, dict[str, Tensor]]]


def steps_per_epoch(count: int, *, batch_size: int, processes: int) -> int:
    """Steps of one epoch: a single process drops the short last batch, several keep it (as the original's loaders do).

    Raises:
        InputError: There are fewer images than one batch.
    """
    share = -(-count // processes)
    steps = count // batch_size if processes == 1 else -(-share // batch_size)
    if steps == 0:
        raise InputError(f"--batch_size {batch_size} is larger than the {count} training images; make it smaller")
    return steps


def epoch_batches(
    indices: Tensor, *, batch_size: int, rank: int, processes: int, seed: int, epoch: int
) -> Iterator[Tensor]:
    """This process's batches of one epoch: consecutive parts of each global batch, in an order drawn for the epoch.

    All processes draw the same order, so W processes with batches of B see together what one with W B sees. With
    several, the order is filled up from its own start until it divides evenly.

    Args:
        indices: Training images, (N,).

    Yields:
        Indices, (B,).
    """
    order_seed = int(make_keys(seed, ORDER, epoch)) % 2**63
    order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(order_seed)).to(indices.device)
    if processes > 1:
        share = -(-len(indices) // processes)
        filled = order.repeat(-(-share * processes // len(order)))[: share * processes]
    else:
        share = len(indices) // batch_size * batch_size
        filled = order[:share]
    for start in range(0, share, batch_size):
        size = min(batch_size, share - start)
        first = start * processes + rank * size
        yield indices[filled[first : first + size]]


def train_one_epoch(
    encoder: nn.Module,
    objective: Objective,
    images: Tensor,
    labels: Tensor,
    indices: Tensor,
    *,
    optimizers: tuple[Optimizer, ...],
    learning_rate: LearningRate,
    batch_size: int,
    epoch: int,
    seed: int,
) -> dict[str, float]:
    """Trains for one epoch.

    Args:
        encoder: The model, wrapped where there are several processes.
        objective: Gives loss and statistics of a batch.
        images: uint8, (N, 3, H, W), on the training device.
        labels: (N,), there too.
        indices: The images to train on, there too.
        optimizers: The encoder's and the probe's.
        learning_rate: Set after each update.
        batch_size: Per process.
        epoch: From 1.
        seed: Of the order.

    Returns:
        Averages of the statistics over the epoch, ``lr`` and ``images_per_second`` (all processes together).

    Raises:
        Diverged: The loss is not finite; the message names epoch, step and learning rate.
    """
    encoder.train()
    processes = distributed.world_size()
    steps = steps_per_epoch(len(indices), batch_size=batch_size, processes=processes)
    batches = epoch_batches(
        indices, batch_size=batch_size, rank=distributed.rank(), processes=processes, seed=seed, epoch=epoch
    )
    meter, seen, start = AverageMeter(), 0, time.perf_counter()
    first_bad = torch.full((), -1, device=images.device)
    bar = progress(batches, description=f"epoch {epoch}", total=steps, unit="step")
    for step, chosen in enumerate(bar):
        batch = Batch(images[chosen].float() / 255, labels[chosen], chosen, epoch)
        loss, stats = objective(encoder, batch)
        first_bad = torch.where((first_bad < 0) & ~loss.detach().isfinite(), step, first_bad)
        if images.device.type == "cpu" or step % CHECK_EVERY == 0:
            _stop_if_bad(first_bad, epoch=epoch, lr=learning_rate.value)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        learning_rate.set(epoch - 1 + step / steps)
        meter.update(stats, len(chosen))
        seen += len(chosen) * processes
    _stop_if_bad(first_bad, epoch=epoch, lr=learning_rate.value)
    averages = distributed.mean_over_processes(meter.averages(), images.device)
    seconds = time.perf_counter() - start
    return {**averages, "lr": learning_rate.value, "images_per_second": seen / seconds, "seconds": seconds}


def _stop_if_bad(first_bad: Tensor, *, epoch: int, lr: float) -> None:
    step = int(first_bad)
    if step >= 0:
        raise Diverged(
            f"the loss is not finite at epoch {epoch}, step {step}, learning rate {lr:.4g}; "
            "lower --lr_init, or raise --warmup or --temperature (the last checkpoint is from before)"
        )


@torch.no_grad()
def probe_accuracy(encoder: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int = 500) -> float:
    """Accuracy of the linear probe in percent, over all classes, on images as they are (no augmentation).

    Args:
        encoder: The bare model.
        images: uint8, (M, 3, H, W).
        labels: (M,).
    """
    encoder.eval()
    hits = torch.zeros((), dtype=torch.int64, device=images.device)
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        hits += (encoder(images[part].float() / 255).class_logits.argmax(1) == labels[part]).sum()
    return 100 * int(hits) / len(images)
