"""The scores of a query's pool, cycle by cycle: from --save_score's files, or computed again from features."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common.files import read_npz
from datasets import Dataset, Split
from datasets.index_files import IndexFile
from evals.cycles import best_utility
from evals.features import FeatureBank
from evals.query import STRATEGIES, QueryInputs, select
from evals.scores import Scorer
from utils import InputError

UNKNOWN, OTHER, TARGET = -1, 0, 1  # what is known of an image


@dataclass(frozen=True)
class PoolCycle:
    """One cycle's pool before the query.

    Attributes:
        number: From 1.
        pool: Its images, int64 (U,).
        queried: In the order of selection, int64 (Q,).
        utility: The best value over the classes of what the strategy ranked by, (U,).
        pseudo_class: Class number that each image would be queried for, (U,), or None.
        semantic: S(u), (U,), or None.
        distinctive: D_i(u) of the pseudo class i, (U,), or None.
        truth: UNKNOWN, OTHER or TARGET of each image as the file of scores has it, (U,), or None.
    """

    number: int
    pool: np.ndarray
    queried: np.ndarray
    utility: np.ndarray
    pseudo_class: np.ndarray | None
    semantic: np.ndarray | None
    distinctive: np.ndarray | None
    truth: np.ndarray | None = None

    @property
    def is_queried(self) -> np.ndarray:
        """Of each image of the pool, (U,)."""
        return np.isin(self.pool, self.queried)


def read_scores(path: Path, content: IndexFile) -> PoolCycle:
    """Reads what --save_score wrote for a cycle.

    Raises:
        InputError: The file is damaged, or of another query than the index file.
    """
    needs = STRATEGIES[content.strategy].needs
    names = ["indices", "query_score"]
    names += ["pseudo_class", "semantic"] if "semantic" in needs else []
    names += ["distinctive"] if "distinctive" in needs else []
    try:
        arrays = read_npz(path, [*names, "is_target"])
    except InputError:  # where nobody knows all labels, there is no such array
        arrays = read_npz(path, names)
    pool, utility = arrays["indices"], arrays["query_score"]
    classes, semantic, distinctive = (arrays.get(name) for name in ("pseudo_class", "semantic", "distinctive"))
    try:
        if not np.issubdtype(pool.dtype, np.integer) or pool.ndim != 1 or utility.shape != pool.shape:
            raise ValueError("indices and query_score do not belong together")
        utility = utility.astype(np.float64)
        semantic = None if semantic is None else semantic.astype(np.float64)
        if distinctive is not None:
            distinctive = distinctive[np.arange(len(pool)), classes].astype(np.float64)
        truth = np.asarray(arrays["is_target"], dtype=np.int8) if "is_target" in arrays else None
        if any(part.shape != pool.shape for part in (classes, semantic, distinctive, truth) if part is not None):
            raise ValueError("a score is missing for some images")
        queried = np.asarray(content.queried, dtype=np.int64)
        if len(np.unique(pool)) < len(pool) or len(np.setdiff1d(queried, pool)):
            raise ValueError("its pool lacks an image that the index file beside it queries, or has one twice")
        cycle = PoolCycle(content.cycle, pool, queried, utility, classes, semantic, distinctive, truth)
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path} is damaged or no file of --save_score ({error})") from None
    return cycle


def replay(
    files: Sequence[IndexFile],
    data: Dataset,
    split: Split,
    banks: dict[str, FeatureBank],
    *,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[PoolCycle, int]]:
    """Scores the pool of every cycle as the query did, given what it had labeled by then.

    Args:
        files: Index files from cycle 0 on.
        data: The images.
        split: The initial one.
        banks: Features by encoder.
        device: Where to compute.

    Yields:
        The cycle, and how many of its queried images these scores would query.

    Raises:
        InputError: The files do not follow from each other.
    """
    settings, strategy = files[0].settings, STRATEGIES[files[0].strategy]
    count, bank = len(files[0].target_classes), next(iter(banks.values()))
    parts = [banks[name].features if name in banks else None for name in ("semantic", "distinctive")]
    scorer, labeled, scored = None, *np.empty((2, 0), dtype=np.int64)
    everything = np.union1d(split.unlabeled, [image for content in files for image in content.queried]).astype(np.int64)
    pool = split.unlabeled
    for before, content in itertools.pairwise(files):
        known = np.asarray(before.labeled, dtype=np.int64)
        queried = np.asarray(content.queried, dtype=np.int64)
        classes = labeled_classes(before, data, split)
        follows = np.array_equal(known[: len(labeled)], labeled) and np.array_equal(classes[: len(scored)], scored)
        if before.files is not None:  # a person may take back or correct labels, and images may move within the folder
            pool = np.setdiff1d(everything, [*before.labeled, *before.set_aside])
            if len(np.unique(classes)) < count:
                raise InputError(f"a class has no labeled image before cycle {content.cycle} (any more)")
        if (before.files is None and not follows) or len(np.setdiff1d(queried, pool)):
            raise InputError(f"the labeled images of cycle {content.cycle} do not follow from those before it")
        if scorer is None or not follows:
            scorer = Scorer(*parts, num_classes=count, k=settings["k"], t=settings["t"], device=device)
            labeled = labeled[:0]
        new = known[len(labeled) :]
        features = [banks[name].of(new) if name in banks else None for name in ("semantic", "distinctive")]
        scorer.add_labeled(*features, torch.from_numpy(classes[len(labeled) :]))
        scored = classes
        labeled = known
        inputs = QueryInputs(
            pool=pool,
            labeled=labeled,
            labeled_classes=classes,
            num_classes=count,
            scores=scorer.scores(torch.from_numpy(bank.rows(pool))),
            banks=banks,
            rng=np.random.default_rng([settings["seed"], content.cycle]),
        )
        utilities = strategy.utilities(inputs)
        again = select(utilities, inputs, target=settings["target"]).indices
        scores, distinctive = inputs.scores, None
        pseudo_class = scores.pseudo_class.cpu().numpy()
        if scores.distinctive is not None:
            distinctive = scores.distinctive.cpu().numpy()[np.arange(len(pool)), pseudo_class]
        semantic = scores.semantic.cpu().numpy()
        cycle = PoolCycle(content.cycle, pool, queried, best_utility(utilities), pseudo_class, semantic, distinctive)
        yield cycle, len(np.intersect1d(again, queried))
        pool = pool[~np.isin(pool, queried)]


def labeled_classes(content: IndexFile, data: Dataset, split: Split) -> np.ndarray:
    """Class numbers of a file's labeled images, (L,): as people gave them, or as the data set knows them."""
    if content.labels is not None:
        return np.asarray(content.labels, dtype=np.int64)
    return split.class_numbers(data.train_labels[np.asarray(content.labeled, dtype=np.int64)])


@dataclass(frozen=True)
class Truth:
    """What is known of images by now.

    Attributes:
        images: Those of which something is known, ascending, int64 (n,).
        values: OTHER or TARGET, (n,).
    """

    images: np.ndarray
    values: np.ndarray

    def of(self, images: np.ndarray) -> np.ndarray:
        """UNKNOWN, OTHER or TARGET of each image, (m,)."""
        values = np.full(len(images), UNKNOWN)
        known = np.isin(images, self.images)
        values[known] = self.values[np.searchsorted(self.images, images[known])]
        return values


def known_truth(files: Sequence[IndexFile], data: Dataset | None, cycles: Sequence[PoolCycle]) -> Truth:
    """Puts together what is known of which image.

    Labels of the data set come first; without them (or where it has none), what the files of scores say; and last what
    the query was answered: images that joined the labeled set are targets, those that were set aside are not.

    Args:
        files: Index files from cycle 0 on.
        data: The images, if they are at hand.
        cycles: See PoolCycle.
    """
    last = files[-1]
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    if data is not None:
        labeled = np.flatnonzero(data.train_labels >= 0)
        parts.append((labeled, np.isin(data.train_labels[labeled], last.target_classes)))
    for cycle in cycles:
        if cycle.truth is not None:
            known = cycle.truth != UNKNOWN
            parts.append((cycle.pool[known], cycle.truth[known]))
    for answered, value in ((last.labeled, TARGET), (last.set_aside, OTHER)):
        parts.append((np.asarray(answered, dtype=np.int64), np.full(len(answered), value)))
    images, values = (np.concatenate(column).astype(np.int64) for column in zip(*parts, strict=True))
    images, first = np.unique(images, return_index=True)  # of an image that stands there twice, the first counts
    return Truth(images, values[first])
