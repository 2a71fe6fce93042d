"""Trains the classifier on the labeled images of each query cycle: index files -> seeded runs -> results.csv.

Runs as ``cd train_classifier; python main.py ...`` and as ``python -m train_classifier.main ...`` from the root.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if not __package__:  # run as a script: Python has put this folder on the path, and the imports start at the root
    sys.path.insert(0, str(ROOT))

from common.flags import Parser
from common.settings import ClassifierSettings, DataSettings, ProcessSettings, identity, strategy_name


def build_parser() -> Parser:
    """The command's flags."""
    return Parser(__doc__, classifier=ClassifierSettings, data=DataSettings, process=ProcessSettings)


if __name__ == "__main__":
    build_parser().parse()  # --help and a mistyped flag end here, before torch is imported, which takes seconds

import numpy as np
import torch

from common.acceleration import keep_freed_memory
from common.console import finish, log, shown
from common.files import remove_leftovers, require_writable
from common.plots import plot_accuracy
from common.provenance import file_digest
from common.session import folder_lock, run_command, session
from datasets import Dataset, Split, load_data_and_split, results_file
from datasets.index_files import default_index_dir
from datasets.results_file import Accuracy, Row, append_row, find_row, mean_text, plain_table, read_rows
from models import ContrastiveEncoder
from train_classifier.engine import LabeledImages, probabilities, train_together
from train_classifier.measures import measures
from train_classifier.model_file import model_path, save_model
from train_classifier.network import HEAD_BELOW, encode, load_encoder, start_networks
from train_classifier.recipes import RECIPES, resolved
from train_classifier.training_sets import (
    FOLDS,
    Measured,
    TrainingSet,
    check,
    measured_part,
    other_test_images,
    read_training_sets,
    readable_sets,
    test_set,
)
from utils import Diverged, InputError, is_first_process

NO_TEST_IMAGES = (
    f"no test images (the folder's test/<class>/): seed s is measured on fold s mod {FOLDS} of the labeled images and "
    "trained on the others; as people and queries picked them, that is a rough guide only"
)
NO_OTHER_TEST_IMAGES = (
    f"no test images of other classes: seed s's rejection of others is measured on fold s mod {FOLDS} of those that "
    "were set aside, and it is trained on the rest; as a query picked them, they are hard ones"
)


@dataclass(frozen=True)
class Work:
    """What all cycles share."""

    classifier: ClassifierSettings
    names: tuple[str, ...]  # of the target classes
    split_digest: str
    image_size: tuple[int, int]
    seeds: Sequence[int]
    together: int  # seeds that are trained in step, at most
    encoder: ContrastiveEncoder | None  # what the classifiers start from
    init_digest: str  # of its file
    test: Measured
    device: torch.device
    results: Path

    def columns(self, training_set: TrainingSet) -> dict[str, Any]:
        """What identifies the classifiers of a cycle in results.csv, but for the seed."""
        few = training_set.columns["labeled"] < HEAD_BELOW * len(self.names)
        tuned = {"auto": "head" if few else "all"}.get(self.classifier.tune, self.classifier.tune)
        start = {"start": "scratch" if self.encoder is None else tuned, "init_digest": self.init_digest}
        return {**training_set.columns, **identity(self.classifier), **start}


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    settings = build_parser().parse(argv)
    classifier = resolved(settings.classifier)
    if not is_first_process():
        return  # one process trains, however many a launcher has started
    with session(with_cuda(settings.process, classifier.cuda), on_stop="raise", alone=True) as run:
        keep_freed_memory()
        data, split = load_data_and_split(settings.data)
        index_dir, out_dir = folders(classifier, dataset=data.name, mismatch=split.mismatch)
        results, figure = out_dir / "results.csv", out_dir / "accuracy.png"
        numbers = range(classifier.cycles + 1) if classifier.number is None else [classifier.number]
        by_people = not data.has_oracle
        other = classifier.other or ("class" if by_people or len(split.target_classes) == 1 else "drop")
        training_sets = read_training_sets(index_dir, numbers, data=data, split=split, other=other)
        init = choose_start(classifier, training_sets[-1].settings, by_people=by_people)
        start = (None, "") if init is None else (load_encoder(init).to(run.device), file_digest(init))
        require_writable(out_dir, "--out_path")
        with folder_lock(out_dir):
            read_rows(results)  # a damaged file is reported before the training, not after it
            for name in (results.name, figure.name, "cycle_*.model"):
                remove_leftovers(out_dir, name)
            run.stop.kept = f"classifiers that were finished are in {results}; the same command continues"
            seeds = range(run.seed, run.seed + classifier.runs)
            together = min(len(seeds), classifier.seeds_together or (len(seeds) if run.device.type == "cuda" else 1))
            log(
                f"{data.name}, {mismatch_text(split.mismatch)}: {len(training_sets)} cycle(s) of {index_dir}, "
                f"{len(seeds)} seed(s) each, {together} at a time, recipe {classifier.recipe}, {classifier.epochs} "
                f"epoch(s), {len(split.test)} test images, on {run.device}"
            )
            names = tuple(data.class_names[number] for number in split.target_classes)
            others_trained = any(training_set.has_others for training_set in training_sets)
            test = test_images(data, split, run.device, others=others_trained)
            check(training_sets, test, names=names, seeds=seeds)
            shared = (names, split.digest, data.image_size, seeds, together, *start, test, run.device)
            work = Work(classifier, *shared, results)
            for training_set in training_sets:
                train_seeds(training_set, work, keep=training_set is training_sets[-1])
            others = set(range(classifier.cycles + 1)) - set(numbers)
            listed = training_sets + readable_sets(index_dir, others, like=training_sets[0], data=data, split=split)
            report(listed, work, figure)
        tell_of_models(training_sets[-1], work, settings.data)
    finish([results, figure], then=command("evals.summary", "--index_dir", str(index_dir), "--results", str(results)))


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
    default = default_index_dir(ROOT, dataset, mismatch, strategy_name(classifier.strategy))
    index = default if classifier.index_dir is None else Path(classifier.index_dir).expanduser()
    if classifier.out_path is not None:
        return index, Path(classifier.out_path).expanduser()
    return index, home / "results" / (default.relative_to(home) if index is default else index.resolve().name)


def mismatch_text(mismatch: float | None) -> str:
    """The mismatch for people."""
    return f"mismatch {'unknown' if mismatch is None else f'{mismatch:g}'}"


def choose_start(classifier: ClassifierSettings, record: dict[str, Any], *, by_people: bool) -> Path | None:
    """The encoder that classifiers start from, and says so: --init, or the query's semantic one where people label.

    ``record`` is what the last index file says of its query. Raises InputError for settings that contradict.
    """
    path, tune = classifier.init, classifier.tune
    if path is None and by_people and classifier.recipe == "proper":
        found = [record.get(key) for key in ("checkpoints", "checkpoint_digests")]
        path, digest = (semantic_entry(value) if isinstance(value, dict) else "" for value in found)
        if path and not (Path(path).is_file() and file_digest(Path(path)) == digest):
            log(f"the query's encoder {path} is gone or another by now: --init FILE would start from one")
            path = None
    if path in (None, "", "none"):
        if tune != "auto":
            raise InputError(f"--tune {tune} says what is trained of an encoder: name one with --init")
        return None
    if classifier.recipe != "proper":
        raise InputError(f"--recipe {classifier.recipe} starts from scratch: leave it or --init {path} out")
    parts = {"head": "its head alone", "all": "all of it"}
    parts["auto"] = f"{parts['head']} below {HEAD_BELOW} labeled images per class, else {parts['all']}"
    log(f"classifiers start from the encoder {path}, and train {parts[tune]} (--init none: from scratch)")
    return Path(path)


def semantic_entry(record: dict[str, Any]) -> str:
    """What is on record of the semantic encoder, whichever of its features the query was made of; "" for nothing."""
    return str(record.get("semantic") or record.get("penultimate") or "")


def test_images(data: Dataset, split: Split, device: torch.device, *, others: bool) -> Measured:
    """The test images on the device, those of other classes only if ``others`` are trained; says what lacks."""
    targets = LabeledImages.from_numpy(*test_set(data, split), device) if len(split.test) else None
    found, measured = other_test_images(data, split), None
    if targets is None:
        log(NO_TEST_IMAGES)
    if others and len(found):
        measured = LabeledImages.from_numpy(found, np.full(len(found), len(split.target_classes)), device)
    elif others:
        log(NO_OTHER_TEST_IMAGES)
    return Measured(targets, measured)


def train_seeds(training_set: TrainingSet, work: Work, *, keep: bool) -> None:
    """Trains one classifier per seed on one cycle and adds each to results.csv; those that are there are kept.

    Args:
        training_set: What to train on.
        work: The rest.
        keep: Whether to save the weights.

    Raises:
        Diverged: The loss of a seed is not finite; the others of its group have been added.
    """
    columns, classes = work.columns(training_set), len(work.names)
    kept = {seed: find_row(read_rows(work.results), {**columns, "seed": seed}) for seed in work.seeds}
    for row in filter(None, kept.values()):
        log_row(row, f"kept from {work.results.name}", work.names)
    missing = [seed for seed, row in kept.items() if row is None]
    if not missing:
        return
    data, is_other = (training_set.images, training_set.classes), training_set.classes == classes
    data, tests = LabeledImages.from_numpy(*data, work.device), [work.test.targets, work.test.others]
    if columns["start"] == "head":
        data, *tests = (part and encode(work.encoder, part) for part in (data, *tests))
    held = {seed: measured_part(training_set, work.test, seed=seed) for seed in missing}
    # Where a part is held out, each seed has other images to train on.
    together = 1 if any(part.any() for part in held.values()) else work.together
    for start in range(0, len(missing), together):
        group, begin = missing[start : start + together], time.perf_counter()
        part, about = held[group[0]], {"outputs": classes + training_set.has_others, "seeds": group}
        train, parts = data.part(~part), (data.part(part & ~is_other), data.part(part & is_other))
        targets, others = (test or own for test, own in zip(tests, parts))
        networks = start_networks(work.encoder or RECIPES[work.classifier.recipe].network, train, **about)
        trained = [network.head for network in networks] if columns["start"] == "head" else networks
        outcomes = train_together(trained, train, targets, seeds=group, settings=work.classifier, targets=classes)
        seconds = round((time.perf_counter() - begin) / len(group), 3)
        for seed, outcome, network, module in zip(group, outcomes, networks, trained, strict=True):
            if isinstance(outcome, Diverged):
                continue
            known = training_set.has_others and len(others.labels)
            values = [probabilities(module, targets.images), targets.labels.cpu().numpy()]
            values.append(probabilities(module, others.images) if known else None)
            numbers = {"accuracy": outcome[-1], "best_epoch_accuracy": max(outcome), "seconds": seconds}
            numbers |= {"split_digest": work.split_digest, **measures(*values, classes=classes)}
            row = Row(**columns, seed=seed, **numbers)
            if keep:  # before the row, with which a classifier is done
                path = model_path(work.results.parent, cycle=row.cycle, seed=seed)
                about = {"names": work.names, "other": training_set.has_others, "size": work.image_size}
                save_model(path, network, row, **about)
            append_row(work.results, row)
            log_row(row, f"{seconds:.1f} s" + (f" (of {len(group)} together)" if len(group) > 1 else ""), work.names)
        for outcome in outcomes:
            if isinstance(outcome, Diverged):
                raise outcome


def log_row(row: Row, source: str, names: Sequence[str]) -> None:
    """Prints a classifier's accuracy and where it comes from."""
    by_class = results_file.class_accuracies(row)
    parts = [f"{shown(name)}: {mean_text(value, None)}" for name, value in zip(names, by_class)]
    balanced = f"balanced {mean_text(row.balanced_accuracy, None)}, {', '.join(parts)}; " if parts else ""
    rejected = f"{mean_text(row.rejection, None)} of others rejected where 95 % of targets pass, "
    log(
        f"cycle {row.cycle}, seed {row.seed}: {row.labeled} labeled, accuracy {row.accuracy:.2f} % after epoch "
        f"{row.epochs} ({balanced}{row.best_epoch_accuracy:.2f} % at the best epoch, picked on the test set), "
        f"{'' if row.rejection is None else rejected}{source}"
    )


def report(sets: Sequence[TrainingSet], work: Work, figure: Path) -> None:
    """Prints the table of the cycles that have rows in results.csv, and draws their curve."""
    rows = read_rows(work.results)
    heading = ["cycle", "labeled", "seeds", "accuracy (last epoch)", "balanced", "lowest class", "others rejected"]
    cells, points = [[*heading, "best epoch (picked on the test set)"]], []
    for columns in sorted(map(work.columns, sets), key=lambda found: found["cycle"]):
        found = [row for seed in work.seeds if (row := find_row(rows, {**columns, "seed": seed}))]
        if found:
            mean = Accuracy.of(found)
            known = [(value, shown(name)) for value, name in zip(mean.by_class, work.names) if value is not None]
            lowest = "{:.2f} % ({})".format(*min(known)) if known else "-"
            counts = [str(columns["cycle"]), str(columns["labeled"]), str(mean.seeds)]
            balanced, rejection, best = (mean_text(v, None) for v in (mean.balanced, mean.rejection, mean.best_mean))
            cells.append([*counts, mean_text(mean.mean, mean.deviation), balanced, lowest, rejection, best])
            points.append((columns["labeled"], mean.mean, mean.deviation))
    log(plain_table(cells))
    names = sets[0].columns
    parts = (names["dataset"], mismatch_text(names["mismatch"]), names["strategy"], f"recipe {work.classifier.recipe}")
    plot_accuracy(figure, {", ".join(parts): points})


def tell_of_models(training_set: TrainingSet, work: Work, data: DataSettings) -> None:
    """Names the files of the last cycle's weights, and the command that uses one."""
    cycle, folder = training_set.columns["cycle"], work.results.parent
    paths = [str(path) for seed in work.seeds if (path := model_path(folder, cycle=cycle, seed=seed)).is_file()]
    if paths:
        by_people = training_set.columns["mismatch"] is None
        images = str(Path(data.data_path, "unlabeled").expanduser()) if by_people else "IMAGES"
        log(f"weights of cycle {cycle}, as last trained: {', '.join(paths)}")
        log(f"on other images: {command('train_classifier.predict', paths[0], images)}")
    if lacking := len(work.seeds) - len(paths):
        log(f"weights of cycle {cycle} are not kept of {lacking} seed(s): to train these again, remove their rows")


def command(module: str, *words: str) -> str:
    """A module's command as the shell takes it in this folder, whichever that is."""
    path = os.path.relpath(ROOT)
    return shlex.join([*([] if path == "." else ["env", f"PYTHONPATH={path}"]), "python", "-m", module, *words])


if __name__ == "__main__":
    sys.exit(run_command(main))
