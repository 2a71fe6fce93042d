"""Runs the whole experiment: both encoders, the query and a random one, the classifier, the paper's table and figure.

Every stage goes through its own command's main(). What is done is skipped, what was interrupted continues.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import hashlib
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import active_main
import contrast_main
import train_classifier.main
from common import arguments, distributed
from common.acceleration import Precision
from common.cli import run_cli
from common.console import as_a_stage, duration, finish, log, set_quiet
from common.experiment import (
    SHIFTS,
    Experiment,
    Recipe,
    data_flags,
    largest_divisor,
    launcher_command,
    recipe_for,
    run_launcher,
)
from common.files import remove_leftovers, require_writable
from common.interruption import Interruption
from common.lock import folder_lock
from common.provenance import file_digest, int64_digest
from common.record import Record, describe_device, finished_epochs, logged_seconds
from common.schedule import Measured, Sizes, fit_scale
from datasets import Dataset, Split, load_data_and_split
from datasets.mixed import data_name
from datasets.results_file import read_rows
from evals import outcome
from evals.banks import default_batch, load_encoder
from evals.features import Extraction, extract_features
from evals.report import __main__ as report
from evals.summary import read_accuracies, read_run
from models.transform_layers import SHIFT_COUNTS, Augmentation, check_shift
from training.engine import steps_per_epoch
from utils import InputError, Interrupted

ROOT = Path(__file__).resolve().parent
RECORD_FILE = "reproduce.json"
NEEDS = {"ccal": ("semantic", "distinctive"), "random": ()}  # encoders, by strategy
RECIPE_FLAGS = ("runs", "batch_size", "optimizer", "lr_init", "ood_samples", "k", "t")
TRIAL_STEPS = {"cpu": 4, "cuda": 50}  # per epoch; --budget_minutes measures two epochs of each encoder
TRIAL_VIEWS = {"cpu": 1, "cuda": 4}


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = arguments.Parser(__doc__)
    arguments.add_reproduce_args(parser)
    arguments.add_data_args(parser)
    arguments.add_process_args(parser)
    arguments.add_limit_args(parser)
    arguments.add_precision_args(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    start = time.perf_counter()
    args = build_parser().parse_args(argv)
    set_quiet(args.quiet)
    interruption = Interruption(max_minutes=args.max_minutes)
    device, processes = choose_processes(args.device, args.batch_size)
    data, split = load_data_and_split(args.dataset, args.data_path, **arguments.split_settings(args))
    if not data.has_oracle:
        raise InputError(f"{args.data_path}/unlabeled has no labels, and without them there is no query to simulate")
    paper = recipe_for(args.dataset, pool=len(split.unlabeled), classes=len(split.target_classes))
    recipe = dataclasses.replace(
        paper,
        target=args.target or paper.target,
        cycles=args.split,
        **{name: getattr(args, name) for name in RECIPE_FLAGS},
    )
    splitting = {
        "mismatch": args.mismatch,
        "target_classes": args.target_classes or list(split.target_classes),
        "initial_budget": len(split.labeled),
        "split_seed": args.split_seed,
        "image_size": args.image_size,
        "others": args.others,
    }
    experiment = Experiment(
        folder=Path(args.out),
        recipe=recipe,
        model=arguments.backbone(args.model, args.image_size),
        data=data_flags(
            args.dataset, args.data_path, **splitting, cache_dir=args.cache_dir, others_path=args.others_path
        ),
        device=args.device,
        seed=args.seed,
        precision=Precision.resolve(args.precision, device).name,
        processes=processes,
        quiet=args.quiet,
        deterministic=args.deterministic,
    )
    sizes = check_experiment(experiment, data, split)
    settings = {
        "dataset": args.dataset,
        **splitting,
        "model": experiment.model,
        **{name: getattr(args, name) for name in ("seed", "budget_minutes")},
        "precision": experiment.precision,
        "processes": processes,
        "scale": None if args.budget_minutes else args.scale,
        **dataclasses.asdict(recipe),
        "images": train_classifier.main.data_digest(data.train_images, data.train_labels, data.test_images),
    }
    require_writable(experiment.folder, "--out")
    with interruption, saying_how_to_go_on(experiment.folder), folder_lock(experiment.folder):
        remove_leftovers(experiment.folder, RECORD_FILE)
        record = Record.find(experiment.folder / RECORD_FILE, settings)
        if record is None:
            plan = {"scale": args.scale, "budget": None}
            if args.budget_minutes:
                plan = plan_budget(experiment, data, sizes, device=device, minutes=args.budget_minutes, start=start)
            schedule = dataclasses.asdict(recipe.scaled(plan["scale"]))
            record = Record.start(experiment.folder / RECORD_FILE, settings, **plan, recipe=schedule)
        experiment = dataclasses.replace(experiment, recipe=recipe.scaled(record.content["scale"]))
        log(experiment.recipe.beside(recipe, record.content["scale"]))

        for encoder in SHIFTS:
            train_encoder(experiment, record, encoder)
        for strategy in NEEDS:
            run_query(experiment, record, strategy, split_digest=split.digest)
        classify(experiment, record)
        write_results(experiment, record, full=recipe, published=outcome.published_found(split, target=recipe.target))
        run_command(report.main, [str(experiment.folder), "--device", experiment.device])


@contextlib.contextmanager
def saying_how_to_go_on(folder: Path) -> Iterator[None]:
    """Has a stage that was asked to stop say how this command is continued, not how its own would be."""
    try:
        yield
    except Interrupted as stop:
        text = f"{stop.reason}: what is done is in {folder}; the same command continues it"
        raise Interrupted(text, stop.status) from None


def choose_processes(name: str, batch_size: int) -> tuple[torch.device, int]:
    """The device of --device, and how many processes train an encoder: one per GPU, as far as they share the batch.

    Raises:
        InputError: There is no such device, or a launcher has started this command.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("reproduce.py starts the processes itself, one per GPU: run it without a launcher")
    device = distributed.setup(name)
    gpus = torch.cuda.device_count() if device.type == "cuda" else 1
    processes = largest_divisor(batch_size, gpus)
    if processes < gpus:
        log(f"the encoders train on {processes} of {gpus} GPUs: more do not share --batch_size {batch_size} evenly")
    return device, processes


def check_experiment(experiment: Experiment, data: Dataset, split: Split) -> Sizes:
    """Refuses at the start what a stage would refuse after the training of those before it.

    Raises:
        InputError: The images are not square, the pool or the labeled set cannot serve the query, there is one target
            class only, less than one batch of images, or one image per batch.
    """
    recipe, classes = experiment.recipe, len(split.target_classes)
    if classes < 2:
        raise InputError(f"--target_classes {split.target_classes[0]}: a classifier needs at least two classes")
    check_shift(SHIFTS["distinctive"], data.image_size)
    active_main.check_budget(split, data.train_labels, target=recipe.target, needs=NEEDS["ccal"])
    contrast_main.check_negatives("semantic", recipe.batch_size)
    images, per_process = len(split.contrast()), recipe.batch_size // experiment.processes
    return Sizes(
        images=images,
        steps=steps_per_epoch(images, batch_size=per_process, processes=experiment.processes),
        probed=len(data.test_labels),
        tested=len(split.test),
        labeled=len(split.labeled),
        most_labeled=len(split.labeled) + round(len(split.unlabeled) * (1 - split.mismatch)),
        classes=classes,
    )


def plan_budget(
    experiment: Experiment, data: Dataset, sizes: Sizes, *, device: torch.device, minutes: float, start: float
) -> dict[str, Any]:
    """The scale for --budget_minutes, and what it rests on, for the record."""
    log("measuring a few steps of every stage")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as printed:
        measured = measure(dataclasses.replace(experiment, folder=Path(folder)), data, sizes, device=device)
    for line in printed.getvalue().splitlines():
        if line.startswith("warning: torch.compile") or "CUDA graph" in line:  # what was measured rests on that
            log(line)
    spent = time.perf_counter() - start
    scale, predicted = fit_scale(experiment.recipe, sizes, measured, minutes=minutes, spent=spent)
    log(f"--budget_minutes {minutes:g}: scale {scale:g}, predicted {duration(spent + sum(predicted.values()))}")
    budget = {"spent": spent, "predicted": predicted, "measured": dataclasses.asdict(measured)}
    return {"scale": scale, "budget": budget}


def measure(trial: Experiment, data: Dataset, sizes: Sizes, *, device: torch.device) -> Measured:
    """Times a few steps of every stage, through the commands themselves, on some of the images.

    Args:
        trial: The experiment, in a folder of its own.
        data: All images.
        sizes: Of the experiment.
        device: That everything runs on.
    """
    recipe = trial.recipe
    count = max(TRIAL_STEPS[device.type] * recipe.batch_size, 64)
    flags = write_trial_data(trial.folder / "trial.npz", data, sizes, recipe, count=count)
    short = dataclasses.replace(recipe, semantic_epochs=2, distinctive_epochs=2, warmup=1, target=1, cycles=1)
    trial = dataclasses.replace(trial, data=flags, recipe=short)
    steps = steps_per_epoch(count, batch_size=short.batch_size // trial.processes, processes=trial.processes)
    setup, step, view = {}, {}, {}
    for encoder in SHIFTS:
        start = time.perf_counter()
        run_encoder(trial, encoder, quiet=True)
        whole = time.perf_counter() - start
        epochs = logged_seconds(trial.folder / encoder)
        setup[encoder], step[encoder] = whole - sum(epochs), epochs[-1] / steps
        view[encoder] = seconds_per_view(trial, encoder, data.train_images[: count // 2], device=device)
    fixed, image = seconds_per_classifier(trial, count // 2, together=recipe.runs if device.type == "cuda" else 1)
    return Measured(setup, step, view, probe=view["semantic"], classifier=fixed, classifier_image=image)


def write_trial_data(path: Path, data: Dataset, sizes: Sizes, recipe: Recipe, *, count: int) -> tuple[str, ...]:
    """Writes ``count`` training images of two classes, half of them labeled, and as large a share of test images as a
    classifier of the experiment has on average; returns their flags."""
    labeled = sizes.labeled_by_cycle(recipe)
    tested = max(2, round(count / 2 * sizes.tested / statistics.fmean(labeled)))
    arrays = {}
    for part, number, images in (("train", count, data.train_images), ("test", tested, data.test_images)):
        arrays[f"{part}_images"] = images[np.arange(number) % len(images)]
        arrays[f"{part}_labels"] = np.arange(number) % 2
    np.savez(path, **arrays)
    return data_flags("npz", path, mismatch=0.0, target_classes=[0, 1], initial_budget=count // 2, split_seed=0)


def seconds_per_view(trial: Experiment, encoder: str, images: np.ndarray, *, device: torch.device) -> float:
    """Time of one image's view in the query, all its shifts together."""
    shift = SHIFTS[encoder]
    precision = Precision.resolve(trial.precision, device)
    network = load_encoder(
        trial.model_path(encoder),
        trial.model,
        num_classes=2,
        shifts=SHIFT_COUNTS[shift],
        simclr_dim=128,
        strict=True,
        device=device,
    )
    how = Extraction(
        augmentation=Augmentation(trial.recipe.resize_factor, True),
        views=TRIAL_VIEWS[device.type],
        shift=shift,
        shift_numbers=tuple(range(SHIFT_COUNTS[shift])),
        seed=trial.seed,
        batch_size=default_batch(device, images.shape[1:3]),
        precision=precision,
    )
    pixels, _ = contrast_main.to_device(images, np.zeros(len(images), dtype=np.int64), device)
    with leaving_no_trace():
        precision.apply_to_products()
        if device.type == "cuda":  # the first batch pays for loading and choosing kernels
            extract_features(network, pixels, np.arange(min(len(images), how.batch_size)), how).features.cpu()
        start = time.perf_counter()
        extract_features(network, pixels, np.arange(len(images)), how).features.cpu()
        return (time.perf_counter() - start) / (len(images) * how.views)


def seconds_per_classifier(trial: Experiment, labeled: int, *, together: int) -> tuple[float, float]:
    """Time of one classifier whatever its epochs, and of one labeled image in one epoch, from two lengths."""
    run_command(active_main.main, trial.query_flags("random"))
    for epochs in (1, 3):
        recipe = dataclasses.replace(trial.recipe, classifier_epochs=epochs, runs=together)
        run_command(train_classifier.main.main, dataclasses.replace(trial, recipe=recipe).classifier_flags("random", 0))
    rows = read_rows(trial.folder / "classifier" / "results.csv")
    short, long = (statistics.fmean(row.seconds for row in rows if row.epochs == epochs) for epochs in (1, 3))
    epoch = max(0.0, long - short) / 2
    return max(0.0, short - epoch), epoch / labeled


def run_command(command: Callable[[Sequence[str]], None], flags: Sequence[str]) -> None:
    """Calls one of the commands and leaves no trace of it in torch."""
    with leaving_no_trace(), as_a_stage():
        command(flags)


@contextlib.contextmanager
def leaving_no_trace() -> Iterator[None]:
    """Puts torch's number formats back after the block, and gives back its graphs and GPU memory."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
        if torch.cuda.is_initialized():
            torch.compiler.reset()
            gc.collect()
            torch.cuda.empty_cache()


def run_encoder(experiment: Experiment, encoder: str, *, quiet: bool = False) -> None:
    """Trains an encoder, in this process or with one process per GPU, whose lines ``quiet`` drops.

    Raises:
        InputError: See contrast_main.py; or one of several processes has failed.
    """
    flags = experiment.encoder_flags(encoder)
    if experiment.processes == 1:
        return run_command(contrast_main.main, flags)
    command = launcher_command(ROOT / "contrast_main.py", flags, processes=experiment.processes)
    with as_a_stage():
        status = run_launcher(command, quiet=quiet)
    if status:
        raise InputError(f"the training of the {encoder} encoder ended with status {status}, see above")


def train_encoder(experiment: Experiment, record: Record, encoder: str) -> None:
    """Trains an encoder to the end, from where an earlier start has left it."""
    folder, epochs = experiment.folder / encoder, experiment.recipe.epochs(encoder)
    done, saved = finished_epochs(folder)
    if done == epochs and saved and record.is_done(encoder, {}):
        return log(f"{encoder}: done before, {epochs} epochs")
    spent = sum(logged_seconds(folder, done))
    with record.stage(encoder, inputs={}, device=describe_device(experiment.device, experiment.processes), spent=spent):
        run_encoder(experiment, encoder)


def run_query(experiment: Experiment, record: Record, strategy: str, *, split_digest: str) -> None:
    """Queries with one strategy, unless that is done with these encoders."""
    name = f"query ({strategy})"
    inputs = {encoder: file_digest(experiment.model_path(encoder)) for encoder in NEEDS[strategy]}
    if record.is_done(name, inputs) and holds_query(experiment, strategy, split_digest=split_digest):
        return log(f"{name}: done before")
    features = None
    if inputs:  # a folder per pair of encoders, since active_main.py refuses to replace what another has made
        features = experiment.folder / "features" / hashlib.sha256("".join(inputs.values()).encode()).hexdigest()[:12]
    with record.stage(name, inputs=inputs, device=describe_device(experiment.device)):
        run_command(active_main.main, experiment.query_flags(strategy, features=features))


def holds_query(experiment: Experiment, strategy: str, *, split_digest: str) -> bool:
    """Whether the index files of every cycle are there, of this split and with these settings."""
    try:
        files = read_run(experiment.index_dir(strategy))
    except InputError:
        return False
    recipe = experiment.recipe
    wanted = {name: getattr(recipe, name) for name in ("k", "t", "target", "ood_samples", "resize_factor")}
    wanted["seed"] = experiment.seed
    ended = files[-1].cycle == recipe.cycles or files[-1].metrics.get("pool") == 0
    return ended and all(
        (content.strategy, content.split_digest) == (strategy, split_digest)
        and {name: content.settings.get(name) for name in wanted} == wanted
        for content in files
    )


def classify(experiment: Experiment, record: Record) -> None:
    """Trains the classifiers of every cycle that have no row in results.csv yet."""
    files, results = read_run(experiment.index_dir("ccal")), experiment.folder / "classifier" / "results.csv"
    inputs = {f"cycle {content.cycle}": int64_digest(content.labeled) for content in files}
    rows = read_rows(results)
    counts = [sum(row.index_digest == digest for row in rows) for digest in inputs.values()]
    if record.is_done("classifier", inputs) and min(counts) >= experiment.recipe.runs:
        return log("classifier: done before")
    spent = sum(row.seconds for row in rows if row.index_digest in inputs.values())
    with record.stage("classifier", inputs=inputs, device=describe_device(experiment.device), spent=spent):
        run_command(train_classifier.main.main, experiment.classifier_flags("ccal", files[-1].cycle))


def write_results(experiment: Experiment, record: Record, *, full: Recipe, published: Sequence[int]) -> None:
    """Prints the table and writes it, with all that it rests on, as csv, markdown and a figure.

    Raises:
        InputError: An index file or results.csv is missing or damaged.
    """
    folder, settings = experiment.folder, record.content["settings"]
    files = {strategy: read_run(experiment.index_dir(strategy)) for strategy in NEEDS}
    accuracies = read_accuracies(folder / "classifier" / "results.csv", "ccal")
    rows = outcome.result_rows(files["ccal"], files["random"], accuracies, published=published)
    cells = outcome.table_cells(rows)
    data = data_name(settings["dataset"], settings.get("others"))
    title = f"{data}, mismatch {settings['mismatch']:g}, {experiment.model}"
    notes = [experiment.recipe.beside(full, record.content["scale"]), time_line(record)]
    if published:
        notes.append(outcome.PUBLISHED_NOTE)
    outcome.write_csv(folder / "result.csv", rows)
    outcome.draw(folder / "result.png", rows, title=f"{title}\n{notes[0]}")
    precision = files["ccal"][0].settings.get("precision")
    shown = settings | dataclasses.asdict(experiment.recipe)
    shown |= {"precision": f"{settings['precision']} ({precision} in the query)"}
    stages = [[name, duration(v["seconds"]), v["device"], v["git_commit"]] for name, v in record.stages.items()]
    outcome.write_markdown(
        folder / "result.md",
        title,
        notes=notes,
        parts={
            "Result": cells,
            "Stages": [["stage", "time", "on", "commit"], *stages],
            "Settings": [["setting", "value"], *([name, str(value)] for name, value in shown.items())],
            "Versions": [["package", "version"], *(list(pair) for pair in record.content["versions"].items())],
        },
    )
    log("\n".join([title, *notes, outcome.plain_table(cells)]))
    finish([folder / "result.csv", folder / "result.md", folder / "result.png"])


def time_line(record: Record) -> str:
    """How long the stages took, beside what was predicted for a budget."""
    took, budget = sum(stage["seconds"] for stage in record.stages.values()), record.content["budget"]
    if budget is None:
        return f"all stages took {duration(took)}"
    predicted, spent = sum(budget["predicted"].values()), budget["spent"]
    return (
        f"--budget_minutes {record.content['settings']['budget_minutes']:g}: predicted {duration(spent + predicted)}, "
        f"took {duration(spent + took)}, both with {duration(spent)} for measuring"
    )


if __name__ == "__main__":
    sys.exit(run_cli(main))
