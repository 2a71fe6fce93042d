"""Scores the unlabeled pool with both encoders and queries it, cycle after cycle; writes an index file per cycle."""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from common import settings
from common.flags import Parser, as_flags


def build_parser() -> Parser:
    """The command's flags."""
    groups = {"query": settings.QuerySettings, "annotation": settings.AnnotationSettings}
    groups |= {"data": settings.DataSettings, "encoder": settings.EncoderSettings}
    return Parser(__doc__, **groups, crop=settings.CropSettings, process=settings.ProcessSettings)


if __name__ == "__main__":
    build_parser().parse()  # answers --help and a mistyped flag before torch is imported, which takes seconds

import numpy as np
import torch
from torch import nn

from common import checkpoint, distributed
from common.console import finish, log, warn
from common.files import require_writable
from common.provenance import file_digest
from common.session import Session, folder_lock, run_command, session
from datasets import load_data_and_split
from datasets.base import Dataset
from datasets.index_files import default_index_dir, index_path, write_index_file
from datasets.split import Split
from evals.annotation.export import write_export
from evals.annotation.loop import Progress, last_settings, read_progress, resume_annotation, write_next_query
from evals.annotation.queries import AnnotationQuery
from evals.cycle_report import cycle_line, flat_warning, keep_cycle, keep_features, print_scores
from evals.cycles import QueryLoop, simulate
from evals.feature_cache import feature_banks, sources_of
from evals.features import Extraction, FeatureBank, default_batch, given_features
from evals.index_folder import begin, check_folder, index_file, remember, remembered, require_same_settings
from evals.query import check_budget
from evals.strategies import find_strategy
from models import build_encoder
from models.transform_layers import SHIFT_COUNTS, Augmentation, check_shift
from utils import InputError

ROOT = Path(__file__).resolve().parent
QUERIES_PER_CLASS = 1500  # where an oracle answers
FOR_PEOPLE = 50  # images of a query that people label, in all
# What each round of labeling says anew; an index folder remembers the other settings.
EACH_ROUND = ("annotate", "labels", "partial", "overwrite", "new_settings", "export", "index_dir")
EACH_ROUND += ("max_minutes", "local_rank", "quiet", "debug")
MODES = {"semantic": "semantic", "distinctive": "distinctive", "penultimate": "semantic"}  # whose features these are


def main(argv: Sequence[str] | None = None) -> None:
    given = parse(argv)
    if given.annotation.export:
        return export(given)
    query, annotate, strategy = given.query, given.annotation.annotate, find_strategy(given.query.strategy)
    files = feature_files(query, strategy.needs)
    checkpoints = checkpoint_paths(query, strategy.needs, files)
    check_flags(given, checkpoints)
    with (
        session(given.process, precision=given.encoder.precision, on_stop="raise") as run,
        contextlib.ExitStack() as locks,
    ):
        run.stop.kept = "no cycle was written; the same command starts the query again"
        tell_unread(query, strategy.needs, checkpoints)
        data, split = load_data_and_split(given.data)
        name = settings.strategy_name(query.strategy)
        folder = Path(query.index_dir or default_index_dir(ROOT, data.name, split.mismatch, name))
        require_writable(folder, "--index_dir")
        locks.enter_context(folder_lock(folder))
        indices, labels = np.sort(split.contrast()), data.train_labels
        encoder_settings = given.encoder.resolved(image_size=given.data.image_size, precision=run.precision.name)
        named = files | ({"indices": Path(query.feature_indices).expanduser()} if query.feature_indices else {})
        sources = sources_of(checkpoints, named, data.train_images, indices)
        if own_file := settings.strategy_file(query.strategy):
            sources["strategy_digest"] = file_digest(own_file)
        distributed.require_same(sources, "checkpoints, images or strategies are not the same at every process")
        record = settings.identity(query, given.crop, given.process, *([encoder_settings] if checkpoints else []))
        usual = max(1, FOR_PEOPLE // len(split.target_classes)) if annotate else QUERIES_PER_CLASS
        record |= {"queries_per_class": query.queries_per_class or usual, "strategy": name} | sources
        if files:  # their rows go by the images' places, which other images in a folder would move
            record["feature_rows_digest"] = sources["images_digest"]
        if annotate:
            progress = take_labels(folder, data, split, given, record)
            if progress.waiting or not len(progress.split.unlabeled):
                return
            split, labels = progress.split, progress.labels
        elif not data.has_oracle:
            raise InputError(f"nobody has labeled the images in {given.data.data_path}/unlabeled: give --annotate")
        else:
            check_folder(folder, overwrite=query.overwrite)
        # People, and an oracle in later cycles, label what is left where that is less than was asked for.
        check_budget(split, labels, 0 if annotate else record["queries_per_class"], strategy.needs)
        extractions = {name: extraction_of(name, given, data, run) for name in checkpoints}
        digests = {"split_digest": split.digest, "images_digest": sources["images_digest"]}
        encoders = load_encoders(checkpoints, extractions, encoder_settings, digests, given, data, run.device)
        cache = None
        if encoders and not query.no_feature_cache:
            cache = Path(query.feature_cache or folder / "features")
            require_writable(cache, "--feature_cache")
            locks.enter_context(folder_lock(cache))  # no other query may replace the features while they are read
        banks = feature_banks(
            encoders, data.train_images, indices, extractions, sources=sources, folder=cache, device=run.device
        )
        banks = given_banks(files, indices, query, data, strategy.needs) | banks
        loop = QueryLoop(banks, split, labels, strategy, k=query.k, t=query.t, seed=run.seed, device=run.device)
        if annotate:
            query_people(folder, loop, progress, data, given, record)
        else:
            query_oracle(folder, loop, data, given, record, run)


def parse(argv: Sequence[str] | None) -> SimpleNamespace:
    """The settings given, above those that the index folder remembers of an annotated query."""
    words = list(sys.argv[1:] if argv is None else argv)
    given = build_parser().parse(words)
    if given.query.index_dir and (given.annotation.annotate or given.annotation.export):
        given = build_parser().parse([*remembered(Path(given.query.index_dir)), *words])
    own = given.query.strategy
    if given.annotation.annotate and ":" in own and not any(word.endswith(own) for word in words):
        raise InputError(f"{given.query.index_dir} remembers --strategy {own}, a file that would be run: give it again")
    return given


def export(given: SimpleNamespace) -> None:
    """Writes all answers so far for other programs; it needs neither encoders nor features."""
    if given.annotation.labels or given.annotation.partial or given.annotation.new_settings:
        raise InputError("--export takes no labels: hand them in first, without --export")
    if not given.query.index_dir:
        raise InputError("--export writes the answers of --index_dir DIR; give both")
    folder, index_dir = Path(given.annotation.export), Path(given.query.index_dir)
    if not index_path(index_dir, 0).is_file():
        raise InputError(f"--index_dir {index_dir} holds no cycle_0.json; name the folder of a query with --annotate")
    with session(given.process, on_stop="raise", alone=True):
        data, split = load_data_and_split(given.data)
        if data.paths is None or data.has_oracle:
            raise InputError(
                "--export is for the answers of --annotate (--dataset folder with labeled/ and unlabeled/)"
            )
        progress = read_progress(index_dir, data, split)
        finish(write_export(folder, index_dir, Path(given.data.data_path).expanduser(), data, progress))


def check_flags(given: SimpleNamespace, checkpoints: dict[str, Path]) -> None:
    """Raises InputError for flags that do not go together, or that would do nothing."""
    labels = given.annotation.labels
    if labels and not given.annotation.annotate:
        raise InputError(f"--labels {labels} goes with --annotate; give both")
    if given.annotation.partial and not labels:
        raise InputError("--partial says how to take --labels CSV; give both")
    if "distinctive" in checkpoints and given.encoder.shift_trans_type == "none":
        raise InputError("the distinctive encoder needs --shift_trans_type rotation or cutperm, as in its training")


def tell_unread(query: settings.QuerySettings, needs: Sequence[str], checkpoints: dict[str, Path]) -> None:
    """Says which settings of scores and projections were given for nothing; published commands may have them."""
    read = dict.fromkeys(("k", "t"), "semantic" in needs) | {"views": bool(checkpoints.keys() - {"penultimate"})}
    given = [name for name in read if getattr(query, name) != getattr(settings.QuerySettings, name)]
    if unread := [f"--{name}" for name in given if not read[name]]:
        log(f"--strategy {query.strategy} ignores {', '.join(unread)}")


def feature_files(query: settings.QuerySettings, needs: Sequence[str]) -> dict[str, Path]:
    """The files of features from elsewhere, by the name of the features that they are.

    Raises:
        InputError: There is none, or the strategy has no use for one.
    """
    named = {name: getattr(query, f"{name}_features") for name in ("semantic", "distinctive")}
    files = {name: Path(file).expanduser() for name, file in named.items() if file}
    side_by_side = needs == ("penultimate",) and not query.features  # for which any features will do
    if query.features:
        name = "penultimate" if "penultimate" in needs else "semantic"
        if name in files or (name == "semantic" and needs != ("semantic",)):
            flags = " and ".join(f"--{need}_features" for need in needs if need != "penultimate") or "no features"
            raise InputError(f"--strategy {query.strategy} takes {flags}; leave --features out")
        files[name] = Path(query.features).expanduser()
    unused = files.keys() - set(needs)
    if unused and not side_by_side:
        beside = " beside --features" if query.features else ""
        raise InputError(f"--strategy {query.strategy} has no use for --{unused.pop()}_features{beside}; leave it out")
    if query.feature_indices and not files:
        raise InputError("--feature_indices says what the rows of --features are; give both")
    return files


def checkpoint_paths(query: settings.QuerySettings, needs: Sequence[str], files: dict[str, Path]) -> dict[str, Path]:
    """Where the checkpoints are, by the name of the features that they make.

    Raises:
        InputError: One is missing; nothing has been computed yet.
    """
    paths = {}
    for name in needs:
        if name in files or (needs == ("penultimate",) and files):
            continue
        mode = MODES[name]
        flag = f"load_{mode}_path"
        paths[name] = Path(getattr(query, flag) or Path(query.load_path) / mode / checkpoint.MODEL_FILE)
        if not paths[name].is_file():
            remedy = f"train it with contrast_main.py --mode {mode}, or name it with --{flag}"
            raise InputError(f"the {mode} checkpoint {paths[name]} does not exist; {remedy}")
    for mode in {MODES[name]: None for name in needs if files}:
        if getattr(query, f"load_{mode}_path") and mode not in map(MODES.get, paths):
            raise InputError(f"a file of features stands for the {mode} encoder: leave it or --load_{mode}_path out")
    return paths


def take_labels(folder: Path, data: Dataset, split: Split, given: SimpleNamespace, record: dict[str, Any]) -> Progress:
    """Takes people's labels, if they are given, and says what to do if a query still waits for them, or none is left.

    Raises:
        InputError: See resume_annotation; or ``record``, of what a query would be made from now, is not the last one's.
    """
    file, partial, overwrite = given.annotation.labels, given.annotation.partial, given.query.overwrite
    before = last_settings(folder, overwrite=overwrite)
    require_same_settings(before, record, what=folder, new=given.annotation.new_settings)
    options = {"file": file and Path(file), "partial": partial, "overwrite": overwrite}
    progress = resume_annotation(folder, data, split, **options)
    trained = classifier_command(given, folder, progress.cycle, progress.split)
    if progress.waiting:
        log(f"next: {labeling_command(progress.waiting, folder, given)}")
    elif trained and not len(progress.split.unlabeled):
        log(f"next: {trained}")
    elif trained and progress.cycle:
        log(f"a classifier of the labels so far: {trained}")
    return progress


def extraction_of(name: str, given: SimpleNamespace, data: Dataset, run: Session) -> Extraction:
    """How features are made: of all copies of the distinctive encoder's shifts, of shift 0 for the semantic one."""
    shift = given.encoder.shift_trans_type if name == "distinctive" else "none"
    check_shift(shift, data.image_size)
    return Extraction(
        augmentation=Augmentation(given.crop.resize_factor, given.crop.resize_fix),
        views=0 if name == "penultimate" else given.query.views,
        shift=shift,
        shift_numbers=tuple(range(SHIFT_COUNTS[shift])),
        seed=run.seed,
        batch_size=given.query.test_batch_size or default_batch(run.device, data.image_size),
        precision=run.precision,
        dtype=given.query.feature_dtype,
        output="features" if name == "penultimate" else "projection",
    )


def given_banks(
    files: dict[str, Path], indices: np.ndarray, query: settings.QuerySettings, data: Dataset, needs: Sequence[str]
) -> dict[str, FeatureBank]:
    """The features from elsewhere; raises InputError for rows that are not those of the data set."""
    numbers = query.feature_indices and Path(query.feature_indices).expanduser()
    sizes = {"train": len(data.train_labels), "test": len(data.test_labels), "numbers_file": numbers}
    banks = {name: given_features(file, indices, **sizes) for name, file in files.items()}
    if "semantic" in files.keys() & set(needs) and banks["semantic"].features.shape[1] != 1:
        raise InputError(f"{files['semantic']} holds several rows an image, (N, K, D); semantic features are (N, D)")
    for name, file in files.items():
        log(f"{name} features of {len(indices)} images, {tuple(banks[name].features.shape[1:])} each: {file}")
    return banks


def load_encoders(
    paths: dict[str, Path],
    extractions: dict[str, Extraction],
    chosen: settings.EncoderSettings,
    digests: dict[str, str | None],
    given: SimpleNamespace,
    data: Dataset,
    device: torch.device,
) -> dict[str, nn.Module]:
    """The encoders with their checkpoints' weights, once it is sure that they were trained on these data.

    Raises:
        InputError: A checkpoint is of another split or other settings, or damaged.
    """
    encoders = {}
    for name, path in paths.items():
        expected = {"mode": MODES[name], "dataset": given.data.dataset, "model": chosen.model}
        expected["shift_trans_type"] = extractions[name].shift
        changed = given.annotation.annotate  # people may have added images to the folder since the training
        checkpoint.check_run(path, **digests, expected=expected, may_have_changed=changed)
        shifts = len(extractions[name].shift_numbers)
        encoder = build_encoder(chosen.model, num_classes=data.num_classes, shifts=shifts, simclr_dim=chosen.simclr_dim)
        checkpoint.load_weights(path, encoder, strict=not given.query.no_strict)
        encoders[name] = encoder.to(device, memory_format=torch.channels_last)
    return encoders


def query_oracle(
    folder: Path, loop: QueryLoop, data: Dataset, given: SimpleNamespace, record: dict[str, Any], run: Session
) -> None:
    """Runs the cycles with the data set's labels as the oracle, and writes what each of them found."""
    query = given.query
    content = functools.partial(index_file, data, strategy=record["strategy"], settings=record)
    if distributed.is_main():
        begin(folder, content(loop.split))
    run.stop.kept = f"cycle 0 alone is in {folder}; the same command with --overwrite starts again"
    if distributed.is_main():
        keep_features(folder, loop.banks, data.train_labels, data)
    for cycle in simulate(loop, cycles=query.cycles, queries_per_class=record["queries_per_class"]):
        log(cycle_line(cycle, data))
        if warning := flat_warning(cycle):
            warn(warning)
        if query.print_score:
            print_scores(cycle)
        if distributed.is_main():
            keep_cycle(folder, cycle, data, every_score=query.save_score)
            write_index_file(folder, content(cycle.split, cycle=cycle))  # last: a cycle with an index file is done
        run.stop.kept = f"cycles 0 to {cycle.number} are in {folder}; the same command with --overwrite starts again"
    if not len(cycle.split.unlabeled):
        log("the pool is empty: every image is labeled or set aside")
    then = classifier_command(given, folder, cycle.number, cycle.split)
    finish([index_path(folder, 0), index_path(folder, cycle.number)], then=then)


def query_people(
    folder: Path, loop: QueryLoop, progress: Progress, data: Dataset, given: SimpleNamespace, record: dict[str, Any]
) -> None:
    """Makes one query and writes it out for people to label."""
    query, images = given.query, Path(given.data.data_path).expanduser()
    if query.queries_per_class is None:
        log(f"--queries_per_class {record['queries_per_class']} suits people; it may change from cycle to cycle")
    cycle = loop.query(progress.cycle + 1, record["queries_per_class"])
    if warning := flat_warning(cycle):
        warn(warning)
    if query.print_score:
        print_scores(cycle)
    if distributed.is_main():
        keep_features(folder, loop.banks, progress.labels, data)
        keep_cycle(folder, cycle, data, every_score=query.save_score)
    waiting = write_next_query(folder, images, progress, data, cycle, strategy=record["strategy"], settings=record)
    finish([waiting.page, waiting.table], then=labeling_command(waiting, folder, given))


def labeling_command(waiting: AnnotationQuery, folder: Path, given: SimpleNamespace) -> str:
    """What takes the labels of a query, as soon as there are any; the index folder remembers the other settings."""
    remember(folder, as_flags(*vars(given).values(), but=EACH_ROUND))
    own = ["--strategy", given.query.strategy] if ":" in given.query.strategy else []
    return command("active_main.py", ["--annotate", "--index_dir", str(folder), *own, "--labels", waiting.labels_file])


def classifier_command(given: SimpleNamespace, folder: Path, cycle: int, split: Split) -> str:
    """What trains classifiers on the cycles; empty where one could not learn anything."""
    if len(split.target_classes) == 1 and not len(split.set_aside):
        return ""  # nothing to tell the class from
    words = [*as_flags(given.data), "--cycles", str(cycle), "--index_dir", str(folder)]
    if given.annotation.annotate:
        words += ["--out_path", str(folder / "classifier")]
    return command("train_classifier/main.py", words)


def command(script: str, words: Sequence[str]) -> str:
    """A script's command as the shell takes it in this folder."""
    return shlex.join(["python", os.path.relpath(ROOT / script), *words])


if __name__ == "__main__":
    sys.exit(run_command(main))
