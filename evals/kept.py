"""What a query keeps for the report in ``scores/`` beside its index files; only this module reads and writes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from common.files import atomic_write, read_npz
from evals.features import FeatureBank
from evals.query import QueryResult
from evals.scores import PoolScores
from utils import InputError

MAX_POOL, MAX_SAMPLE = 100_000, 2000  # images whose scores are kept, and whose features are
ROW = 12  # images shown of a kind
THUMBNAIL = 64  # pixels of the longer side, at most
# The kind of dtype (F: finite) and a letter per axis; arrays with a ? may be empty, which stands for None.
CYCLE = {
    "pool": "iu", "pool_size": "i", "query_score": "fu", "pseudo_class": "iu", "semantic": "Fu?", "distinctive": "Fu?",
    "is_target": "bu?", "queried": "iq", "paths": "Uq?", "names": "Uq?", "pictured": "ip", "thumbnails": "uphwc?",
}  # fmt: skip
SAMPLE = {
    "images": "in", "labels": "in", "class_names": "Uc", "paths": "Un?", "semantic": "Fnkd?", "distinctive": "Fnse?",
    "penultimate": "Fnpw?",
}  # fmt: skip
BANKS = ("semantic", "distinctive", "penultimate")


@dataclass(frozen=True)
class KeptCycle:
    """One cycle; of a pool above MAX_POOL images, the queried ones and a random sample of the others."""

    pool: np.ndarray  # image numbers, ascending, (U,)
    pool_size: int  # images in the whole pool
    query_score: np.ndarray  # what the strategy ranked by, the best over the classes, -inf for no candidate, (U,)
    pseudo_class: np.ndarray  # class number for which each image is a candidate, (U,)
    semantic: np.ndarray | None  # S(u), (U,)
    distinctive: np.ndarray | None  # D_i(u) of the pseudo class i, (U,)
    is_target: np.ndarray | None  # None where nobody knows, (U,)
    queried: np.ndarray  # image numbers in the order of selection, (Q,)
    paths: np.ndarray | None  # of the queried, where people label them, (Q,)
    names: np.ndarray | None  # class names of the queried, where they are known, (Q,)
    pictured: np.ndarray  # places in ``queried`` of those with a thumbnail, ascending, (P,)
    thumbnails: np.ndarray  # uint8 (P, H, W, 3)

    @property
    def rows(self) -> np.ndarray:
        """Where in the pool the queried are, (Q,)."""
        return np.searchsorted(self.pool, self.queried)


@dataclass(frozen=True)
class KeptSample:
    """Features of at most MAX_SAMPLE images of the pool and the labeled set; of a query without features, no images."""

    images: np.ndarray  # image numbers, ascending, (n,)
    labels: np.ndarray  # data set classes, -1 where unknown, (n,)
    class_names: tuple[str, ...]  # of all classes
    paths: np.ndarray | None  # of the images, where people label them, (n,)
    features: dict[str, np.ndarray]  # by bank, those of BANKS that the query had, unit norm, float16 (n, K, D)


def cycle_path(index_dir: Path, number: int) -> Path:
    return Path(index_dir) / "scores" / f"cycle_{number}.npz"


def sample_path(index_dir: Path) -> Path:
    return Path(index_dir) / "scores" / "sample.npz"


def rows_of_pictures(score: np.ndarray, is_wrong: np.ndarray) -> dict[str, np.ndarray]:
    """Places of the highest, the lowest and the wrong queried images by query score, (Q,); ROW of each at most."""
    order = np.argsort(-score, kind="stable")
    return {"highest": order[:ROW], "lowest": order[ROW:][-ROW:], "wrong": order[is_wrong[order]][:ROW]}


def save_cycle(
    index_dir: Path,
    number: int,
    *,
    pool: np.ndarray,
    utilities: Tensor,
    result: QueryResult,
    scores: PoolScores,
    is_target: np.ndarray | None,
    images: np.ndarray,
    paths: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """Writes what is kept of cycle ``number``: of its ``pool`` (U,), ``utilities`` (U, C), ``result`` and ``scores``.

    ``is_target`` (U,) is None where nobody knows. ``images`` are all train images, uint8 (N, H, W, 3); ``paths`` and
    ``names`` (of classes) are those of the queried images, in their order.
    """
    keep = np.isin(pool, result.indices)
    others = np.flatnonzero(~keep)
    count = min(len(others), max(0, MAX_POOL - int(keep.sum())))
    keep[np.random.default_rng(number).choice(others, count, replace=False)] = True
    rows = np.flatnonzero(keep)
    rows = rows[np.argsort(pool[rows])]
    classes = utilities.argmax(1) if scores.pseudo_class is None else scores.pseudo_class
    distinctive = None if scores.distinctive is None else scores.distinctive.gather(1, classes[:, None])[:, 0]
    wrong = np.isin(result.indices, pool[:0] if is_target is None else pool[~is_target])
    pictured = [*rows_of_pictures(result.utility, wrong).values()]
    if is_target is None:  # some of the best will turn out to be wrong: more of them are kept
        pictured.append(np.argsort(-result.utility, kind="stable")[: 5 * ROW])
    pictured = np.unique(np.concatenate(pictured))
    thumbnails = [Image.fromarray(np.asarray(images[image])) for image in result.indices[pictured]]
    for thumbnail in thumbnails:
        thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
    arrays = {"query_score": utilities.amax(1), "semantic": scores.semantic, "distinctive": distinctive}
    arrays = {key: None if value is None else value.float().cpu().numpy()[rows] for key, value in arrays.items()}
    arrays |= {"pool": pool[rows], "pool_size": len(pool), "pseudo_class": classes.cpu().numpy()[rows]}
    arrays |= {"is_target": None if is_target is None else is_target[rows], "queried": result.indices}
    arrays |= {"paths": paths, "names": names, "pictured": pictured, "thumbnails": [*map(np.asarray, thumbnails)]}
    _write(cycle_path(index_dir, number), arrays)


def save_sample(
    index_dir: Path,
    banks: dict[str, FeatureBank],
    labels: np.ndarray,
    *,
    class_names: Sequence[str] = (),
    paths: Sequence[str] | None = None,
    seed: int = 0,
) -> None:
    """Writes the names of the classes, and features of a random sample of the images in ``banks``, named as in BANKS.

    ``labels`` (N,), -1 where unknown, and ``paths``, where people label the images, are of all train images.
    """
    indices = next((bank.indices for bank in banks.values()), np.empty(0, dtype=np.int64))
    images = np.sort(np.random.default_rng(seed).permutation(indices)[:MAX_SAMPLE])
    arrays = {name: F.normalize(bank.of(images).float(), dim=2).half().cpu().numpy() for name, bank in banks.items()}
    arrays |= {"images": images, "labels": labels[images], "class_names": np.asarray(class_names, dtype=np.str_)}
    arrays["paths"] = [paths[image] for image in images] if paths else None
    _write(sample_path(index_dir), dict.fromkeys(BANKS) | arrays)


def _write(path: Path, arrays: dict[str, Any]) -> None:
    with atomic_write(path) as file:
        np.savez_compressed(file, **{name: [] if array is None else array for name, array in arrays.items()})


def read_cycle(path: Path) -> KeptCycle:
    """Reads what is kept of a cycle; raises InputError where the file is missing, damaged or something else."""
    arrays = _read(path, CYCLE)
    if arrays["thumbnails"] is None:
        arrays["thumbnails"] = np.zeros((0, 1, 1, 3), dtype=np.uint8)
    cycle = KeptCycle(**{**arrays, "pool_size": int(arrays["pool_size"])})
    shape, sizes = cycle.thumbnails.shape[1:], (len(cycle.thumbnails), len(cycle.pictured))
    sound = (np.diff(cycle.pool) > 0).all() and np.isin(cycle.queried, cycle.pool).all()
    sound &= (np.diff(cycle.pictured) > 0).all() and np.isin(cycle.pictured, np.arange(len(cycle.queried))).all()
    if not sound or (cycle.pseudo_class < 0).any() or max(shape) > THUMBNAIL or shape[2] != 3 or sizes[0] != sizes[1]:
        raise InputError(f"{path} is damaged: its arrays contradict each other; query again to write it")
    return cycle


def read_sample(path: Path) -> KeptSample:
    """Reads the sample of features; raises InputError where the file is missing, damaged or something else."""
    arrays = _read(path, SAMPLE)
    features = {name: arrays.pop(name) for name in BANKS}
    arrays["features"] = {name: array for name, array in features.items() if array is not None}
    return KeptSample(**{**arrays, "class_names": tuple(arrays["class_names"].tolist())})


def _read(path: Path, layout: dict[str, str]) -> dict[str, Any]:
    arrays, lengths = read_npz(path, list(layout), optional=["penultimate"]), {}  # earlier versions wrote none
    for name, words in layout.items():
        array, axes = arrays.get(name, np.empty(0)), words[1:].rstrip("?")
        if words.endswith("?") and not array.size:
            arrays[name] = None
            continue
        fits = array.dtype.kind == words[0].replace("F", "f") and array.ndim == len(axes)
        fits = fits and (words[0] != "F" or np.isfinite(array).all())
        if not fits or any(lengths.setdefault(axis, size) != size for axis, size in zip(axes, array.shape)):
            raise InputError(f"{path} is damaged: {name} is {array.dtype} {array.shape}; query again to write it")
    return arrays
