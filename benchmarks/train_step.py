"""A training step of each encoder against the plain formulation: eager float32, default layout and optimizers.

Usage: python -m benchmarks.train_step [--model resnet18] [--mode semantic distinctive] [--precision fp32 auto]

Both formulations start from the same weights and draws; before anything is timed, their losses and gradients are
compared. A run is ``--steps`` steps, from the choice of images to the updated weights. The plain one takes its images
from the host, as a data loader gives them, and reads the loss at each step.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import harness, plain
from common import acceleration
from common.acceleration import Precision
from common.distributed import choose_device
from common.flags import Parser, positive_int
from common.session import run_command
from common.settings import MODELS
from models import build_encoder
from models.counter_random import Purpose, make_keys, uniform
from models.transform_layers import CROP_ATTEMPTS, Augmentation
from training.engine import make_forward
from training.objectives import DistinctiveObjective, SemanticObjective
from training.optim import build_optimizer

SHIFTS = {"semantic": 1, "distinctive": 4}
DRAWS = 1 + 7 + 2 * CROP_ATTEMPTS + 2
CLASSES = 10
PARTS = ("channels_last", "fused", "kept_memory")  # besides --precision and --compile
# Relative error of the loss, and of all gradients together (norm of the difference over the norm). The gradients' are
# wide because ReLU has a kink: in double precision, noise of 1e-7 on a ResNet-18's images moves its gradients by 4e-3.
TOLERANCE = {"fp32": (1e-5, 3e-2), "tf32": (1e-2, 2e-1), "bf16": (2e-2, 4e-1)}


def build_parser() -> argparse.ArgumentParser:
    """The benchmark's flags."""
    parser = Parser(__doc__.splitlines()[0])
    harness.add_common_args(parser, repeats=5)
    group = parser.add_argument_group("training step")
    group.add_argument("--model", choices=MODELS, default="resnet18", help="backbone")
    group.add_argument("--mode", choices=tuple(SHIFTS), nargs="+", default=list(SHIFTS), help="encoders")
    group.add_argument(
        "--precision",
        choices=("auto", "fp32", "tf32", "bf16"),
        nargs="+",
        default=["fp32", "auto"],
        help="of ours; the plain formulation is float32 under torch's defaults",
    )
    group.add_argument(
        "--batch_size", type=positive_int, help="images per step (default: 32; distinctive on GPUs: 128)"
    )
    group.add_argument("--image_size", type=positive_int, default=32, metavar="PIXELS", help="height and width")
    group.add_argument("--steps", type=positive_int, help="steps per timed run (default: 2; on GPUs 50)")
    group.add_argument(
        "--without", choices=PARTS, nargs="+", default=[], help="leave these parts of ours out, to see what each gains"
    )
    group.add_argument("--compile", choices=("auto", "on", "off"), default="auto", help="as of contrast_main.py")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    device = choose_device(args.device)
    rows = []
    for mode in args.mode:
        for name in dict.fromkeys(Precision.resolve(name, device).name for name in args.precision):
            precision = Precision.resolve(name, device)
            gpu_batch = 128 if mode == "distinctive" else 32
            batch = args.batch_size or (gpu_batch if device.type == "cuda" else 32)
            size, steps = args.image_size, args.steps or (50 if device.type == "cuda" else 2)
            if args.quick:
                batch, size, steps = min(batch, 4), min(size, 8), 1
            work = Work(mode, "resnet8" if args.quick else args.model, precision, batch, size, device)
            work.check_agreement()
            if args.quick:
                print(f"{mode} {name}: both agree")
                continue
            rows.append(work.compare(steps, args.repeats, compile_choice=args.compile, without=args.without))
    if rows:
        harness.report("train_step", rows, device=device, out_path=args.out_path)


class Work:
    """One encoder's step at one precision, in both formulations.

    Args:
        mode: ``semantic`` or ``distinctive``.
        model: Backbone.
        precision: Of ours.
        batch: Images per step.
        size: Height and width in pixels.
        device: Where both run.
    """

    def __init__(
        self, mode: str, model: str, precision: Precision, batch: int, size: int, device: torch.device
    ) -> None:
        self.settings = mode, model, precision, batch, size, device
        self.mode, self.model, self.precision, self.batch, self.device = mode, model, precision, batch, device
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (8 * batch, 3, size, size), dtype=torch.uint8, generator=generator)
        self.labels = torch.randint(0, CLASSES, (8 * batch,), generator=generator)
        self.encoder = build_encoder(model, num_classes=CLASSES, shifts=SHIFTS[mode], seed=0)
        kind = SemanticObjective if mode == "semantic" else DistinctiveObjective
        self.objective = kind(Augmentation(), precision=precision)
        # Different images at each step, the same for both.
        self.choices = [torch.arange(batch) + batch * step for step in range(8)]
        self.draws = [self._draw(chosen) for chosen in self.choices]

    def _draw(self, chosen: Tensor) -> Tensor:
        views, shifts = torch.arange(2)[:, None, None], torch.arange(SHIFTS[self.mode])[:, None]
        draws = uniform(make_keys(0, Purpose.TRAINING, 1, chosen, views, shifts), DRAWS)  # (2, K, B, DRAWS)
        # The flip is drawn once per view, without the shift in its key.
        draws[..., 0] = uniform(make_keys(0, Purpose.TRAINING, 1, chosen, views), 1)[..., 0]
        return draws

    def plain(self) -> Callable[[int], float]:
        """The plain step by number; it returns the loss."""
        encoder = copy.deepcopy(self.encoder).to(self.device).train()
        main = [p for name, p in encoder.named_parameters() if not name.startswith("linear.") and p.requires_grad]
        optimizers = (
            torch.optim.SGD(main, lr=0.1, momentum=0.9, weight_decay=1e-6),
            torch.optim.Adam(encoder.linear.parameters(), lr=1e-3, betas=(0.9, 0.999), weight_decay=1e-6),
        )

        def step(number: int) -> float:
            chosen = self.choices[number % len(self.choices)]
            images, labels = self.images[chosen], self.labels[chosen]
            return plain.step(encoder, optimizers, images, labels, self.draws[number % len(self.draws)])

        step.encoder = encoder
        return step

    def ours(self, *, compile_choice: str = "off", without: Sequence[str] = ()) -> Callable[[int], Tensor]:
        """Our step by number, as contrast_main.py sets it up; it returns the loss without waiting for it."""
        layout = torch.contiguous_format if "channels_last" in without else torch.channels_last
        encoder = copy.deepcopy(self.encoder).to(self.device, memory_format=layout).train()
        main = [p for name, p in encoder.named_parameters() if not name.startswith("linear.")]
        optimizers = (
            build_optimizer("sgd", main, lr=0.1, weight_decay=1e-6),
            build_optimizer("adam", encoder.linear.parameters(), lr=1e-3, weight_decay=1e-6),
        )
        if "fused" in without:
            main = [p for p in main if p.requires_grad]
            optimizers = (torch.optim.SGD(main, lr=0.1, momentum=0.9, weight_decay=1e-6), optimizers[1])
        choices = [chosen.to(self.device) for chosen in self.choices]
        epoch = torch.ones((), dtype=torch.int64, device=self.device)
        compiled = acceleration.wants_compilation(compile_choice, self.device, processes=1)
        forward = make_forward(
            encoder,
            self.objective,
            self.images.to(self.device),
            self.labels.to(self.device),
            compiled_for=choices[0] if compiled else None,
        )

        def step(number: int) -> Tensor:
            loss, _ = forward(choices[number % len(choices)], epoch)
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            return loss.detach()

        step.encoder = encoder
        return step

    def check_agreement(self) -> None:
        """Stops where the first step's loss or gradients differ by more than TOLERANCE."""
        plain_step, our_step = self.plain(), self.ours()
        Precision("fp32", self.device.type).apply_to_products()  # by default GPUs convolve in TF32
        expected = plain_step(0)
        self.precision.apply_to_products()
        found = float(our_step(0))
        loss_limit, gradient_limit = TOLERANCE[self.precision.name]
        assert abs(found - expected) <= loss_limit * abs(expected), f"losses {found} and {expected}"
        error = relative_error(our_step.encoder, plain_step.encoder)
        assert error <= gradient_limit, f"gradients differ by {error:.2g} of their norm"

    def compare(self, steps: int, repeats: int, *, compile_choice: str, without: Sequence[str]) -> harness.Comparison:
        """Times both, ``steps`` steps a run, in processes of their own."""
        dtype = torch.bfloat16 if self.precision.name == "bf16" else torch.float32
        return harness.compare_processes(
            f"{self.mode}, {self.precision.name}",
            partial(plain_run, self.settings, steps),
            partial(our_run, self.settings, steps, compile_choice, without),
            device=self.device,
            repeats=repeats,
            flop=steps * self.flop(),
            peak=harness.measured_peak(self.device, dtype),
            note=f"{self.model}, batch {self.batch}, {steps} steps a run"
            + (f", compile {compile_choice}" if compile_choice != "auto" else "")
            + (f", without {' '.join(without)}" if without else ""),
        )

    def flop(self) -> int:
        """Floating-point operations of one step's products and convolutions, forward and backward."""
        step = Work(self.mode, self.model, acceleration.FP32, self.batch, self.images.shape[-1], torch.device("cpu"))
        with FlopCounterMode(display=False) as counter:
            step.ours()(0)
        return counter.get_total_flops()


def plain_run(settings: tuple, steps: int) -> Callable[[], None]:
    """A run of the plain formulation under PyTorch's defaults."""
    step = Work(*settings).plain()

    def run() -> None:
        for number in range(steps):
            step(number)

    return run


def our_run(settings: tuple, steps: int, compile_choice: str, without: Sequence[str]) -> Callable[[], None]:
    """A run of ours, set up as contrast_main.py does, but for what it goes without."""
    if "kept_memory" not in without:
        acceleration.keep_freed_memory()
    work = Work(*settings)
    work.precision.apply_to_products()
    step = work.ours(compile_choice=compile_choice, without=without)

    def run() -> None:
        for number in range(steps):
            step(number)

    return run


def relative_error(ours: nn.Module, expected: nn.Module) -> float:
    """Norm of the difference of all gradients over their norm."""
    pairs = [(p.grad, q.grad) for p, q in zip(ours.parameters(), expected.parameters()) if q.grad is not None]
    difference = sum(float((p - q).double().square().sum()) for p, q in pairs)
    return (difference / sum(float(q.double().square().sum()) for _, q in pairs)) ** 0.5


if __name__ == "__main__":
    sys.exit(run_command(main))
