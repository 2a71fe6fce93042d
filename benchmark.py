"""Compares query strategies under one split, one budget and one classifier, over several seeds.

Every query's index files, the rows of results.csv and what the classifiers reached are kept: the same command goes on
where it was stopped, and one with further strategies or seeds adds these.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import io
import multiprocessing
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from common import settings
from common.flags import Parser, as_flags, natural, pick, positive_int
from common.paper import BENCHMARKS
from common.settings import strategy_name

CEILING = "ceiling"  # an oracle that queries nothing but targets: what a pool without others would give


def strategy(text: str) -> str:
    """A flag's kind: a strategy, ``all`` or ``ceiling``, of which no file's can have the name."""
    if text not in ("all", CEILING) and strategy_name(text) in ("all", CEILING):
        raise argparse.ArgumentTypeError(f"{text}: give your own strategy another name than {strategy_name(text)}")
    return text if text in ("all", CEILING) else settings.strategy(text)


@dataclass(frozen=True)
class ComparisonSettings:
    """What is compared."""

    title: ClassVar[str] = "comparison"
    out: str = settings.option(help="folder of the run, new or one to continue or to add to", metavar="RUN")
    protocol: str = settings.setting(
        "ccal", "sets split, start, budget, cycles, recipe and recall (docs/benchmark.md)", choices=tuple(BENCHMARKS)
    )
    strategies: tuple[str, ...] = settings.option(
        ("all",),
        "names, FILE.py:NAME, ceiling (queries targets only), or all: those that the features serve",
        kind=strategy,
        several=True,
        metavar="NAME",
    )
    seeds: tuple[int, ...] = settings.option((0, 1, 2), "seeds", kind=natural, several=True)
    vary: str = settings.setting(
        "split",
        "what a seed draws: split, query and classifier, or the classifier alone",
        choices=("split", "training"),
    )
    classifier: str = settings.option(
        "linear", "linear: on frozen features; scratch: the protocol's network", choices=("linear", "scratch")
    )
    measured: tuple[int, ...] | None = settings.option(
        None,
        "cycles after which a classifier is trained; 0: before the first (default: all)",
        kind=natural,
        several=True,
    )
    jobs: int = settings.option(1, "strategies at once, each in a process of its own", kind=positive_int)


PLACES = ("data_path", "cache_dir")  # which may change from command to command
NETWORK = ("recipe", "epochs", "batch_size", "lr")  # settings of --classifier scratch alone
DATA = ("dataset", "data_path", "mismatch", "target_classes", "initial_budget", "initial_others", "split_seed")
QUERY = ("features", "semantic_features", "distinctive_features", "load_path", "load_semantic_path")
QUERY += ("load_distinctive_path", "views", "k", "t", "queries_per_class", "cycles")


def build_parser() -> Parser:
    """The command's flags."""
    return Parser(
        __doc__,
        comparison=ComparisonSettings,
        data=pick(settings.DataSettings, *DATA, "image_size", "cache_dir"),
        query=pick(settings.QuerySettings, *QUERY, cycles=None),
        classifier=pick(settings.ClassifierSettings, *NETWORK, recipe=None),
        encoder=settings.EncoderSettings,
        crop=settings.CropSettings,
        process=pick(settings.ProcessSettings, "device", "max_minutes", "quiet", "debug"),
    )


if __name__ == "__main__":
    build_parser().parse()  # --help and a mistyped flag end here, before torch is imported, which takes seconds

import numpy as np
import torch
from sklearn.metrics import balanced_accuracy_score

from active_main import MODES, checkpoint_paths, extraction_of, load_encoders
from common.console import as_a_stage, finish, log, progress, set_quiet
from common.files import require_writable, write_json
from common.provenance import file_digest, image_digest, int64_digest
from common.session import StopRequest, folder_lock, run_command, session
from datasets import Dataset, Split, class_numbers, load_data_and_split, load_dataset, results_file
from datasets.index_files import IndexFile, index_path, read_index_file, write_index_file
from evals.cycles import QueryLoop
from evals.feature_cache import feature_banks, sources_of
from evals.features import FeatureBank, MappedFeatures, given_features
from evals.index_folder import begin, index_file
from evals.query import QueryInputs, check_budget, dealt
from evals.report.__main__ import main as write_report
from evals.report.comparison import ComparisonRow, read_benchmark, read_rows
from evals.strategies import STRATEGIES, Strategy, find_strategy
from evals.strategies.linear import fit, z_scores
from train_classifier.main import main as train_classifiers
from utils import InputError, launcher


@dataclass(frozen=True)
class Unit:
    """What one process does at a time: a strategy's queries from one seed on, and classifiers of these seeds."""

    strategy: str
    seed: int
    classifiers: tuple[int, ...]


@dataclass(frozen=True)
class World:
    """What all strategies of a seed see.

    Attributes:
        settings: Of the data, the protocol's numbers filled in.
        banks: Of the images of the split, by name.
        table: Standardised penultimate features of all train, then all test images, (N + M, D); None without them.
        budget: Images per target class and cycle.
    """

    settings: settings.DataSettings
    data: Dataset
    split: Split
    banks: dict[str, FeatureBank]
    table: np.ndarray | None
    budget: int


def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    given = build_parser().parse(words)
    wanted, run = given.comparison, Path(given.comparison.out)
    set_quiet(given.process.quiet)
    if launcher().world_size > 1:
        raise InputError("benchmark.py starts processes of its own (--jobs): run it without a launcher")
    require_writable(run, "--out")
    with StopRequest(max_minutes=given.process.max_minutes, raises=True) as stop, folder_lock(run), as_a_stage():
        stop.kept = f"what is done is in {run}; the same command continues it"
        rows, record = read_rows(run / "results.csv"), settings_of(given)
        compare(run, record)  # before anything is computed
        files = feature_files(given, run)
        names = chosen_strategies(wanted.strategies, files)
        units = [unit for unit in all_units(given, names) if not is_done(unit, rows, given)]
        record["feature_digests"] = {name: file_digest(path) for name, path in files.items()}
        begin_run(run, record, given, words)
        log(f"{len(names)} strategies, {len({*wanted.seeds})} seeds; {len(units)} queries to make or to go on with")
        for done in progress(work_off(units, words, files, wanted.jobs), description="queries", total=len(units)):
            rows = merged(rows, done)
            results_file.write_csv(run / "results.csv", rows)
            found = ", ".join(str(row.found) for row in done if row.seed == done[0].seed and row.cycle)
            log(f"{done[0].strategy}, seed {done[0].seed}: found {found}; accuracy {done[-1].accuracy or 0:.2f} %")
        write_report([str(run)])
    finish([run / name for name in ("results.csv", "table.md", "report.html")])


def merged(rows: Sequence[ComparisonRow], new: Sequence[ComparisonRow]) -> list[ComparisonRow]:
    """Rows with new ones in the place of their predecessors, whose accuracy stays where the new ones have none."""
    known = {(row.strategy, row.classifier, row.seed, row.cycle): row for row in rows}
    for row in new:
        key = row.strategy, row.classifier, row.seed, row.cycle
        if row.accuracy is None and key in known:
            kept = ("accuracy", "balanced_accuracy", "training_seconds")
            row = dataclasses.replace(row, **{name: getattr(known[key], name) for name in kept})
        known[key] = row
    return [*known.values()]


def protocol_data(given: SimpleNamespace, data: Dataset, seed: int) -> settings.DataSettings:
    """The data settings with what the protocol says of split and start, where no flag says otherwise."""
    protocol, asked = BENCHMARKS[given.comparison.protocol], settings.DataSettings(**vars(given.data))
    classes, initial, others = asked.target_classes, asked.initial_budget, asked.initial_others
    mismatch = protocol.mismatch if asked.mismatch is None else asked.mismatch
    if classes is None and protocol.share:
        classes = tuple(range(round(protocol.share * data.num_classes)))
    elif classes is None and protocol.sets and data.num_classes == 10:
        classes = protocol.sets[seed % len(protocol.sets)]
    if protocol.with_others:
        if mismatch == "all" and None in (initial, others):
            raise InputError("--protocol mqnet needs a --mismatch in numbers, or --initial_budget and --initial_others")
        initial = round(protocol.initial * (1 - mismatch)) if initial is None else initial
        others = round(protocol.initial * mismatch) if others is None else others
    elif initial is None and protocol.initial is None:
        targets = np.isin(data.train_labels, class_numbers(classes, data.class_names)).sum()
        initial = max(len(classes), round((0.01 if data.num_classes < 100 else 0.08) * targets))
    split = {"split_seed": seed, "target_classes": classes, "mismatch": mismatch}
    return dataclasses.replace(asked, **split, initial_budget=initial, initial_others=others)


def feature_files(given: SimpleNamespace, run: Path) -> dict[str, Path]:
    """Files of the features, by name; what no flag names is made by the checkpoints that are there.

    Raises:
        InputError: The linear classifier has no features, or see given_features.
    """
    query = given.query
    named = {"penultimate": query.features, "semantic": query.semantic_features}
    named |= {"distinctive": query.distinctive_features}
    files = {name: Path(file).expanduser() for name, file in named.items() if file}
    if lost := [str(path) for path in files.values() if not path.is_file()]:
        raise InputError(f"there is no file {lost[0]} of features")
    paths = {}
    for name in named.keys() - files.keys():
        try:
            paths |= checkpoint_paths(query, [name], {})
        except InputError:  # whoever needs it is left out, or refused by name
            if getattr(query, f"load_{MODES[name]}_path"):
                raise
    if paths:
        files |= made_features(paths, given, run)
    if given.comparison.classifier == "linear" and "penultimate" not in files:
        raise InputError(
            "--classifier linear trains on features of train and test images: name a file of them with --features or "
            "the semantic encoder with --load_semantic_path, or take --classifier scratch"
        )
    return files


def made_features(paths: dict[str, Path], given: SimpleNamespace, run: Path) -> dict[str, Path]:
    """Features of all train images, and penultimate ones of all test images, too, written by the encoders.

    Those that are in the run's folder already are kept.
    """
    parts = {"data": settings.DataSettings(**vars(given.data)), "annotation": settings.AnnotationSettings()}
    parts["query"] = settings.QuerySettings(**{**vars(given.query), "cycles": cycles_of(given)})
    given = SimpleNamespace(**{**vars(given), **parts})
    with session(
        settings.ProcessSettings(**vars(given.process)), precision=given.encoder.precision, on_stop="raise", alone=True
    ) as current:
        data = read_data(given.data)
        encoder = given.encoder.resolved(image_size=given.data.image_size, precision=current.precision.name)
        extractions = {name: extraction_of(name, given, data, current) for name in paths}
        digests = {"split_digest": None, "images_digest": None}  # one encoder serves the splits of all seeds
        encoders = load_encoders(paths, extractions, encoder, digests, given, data, current.device)
        for name, path in paths.items():
            images = data.train_images
            if name == "penultimate":  # the linear classifier is measured on them
                images = np.concatenate([images, data.test_images])
            indices, own = np.arange(len(images)), {name: extractions[name]}
            options = {"sources": sources_of({name: path}, {}, images, indices), "folder": run / "features"}
            feature_banks({name: encoders[name]}, images, indices, own, **options, device=current.device)
    return {name: run / "features" / f"{name}.npy" for name in paths}


def read_data(asked: Any) -> Dataset:
    """The data set, before any split; raises InputError where there is no oracle to simulate."""
    data = load_dataset(asked.dataset, asked.data_path, image_size=asked.image_size, cache_dir=asked.cache_dir)
    if not data.has_oracle:
        raise InputError(f"{asked.data_path}/unlabeled has no labels: there is no query to simulate")
    return data


def chosen_strategies(asked: Sequence[str], files: dict[str, Path]) -> list[str]:
    """The strategies by name, all of them spelled out; raises InputError for one whose features are not there."""
    served = [name for name, entry in STRATEGIES.items() if set(entry.needs) <= files.keys()]
    if "all" in asked and (left := [name for name in STRATEGIES if name not in served]):
        log(f"all: without {', '.join(left)}, for which there are no features or encoders")
    names = [name for text in asked for name in ([*served, CEILING] if text == "all" else [text])]
    for name in names:
        if name != CEILING and (lacking := set(find_strategy(name).needs) - files.keys()):
            raise InputError(
                f"--strategies {name} needs {' and '.join(sorted(lacking))} features: give a file or encoder"
            )
    names = list(dict.fromkeys(names))
    if twice := [name for name in names if sum(strategy_name(name) == strategy_name(other) for other in names) > 1]:
        raise InputError(f"--strategies {' '.join(twice)} have one name: the rows could not be told apart")
    return names


def settings_of(given: SimpleNamespace) -> dict[str, Any]:
    """What all rows of a run have in common, features aside."""
    data = read_data(given.data)
    record = settings.identity(given.comparison, given.query, classifier_of(given), given.encoder, given.crop)
    record |= settings.as_record(given.data) | {"cycles": cycles_of(given)}
    parts = [[image_digest(images, np.arange(len(images)))] for images in (data.train_images, data.test_images)]
    parts += [[int64_digest(labels)] for labels in (data.train_labels, data.test_labels)]
    record["data_digest"] = hashlib.sha256(str(parts).encode()).hexdigest()
    return {name: value for name, value in record.items() if name not in PLACES}


def compare(run: Path, record: dict[str, Any]) -> dict[str, Any]:
    """The settings on record, where there are any; raises InputError where they are others."""
    if not (run / "benchmark.json").is_file():
        if (run / "queries").exists() or (run / "results.csv").exists():
            raise InputError(f"{run} holds results without benchmark.json, which says of what: give another --out")
        return {}
    before = read_benchmark(run)["settings"]
    compared = [name for name in record if name not in NETWORK or None not in (before.get("recipe"), record["recipe"])]
    recorded, wanted = ({name: values.get(name) for name in compared} for values in (before, record))
    settings.require_same(recorded, wanted, what=run, remedy="give another --out")
    return before


def begin_run(run: Path, record: dict[str, Any], given: SimpleNamespace, words: Sequence[str]) -> None:
    """Writes benchmark.json, with the network's settings as soon as there are any."""
    before, features = compare(run, record), ", ".join(sorted(record["feature_digests"])) or "none"
    if record["recipe"] is None:
        record |= {name: before.get(name) for name in NETWORK}
    about = f"protocol {given.comparison.protocol}, {given.data.dataset}; features: {features}"
    command = shlex.join(["python", "benchmark.py", *words])
    write_json(run / "benchmark.json", {"format_version": 1, "settings": record, "about": about, "command": command})


def classifier_of(given: SimpleNamespace) -> Any:
    """The network's settings, with the protocol's recipe where none is given; of the linear model all are None."""
    if given.comparison.classifier == "linear":
        return dataclasses.replace(given.classifier, **dict.fromkeys(NETWORK))
    recipe = given.classifier.recipe or BENCHMARKS[given.comparison.protocol].recipe
    return dataclasses.replace(given.classifier, recipe=recipe)


def cycles_of(given: SimpleNamespace) -> int:
    return given.query.cycles or BENCHMARKS[given.comparison.protocol].cycles


def all_units(given: SimpleNamespace, names: Sequence[str]) -> Iterator[Unit]:
    """Seed by seed, so that a process seldom changes its split."""
    seeds = tuple(dict.fromkeys(given.comparison.seeds))
    if given.comparison.vary == "training":
        if given.comparison.classifier == "linear":
            raise InputError("--vary training varies nothing where --classifier linear, which has no seed, is trained")
        yield from (Unit(name, given.data.split_seed, seeds) for name in names)
    elif given.data.split_seed:
        raise InputError("--split_seed goes with --vary training: otherwise --seeds draw the splits")
    else:
        yield from (Unit(name, seed, (seed,)) for seed in seeds for name in names)


def is_done(unit: Unit, rows: Sequence[ComparisonRow], given: SimpleNamespace) -> bool:
    """Whether all of a unit's rows are there, with their accuracies."""
    name, wanted = strategy_name(unit.strategy), given.comparison
    if settings.strategy_file(unit.strategy):  # it may have changed, which its index files tell
        return False
    for seed in unit.classifiers:
        own = [row for row in rows if (row.strategy, row.classifier, row.seed) == (name, wanted.classifier, seed)]
        if not own or any(row.accuracy is None and is_measured(row.cycle, given) for row in own):
            return False
        last = max(row.cycle for row in own)
        if last < cycles_of(given):  # the pool may have ended before the cycles did
            path = index_path(query_folder(given, unit), last)
            if not path.is_file() or read_index_file(path).metrics.get("pool") != 0:
                return False
    return True


def is_measured(cycle: int, given: SimpleNamespace) -> bool:
    return given.comparison.measured is None or cycle in given.comparison.measured


def work_off(
    units: Sequence[Unit], words: Sequence[str], files: dict[str, Path], jobs: int
) -> Iterator[list[ComparisonRow]]:
    """The units' rows as they come, from so many processes."""
    if jobs == 1:
        yield from (run_unit(words, files, unit) for unit in units)
        return
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, multiprocessing.cpu_count() // jobs)))  # the processes' own
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=prepare) as pool:
        try:
            for future in as_completed([pool.submit(run_unit, words, files, unit) for unit in units]):
                yield future.result()
        except BrokenProcessPool:
            raise InputError("a process was killed, possibly out of memory; use fewer --jobs") from None
        finally:
            for child in multiprocessing.active_children():
                child.terminate()


def prepare() -> None:
    """Sets a process up: Ctrl-C is the first one's to take, which ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_quiet(True)
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()


def end_with(parent: int) -> None:
    """Ends this process when its parent is gone, even if that was killed."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def run_unit(words: Sequence[str], files: dict[str, Path], unit: Unit) -> list[ComparisonRow]:
    """Makes the queries whose index files are not there, trains the classifiers, and returns all rows."""
    given = build_parser().parse(words)
    world = world_of(tuple(words), tuple(files.items()), unit.seed)
    found = queries(unit, world, given, files)
    rows = []
    for seed in unit.classifiers:
        measured = [file for file in found if is_measured(file.cycle, given)]
        if given.comparison.classifier == "linear":
            accuracies = linear_accuracies(measured, world)
        else:
            accuracies = scratch_accuracies(measured, unit, seed, world, given)
        rows += rows_of(unit, seed, found, dict(zip([file.cycle for file in measured], accuracies)), world, given)
    return rows


@functools.lru_cache(1)
def world_of(words: tuple[str, ...], files: tuple[tuple[str, Path], ...], seed: int) -> World:
    """What all strategies of a seed see; raises InputError where the protocol does not fit the data."""
    given = build_parser().parse(list(words))
    asked = protocol_data(given, read_data(given.data), seed)
    data, split = load_data_and_split(asked)
    indices, sizes = np.sort(split.contrast()), {"train": len(data.train_labels), "test": len(data.test_labels)}
    banks = {name: given_features(path, indices, **sizes) for name, path in files}
    table, penultimate = None, dict(files).get("penultimate")
    if given.comparison.classifier == "linear":
        values = MappedFeatures(penultimate)[:].flatten(1).float().numpy()
        if len(values) != sum(sizes.values()) or len(split.target_classes) == 1:
            every = f"{sizes['train']} train, then {sizes['test']} test images"
            raise InputError(
                f"--classifier linear needs two target classes, and in {penultimate} a row for all {every}"
            )
        table = z_scores(values, values[indices])
    share = BENCHMARKS[given.comparison.protocol].budget / len(split.target_classes)
    budget = given.query.queries_per_class or max(1, round(share))
    return World(asked, data, split, banks, table, budget)


def query_folder(given: SimpleNamespace, unit: Unit) -> Path:
    return Path(given.comparison.out) / "queries" / strategy_name(unit.strategy) / f"seed_{unit.seed}"


def queries(unit: Unit, world: World, given: SimpleNamespace, files: dict[str, Path]) -> list[IndexFile]:
    """The index files of all cycles; the queries that are there are not made again."""
    name, labels, folder = strategy_name(unit.strategy), world.data.train_labels, query_folder(given, unit)
    entry = ceiling(labels, world.split) if unit.strategy == CEILING else find_strategy(unit.strategy)
    check_budget(world.split, labels, world.budget, entry.needs)
    options = {"k": given.query.k, "t": given.query.t, "seed": unit.seed}
    on_gpu = torch.cuda.is_available() and given.process.device != "cpu"
    banks = {need: world.banks[need] for need in entry.needs}
    loop = QueryLoop(banks, world.split, labels, entry, **options, device="cuda" if on_gpu else "cpu")
    digests = {need: file_digest(files[need]) for need in entry.needs}
    record = {"strategy": name, **options, "queries_per_class": world.budget, "feature_digests": digests}
    if own_file := settings.strategy_file(unit.strategy):
        record["strategy_digest"] = file_digest(own_file)
    content, found = functools.partial(index_file, world.data, strategy=name, settings=record), []
    while (path := index_path(folder, len(found))).is_file():
        found.append(read_index_file(path, split_digest=world.split.digest, n_images=len(labels)))
        settings.require_same(found[-1].settings, record, what=path, remedy="give another --out")
        if found[-1].cycle:
            loop.take(np.array(found[-1].queried))
    if not found:
        found.append(content(loop.split))
        begin(folder, found[0])
    while len(found) <= cycles_of(given) and len(loop.split.unlabeled):
        cycle = loop.answer(loop.query(len(found), world.budget))
        found.append(content(cycle.split, cycle=cycle))
        write_index_file(folder, found[-1])
    return found


def ceiling(labels: np.ndarray, split: Split) -> Strategy:
    """An oracle that queries targets at random, then what is left: it reads the labels, which no strategy may."""

    def utilities(inputs: QueryInputs) -> torch.Tensor:
        order = inputs.rng.permutation(len(inputs.pool))
        others = ~np.isin(labels[inputs.pool[order]], split.target_classes)
        return dealt(order[np.argsort(others, kind="stable")], inputs)

    return Strategy(utilities, needs=(), by_class=False)


Accuracy = tuple[float, float, float]  # and balanced accuracy, in percent, and seconds of training


def linear_accuracies(files: Sequence[IndexFile], world: World) -> list[Accuracy]:
    """Of evals.strategies.linear's model on the frozen features of all labeled images; it has no seed."""
    split, data, accuracies = world.split, world.data, []
    test = world.table[len(data.train_labels) + split.test], split.class_numbers(data.test_labels[split.test])
    for file in files:
        start, labeled = time.perf_counter(), np.array(file.labeled)
        predicted = fit(world.table[labeled], split.class_numbers(data.train_labels[labeled])).predict(test[0])
        seconds = round(time.perf_counter() - start, 3)
        values = (predicted == test[1]).mean(), balanced_accuracy_score(test[1], predicted)
        accuracies.append((*(round(100 * float(value), 4) for value in values), seconds))
    return accuracies


def scratch_accuracies(
    files: Sequence[IndexFile], unit: Unit, seed: int, world: World, given: SimpleNamespace
) -> list[Accuracy]:
    """Of the protocol's network, by the classifier's own command, which keeps what is done."""
    name, index_dir = strategy_name(unit.strategy), query_folder(given, unit)
    out = Path(given.comparison.out) / "classifiers" / name / f"seed_{unit.seed}"
    process = settings.ProcessSettings(device=given.process.device, seed=seed, quiet=True)
    accuracies = []
    for file in files:
        place = ["--index_dir", str(index_dir), "--out_path", str(out), "--strategy", unit.strategy]
        place += ["--number", str(file.cycle), "--cycles", str(file.cycle), "--runs", "1"]
        with contextlib.redirect_stdout(io.StringIO()):  # the rows say all
            train_classifiers([*as_flags(world.settings, classifier_of(given), process), *place])
        rows = [
            row for row in results_file.read_rows(out / "results.csv") if (row.cycle, row.seed) == (file.cycle, seed)
        ]
        accuracies.append((rows[-1].accuracy, rows[-1].balanced_accuracy, rows[-1].seconds))
    return accuracies


def rows_of(
    unit: Unit,
    seed: int,
    files: Sequence[IndexFile],
    accuracies: dict[int, Accuracy],
    world: World,
    given: SimpleNamespace,
) -> list[ComparisonRow]:
    """What is written of a seed's cycles."""
    start, labels = len(world.split.labeled), world.data.train_labels[world.split.unlabeled]
    counted = start if BENCHMARKS[given.comparison.protocol].start_counts else 0
    targets = counted + int(np.isin(labels, world.split.target_classes).sum())
    return [
        ComparisonRow(
            strategy=strategy_name(unit.strategy),
            seed=seed,
            classifier=given.comparison.classifier,
            cycle=file.cycle,
            asked=len(file.queried),
            found=file.metrics.get("found", 0),
            labeled=len(file.labeled),
            precision=file.metrics.get("precision"),
            recall=round(100 * (counted + len(file.labeled) - start) / targets, 4),
            **dict(zip(("accuracy", "balanced_accuracy", "training_seconds"), accuracies.get(file.cycle, [None] * 3))),
            query_seconds=file.seconds,
        )
        for file in files
    ]


if __name__ == "__main__":
    sys.exit(run_command(main))
