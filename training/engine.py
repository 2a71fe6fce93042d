"""The training loop that both encoders share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from common import distributed
from common.acceleration import FP32, Precision, compile_step
from common.console import progress
from models.counter_random import make_keys
from training.objectives import Batch
from training.optim import LearningRate
from utils import Diverged, InputError

ORDER = 2  # the purpose part of a key

Objective = Callable[[nn.Module, Batch], tuple[Tensor, dict[str, Tensor]]]
# From the indices of a step's images, (B,), and the epoch, int64 (), to the loss and what to log.
Forward = Callable[[Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]


def make_forward(
    encoder: nn.Module, objective: Objective, images: Tensor, labels: Tensor, *, compiled_for: Tensor | None = None
) -> Forward:
    """A step's forward pass, from the choice of images to the loss.

    Args:
        encoder: Wrapped for several processes; in train mode where it is to be compiled.
        objective: Semantic or distinctive.
        images: All train images, uint8 (M, 3, H, W), on the device.
        labels: Of all train images, (M,).
        compiled_for: Indices of a batch like those to come, (B,): the pass is compiled, augmentation and all. None
            leaves it as it is.
    """

    def compute(pixels: Tensor, targets: Tensor, chosen: Tensor, epoch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return objective(encoder, Batch(pixels.float() / 255, targets, chosen, epoch))

    if compiled_for is not None:
        epoch = torch.ones((), dtype=torch.int64, device=images.device)
        compute = compile_step(
            compute,
            (images[compiled_for], labels[compiled_for], compiled_for, epoch),
            parameters=encoder.parameters(),
            buffers=encoder.buffers(),
            device=images.device,
        )

    def forward(chosen: Tensor, epoch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        # Outside of what is compiled: CUDA graphs copy their inputs, which should not be the whole data set.
        return compute(images[chosen], labels[chosen], chosen, epoch)

    return forward


def batch_per_process(batch_size: int, global_batch_size: int | None, *, processes: int) -> int:
    """Images that each process takes per step: ``batch_size``, or its share of ``global_batch_size``.

    Raises:
        InputError: The global batch cannot be shared evenly; the message names what could.
    """
    if global_batch_size is None:
        return batch_size
    share, rest = divmod(global_batch_size, processes)
    if rest:
        sizes = [size for size in (share * processes, (share + 1) * processes) if size]
        counts = [count for count in range(1, processes) if global_batch_size % count == 0]
        raise InputError(
            f"--global_batch_size {global_batch_size} does not divide among {processes} processes: give "
            f"{' or '.join(map(str, sizes))}, or launch {' or '.join(map(str, counts[-4:]))} process(es)"
        )
    return share


def steps_per_epoch(count: int, *, batch_size: int, processes: int, whole_batches: bool = False) -> int:
    """Steps of one epoch: a single process drops the short last batch, several keep it (as the original's loaders do)
    unless ``whole_batches`` asks for the same as with one.

    Raises:
        InputError: There are fewer images than one batch.
    """
    if processes == 1 or whole_batches:
        steps = count // (batch_size * processes)
    else:
        share = -(-count // processes)
        steps = -(-share // batch_size)
    if steps == 0:
        flag = f"--global_batch_size {batch_size * processes}" if whole_batches else f"--batch_size {batch_size}"
        raise InputError(f"{flag} is larger than the {count} training images; make it smaller")
    return steps


def epoch_batches(
    indices: Tensor,
    *,
    batch_size: int,
    rank: int,
    processes: int,
    seed: int,
    epoch: int,
    done: int = 0,
    whole_batches: bool = False,
) -> Iterator[Tensor]:
    """This process's batches of one epoch: consecutive parts of each global batch, in an order drawn for the epoch.

    All processes draw the same order, so W processes with batches of B see together what one with W B sees. What is
    left for a short last batch is dropped by a single process; several fill the order up from its own start until it
    divides evenly, or with ``whole_batches`` drop it as well.

    Args:
        indices: Training images, (N,).
        done: Batches to leave out, those of the steps that an interrupted epoch has made.

    Yields:
        Indices, (B,).
    """
    # Sorting keys shuffles on the device, without a copy for which the host would wait.
    order = make_keys(seed, ORDER, epoch, torch.arange(len(indices), device=indices.device)).argsort(stable=True)
    if processes > 1 and not whole_batches:
        share = -(-len(indices) // processes)
        filled = order.repeat(-(-share * processes // len(order)))[: share * processes]
    else:
        share = len(indices) // (batch_size * processes) * batch_size
        filled = order[: share * processes]
    for start in range(done * batch_size, share, batch_size):
        size = min(batch_size, share - start)
        first = start * processes + rank * size
        yield indices[filled[first : first + size]]


@dataclass
class Gathered:
    """What an epoch's steps have yielded so far, at this process.

    Attributes:
        names: Of the statistics.
        rows: Loss and statistics of each step, (1 + S,), on the device.
        sizes: Images of each step.
        seconds: Spent on them.
    """

    names: tuple[str, ...] = ()
    rows: list[Tensor] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    seconds: float = 0.0

    def values(self) -> Tensor:
        """All rows, (steps, 1 + S), in the host's memory; it waits for a GPU."""
        return torch.stack(self.rows).cpu()

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint within the epoch, or (without a step) between two."""
        rows = self.values() if self.rows else torch.zeros(0, 1 + len(self.names))
        return {"names": list(self.names), "rows": rows, "sizes": self.sizes, "seconds": self.seconds}

    @classmethod
    def from_state(cls, state: dict[str, Any], device: torch.device) -> Gathered:
        """What ``state_dict`` has put down."""
        rows = list(state["rows"].to(device).unbind())
        return cls(tuple(state["names"]), rows, list(state["sizes"]), state["seconds"])

    @classmethod
    def from_others(cls, states: list[dict[str, Any]], device: torch.device, *, batch_size: int) -> Gathered:
        """The mean of what several processes have put down, for another number of them with this batch each."""
        rows = torch.stack([state["rows"].double() for state in states]).mean(0).to(states[0]["rows"].dtype)
        mean = {**states[0], "rows": rows, "sizes": [batch_size] * len(rows)}
        return cls.from_state(mean, device)


def train_one_epoch(
    encoder: nn.Module,
    forward: Forward,
    indices: Tensor,
    *,
    optimizers: tuple[Optimizer, ...],
    learning_rate: LearningRate,
    batch_size: int,
    epoch: int,
    seed: int,
    gathered: Gathered | None = None,
    stop: Callable[[], bool] = lambda: False,
    whole_batches: bool = False,
) -> dict[str, float] | None:
    """One pass over the images. With one GPU the host only hands out work: it waits once, at the end.

    Args:
        encoder: What ``forward`` trains; it is put into train mode.
        forward: See make_forward.
        indices: Training images, (N,), on the device.
        optimizers: Stepped in turn after each backward pass.
        learning_rate: Set after each update.
        batch_size: Per process.
        epoch: From 1.
        seed: Of the order.
        gathered: Of the epoch's steps that are made already; those made here are added to it.
        whole_batches: Whether several processes, too, leave the short last batch out.
        stop: Asked after each step but the last whether to leave it at that, with one answer at all processes.

    Returns:
        Averages of the statistics over the epoch, ``lr`` and ``images_per_second`` (all processes together); None if
        it was stopped.

    Raises:
        Diverged: The loss is not finite; the message names epoch, step and learning rate. A CPU stops before that
            step's update, a GPU at the end of the epoch or where it is stopped.
    """
    distributed.enter(f"epoch {epoch}")
    encoder.train()
    gathered = Gathered() if gathered is None else gathered
    device, processes, done = indices.device, distributed.world_size(), len(gathered.rows)
    shape = {"batch_size": batch_size, "processes": processes, "whole_batches": whole_batches}
    steps = steps_per_epoch(len(indices), **shape)
    batches = epoch_batches(indices, rank=distributed.rank(), seed=seed, epoch=epoch, done=done, **shape)
    number = torch.full((), epoch, dtype=torch.int64, device=device)
    start, stopped = time.perf_counter() - gathered.seconds, False
    for step, chosen in enumerate(
        progress(batches, description=f"epoch {epoch}", total=steps - done, unit="step"), done
    ):
        loss, stats = forward(chosen, number)
        gathered.names = tuple(stats)
        gathered.rows.append(torch.stack([loss.detach(), *stats.values()]))
        gathered.sizes.append(len(chosen))
        if device.type == "cpu" and not loss.isfinite():
            break
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        learning_rate.set(epoch - 1 + step / steps)
        if step + 1 < steps and stop():
            stopped = True
            break
    values = gathered.values().double()  # here the host waits for the GPU
    _stop_if_bad(values[:, 0], epoch=epoch, steps=steps, learning_rate=learning_rate)
    gathered.seconds = time.perf_counter() - start
    if stopped:
        return None
    weights = torch.tensor(gathered.sizes, dtype=torch.float64)
    averages = dict(zip(gathered.names, _means(values[:, 1:], weights).tolist(), strict=True))
    averages = distributed.mean_over_processes(averages, device)
    averages = {name: value for name, value in averages.items() if not math.isnan(value)}
    seconds = time.perf_counter() - start
    seen = sum(gathered.sizes) * processes
    return {**averages, "lr": learning_rate.value, "images_per_second": seen / seconds, "seconds": seconds}


def _means(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted means of the statistics, (steps, S) to (S,), each over the steps that have it: the others say NaN."""
    means = weights @ values / weights.sum()
    for column in means.isnan().nonzero().flatten().tolist():
        known = ~values[:, column].isnan()
        means[column] = weights[known] @ values[known, column] / weights[known].sum()
    return means


def _stop_if_bad(losses: Tensor, *, epoch: int, steps: int, learning_rate: LearningRate) -> None:
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        step = int(bad[0])
        learning_rate.set(max(0.0, epoch - 1 + (step - 1) / steps))  # the rate of that step's update
        raise Diverged(
            f"the loss is not finite at epoch {epoch}, step {step}, learning rate {learning_rate.value:.4g}; "
            "lower --lr_init, or raise --warmup or --temperature"
        )


@torch.no_grad()
def probe_accuracy(
    encoder: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    precision: Precision = FP32,
    batch_size: int = 500,
) -> float:
    """Accuracy of the linear probe in percent, over all classes, on images as they are (no augmentation).

    Args:
        encoder: The bare model.
        images: uint8, (M, 3, H, W).
        labels: (M,).
        precision: Of the encoder's pass.
        batch_size: Images per pass.
    """
    encoder.eval()
    hits = torch.zeros((), dtype=torch.int64, device=images.device)
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        output = precision.encode(encoder, images[part].float() / 255)
        hits += (output.class_logits.argmax(1) == labels[part]).sum()
    return 100 * int(hits) / len(images)
