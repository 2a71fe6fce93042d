"""Trains one contrastive encoder: semantic (SimCLR) or distinctive (CSI).

Run it with one process, or with several through torchrun or torch.distributed.launch.
"""

from __future__ import annotations

from common.flags import Parser, as_flags
from common.settings import CropSettings, DataSettings, EncoderSettings, ProcessSettings, TrainingSettings

PARSER = Parser(
    __doc__,
    data=DataSettings,
    encoder=EncoderSettings,
    crop=CropSettings,
    training=TrainingSettings,
    process=ProcessSettings,
)
if __name__ == "__main__":
    PARSER.parse()  # answers --help and a mistyped flag before torch is imported, which takes seconds

import contextlib
import dataclasses
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from common import checkpoint, distributed
from common.acceleration import keep_freed_memory, wants_compilation
from common.checkpoint import MODEL_FILE
from common.console import finish, log
from common.paper import DEFAULT_MISMATCH, Recipe, recipe_for
from common.provenance import RunLog, file_digest, image_digest
from common.session import Session, folder_lock, run_command, session
from common.settings import as_record, identity
from datasets import Dataset, Split, load_data_and_split
from datasets.mixed import data_name
from models import build_encoder
from models.pretrained import start_from
from models.transform_layers import SHIFT_COUNTS, Augmentation, check_shift
from training.engine import Batches, make_forward, probe_accuracy, train_one_epoch
from training.objectives import DistinctiveObjective, SemanticObjective, check_mode
from training.optim import build_optimizers
from training.run import TrainingRun, find_run, run_folder

OTHER_ENCODER = {"semantic": "distinctive", "distinctive": "semantic"}


def main(argv: Sequence[str] | None = None) -> None:
    settings = PARSER.parse(argv)
    training, process = settings.training, settings.process
    check_mode(training.mode, settings.encoder.shift_trans_type)
    with (
        session(process, precision=settings.encoder.precision, on_stop="finish") as current,
        folder_lock(folder := distributed.from_first(lambda: run_folder(training, name=default_name(settings)))),
    ):
        resume = training.resume == "auto" or bool(training.resume_path)
        continued = distributed.from_first(lambda: find_run(folder, resume=resume))
        keep_freed_memory()
        data, split = load_data_and_split(settings.data, without_labels=True)
        distributed.require_same(split.digest, "the data set is not the same at every process")
        if not split.target_classes:
            log("no labeled/: the linear probe is skipped; a query needs some images of each class in labeled/<class>/")
        check_shift(settings.encoder.shift_trans_type, data.image_size)
        used = resolve(settings, split, current)
        images_digest = distributed.from_first(lambda: image_digest(data.train_images, np.sort(split.contrast())))
        digests = {"split_digest": split.digest, "images_digest": images_digest}
        digests["init_digest"] = training.init and file_digest(Path(training.init))
        batches = Batches.plan(len(split.contrast()), training, processes=current.processes)

        chosen = used.encoder
        heads = {"num_classes": max(1, data.num_classes), "shifts": SHIFT_COUNTS[chosen.shift_trans_type]}
        encoder = build_encoder(chosen.model, **heads, simclr_dim=chosen.simclr_dim, seed=current.seed)
        if training.init and not continued:
            start_from(Path(training.init), encoder)
        encoder.to(current.device, memory_format=torch.channels_last)  # where convolutions are up to 1.6 times as fast
        model = distributed.wrap(encoder, current.device, parallel=training.parallel)
        optimizers, learning_rate = build_optimizers(encoder, training)
        run_identity = identity(used.encoder, used.crop, training, process) | digests
        run = TrainingRun(folder, encoder, optimizers, learning_rate, batches, run_identity, current.stop)
        if continued:
            run.resume(strict=not training.no_strict)
        elif distributed.is_main():
            checkpoint.write_args(folder, as_record(*vars(used).values()), **digests, processes=current.processes)
        announce(used, run, current)
        train(run, model, data, split, used, current)
        recipe = recipe_for(settings.data.dataset, pool=len(split.unlabeled), classes=len(split.target_classes) or 1)
        written = [folder / MODEL_FILE, folder / checkpoint.RESUME_FILE]
        then = next_command(settings, folder, recipe, annotate=split.mismatch is None)
        if not split.target_classes and " --annotate " in then:  # which would be refused as yet
            log(f"once there are images in labeled/<class>/: {then}")
            then = ""
        finish(written, then=then)


def default_name(settings: SimpleNamespace) -> str:
    """The name of the run's folder where none is given."""
    data, encoder = settings.data, settings.encoder
    model = encoder.resolved(image_size=data.image_size, precision=encoder.precision).model
    mismatch = DEFAULT_MISMATCH if data.mismatch is None else data.mismatch
    made_of = data_name(data.dataset, data.others), mismatch, model, settings.training.mode, encoder.shift_trans_type
    return "_".join(map(str, made_of)) + f"_seed{settings.process.seed}"


def resolve(settings: SimpleNamespace, split: Split, current: Session) -> SimpleNamespace:
    """The settings with the mismatch, the backbone and the number format that are used, and whether to compile."""
    data = dataclasses.replace(settings.data, mismatch=split.mismatch)
    encoder = settings.encoder.resolved(image_size=data.image_size, precision=current.precision.name)
    process = {"processes": current.processes, "deterministic": settings.process.deterministic}
    compiled = wants_compilation(settings.training.compile, current.device, **process)
    training = dataclasses.replace(settings.training, compile="on" if compiled else "off")
    return SimpleNamespace(**{**vars(settings), "data": data, "encoder": encoder, "training": training})


def announce(settings: SimpleNamespace, run: TrainingRun, current: Session) -> None:
    """Says what is about to run: images, effective batch, learning rate, processes and where the results go."""
    training, batches, device = settings.training, run.batches, current.device.type
    log(
        f"{training.mode} encoder {settings.encoder.model} on {settings.data.dataset}: {batches.count} images, "
        f"{batches.steps} steps per epoch, epochs {run.epoch + 1} to {training.epochs}, {current.processes} "
        f"process(es) on {device}, {settings.encoder.precision}"
    )
    log(
        f"effective batch {batches.together} images ({batches.size} per process; the paper's recipe is 128), learning "
        f"rate {training.lr_init} to {10 * training.lr_init:g} as given: nothing is scaled"
    )
    if current.processes > 1 and device == "cpu":
        batch_norm = "on the CPU each process normalises by its own batch (torch has no SyncBatchNorm there)"
        log(f"{batch_norm}, and the first process's running statistics are saved")
    log(f"run folder {run.folder}" + (f", continued after epoch {run.epoch}" if run.epoch else ""))


def train(
    run: TrainingRun, model: nn.Module, data: Dataset, split: Split, settings: SimpleNamespace, current: Session
) -> None:
    """Trains the epochs that are left; logs each, and saves as --save_step says, at the end and before a stop."""
    training = settings.training
    images, labels = to_device(data.train_images, data.train_labels, current.device)
    test = to_device(data.test_images, data.test_labels, current.device)
    indices, example = torch.from_numpy(split.contrast()).to(current.device), None
    if training.compile == "on":
        log("compiling the training step, once, for about a minute")
        model.train()
        example = indices[: run.batches.size]
    kind = SemanticObjective if training.mode == "semantic" else DistinctiveObjective
    crop, shift = settings.crop, settings.encoder.shift_trans_type
    augmentation = Augmentation(crop.resize_factor, crop.resize_fix)
    objective = kind(augmentation, training.temperature, current.seed, shift, training.sim_lambda, current.precision)
    forward = make_forward(model, objective, images, labels, compiled_for=example)
    options = {"optimizers": run.optimizers, "learning_rate": run.learning_rate}
    options |= {"seed": current.seed, "stop": current.stop.agreed}
    run_log = RunLog(run.folder, enabled=distributed.is_main(), done=run.epoch)
    with contextlib.closing(run_log), run.naming_its_checkpoint():
        for epoch in range(run.epoch + 1, training.epochs + 1):
            stats = train_one_epoch(model, forward, indices, run.batches, epoch=epoch, **options)
            if stats is None:
                run.save_and_stop()
            last = epoch == training.epochs
            if distributed.is_main() and len(test[1]) and (last or epoch % training.error_step == 0):
                stats["test_probe_accuracy"] = probe_accuracy(run.encoder, *test, precision=current.precision)
            run_log.write(epoch, stats)
            log(epoch_line(epoch, training.epochs, stats))
            run.finish_epoch()
            if last or epoch % training.save_step == 0:
                run.save()
            if not last and current.stop.agreed():
                run.save_and_stop()


def to_device(images: np.ndarray, labels: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """(N, H, W, 3) and (N,) arrays to uint8 (N, 3, H, W) and int64 (N,) tensors on the device."""
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels).to(device)


def epoch_line(epoch: int, epochs: int, stats: dict[str, float]) -> str:
    """One epoch's figures in one line."""
    others = [name for name in stats if name not in ("loss", "lr", "images_per_second", "seconds")]
    figures = "  ".join(f"{name} {stats[name]:.4g}" for name in [*others, "lr"])
    return f"epoch {epoch}/{epochs}  loss {stats['loss']:.4f}  {figures}  {stats['images_per_second']:.0f} images/s"


def script(name: str) -> str:
    """Where a command's script is, from the working directory."""
    return os.path.relpath(Path(__file__).resolve().parent / name)


def next_command(settings: SimpleNamespace, folder: Path, recipe: Recipe, *, annotate: bool) -> str:
    """The command that follows: the other encoder's training, or the query where its encoders are there.

    The strategy ``posterior``, by which a folder that people label is queried, needs the semantic one alone. The other
    encoder's folder is looked for beside this one, under the same name with the mode changed.
    """
    mode, shift = settings.training.mode, settings.encoder.shift_trans_type
    other = OTHER_ENCODER[mode]
    beside = folder.with_name(folder.name.replace(mode, other)) if mode in folder.name else folder.with_name(other)
    shifts = ["--shift_trans_type", "rotation" if shift == "none" else shift]
    shared = as_flags(settings.data, settings.encoder, but=["shift_trans_type"])
    shared += as_flags(settings.process, but=["max_minutes", "local_rank"])
    for_people, alone = ["--annotate", "--index_dir", str(folder.parent / "query")], not (beside / MODEL_FILE).is_file()
    if annotate and alone and mode == "semantic":
        encoder = ["--strategy", "posterior", "--load_semantic_path", str(folder / MODEL_FILE)]
        return shlex.join(["python", script("active_main.py"), *shared, *encoder, *for_people])
    if alone:
        words = ["--mode", other, *(shifts if other == "distinctive" else []), *shared, *as_flags(settings.crop)]
        words += as_flags(settings.training, but=["mode", "logdir", "suffix", "resume", "resume_path", "no_strict"])
        return shlex.join(["python", script("contrast_main.py"), *words, "--logdir", str(beside)])
    if {folder.name, beside.name} == set(OTHER_ENCODER):
        encoders = ["--load_path", str(folder.parent)]
    else:
        paths = {mode: folder / MODEL_FILE, other: beside / MODEL_FILE}
        encoders = [word for name in OTHER_ENCODER for word in (f"--load_{name}_path", str(paths[name]))]
    views = ["--views", str(recipe.views), "--resize_factor", str(recipe.resize_factor), "--resize_fix"]
    way = for_people if annotate else ["--queries_per_class", str(recipe.queries_per_class)]
    return shlex.join(["python", script("active_main.py"), *shared, *shifts, *views, *encoders, *way])


if __name__ == "__main__":
    sys.exit(run_command(main))
