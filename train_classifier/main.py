"""Trains the classifier on the labeled images of each query cycle: index files -> seeded runs -> results.csv.

Runs as ``cd train_classifier; python main.py ...`` and as ``python -m train_classifier.main ...`` from the root.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
if not __package__:  # run as a script: Python has put this folder on the path, and the imports start at the root
    sys.path.insert(0, str(ROOT))

from common import distributed, next_steps
from common.acceleration import keep_freed_memory
from common.arguments import (
    Parser,
    add_classifier_args,
    add_data_args,
    add_launcher_args,
    add_limit_args,
    add_process_args,
    split_settings,
)
from common.cli import run_cli
from common.console import finish, log, set_quiet
from common.determinism import deterministic
from common.files import remove_leftovers, require_writable
from common.interruption import Interruption
from common.lock import folder_lock
from common.plots import plot_accuracy
from common.provenance import int64_digest
from datasets import Dataset, Split, load_data_and_split
from datasets.folder.labels import locate
from datasets.index_files import default_index_dir, index_path, read_index_file
from datasets.results_file import Row, append_row, find_row, format_table, read_rows, summarize
from train_classifier.engine import LabeledImages, Settings, train_together
from train_classifier.folds import FOLDS, held_out
from train_classifier.network import build_network
from utils import Diverged, InputError


@dataclass(frozen=True)
class Cycle:
    """One index file's training set.

    Attributes:
        images: uint8, (L, H, W, 3).
        classes: The classifier's class numbers, int64, (L,).
        columns: Whatever identifies the set, as columns of results.csv.
    """

    images: np.ndarray
    classes: np.ndarray
    columns: dict[str, Any]


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = Parser("Trains the classifier on the labeled images of each query cycle.")
    add_data_args(parser)
    add_classifier_args(parser)
    add_process_args(parser)
    add_launcher_args(parser)
    add_limit_args(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    args = build_parser().parse_args(argv)
    set_quiet(args.quiet)
    with Interruption(max_minutes=args.max_minutes) as interruption, contextlib.ExitStack() as locks:
        device = choose_device(args.device, cuda=args.cuda, timeout_minutes=args.timeout_minutes)
        if device is None:
            return
        locks.enter_context(deterministic(args.deterministic, device))
        data, split = load_data_and_split(args.dataset, args.data_path, **split_settings(args))
        if len(split.target_classes) < 2:
            raise InputError(f"--target_classes {split.target_classes[0]}: a classifier needs at least two classes")
        index_dir, out_dir = folders(
            args.index_dir, args.out_path, dataset=data.name, mismatch=split.mismatch, strategy=args.strategy
        )
        numbers = range(args.split + 1) if args.number is None else [args.number]
        cycles = read_cycles(index_dir, numbers, data=data, split=split)
        settings = Settings(recipe=args.recipe, epochs=args.epochs, batch_size=args.batch_size, lr=args.lr)
        seeds = range(args.seed, args.seed + args.runs)
        together = args.seeds_together or (len(seeds) if device.type == "cuda" else 1)
        results, figure = out_dir / "results.csv", out_dir / "accuracy.png"
        require_writable(out_dir, "--out_path")
        locks.enter_context(folder_lock(out_dir))
        read_rows(results)  # a damaged file is reported before the training, not after it
        for path in (results, figure):
            remove_leftovers(out_dir, path.name)
        keep_freed_memory()
        log(
            f"{data.name}, {mismatch_text(split.mismatch)}: {len(cycles)} cycle(s) of {index_dir}, {args.runs} "
            f"seed(s) each, {min(together, args.runs)} at a time, recipe {args.recipe}, {args.epochs} epoch(s), "
            f"{len(split.test)} test images, on {device}"
        )
        test = LabeledImages.from_numpy(*test_set(data, split), device) if len(split.test) else None
        if test is None:
            log(
                f"no test images (the folder's test/<class>/): seed s is measured on fold s mod {FOLDS} of the labeled "
                "images and trained on the others; as people and queries picked them, that is a rough guide only"
            )
        for cycle in cycles:
            train_cycle(
                cycle,
                test,
                device=device,
                num_classes=len(split.target_classes),
                seeds=seeds,
                together=together,
                settings=settings,
                results=results,
                check=functools.partial(serve_stop, interruption, results),
            )
        shown = cycles + other_cycles(index_dir, range(args.split + 1), beside=cycles, data=data, split=split)
        report(shown, seeds=seeds, settings=settings, results=results, figure=figure)
        finish([results, figure], then=next_steps.after_classifier(index_dir, results))


def choose_device(
    device: str, *, cuda: bool, timeout_minutes: float = distributed.DEFAULT_TIMEOUT
) -> torch.device | None:
    """The device of --device and --cuda; None in the processes that have nothing to do.

    One process trains, whatever launched the command; as it exchanges nothing, all leave the launcher's group at once.

    Raises:
        InputError: A GPU is asked for and not there, or the two flags contradict each other.
    """
    if cuda and device == "cpu":
        raise InputError("--cuda and --device cpu contradict each other; leave one of them out")
    if cuda and not torch.cuda.is_available():
        raise InputError("--cuda: torch sees no GPU here; leave --cuda out to train on the CPU")
    with distributed.session("cuda" if cuda else device, timeout_minutes=timeout_minutes) as chosen:
        distributed.barrier()
        idle = distributed.world_size() - 1
        if idle:
            log(f"the classifier trains in one process; the other {idle} have nothing to do")
        return chosen if distributed.is_main() else None


def folders(
    index_dir: str | None, out_path: str | None, *, dataset: str, mismatch: float | None, strategy: str
) -> tuple[Path, Path]:
    """Where the index files lie and where the results go.

    What the user names is relative to the working directory; the defaults are not: they lie in train_classifier/,
    results/get_index_80/cifar10 for the index files of get_index_80/cifar10.
    """
    home = ROOT / "train_classifier"
    default = default_index_dir(ROOT, dataset, mismatch, strategy)
    index = default if index_dir is None else Path(index_dir).expanduser()
    if out_path is not None:
        return index, Path(out_path).expanduser()
    return index, home / "results" / (default.relative_to(home) if index_dir is None else index.resolve().name)


def mismatch_text(mismatch: float | None) -> str:
    """The mismatch for people."""
    return f"mismatch {'unknown' if mismatch is None else f'{mismatch:g}'}"


def read_cycles(folder: Path, numbers: Iterable[int], *, data: Dataset, split: Split) -> list[Cycle]:
    """Reads and checks the index files of the cycles.

    Raises:
        InputError: A file is missing, damaged, of another data set, split or cycle, holds an image that is no target,
            or only one; or the files come from several strategies.
    """
    cycles = [read_cycle(folder, number, data=data, split=split) for number in numbers]
    strategies = sorted({cycle.columns["strategy"] for cycle in cycles})
    if len(strategies) > 1:
        raise InputError(f"{folder} mixes the index files of {' and '.join(strategies)}; write them again")
    return cycles


def read_cycle(folder: Path, number: int, *, data: Dataset, split: Split) -> Cycle:
    """Reads and checks one cycle's index file; see read_cycles."""
    path = index_path(folder, number)
    if not path.exists():
        raise InputError(
            f"{path} does not exist; run active_main.py first (same --dataset and --mismatch), "
            "or choose fewer cycles with --split or --number"
        )
    checks = {"split_digest": split.digest, "n_images": len(data.train_labels)}
    content = read_index_file(path, **(checks if data.has_oracle else {}))  # people's labels stand by the images' names
    if (content.dataset, content.cycle) != (data.name, number):
        raise InputError(f"{path} is of {content.dataset}, cycle {content.cycle}; expected {data.name}, cycle {number}")
    labeled, labels = np.asarray(content.labeled, dtype=np.int64), data.train_labels
    if content.files is not None:
        located = locate(content, str(path), data)
        located.warn(path.name)
        labeled, labels = located.labeled, located.labels
    strangers = labeled[~np.isin(labels[labeled], split.target_classes)]
    if len(strangers):
        raise InputError(
            f"{path}: labeled image {strangers[0]} is of class {labels[strangers[0]]}, "
            "which is no target class; write the file again with active_main.py"
        )
    if len(labeled) < 2:
        raise InputError(f"{path} has {len(labeled)} labeled image; training needs at least 2")
    images, classes = data.train_images[labeled], split.class_numbers(labels[labeled])
    columns = {
        "dataset": data.name,
        "mismatch": split.mismatch,
        "strategy": content.strategy,
        "cycle": number,
        "labeled": len(labeled),
        "index_digest": int64_digest(content.labeled),
        "data_digest": data_digest(images, classes, *test_set(data, split)),
    }
    return Cycle(images, classes, columns)


def test_set(data: Dataset, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """The target-class test images, uint8 (T, H, W, 3), and their class numbers for the classifier, (T,)."""
    return data.test_images[split.test], split.class_numbers(data.test_labels[split.test])


def data_digest(*arrays: np.ndarray) -> str:
    """SHA-256 of the arrays' shapes and contents."""
    content = hashlib.sha256()
    for array in arrays:
        content.update(str(array.shape).encode() + array.tobytes())
    return content.hexdigest()


def other_cycles(
    folder: Path, numbers: Iterable[int], *, beside: Sequence[Cycle], data: Dataset, split: Split
) -> list[Cycle]:
    """The cycles beside that of --number, so that table and curve grow from one command to the next.

    They are shown, not trained, so a file that is missing or cannot be used is passed over.
    """
    cycles = []
    for number in set(numbers) - {cycle.columns["cycle"] for cycle in beside}:
        with contextlib.suppress(InputError):
            cycles.append(read_cycle(folder, number, data=data, split=split))
    return [cycle for cycle in cycles if cycle.columns["strategy"] == beside[0].columns["strategy"]]


def serve_stop(interruption: Interruption, results: Path, lost: str) -> None:
    """Stops here if a signal or the time limit asks for it.

    Raises:
        Interrupted: It does; the message says what is on disk and what is ``lost``.
    """
    if interruption.due():
        kept = f"finished classifiers are in {results}" if results.exists() else "no classifier is finished"
        raise interruption.stop(f"{kept}; what was trained of {lost} is lost; the same command continues")


def train_cycle(
    cycle: Cycle,
    test: LabeledImages | None,
    *,
    device: torch.device,
    num_classes: int,
    seeds: Sequence[int],
    together: int,
    settings: Settings,
    results: Path,
    check: Callable[[str], None],
) -> None:
    """Trains one classifier per seed on one cycle and adds each to results.csv; those that stand there are kept.

    Args:
        cycle: What to train on.
        test: On the device that trains; None to hold out a fold of the labeled images for each seed.
        device: That device.
        num_classes: Outputs of the classifiers.
        seeds: One classifier each.
        together: How many of them are trained in step; an interruption loses them all.
        settings: How they are trained.
        results: results.csv.
        check: Called before each step with the name of what would be lost if it ended the training.

    Raises:
        Diverged: The loss of a seed is not finite; the others of its group have been added.
    """
    columns = {**cycle.columns, **dataclasses.asdict(settings)}
    kept = {seed: find_row(read_rows(results), {**columns, "seed": seed}) for seed in seeds}
    for row in filter(None, kept.values()):
        log_row(row, f"kept from {results.name}")
    missing = [seed for seed, row in kept.items() if row is None]
    together = 1 if test is None else together  # a fold each
    for start in range(0, len(missing), together):
        group = missing[start : start + together]
        begin = time.perf_counter()
        data, measured = images_of(cycle, test, seed=group[0], device=device)
        networks = [build_network(num_classes, seed=seed).to(device) for seed in group]
        name = f"cycle {cycle.columns['cycle']}, seed {', '.join(map(str, group))}"
        outcomes = train_together(
            networks, data, measured, seeds=group, settings=settings, check=functools.partial(check, name)
        )
        seconds = round((time.perf_counter() - begin) / len(group), 3)
        for seed, reached in zip(group, outcomes, strict=True):
            if isinstance(reached, Diverged):
                continue
            row = Row(**columns, seed=seed, accuracy=reached[-1], best_epoch_accuracy=max(reached), seconds=seconds)
            append_row(results, row)
            log_row(row, f"{seconds:.1f} s" + (f" (of {len(group)} together)" if len(group) > 1 else ""))
        for failure in outcomes:
            if isinstance(failure, Diverged):
                raise failure


def images_of(
    cycle: Cycle, test: LabeledImages | None, *, seed: int, device: torch.device
) -> tuple[LabeledImages, LabeledImages]:
    """What a seed's classifier is trained and what it is measured on, see train_cycle."""
    if test is not None:
        return LabeledImages.from_numpy(cycle.images, cycle.classes, device), test
    chosen = held_out(cycle.classes, seed=seed)
    return tuple(
        LabeledImages.from_numpy(cycle.images[part], cycle.classes[part], device) for part in (~chosen, chosen)
    )


def log_row(row: Row, source: str) -> None:
    """Prints a classifier's accuracy and where it comes from."""
    log(
        f"cycle {row.cycle}, seed {row.seed}: {row.labeled} labeled, accuracy {row.accuracy:.2f} % after epoch "
        f"{row.epochs} ({row.best_epoch_accuracy:.2f} % at the best epoch, picked on the test set), {source}"
    )


def report(cycles: Sequence[Cycle], *, seeds: Sequence[int], settings: Settings, results: Path, figure: Path) -> None:
    """Prints the table of the cycles that have runs and draws their curve."""
    rows = read_rows(results)
    summaries = []
    for cycle in sorted(cycles, key=lambda cycle: cycle.columns["cycle"]):
        identity = {**cycle.columns, **dataclasses.asdict(settings)}
        found = [row for seed in seeds if (row := find_row(rows, {**identity, "seed": seed}))]
        if found:
            summaries.append(summarize(found))
    log(format_table(summaries))
    points = [(summary.labeled, summary.mean, summary.std) for summary in summaries]
    names = cycles[0].columns
    curve = f"{names['dataset']}, {mismatch_text(names['mismatch'])}, {names['strategy']}, recipe {settings.recipe}"
    plot_accuracy(figure, {curve: points})


if __name__ == "__main__":
    sys.exit(run_cli(main))
