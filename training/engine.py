"""The training loop that both encoders share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from common import distributed
from common.acceleration import FP32, Precision, compile_step
from common.console import progress
from common.settings import TrainingSettings
from models.counter_random import Purpose, make_keys
from training.objectives import Batch
from training.optim import LearningRate
from utils import Diverged, InputError

Objective = Callable[[nn.Module, Batch], tuple[Tensor, dict[str, Tensor]]]
# From the indices of a step's images, (B,), and the epoch, int64 (), to the loss and the statistics to log.
Forward = Callable[[Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]


def make_forward(
    encoder: nn.Module, objective: Objective, images: Tensor, labels: Tensor, *, compiled_for: Tensor | None = None
) -> Forward:
    """A step's forward pass, from the choice of images to the loss.

    Args:
        encoder: Wrapped for several processes; in train mode where it is to be compiled.
        images: All train images, uint8 (M, 3, H, W), on the device.
        labels: Theirs, (M,).
        compiled_for: Indices of a batch like those to come, (B,), for which the pass is compiled; None: it is not.
    """

    def compute(pixels: Tensor, targets: Tensor, chosen: Tensor, epoch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return objective(encoder, Batch(pixels.float() / 255, targets, chosen, epoch))

    if compiled_for is not None:
        epoch = torch.ones((), dtype=torch.int64, device=images.device)
        example = images[compiled_for], labels[compiled_for], compiled_for, epoch
        state = {"parameters": encoder.parameters(), "buffers": encoder.buffers()}
        compute = compile_step(compute, example, **state, device=images.device)

    def forward(chosen: Tensor, epoch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        # Outside of what is compiled: CUDA graphs copy their inputs, which should not be the whole data set.
        return compute(images[chosen], labels[chosen], chosen, epoch)

    return forward


@dataclass(frozen=True)
class Batches:
    """How the images of an epoch are divided into steps, and those of a step among the processes.

    Attributes:
        count: Training images.
        size: Images per process and step.
        whole: Whether several processes, too, drop the short last batch, as one always does. Otherwise they keep it,
            as the original's loaders do, and fill the order up from its own start until it divides evenly.
    """

    count: int
    size: int
    processes: int = 1
    whole: bool = False

    @classmethod
    def plan(cls, count: int, settings: TrainingSettings, *, processes: int) -> Batches:
        """Batches of --batch_size images per process, or of each one's share of --global_batch_size.

        Raises:
            InputError: The images do not fill a batch, the processes cannot share it evenly, or it has no negatives.
        """
        given = settings.global_batch_size
        size, rest = (settings.batch_size, 0) if given is None else divmod(given, processes)
        if rest:
            remedy = f"give a multiple of {processes}, such as {(size + 1) * processes}, or launch another number"
            raise InputError(f"--global_batch_size {given} does not divide among {processes} processes: {remedy}")
        batches = cls(count, size, processes, whole=given is not None)
        flag = f"--global_batch_size {given}" if batches.whole else f"--batch_size {size}"
        if not batches.steps:
            raise InputError(f"{flag} is larger than the {count} training images; make it smaller")
        if settings.mode == "semantic" and batches.together < 2:  # CSI's rotated copies are each other's negatives
            raise InputError(f"{flag} with one process leaves SimCLR no negatives; give at least 2")
        return batches

    @property
    def together(self) -> int:
        """Images of a step, all processes together."""
        return self.size * self.processes

    @property
    def per_process(self) -> int:
        """Images that each process sees in an epoch."""
        if self.processes == 1 or self.whole:
            return self.count // self.together * self.size
        return -(-self.count // self.processes)

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return -(-self.per_process // self.size)

    def draw(self, indices: Tensor, *, rank: int, seed: int, epoch: int) -> Iterator[Tensor]:
        """One process's batches, (B,) each, of the training images, (N,), in an order drawn for the epoch.

        They are consecutive parts of the global batches, so W processes see together what one with W B would see.
        """
        # Sorting keys shuffles on the device, without a copy for which the host would wait.
        numbers = torch.arange(self.count, device=indices.device)
        order = make_keys(seed, Purpose.ORDER, epoch, numbers).argsort(stable=True)
        needed = self.per_process * self.processes
        order = order.repeat(-(-needed // self.count))[:needed]
        for start in range(0, self.per_process, self.size):
            size = min(self.size, self.per_process - start)
            first = start * self.processes + rank * size
            yield indices[order[first : first + size]]


def train_one_epoch(
    encoder: nn.Module,
    forward: Forward,
    indices: Tensor,
    batches: Batches,
    *,
    optimizers: tuple[Optimizer, ...],
    learning_rate: LearningRate,
    epoch: int,
    seed: int,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """One pass over the images. With one GPU the host only hands out work: it waits once, at the end.

    Args:
        encoder: What ``forward`` trains; it is put into train mode.
        indices: Training images, (N,), on the device.
        optimizers: Stepped in turn after each backward pass.
        learning_rate: Set after each update.
        epoch: From 1.
        stop: Asked after each step but the last whether to give the epoch up, with one answer at all processes.

    Returns:
        Averages of the statistics, ``lr`` and ``images_per_second`` of all processes; None for an epoch given up.

    Raises:
        Diverged: The loss is not finite; found before that step's update on a CPU, at the epoch's end on a GPU.
    """
    encoder.train()
    device, steps = indices.device, batches.steps
    number = torch.full((), epoch, dtype=torch.int64, device=device)
    drawn = batches.draw(indices, rank=distributed.rank(), seed=seed, epoch=epoch)
    names, rows, sizes, start = (), [], [], time.perf_counter()
    for step, chosen in enumerate(progress(drawn, description=f"epoch {epoch}", total=steps, unit="step")):
        loss, stats = forward(chosen, number)
        names = tuple(stats)
        rows.append(torch.stack([loss.detach(), *stats.values()]))
        sizes.append(len(chosen))
        if device.type == "cpu" and not loss.isfinite():
            break
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        learning_rate.set(epoch - 1 + step / steps)
        if step + 1 < steps and stop():
            return None
    values = torch.stack(rows).cpu().double()  # (steps, 1 + S); here the host waits for the GPU
    require_finite_losses(values[:, 0], epoch=epoch, steps=steps, learning_rate=learning_rate)
    means = weighted_means(values[:, 1:], torch.tensor(sizes).double()).tolist()
    averages = distributed.mean_over_processes(dict(zip(names, means, strict=True)), device)
    averages = {name: value for name, value in averages.items() if not math.isnan(value)}
    seconds = time.perf_counter() - start
    speed = sum(sizes) * batches.processes / seconds
    return {**averages, "lr": learning_rate.value, "images_per_second": speed, "seconds": seconds}


def weighted_means(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted means of the statistics, (steps, S) to (S,), each over the steps where it is not NaN."""
    known = ~values.isnan()
    return (weights @ torch.where(known, values, 0.0)) / (weights @ known.double())


def require_finite_losses(losses: Tensor, *, epoch: int, steps: int, learning_rate: LearningRate) -> None:
    """Raises Diverged, with step and learning rate, where one of an epoch's losses, (steps,), is not finite."""
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
    encoder: nn.Module, images: Tensor, labels: Tensor, *, precision: Precision = FP32, batch_size: int = 500
) -> float:
    """Accuracy of the linear probe in percent on images as they are, uint8 (M, 3, H, W); ``encoder``: the bare one."""
    encoder.eval()
    hits = torch.zeros((), dtype=torch.int64, device=images.device)
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        output = precision.encode(encoder, images[part].float() / 255)
        hits += (output.class_logits.argmax(1) == labels[part]).sum()
    return 100 * int(hits) / len(images)
