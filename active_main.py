"""Scores the unlabeled pool with both encoders and queries it, cycle after cycle; writes an index file per cycle."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from common import arguments, checkpoint, distributed, plots
from common.acceleration import Precision
from datasets import load_data_and_split
from datasets.base import Dataset
from datasets.index_files import IndexFile, default_index_dir, index_path, write_index_file
from datasets.split import Split
from evals import feature_cache
from evals.cycles import Cycle, best_utility, query_cycles
from evals.features import Extraction, FeatureBank, extract_features
from evals.metrics import describe
from evals.query import STRATEGIES
from models import build_encoder
from models.transform_layers import SHIFT_COUNTS, Augmentation, check_shift
from utils import InputError, atomic_write, log, require_writable, run_cli, set_seed

ROOT = Path(__file__).resolve().parent
CPU_BATCH, GPU_BATCH = 100, 1000  # images of 32 pixels per forward batch where --test_batch_size is not given


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = arguments.Parser(__doc__)
    arguments.add_query_args(parser)
    arguments.add_data_args(parser)
    arguments.add_encoder_args(parser)
    arguments.add_augmentation_args(parser)
    arguments.add_process_args(parser)
    arguments.add_precision_args(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    strategy = STRATEGIES[args.strategy]
    paths = checkpoint_paths(
        strategy.needs, args.load_path, semantic=args.load_semantic_path, distinctive=args.load_feature_path
    )
    shifts = shifts_of(strategy.needs, args.shift_trans_type)
    folder = (
        Path(args.index_dir) if args.index_dir else default_index_dir(ROOT, args.dataset, args.mismatch, args.strategy)
    )
    with distributed.session(args.device) as device:
        set_seed(args.seed)
        precision = Precision.resolve(args.precision, device)
        precision.apply_to_products()
        data, split = load_data_and_split(args.dataset, args.data_path, **arguments.split_settings(args))
        if "distinctive" in strategy.needs:
            check_shift(args.shift_trans_type, data.image_size)
        check_budget(split, data.train_labels, target=args.target, needs=strategy.needs)
        check_folder(folder, overwrite=args.overwrite)

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
            expected = {"mode": name, "dataset": args.dataset, "model": args.model, "shift_trans_type": shifts[name]}
            checkpoint.check_run(paths[name], split_digest=split.digest, expected=expected)
        encoders = {
            name: load_encoder(
                paths[name],
                args.model,
                num_classes=data.num_classes,
                shifts=SHIFT_COUNTS[shifts[name]],
                simclr_dim=args.simclr_dim,
                strict=not args.no_strict,
                device=device,
            )
            for name in strategy.needs
        }
        banks = feature_banks(
            encoders,
            data.train_images,
            np.sort(np.concatenate([split.unlabeled, split.labeled])),
            how,
            checkpoints=paths,
            cache=Path(args.feature_cache) if args.feature_cache else None,
            dtype=args.feature_dtype,
            device=device,
        )

        record = {
            name: getattr(args, name)
            for name in ("k", "t", "target", "ood_samples", "resize_factor", "resize_fix", "seed", "feature_dtype")
        }
        record["precision"] = precision.name
        record["checkpoints"] = {name: str(paths[name]) for name in strategy.needs}
        clear_folder(folder)
        write_cycle(folder, data, split, strategy=args.strategy, settings=record)
        for cycle in query_cycles(
            split,
            data.train_labels,
            banks,
            strategy,
            cycles=args.split,
            target=args.target,
            k=args.k,
            t=args.t,
            seed=args.seed,
            device=device,
        ):
            log(cycle_line(cycle, data.class_names))
            if args.print_score:
                print_scores(cycle)
            write_cycle(folder, data, cycle.split, strategy=args.strategy, settings=record, cycle=cycle)
            if args.save_score and distributed.is_main():
                save_scores(folder / "scores", cycle)
            split = cycle.split
        if not len(split.unlabeled):
            log("the pool is empty: every image is labeled or set aside")
        log(f"wrote {index_path(folder, 0)} and one file per cycle; next: the classifier, train_classifier/main.py")


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


def with_shift(views: Extraction, shift: str) -> Extraction:
    """The same extraction for all copies of a kind of shift."""
    return dataclasses.replace(views, shift=shift, shift_numbers=tuple(range(SHIFT_COUNTS[shift])))


def default_batch(device: torch.device, image_size: tuple[int, int]) -> int:
    """Images per forward batch: the original's 100, and on GPUs, which small batches leave idle, up to 1000."""
    if device.type != "cuda":
        return CPU_BATCH
    return max(CPU_BATCH, GPU_BATCH * 32 * 32 // (image_size[0] * image_size[1]))


def load_encoder(
    path: Path, model: str, *, num_classes: int, shifts: int, simclr_dim: int, strict: bool, device: torch.device
) -> nn.Module:
    """An encoder with a checkpoint's weights."""
    encoder = build_encoder(model, num_classes=num_classes, shifts=shifts, simclr_dim=simclr_dim)
    checkpoint.load_weights(path, encoder, strict=strict)
    return encoder.to(device, memory_format=torch.channels_last)


def feature_banks(
    encoders: dict[str, nn.Module],
    train_images: np.ndarray,
    indices: np.ndarray,
    how: dict[str, Extraction],
    *,
    checkpoints: dict[str, Path],
    cache: Path | None,
    dtype: str,
    device: torch.device,
) -> dict[str, FeatureBank]:
    """Every encoder's features, once for all cycles; those that the cache holds are not extracted again.

    Args:
        encoders: By name.
        train_images: uint8, (M, H, W, 3).
        indices: Images to encode, ascending, (N,).
        how: Settings by encoder.
        checkpoints: Files by encoder, for the cache's record.
        cache: Folder of kept features, or None.
        dtype: ``float32`` or ``float16``, in which features are kept.
        device: Of the encoders.

    Raises:
        InputError: The cache holds features of something else.
    """
    banks: dict[str, FeatureBank] = {}
    records: dict[str, dict[str, Any]] = {}
    if cache is not None:
        require_writable(cache, "--feature_cache")
        for name in encoders:
            records[name] = feature_cache.describe(checkpoints[name], train_images, indices, how[name], dtype=dtype)
            network = encoders[name]  # with --no_strict one checkpoint fits several
            records[name]["network"] = [type(network).__name__, network.simclr_layer[-1].out_features]
            if found := feature_cache.find(cache, name, records[name], indices):
                banks[name] = found
                log(f"{name} features of {len(indices)} images: kept from {cache}")
        distributed.barrier()  # every process has looked before the first one writes
    if len(banks) == len(encoders):
        return banks
    images = torch.from_numpy(train_images).to(device).permute(0, 3, 1, 2).contiguous()
    for name in [name for name in encoders if name not in banks]:  # in one order, which a set has not, everywhere
        start, encoder = time.perf_counter(), encoders[name]
        if cache is not None:
            banks[name] = feature_cache.make(cache, name, records[name], encoder, images, indices, how[name])
        else:
            bank = extract_features(encoder, images, indices, how[name], name=f"{name} features")
            banks[name] = FeatureBank(indices, feature_cache.narrowed(bank.features, dtype))
        seconds = time.perf_counter() - start
        log(f"{name} features of {len(indices)} images: {seconds:.1f} s ({checkpoints[name]})")
    return banks


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


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuses an index folder that cannot be made, or that holds an earlier query's files, before anything is computed.

    Raises:
        InputError: It is no folder or not writable, or holds index files and ``--overwrite`` was not given.
    """
    require_writable(folder, "--index_dir")
    earlier = sorted(folder.glob("cycle_*.json"))
    if earlier and not overwrite:
        raise InputError(
            f"{folder} already holds index files ({earlier[0].name}, ...): give --overwrite to replace them, or "
            "another --index_dir"
        )
    # Every process has looked before the first one writes.
    distributed.barrier()


def clear_folder(folder: Path) -> None:
    """Makes the index folder without an earlier query's files; called when all that the new one reads is checked."""
    if distributed.is_main():
        folder.mkdir(parents=True, exist_ok=True)
        for pattern in ("cycle_*.json", "scores/cycle_*.npz", "scores/cycle_*.png"):
            for path in folder.glob(pattern):
                path.unlink()


def write_cycle(
    folder: Path, data: Dataset, split: Split, *, strategy: str, settings: dict[str, Any], cycle: Cycle | None = None
) -> None:
    """Writes a cycle's index file from the first process; without a cycle, the initial set's."""
    if not distributed.is_main():
        return
    content = IndexFile(
        dataset=data.name,
        mismatch=split.mismatch,
        split_digest=split.digest,
        target_classes=list(split.target_classes),
        strategy=strategy,
        cycle=cycle.number if cycle else 0,
        labeled=split.labeled.tolist(),
        queried=cycle.result.indices.tolist() if cycle else [],
        set_aside=split.set_aside.tolist(),
        settings=settings,
        metrics=cycle.metrics if cycle else {"labeled": len(split.labeled), "pool": len(split.unlabeled)},
        seconds=round(cycle.seconds, 3) if cycle else 0.0,
    )
    write_index_file(folder, content)


def cycle_line(cycle: Cycle, class_names: tuple[str, ...]) -> str:
    """What a cycle found, in one line; a class that had too few candidates is named."""
    metrics = cycle.metrics
    per_class = ", ".join(
        f"{class_names[label]} {found}"
        for label, found in zip(cycle.split.target_classes, metrics["found_per_class"], strict=True)
    )
    area = "  ".join(
        f"AUROC {name} {metrics[key]:.4f}"
        for name, key in (("semantic", "auroc_semantic"), ("score", "auroc_utility"))
        if metrics[key] is not None
    )
    precision = "-" if metrics["precision"] is None else f"{metrics['precision']:.1f} %"
    line = (
        f"cycle {cycle.number}: queried {metrics['queried']}  target {metrics['found']} ({per_class})  precision "
        f"{precision}  recall {metrics['recall']:.1f} %  labeled {metrics['labeled']}  pool {metrics['pool']}  {area}  "
        f"{cycle.seconds:.2f} s"
    )
    for number, missing in cycle.result.shortfall.items():
        name = class_names[cycle.split.target_classes[number]]
        line += f"\n  class {name}: {missing} fewer than --target, no more candidates"
    return line


def named_scores(cycle: Cycle) -> dict[str, np.ndarray]:
    """Every score of the cycle's pool by name, one value per image (the distances and D_i: per image and class)."""
    scores = cycle.inputs.scores
    found = {"semantic similarity": scores.similarity, "semantic": scores.semantic}
    found |= {"distinctive distance": scores.distance, "distinctive": scores.distinctive}
    arrays = {name: value.cpu().numpy() for name, value in found.items() if value is not None}
    return arrays | {"query score": best_utility(cycle.utilities)}


def print_scores(cycle: Cycle) -> None:
    """Mean, deviation and quantiles of each score over the pool of this cycle."""
    for name, values in named_scores(cycle).items():
        log(f"  {name:20} " + "  ".join(f"{key} {value:.4g}" for key, value in describe(values.ravel()).items()))


def save_scores(folder: Path, cycle: Cycle) -> None:
    """Writes a cycle's scores (npz) and the histogram of the query score (png)."""
    arrays = {name.replace(" ", "_"): values for name, values in named_scores(cycle).items()}
    if cycle.inputs.scores.pseudo_class is not None:
        arrays["pseudo_class"] = cycle.inputs.scores.pseudo_class.cpu().numpy()
    pool = cycle.inputs.pool
    with atomic_write(folder / f"cycle_{cycle.number}.npz") as file:
        np.savez(file, indices=pool, queried=cycle.result.indices, is_target=cycle.is_target, **arrays)
    queried = np.isin(pool, cycle.result.indices)
    groups = {"target": cycle.is_target, "other": ~cycle.is_target, "queried": queried}
    score = arrays["query_score"]
    plots.plot_histogram(
        folder / f"cycle_{cycle.number}.png",
        {name: score[mask] for name, mask in groups.items()},
        label=f"query score, cycle {cycle.number}",
    )
    log(f"  wrote {folder / f'cycle_{cycle.number}.npz'} and .png")


if __name__ == "__main__":
    sys.exit(run_cli(main))
