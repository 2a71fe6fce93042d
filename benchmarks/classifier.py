"""The classifier's training, several seeds, against the plain formulation: each seed alone, step by step, eager.

Usage: python -m benchmarks.classifier [--seeds 5] [--images 800] [--epochs 1] [--quick]

Both train the same networks on the same orders and flips (METHOD section 6), and their weights are compared after a few
steps, both in fp32 and with the same convolutions. The plain formulation takes each batch from the host and reads its
loss; it uses Adam's default implementation. On a GPU the timed convolutions of both are TF32, torch's default.
Ours trains as the command does on that device: seeds together, as CUDA graphs, on a GPU, and one after another on a
CPU, where a second row compares them together with one after another.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import harness
from common import acceleration
from common.distributed import choose_device
from common.flags import Parser, number, positive_int
from common.session import run_command
from train_classifier.engine import LabeledImages, draw_epoch, make_training_step, train_one_epoch
from train_classifier.network import build_network

CLASSES, BATCH, LR = 2, 32, 5e-4
TOLERANCE = 3e-5  # an H200 differed by 1.2e-5
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def build_parser() -> argparse.ArgumentParser:
    """The benchmark's flags."""
    parser = Parser(__doc__.splitlines()[0])
    harness.add_common_args(parser, repeats=3)
    group = parser.add_argument_group("classifier")
    group.add_argument("--seeds", type=positive_int, default=5, help="classifiers")
    group.add_argument("--images", type=number(int, 2), default=800, help="labeled images")
    group.add_argument("--epochs", type=positive_int, default=1, help="passes over them in a timed run")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    device = choose_device(args.device)
    size, images, seeds = (8, 8, 2) if args.quick else (32, args.images, args.seeds)
    check_agreement(seeds=min(seeds, 2), images=min(images, 3 * BATCH), size=size, device=device)
    print("both agree")
    if args.quick:
        return
    on_gpu = device.type == "cuda"
    work = (seeds, images, size, args.epochs, device)
    comparisons = [
        (f"{seeds} seeds", plain_run, partial(our_run, together=seeds if on_gpu else 1)),
        (f"{seeds} seeds together against alone", partial(our_run, together=1), partial(our_run, together=seeds)),
    ]
    rows = [
        harness.compare_processes(
            title,
            partial(first, *work),
            partial(second, *work),
            device=device,
            repeats=args.repeats,
            note=f"{images} images, {args.epochs} epoch(s) a run, {'fp32, convolutions TF32' if on_gpu else 'fp32'}",
        )
        for title, first, second in comparisons
    ]
    harness.report("classifier", rows, device=device, out_path=args.out_path)


def drawn(images: int, size: int) -> tuple[Tensor, Tensor]:
    """Random images, uint8 (N, 3, H, W), and labels, (N,)."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 3, size, size), dtype=torch.uint8, generator=generator)
    return pixels, torch.arange(images) % CLASSES


def plain_run(seeds: int, images: int, size: int, epochs: int, device: torch.device) -> Callable[[], None]:
    """Epochs of each seed alone."""
    pixels, labels = drawn(images, size)
    networks = [build_network(CLASSES, seed=seed).to(device) for seed in range(seeds)]
    optimizers = [torch.optim.Adam(network.parameters(), lr=LR) for network in networks]

    def run() -> None:
        for seed, (network, optimizer) in enumerate(zip(networks, optimizers)):
            for epoch in range(1, epochs + 1):
                orders, flips = draw_epoch([seed], epoch=epoch, count=images)
                plain_epoch(network, optimizer, pixels, labels, orders[0], flips[0])

    run.networks = networks
    return run


def plain_epoch(
    network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, order: Tensor, flips: Tensor
) -> list[float]:
    """One pass over the images in the given order, with the given flips; returns each step's loss."""
    network.train()
    device = next(network.parameters()).device
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD))
    losses = []
    for chosen, flip in zip(order.split(BATCH), flips.split(BATCH)):
        if len(chosen) == 1:
            continue
        batch = [image.flip(2) if mirrored else image for image, mirrored in zip(images[chosen], flip)]
        # On the device: CPUs and GPUs divide with different rounding, which Adam would make visible in the check.
        x = (torch.stack(batch).to(device).float() / 255 - mean) / std
        loss = F.cross_entropy(network(x), labels[chosen].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def our_run(
    seeds: int, images: int, size: int, epochs: int, device: torch.device, *, together: int
) -> Callable[[], None]:
    """Epochs of all seeds, ``together`` of them in step, set up as the command does."""
    acceleration.keep_freed_memory()
    data = LabeledImages(*(part.to(device) for part in drawn(images, size)))
    groups = [range(start, min(start + together, seeds)) for start in range(0, seeds, together)]
    networks = [build_network(CLASSES, seed=seed).to(device).train() for seed in range(seeds)]
    steps = [make_training_step([networks[seed] for seed in group], data, lr=LR) for group in groups]

    def run() -> None:
        tf32 = torch.backends.cudnn.allow_tf32
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32):
            for group, step in zip(groups, steps):
                for epoch in range(1, epochs + 1):
                    orders, flips = draw_epoch(group, epoch=epoch, count=images)
                    train_one_epoch(step, orders, flips, batch_size=BATCH, device=device)

    run.networks = networks
    return run


def check_agreement(*, seeds: int, images: int, size: int, device: torch.device) -> None:
    """Stops where the weights differ after an epoch by more than Adam lets rounding grow.

    In its first steps Adam divides each gradient by its own size, so rounding of a gradient near 0 may change a weight
    by up to the learning rate: inputs that differ in their last bit already give weights that differ by 2e-4 of their
    norm per step. So both compute with the same convolutions here, the deterministic ones in fp32, and all weights
    together must agree to TOLERANCE of their norm times the steps.
    """
    plain, ours = (make(seeds, images, size, 1, device) for make in (plain_run, partial(our_run, together=seeds)))
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        plain()
        ours()
    steps = -(-images // BATCH)
    for network, other in zip(plain.networks, ours.networks, strict=True):
        difference, norm = 0.0, 0.0
        for expected, found in zip(network.parameters(), other.parameters(), strict=True):
            difference += float((found - expected).detach().double().square().sum())
            norm += float(expected.detach().double().square().sum())
        error = (difference / norm) ** 0.5
        assert error <= TOLERANCE * steps, f"weights differ by {error:.2g} of their norm after {steps} steps"


if __name__ == "__main__":
    sys.exit(run_command(main))
