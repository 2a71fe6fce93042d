"""Trains one contrastive encoder: semantic (SimCLR) or distinctive (CSI).

Run it with one process, or with several through torchrun or torch.distributed.launch.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import acceleration, arguments, checkpoint, distributed, next_steps
from common.acceleration import Precision
from common.cli import run_cli
from common.console import finish, log, set_quiet
from common.determinism import deterministic
from common.experiment import recipe_for
from common.interruption import Interruption
from common.lock import folder_lock
from common.provenance import RunLog
from datasets import load_data_and_split
from models import build_encoder
from models.transform_layers import SHIFT_COUNTS, Augmentation, check_shift
from training.engine import Objective, batch_per_process, make_forward, probe_accuracy, steps_per_epoch, train_one_epoch
from training.objectives import DistinctiveObjective, SemanticObjective
from training.optim import LearningRate, build_optimizer
from training.run import Run, check_folder, find_run, run_folder
from utils import InputError


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = arguments.Parser(__doc__.splitlines()[0])
    arguments.add_contrast_args(parser)
    arguments.add_data_args(parser)
    arguments.add_encoder_args(parser)
    arguments.add_augmentation_args(parser)
    arguments.add_process_args(parser)
    arguments.add_launcher_args(parser)
    arguments.add_resume_args(parser)
    arguments.add_limit_args(parser)
    arguments.add_precision_args(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(argv)
    set_quiet(args.quiet)
    settings = arguments.resolved(args)
    check_mode(args.mode, args.shift_trans_type)
    folder = run_folder(args.logdir, args.resume_path, args.suffix, settings)
    with (
        Interruption(max_minutes=args.max_minutes) as interruption,
        distributed.session(args.device, timeout_minutes=args.timeout_minutes) as device,
        deterministic(args.deterministic, device),
        folder_lock(folder, check=functools.partial(check_folder, folder, resume_path=args.resume_path)),
        contextlib.ExitStack() as ending,
    ):
        resume = bool(args.resume_path) or args.resume == "auto"
        continued = distributed.from_first(lambda: find_run(folder, resume=resume))
        acceleration.keep_freed_memory()
        precision = Precision.resolve(args.precision, device)
        precision.apply_to_products()
        settings["precision"] = precision.name
        compiled = acceleration.wants_compilation(
            args.compile, device, processes=distributed.world_size(), deterministic=args.deterministic
        )
        data, split = load_data_and_split(args.dataset, args.data_path, **arguments.split_settings(args))
        settings["mismatch"] = split.mismatch
        distributed.require_same(split.digest, "the data set is not the same at every process")
        check_shift(args.shift_trans_type, data.image_size)
        images, labels = to_device(data.train_images, data.train_labels, device)
        test_images, test_labels = to_device(data.test_images, data.test_labels, device)
        indices = torch.from_numpy(split.contrast()).to(device)
        processes = distributed.world_size()
        batch_size = batch_per_process(args.batch_size, args.global_batch_size, processes=processes)
        whole_batches = args.global_batch_size is not None
        steps = steps_per_epoch(len(indices), batch_size=batch_size, processes=processes, whole_batches=whole_batches)
        check_negatives(args.mode, batch_size * processes)

        encoder = build_encoder(
            settings["model"],
            num_classes=data.num_classes,
            shifts=SHIFT_COUNTS[args.shift_trans_type],
            simclr_dim=args.simclr_dim,
            seed=args.seed,
        ).to(device, memory_format=torch.channels_last)  # convolutions are up to 1.6 times as fast in this layout
        model = distributed.wrap(encoder, device, parallel=args.parallel)
        objective = build_objective(
            args.mode,
            augmentation=Augmentation(args.resize_factor, args.resize_fix),
            temperature=args.temperature,
            shift=args.shift_trans_type,
            sim_lambda=args.sim_lambda,
            seed=args.seed,
            precision=precision,
        )
        main_parameters = [p for name, p in encoder.named_parameters() if not name.startswith("linear.")]
        optimizer = build_optimizer(args.optimizer, main_parameters, lr=args.lr_init, weight_decay=args.weight_decay)
        probe_optimizer = build_optimizer("adam", encoder.linear.parameters(), lr=1e-3, weight_decay=1e-6)
        optimizers = (optimizer, probe_optimizer)
        learning_rate = LearningRate(
            optimizer, optimizer_name=args.optimizer, kind=args.lr_scheduler, epochs=args.epochs, warmup=args.warmup
        )

        run = Run(folder, encoder, optimizers, settings, split_digest=split.digest, interruption=interruption)
        if continued:
            run.resume(strict=not args.no_strict, device=device)
            if (position := run.position(steps)) is not None:
                learning_rate.set(position)
        distributed.barrier()  # every process has looked at the folder before the first one writes into it
        if distributed.is_main():
            if continued:  # a kill between the two files of a save leaves an older last.model, or none
                run.save_model()
            else:
                checkpoint.write_args(folder, settings, split_digest=split.digest, processes=distributed.world_size())
        announce(
            settings, batch_size=batch_size, count=len(indices), steps=steps, device=device, folder=folder, run=run
        )
        run.rehearse_saving()

        compiled_for = None
        if compiled:
            log("compiling the training step, once, for about a minute")
            encoder.train()
            compiled_for = indices[:batch_size]
        forward = make_forward(model, objective, images, labels, compiled_for=compiled_for)
        run_log = RunLog(folder, enabled=distributed.is_main(), done=run.epoch)
        ending.callback(run_log.close)
        for epoch in range(run.epoch + 1, args.epochs + 1):
            with run.naming_its_checkpoint():
                stats = train_one_epoch(
                    model,
                    forward,
                    indices,
                    optimizers=optimizers,
                    learning_rate=learning_rate,
                    batch_size=batch_size,
                    whole_batches=whole_batches,
                    epoch=epoch,
                    seed=args.seed,
                    gathered=run.gathered,
                    stop=interruption.agreed,
                )
            if stats is None:
                run.save_and_stop()
            last = epoch == args.epochs
            if distributed.is_main() and len(test_labels) and (last or epoch % args.error_step == 0):
                stats["test_probe_accuracy"] = probe_accuracy(encoder, test_images, test_labels, precision=precision)
            run_log.write(epoch, stats)
            log(epoch_line(epoch, args.epochs, stats))
            run.finish_epoch()
            if last or epoch % args.save_step == 0:
                run.save()
            if not last and interruption.agreed():
                run.save_and_stop()
        training, query = (
            arguments.changed_flags(parser, args, groups, but=next_steps.OWN_FLAGS)
            for groups in (next_steps.TRAINING_GROUPS, next_steps.QUERY_GROUPS)
        )
        paper = recipe_for(args.dataset, pool=len(split.unlabeled), classes=len(split.target_classes))
        then = next_steps.after_training(
            args.mode,
            folder,
            training=training,
            query=query,
            shift=args.shift_trans_type,
            target=paper.target,
            annotate=split.mismatch is None,
        )
        finish([folder / checkpoint.MODEL_FILE, folder / checkpoint.RESUME_FILE], then=then)


def check_mode(mode: str, shift: str) -> None:
    """Refuses a mode and a shift that do not belong together.

    Raises:
        InputError: SimCLR with shifts, or CSI without.
    """
    if mode == "semantic" and shift != "none":
        raise InputError(
            f"--mode semantic is SimCLR, which has no shifts: give --shift_trans_type none, not {shift} "
            "(or --mode distinctive)"
        )
    if mode == "distinctive" and shift == "none":
        raise InputError(
            "--mode distinctive is CSI, which tells shifted copies apart: give --shift_trans_type rotation or cutperm"
        )


def check_negatives(mode: str, batch: int) -> None:
    """Refuses a global batch in which an image has no other to be told from.

    Raises:
        InputError: SimCLR with one image per step (CSI's rotated copies are each other's negatives).
    """
    if mode == "semantic" and batch < 2:
        raise InputError("--batch_size 1 with one process leaves SimCLR no negatives; give at least 2")


def to_device(images: np.ndarray, labels: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """(N, H, W, 3) and (N,) arrays to uint8 (N, 3, H, W) and int64 (N,) tensors on the device."""
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels).to(device)


def build_objective(
    mode: str,
    *,
    augmentation: Augmentation,
    temperature: float,
    shift: str,
    sim_lambda: float,
    seed: int,
    precision: Precision,
) -> Objective:
    """SimCLR for ``semantic``, CSI for ``distinctive``."""
    kind = SemanticObjective if mode == "semantic" else DistinctiveObjective
    return kind(
        augmentation, temperature=temperature, seed=seed, shift=shift, sim_lambda=sim_lambda, precision=precision
    )


def announce(
    settings: dict[str, Any],
    *,
    batch_size: int,
    count: int,
    steps: int,
    device: torch.device,
    folder: Path,
    run: Run,
) -> None:
    """Says what is about to run: images, effective batch, learning rate, processes and where the results go."""
    processes = distributed.world_size()
    batch = batch_size * processes
    log(
        f"{settings['mode']} encoder {settings['model']} on {settings['dataset']}: {count} images, {steps} steps per "
        f"epoch, epochs {run.epoch + 1} to {settings['epochs']}, {processes} process(es) on {device.type}, "
        f"{settings['precision']}"
    )
    if settings["dataset"] == "folder":
        log(f"backbone {settings['model']}; without --model it follows --image_size (see --help)")
    log(
        f"effective batch {batch} images ({batch_size} per process; the paper's recipe is 128), learning "
        f"rate {settings['lr_init']} to {10 * settings['lr_init']:g} as given: nothing is scaled"
    )
    if processes > 1 and device.type == "cpu":
        log(
            "on the CPU each process keeps its own BatchNorm statistics (torch has no SyncBatchNorm there): it "
            "normalises by its own batch, and the first process's running statistics are saved"
        )
    log(f"run folder {folder}" + (f", continued from {run.place}" if run.position(steps) is not None else ""))


def epoch_line(epoch: int, epochs: int, stats: dict[str, float]) -> str:
    """One epoch's figures in one line."""
    shown = {name: value for name, value in stats.items() if name not in ("lr", "images_per_second", "seconds", "loss")}
    figures = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
    return (
        f"epoch {epoch}/{epochs}  loss {stats['loss']:.4f}  {figures}  lr {stats['lr']:.4g}  "
        f"{stats['images_per_second']:.0f} images/s"
    )


if __name__ == "__main__":
    sys.exit(run_cli(main))
