"""Scores the unlabeled pool with both encoders and queries it, cycle after cycle; writes an index file per cycle."""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common import arguments, checkpoint, distributed, next_steps
from common.acceleration import Precision
from common.cli import run_cli
from common.console import finish, log, set_quiet
from common.determinism import deterministic
from common.files import require_writable
from common.interruption import Interruption
from common.lock import folder_lock
from datasets import load_data_and_split
from datasets.index_files import default_index_dir, index_path
from datasets.split import Split
from evals.annotation.loop import resume_annotation, write_next_query
from evals.banks import Sources, default_batch, feature_banks, load_encoder, with_shift
from evals.cycle_report import cycle_line, print_scores, save_scores
from evals.cycles import Cycle, query_cycles, query_once
from evals.features import Extraction, FeatureBank
from evals.index_folder import IndexFolder, check_folder
from evals.query import STRATEGIES
from models.transform_layers import SHIFT_COUNTS, Augmentation, check_shift
from utils import InputError

ROOT = Path(__file__).resolve().parent
# What index files record of the flags: a query is continued with the same alone.
RECORDED = ("k", "t", "target", "ood_samples", "resize_factor", "resize_fix", "seed", "feature_dtype")


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = arguments.Parser(__doc__)
    arguments.add_query_args(parser)
    arguments.add_annotation_args(parser)
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
    check_annotation_flags(args.annotate, labels=args.labels, partial=args.partial, resume=args.resume == "auto")
    strategy = STRATEGIES[args.strategy]
    paths = checkpoint_paths(
        strategy.needs, args.load_path, semantic=args.load_semantic_path, distinctive=args.load_feature_path
    )
    shifts = shifts_of(strategy.needs, args.shift_trans_type)
    model = arguments.backbone(args.model, args.image_size)
    cache = Path(args.feature_cache) if args.feature_cache else None
    with (
        Interruption(max_minutes=args.max_minutes) as interruption,
        distributed.session(args.device, timeout_minutes=args.timeout_minutes) as device,
        deterministic(args.deterministic, device),
        contextlib.ExitStack() as locks,
    ):
        precision = Precision.resolve(args.precision, device)
        precision.apply_to_products()
        data, split = load_data_and_split(args.dataset, args.data_path, **arguments.split_settings(args))
        folder = Path(args.index_dir or default_index_dir(ROOT, data.name, split.mismatch, args.strategy))
        labels, state = data.train_labels, None
        if args.annotate:
            lock_index_dir(folder, locks)
            file = Path(args.labels) if args.labels else None
            again = functools.partial(next_steps.after_labeling, sys.argv[1:] if argv is None else argv)
            state = resume_annotation(folder, data, split, file=file, partial=args.partial, overwrite=args.overwrite)
            if state.waiting:
                log(f"next: {again(state.waiting.labels_file)}")
            if state.waiting or not len(state.split.unlabeled):
                return
            split, labels = state.split, state.labels
        elif not data.has_oracle:
            raise InputError(f"nobody has labeled the images in {args.data_path}/unlabeled: give --annotate")
        if "distinctive" in strategy.needs:
            check_shift(args.shift_trans_type, data.image_size)
        # Later cycles take what is left, as those of a simulation do.
        asked = 0 if state and state.cycle else args.target
        check_budget(split, labels, target=asked, needs=strategy.needs)
        if not args.annotate:
            lock_index_dir(folder, locks)
            check_folder(folder, overwrite=args.overwrite, resume=args.resume == "auto")

        views = Extraction(
            augmentation=Augmentation(args.resize_factor, args.resize_fix),
            views=args.ood_samples,
            shift="none",
            shift_numbers=(0,),
            seed=args.seed,
            batch_size=args.test_batch_size or default_batch(device, data.image_size),
            precision=precision,
        )
        how = {name: with_shift(views, shifts[name]) for name in strategy.needs}
        for name in strategy.needs:
            expected = {"mode": name, "dataset": args.dataset, "model": model, "shift_trans_type": shifts[name]}
            checkpoint.check_run(
                paths[name], split_digest=split.digest, expected=expected, may_have_changed=args.annotate
            )
        everything = np.sort(np.concatenate([split.unlabeled, split.labeled, split.set_aside]))
        sources = Sources.of(paths, data.train_images, everything)
        settings = {name: getattr(args, name) for name in RECORDED} | {"precision": precision.name}
        if strategy.needs:
            settings |= {"model": model, "simclr_dim": args.simclr_dim, "shift_trans_type": args.shift_trans_type}
        settings |= sources.record()
        distributed.require_same(sources.record(), "checkpoints or images are not the same at every process")
        files = IndexFolder(folder, data=data, split=split, strategy=args.strategy, settings=settings)
        left = files.resume() if args.resume == "auto" else split
        distributed.require_same(files.summary(), f"the index files in {folder} are not the same at every process")
        if not args.annotate and (len(files.queried) >= args.split or not len(left.unlabeled)):
            log(f"{files.summary()}: nothing is left to query (a larger --split adds cycles while the pool lasts)")
            return

        encoders = {
            name: load_encoder(
                paths[name],
                model,
                num_classes=data.num_classes,
                shifts=SHIFT_COUNTS[shifts[name]],
                simclr_dim=args.simclr_dim,
                strict=not args.no_strict,
                device=device,
            )
            for name in strategy.needs
        }
        if cache and encoders and cache.resolve() != folder.resolve():
            require_writable(cache, "--feature_cache")
            locks.enter_context(folder_lock(cache))  # another query must not replace the features while they are read
        banks = feature_banks(
            encoders,
            data.train_images,
            everything,
            how,
            sources=sources,
            cache=cache,
            dtype=args.feature_dtype,
            device=device,
            check=functools.partial(
                serve_stop, interruption, files, lost="what was being extracted is lost", annotate=args.annotate
            ),
        )
        scoring = {"target": args.target, "k": args.k, "t": args.t, "seed": args.seed, "device": device}
        showing = {"printed": args.print_score, "saved": folder / "scores" if args.save_score else None}
        if state:
            cycle = query_once(split, labels, banks, strategy, number=state.cycle + 1, **scoring)
            show_scores(cycle, **showing)
            root = Path(args.data_path).expanduser()
            query = write_next_query(folder, root, state, data, cycle, strategy=args.strategy, settings=settings)
            finish([query.page, query.table], then=again(query.labels_file))
            return
        cycles = query_cycles(split, labels, banks, strategy, cycles=args.split, done=tuple(files.queried), **scoring)
        for cycle in cycles:
            log(cycle_line(cycle, data))
            files.begin()
            show_scores(cycle, **showing)
            files.add(cycle)  # last: a cycle with an index file is done
            left = cycle.split
            if cycle.number < args.split and len(left.unlabeled):
                interruption.margin = max(interruption.margin, cycle.seconds)
                serve_stop(interruption, files, lost=features_lost(banks, cache))
        if not len(left.unlabeled):
            log("the pool is empty: every image is labeled or set aside")
        data_flags = arguments.changed_flags(parser, args, next_steps.DATA_GROUPS)
        then = next_steps.after_query(folder, data=data_flags, cycles=len(files.queried))
        finish([index_path(folder, 0), index_path(folder, len(files.queried))], then=then)


def lock_index_dir(folder: Path, locks: contextlib.ExitStack) -> None:
    """Keeps other runs out of the index folder for as long as ``locks`` is held.

    Raises:
        InputError: It cannot be written, or another run has it.
    """
    require_writable(folder, "--index_dir")
    locks.enter_context(folder_lock(folder))


def show_scores(cycle: Cycle, *, printed: bool, saved: Path | None) -> None:
    """What --print_score and --save_score ask for."""
    if printed:
        print_scores(cycle)
    if saved and distributed.is_main():
        save_scores(saved, cycle)


def serve_stop(interruption: Interruption, files: IndexFolder, *, lost: str, annotate: bool = False) -> None:
    """Stops here if a signal or the time limit asks for it.

    Raises:
        Interrupted: It does; the message says what is on disk and what is lost.
    """
    if interruption.agreed():
        kept = f"labels are in {files.path} as far as they were given" if annotate else files.summary()
        how = "the same command" if annotate else "--resume auto"
        raise interruption.stop(f"{kept}; {lost}; {how} continues")


def features_lost(banks: dict[str, FeatureBank], cache: Path | None) -> str:
    """What a stop between two cycles loses."""
    if banks and cache is None:
        return "the features will be extracted again (--feature_cache would keep them)"
    return "nothing is lost"


def check_annotation_flags(annotate: bool, *, labels: str | None, partial: bool, resume: bool) -> None:
    """Refuses a flag that would do nothing.

    Raises:
        InputError: --labels without --annotate, --partial without --labels, or --resume auto with --annotate.
    """
    if annotate and resume:
        raise InputError("--annotate goes on where the labels are by itself: leave --resume auto out")
    if labels and not annotate:
        raise InputError(f"--labels {labels} goes with --annotate; give both")
    if partial and not labels:
        raise InputError("--partial says how to take --labels CSV; give both")


def checkpoint_paths(
    needs: Sequence[str], load_path: str, *, semantic: str | None, distinctive: str | None
) -> dict[str, Path]:
    """Where each needed encoder's checkpoint is; every missing one is an error before anything is computed.

    Raises:
        InputError: A file is not there.
    """
    given = {"semantic": semantic, "distinctive": distinctive}
    flags = {"semantic": "--load_semantic_path", "distinctive": "--load_feature_path"}
    paths = {name: Path(given[name] or Path(load_path) / name / checkpoint.MODEL_FILE) for name in needs}
    for name, path in paths.items():
        if not path.is_file():
            raise InputError(
                f"the {name} checkpoint {path} does not exist; train it with contrast_main.py --mode {name}, or name "
                f"it with {flags[name]}"
            )
    return paths


def shifts_of(needs: Sequence[str], shift_trans_type: str) -> dict[str, str]:
    """The kind of shifts of each encoder: none for the semantic one.

    Raises:
        InputError: The distinctive encoder is needed and no shifts are given.
    """
    if "distinctive" in needs and shift_trans_type == "none":
        raise InputError(
            "the distinctive encoder needs --shift_trans_type rotation or cutperm (as in its training), not none"
        )
    return {"semantic": "none", "distinctive": shift_trans_type}


def check_budget(split: Split, labels: np.ndarray, *, target: int, needs: Sequence[str]) -> None:
    """Refuses a query that the pool or the labeled set cannot serve.

    Raises:
        InputError: More images are asked for per cycle than the pool has, or a class has too few labeled images.
    """
    asked = target * len(split.target_classes)
    if asked > len(split.unlabeled):
        raise InputError(
            f"--target {target} asks for {asked} images a cycle ({len(split.target_classes)} classes) and the pool has "
            f"{len(split.unlabeled)}; the largest --target here is {len(split.unlabeled) // len(split.target_classes)}"
        )
    counts = np.bincount(split.class_numbers(labels[split.labeled]), minlength=len(split.target_classes))
    if "distinctive" in needs and counts.min() < 2:
        raise InputError(
            f"target class {split.target_classes[int(counts.argmin())]} has {counts.min()} labeled image and the "
            "distinctive score needs two: raise --initial_budget, take another --split_seed, or --strategy semantic"
        )


if __name__ == "__main__":
    sys.exit(run_cli(main))
