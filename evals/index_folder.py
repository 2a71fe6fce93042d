"""The folder into which a query writes its index files, and what a query that stopped has left there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common import distributed
from common.console import warn
from common.files import read_json, remove_leftovers
from datasets.base import Dataset
from datasets.index_files import IndexFile, index_path, numbered_files, read_index_file, write_index_file
from datasets.split import Split
from evals.cycles import Cycle
from utils import InputError

# Flags behind what the index files record under another name; the others are flags' own names.
FLAGS = {
    "checkpoint_digests.semantic": "--load_semantic_path",
    "checkpoint_digests.distinctive": "--load_feature_path",
    "images_digest": "--data_path",
}
SPLIT_FLAGS = "--dataset, --mismatch, --target_classes, --initial_budget and --split_seed"


class IndexFolder:
    """Index files of one query: cycle_0.json for the initial set, then one per cycle.

    Every process makes one and calls the same methods; the first process alone writes.

    Attributes:
        queried: What finished cycles have queried, in their order.

    Args:
        path: The folder.
        data: The data set.
        split: The initial split.
        strategy: Its name.
        settings: Whatever the index files are to record; a query is continued only with the same. ``checkpoints``
            alone, names of files, may differ.
    """

    def __init__(self, path: Path, *, data: Dataset, split: Split, strategy: str, settings: dict[str, Any]) -> None:
        self.path = path
        self.queried: list[np.ndarray] = []
        self._data, self._initial, self._strategy, self._settings = data, split, strategy, settings
        self._kept = self._begun = False

    def resume(self) -> Split:
        """Takes up the cycles whose files are whole, and returns the split after them; none, and it is a fresh start.

        A file that is damaged or missing is named; its cycle and those after it are to be queried again.

        Raises:
            InputError: A file is of a query with other settings, or no index file; nothing is changed.
        """
        numbers = numbered_files(self.path)
        found = {number: self._read(number) for number in numbers}
        split = self._initial
        for number in range(max(numbers, default=-1) + 1):
            content, path = found.get(number), index_path(self.path, number)
            after = self._after(split, content) if content else None
            if after is None:
                state = "is damaged" if number in found else "is missing"
                warn(f"{path} {state}: the query goes on from there, and writes it again")
                break
            split, self._kept = after, True
            if number:
                self.queried.append(np.asarray(content.queried, dtype=np.int64))
        distributed.barrier()  # see check_folder
        return split

    def _read(self, number: int) -> IndexFile | None:
        """A cycle's index file; None if its content is no JSON, as when a disk failed."""
        path = index_path(self.path, number)
        try:
            read_json(path)
        except InputError:
            return None
        content = read_index_file(path, n_images=len(self._data.train_labels))
        if content.cycle != number:
            raise InputError(f"{path} is of cycle {content.cycle}; give it its own name back, or {_other_ways()}")
        if content.split_digest != self._initial.digest:
            raise InputError(
                f"{path} belongs to another split (digest {content.split_digest[:12]}, here "
                f"{self._initial.digest[:12]}): give that query's {SPLIT_FLAGS}, "
                f"or {_other_ways()}"
            )
        written = {"dataset": content.dataset, "strategy": content.strategy, **_flat(content.settings)}
        wanted = {"dataset": self._data.name, "strategy": self._strategy, **_flat(self._settings)}
        for name in sorted(wanted.keys() | written.keys(), key=[*wanted, *written].index):
            if written.get(name) != wanted.get(name):
                raise InputError(
                    f"{path} was written with {FLAGS.get(name, f'--{name}')} {_shown(written, name)}, not "
                    f"{_shown(wanted, name)}: give the same to continue that query, or {_other_ways()}"
                )
        return content

    def _after(self, split: Split, content: IndexFile) -> Split | None:
        """The split after a file's cycle; None if the file does not follow from what was there before it."""
        try:
            after = split.annotate(np.asarray(content.queried, dtype=np.int64), self._data.train_labels)
        except InputError:
            return None
        same = after.labeled.tolist() == content.labeled and after.set_aside.tolist() == content.set_aside
        return after if same else None

    def begin(self) -> None:
        """Makes the folder ready once, when nothing can be refused any more: removes an earlier query's files, unless
        it is being continued, and writes the initial set's."""
        if self._begun:
            return
        kept, self._begun, self._kept = self._kept, True, True
        if not distributed.is_main():
            return
        self.path.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.path, "cycle_*.json")
        if kept:
            return
        # Written under another name at first: a full disk says so while an earlier query's files are still there.
        first = write_index_file(self.path, self._content(self._initial, None), name=".cycle_0.json.new.tmp")
        for pattern in ("scores/cycle_*.png", "scores/cycle_*.npz"):
            for path in self.path.glob(pattern):
                path.unlink()
        # The last one first: what a kill in between leaves is a query that can be continued.
        for number in sorted(numbered_files(self.path), reverse=True):
            index_path(self.path, number).unlink()
        first.replace(index_path(self.path, 0))

    def summary(self) -> str:
        """What the folder holds of this query."""
        if not self._kept:
            return f"no cycle is in {self.path} yet"
        return f"cycles 0 to {len(self.queried)} are in {self.path}"

    def add(self, cycle: Cycle) -> None:
        """Writes a cycle's index file."""
        self.begin()
        if distributed.is_main():
            write_index_file(self.path, self._content(cycle.split, cycle))
        self.queried.append(cycle.result.indices)

    def _content(self, split: Split, cycle: Cycle | None) -> IndexFile:
        metrics = cycle.metrics if cycle else {"labeled": len(split.labeled), "pool": len(split.unlabeled)}
        if self._data.sources:
            indices = cycle.result.indices if cycle else split.unlabeled
            counts = self._data.count_by_source(indices)
            metrics = metrics | {"queried_by_source" if cycle else "pool_by_source": counts}
        return IndexFile(
            dataset=self._data.name,
            mismatch=split.mismatch,
            split_digest=split.digest,
            target_classes=list(split.target_classes),
            strategy=self._strategy,
            cycle=cycle.number if cycle else 0,
            labeled=split.labeled.tolist(),
            queried=cycle.result.indices.tolist() if cycle else [],
            set_aside=split.set_aside.tolist(),
            settings=self._settings,
            metrics=metrics,
            seconds=round(cycle.seconds, 3) if cycle else 0.0,
        )


def check_folder(folder: Path, *, overwrite: bool, resume: bool) -> None:
    """Refuses an index folder that holds an earlier query's files, before anything is computed.

    Raises:
        InputError: It holds index files that are neither to be replaced nor continued.
    """
    if overwrite and resume:
        raise InputError("--overwrite replaces an earlier query and --resume auto continues it: leave one of them out")
    earlier = sorted(path.name for path in folder.glob("cycle_*.json"))
    if earlier and not overwrite and not resume:
        raise InputError(
            f"{folder} already holds index files ({earlier[0]}, ...): give --resume auto to continue that query, "
            "--overwrite to replace them, or another --index_dir"
        )
    labeled = [name for name in earlier if holds_answers(folder / name)]
    if labeled:
        raise InputError(
            f"{folder / labeled[-1]} holds labels that people gave, which no query replaces: give another --index_dir"
        )
    distributed.barrier()  # every process has looked before the first one writes


def holds_answers(path: Path) -> bool:
    """Whether an index file is of a query with --annotate; what cannot be read is not."""
    try:
        content = read_json(path)
    except InputError:
        return False
    return isinstance(content, dict) and content.get("files") is not None


def _other_ways() -> str:
    return "--overwrite to replace its files, or another --index_dir"


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without the checkpoints' names, and with a checkpoint's digest as a value of its own."""
    values = {name: value for name, value in settings.items() if name not in ("checkpoints", "checkpoint_digests")}
    digests = settings.get("checkpoint_digests")
    pairs: Sequence[tuple[str, Any]] = tuple(digests.items()) if isinstance(digests, dict) else ()
    return values | {f"checkpoint_digests.{name}": value for name, value in pairs}


def _shown(values: dict[str, Any], name: str) -> str:
    if name not in values:
        return "(not recorded)"
    if name.startswith("checkpoint_digests.") or name == "images_digest":
        return f"(SHA-256 {str(values[name])[:12]})"
    return str(values[name])[:100]
