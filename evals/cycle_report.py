"""What a cycle leaves beside its index file: the printed line, figures of its scores, and what the report shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from common import plots
from common.console import log
from common.files import atomic_write
from datasets.base import UNKNOWN, Dataset
from datasets.mixed import counted
from evals import kept
from evals.cycles import Cycle, best_utility
from evals.features import FeatureBank
from evals.metrics import describe

FLAT = -0.9  # of S(u), which is -1 far below t


def cycle_line(cycle: Cycle, data: Dataset) -> str:
    """What a cycle found, in one line; a class that had too few candidates is named, and a mixed pool's sources are."""
    metrics, names = cycle.metrics, [data.class_names[label] for label in cycle.split.target_classes]
    per_class = ", ".join(f"{name} {found}" for name, found in zip(names, metrics["found_per_class"], strict=True))
    areas = {"semantic": metrics["auroc_semantic"], "score": metrics["auroc_utility"]}
    area = "  ".join(f"AUROC {name} {value:.4f}" for name, value in areas.items() if value is not None)
    precision = "-" if metrics["precision"] is None else f"{metrics['precision']:.1f} %"
    line = (
        f"cycle {cycle.number}: queried {metrics['queried']}  target {metrics['found']} ({per_class})  precision "
        f"{precision}  recall {metrics['recall']:.1f} %  labeled {metrics['labeled']}  pool {metrics['pool']}  {area}  "
        f"{cycle.seconds:.2f} s"
    )
    for number, missing in cycle.result.shortfall.items():
        line += f"\n  class {names[number]}: {missing} fewer than --queries_per_class, no more candidates"
    if data.sources:
        line += f"\n  queried: {counted(data, cycle.result.indices)}"
    return line


def flat_warning(cycle: Cycle) -> str | None:
    """A warning where the joint score is mostly the distinctive term: more than a fifth of the query is far below t."""
    below = float(np.mean(cycle.result.semantic < FLAT)) if len(cycle.result.indices) else 0.0
    if cycle.inputs.scores.distinctive is None or not below > 0.2:  # without a semantic score it is NaN
        return None
    return (
        f"cycle {cycle.number}: for {100 * below:.0f} % of the query S(u) is below {FLAT}, where it is flat and D(u) "
        "alone ranks; it prefers what is unlike the labeled: give --t auto, a smaller --k or --strategy posterior"
    )


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


def keep_cycle(folder: Path, cycle: Cycle, data: Dataset, *, every_score: bool) -> None:
    """Writes what the report shows of a cycle; with ``every_score`` also all scores of all images, and a histogram."""
    queried, answered = cycle.result.indices, cycle.is_target is not None
    if every_score:
        _save_every_score(folder / "scores", cycle)
    kept.save_cycle(
        folder,
        cycle.number,
        pool=cycle.inputs.pool,
        utilities=cycle.utilities,
        result=cycle.result,
        scores=cycle.inputs.scores,
        is_target=cycle.is_target,
        images=data.train_images,
        paths=None if answered else [data.paths[image] for image in queried],
        names=[data.class_names[label] for label in data.train_labels[queried]] if answered else None,
    )


def keep_features(folder: Path, banks: dict[str, FeatureBank], labels: np.ndarray, data: Dataset) -> None:
    """Writes a sample of the features for the report; ``labels`` (N,) as far as they are known."""
    known = np.maximum(labels, UNKNOWN)  # an image that people set aside is of no class
    kept.save_sample(folder, banks, known, class_names=data.class_names, paths=data.paths)


def _save_every_score(folder: Path, cycle: Cycle) -> None:
    """Writes all_scores_N.npz, and cycle_N.png, the histogram of the query score."""
    arrays = {name.replace(" ", "_"): values for name, values in named_scores(cycle).items()}
    if cycle.inputs.scores.pseudo_class is not None:
        arrays["pseudo_class"] = cycle.inputs.scores.pseudo_class.cpu().numpy()
    pool = cycle.inputs.pool
    groups = {"pool": np.ones(len(pool), dtype=bool)}
    if cycle.is_target is not None:
        arrays["is_target"] = cycle.is_target
        groups = {"target": cycle.is_target, "other": ~cycle.is_target}
    groups["queried"] = np.isin(pool, cycle.result.indices)
    path = folder / f"all_scores_{cycle.number}.npz"
    with atomic_write(path) as file:
        np.savez(file, indices=pool, queried=cycle.result.indices, **arrays)
    values = {name: arrays["query_score"][mask] for name, mask in groups.items()}
    plots.plot_histogram(folder / f"cycle_{cycle.number}.png", values, label=f"query score, cycle {cycle.number}")
    log(f"  wrote {path} and cycle_{cycle.number}.png")
