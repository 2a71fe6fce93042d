"""Trains the classifier on the labeled images of each query cycle: index files -> seeded runs -> results.csv.

Runs as ``cd train_classifier; python main.py ...`` and as ``python -m train_classifier.main ...`` from the root.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if not __package__:  # run as a script: Python has put this folder on the path, and the imports start at the root
    sys.path.insert(0, str(ROOT))

from common.flags import Parser
from common.settings import ClassifierSettings, DataSettings, ProcessSettings, identity


def build_parser() -> Parser:
    """The command's flags."""
    return Parser(__doc__, classifier=ClassifierSettings, data=DataSettings, process=ProcessSettings)


if __name__ == "__main__":
    build_parser().parse()  # --help and a mistyped flag end here, before torch is imported, which takes seconds

import torch

from common.acceleration import keep_freed_memory
from common.console import finish, log
from common.files import remove_leftovers, require_writable
from common.plots import plot_accuracy
from common.session import folder_lock, run_command, session
from datasets import load_data_and_split
from datasets.index_files import default_index_dir
from datasets.results_file import Accuracy, Row, append_row, find_row, mean_text, plain_table, read_rows
from train_classifier.engine import LabeledImages, train_together
from train_classifier.network import build_network
from train_classifier.training_sets import FOLDS, TrainingSet, images_of, read_training_sets, readable_sets, test_set
from utils import Diverged, InputError, is_first_process

NO_TEST_IMAGES = (
    f"no test images (the folder's test/<class>/): seed s is measured on fold s mod {FOLDS} of the labeled images and "
    "trained on the others; as people and queries picked them, that is a rough guide only"
)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    settings = build_parser().parse(argv)
    classifier = settings.classifier
    if not is_first_process():
        return  # one process trains, however many a launcher has started
    with session(with_cuda(settings.process, classifier.cuda), on_stop="raise", alone=True) as run:
        keep_freed_memory()
        data, split = load_data_and_split(settings.data)
        if len(split.target_classes) < 2:
            raise InputError(f"--target_classes {split.target_classes[0]}: a classifier needs at least two classes")
        index_dir, out_dir = folders(classifier, dataset=data.name, mismatch=split.mismatch)
        results, figure = out_dir / "results.csv", out_dir / "accuracy.png"
        numbers = range(classifier.cycles + 1) if classifier.number is None else [classifier.number]
        training_sets = read_training_sets(index_dir, numbers, data=data, split=split)
        require_writable(out_dir, "--out_path")
        with folder_lock(out_dir):
            read_rows(results)  # a damaged file is reported before the training, not after it
            for path in (results, figure):
                remove_leftovers(out_dir, path.name)
            run.stop.kept = f"classifiers that were finished are in {results}; the same command continues"
            seeds = range(run.seed, run.seed + classifier.runs)
            together = min(len(seeds), classifier.seeds_together or (len(seeds) if run.device.type == "cuda" else 1))
            log(
                f"{data.name}, {mismatch_text(split.mismatch)}: {len(training_sets)} cycle(s) of {index_dir}, "
                f"{len(seeds)} seed(s) each, {together} at a time, recipe {classifier.recipe}, {classifier.epochs} "
                f"epoch(s), {len(split.test)} test images, on {run.device}"
            )
            test = LabeledImages.from_numpy(*test_set(data, split), run.device) if len(split.test) else None
            if test is None:
                log(NO_TEST_IMAGES)
            shared = {"device": run.device, "num_classes": len(split.target_classes), "together": together}
            for training_set in training_sets:
                train_seeds(training_set, test, seeds=seeds, classifier=classifier, results=results, **shared)
            others = set(range(classifier.cycles + 1)) - set(numbers)
            shown = training_sets + readable_sets(index_dir, others, like=training_sets[0], data=data, split=split)
            report(shown, seeds=seeds, classifier=classifier, results=results, figure=figure)
    words = ["python", "-m", "evals.summary", "--index_dir", str(index_dir), "--results", str(results)]
    finish([results, figure], then=shlex.join(words))


def with_cuda(process: ProcessSettings, cuda: bool) -> ProcessSettings:
    """The process settings in which --cuda, the original's flag, has become --device cuda.

    Raises:
        InputError: It contradicts --device, or there is no GPU.
    """
    if cuda and process.device == "cpu":
        raise InputError("--cuda and --device cpu contradict each other; leave one of them out")
    if cuda and not torch.cuda.is_available():
        raise InputError("--cuda: torch sees no GPU here; leave --cuda out to train on the CPU")
    return dataclasses.replace(process, device="cuda") if cuda else process


def folders(classifier: ClassifierSettings, *, dataset: str, mismatch: float | None) -> tuple[Path, Path]:
    """Where the index files are and where the results go.

    What the user names is relative to the working directory; the defaults are in train_classifier/:
    results/get_index_80/cifar10 for the index files of get_index_80/cifar10.
    """
    home = ROOT / "train_classifier"
    default = default_index_dir(ROOT, dataset, mismatch, classifier.strategy)
    index = default if classifier.index_dir is None else Path(classifier.index_dir).expanduser()
    if classifier.out_path is not None:
        return index, Path(classifier.out_path).expanduser()
    return index, home / "results" / (default.relative_to(home) if index is default else index.resolve().name)


def mismatch_text(mismatch: float | None) -> str:
    """The mismatch for people."""
    return f"mismatch {'unknown' if mismatch is None else f'{mismatch:g}'}"


def train_seeds(
    training_set: TrainingSet,
    test: LabeledImages | None,
    *,
    device: torch.device,
    num_classes: int,
    seeds: Sequence[int],
    together: int,
    classifier: ClassifierSettings,
    results: Path,
) -> None:
    """Trains one classifier per seed on one cycle and adds each to results.csv; those that are there are kept.

    Args:
        training_set: What to train on.
        test: On the device that trains; None to hold out a fold of the labeled images for each seed.
        together: How many seeds are trained in step; an interruption loses them all.

    Raises:
        Diverged: The loss of a seed is not finite; the others of its group have been added.
    """
    columns = {**training_set.columns, **identity(classifier)}
    kept = {seed: find_row(read_rows(results), {**columns, "seed": seed}) for seed in seeds}
    for row in filter(None, kept.values()):
        log_row(row, f"kept from {results.name}")
    missing = [seed for seed, row in kept.items() if row is None]
    together = 1 if test is None else together  # each seed has other images to train on
    for start in range(0, len(missing), together):
        group = missing[start : start + together]
        begin = time.perf_counter()
        data, measured = images_of(training_set, test, seed=group[0], device=device)
        networks = [build_network(num_classes, seed=seed).to(device) for seed in group]
        outcomes = train_together(networks, data, measured, seeds=group, settings=classifier)
        seconds = round((time.perf_counter() - begin) / len(group), 3)
        for seed, outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, Diverged):
                continue
            row = Row(**columns, seed=seed, accuracy=outcome[-1], best_epoch_accuracy=max(outcome), seconds=seconds)
            append_row(results, row)
            log_row(row, f"{seconds:.1f} s" + (f" (of {len(group)} together)" if len(group) > 1 else ""))
        for outcome in outcomes:
            if isinstance(outcome, Diverged):
                raise outcome


def log_row(row: Row, source: str) -> None:
    """Prints a classifier's accuracy and where it comes from."""
    log(
        f"cycle {row.cycle}, seed {row.seed}: {row.labeled} labeled, accuracy {row.accuracy:.2f} % after epoch "
        f"{row.epochs} ({row.best_epoch_accuracy:.2f} % at the best epoch, picked on the test set), {source}"
    )


def report(
    sets: Sequence[TrainingSet], *, seeds: Sequence[int], classifier: ClassifierSettings, results: Path, figure: Path
) -> None:
    """Prints the table of the cycles that have rows in results.csv, and draws their curve."""
    rows = read_rows(results)
    cells = [["cycle", "labeled", "seeds", "accuracy (last epoch)", "best epoch (picked on the test set)"]]
    points = []
    for columns in sorted((training_set.columns for training_set in sets), key=lambda found: found["cycle"]):
        wanted = columns | identity(classifier)
        found = [row for seed in seeds if (row := find_row(rows, {**wanted, "seed": seed}))]
        if found:
            accuracy = Accuracy.of(found)
            text, best = mean_text(accuracy.mean, accuracy.deviation), mean_text(accuracy.best_mean, None)
            cells.append([str(columns["cycle"]), str(columns["labeled"]), str(accuracy.seeds), text, best])
            points.append((columns["labeled"], accuracy.mean, accuracy.deviation))
    log(plain_table(cells))
    names = sets[0].columns
    curve = f"{names['dataset']}, {mismatch_text(names['mismatch'])}, {names['strategy']}, recipe {classifier.recipe}"
    plot_accuracy(figure, {curve: points})


if __name__ == "__main__":
    sys.exit(run_command(main))
