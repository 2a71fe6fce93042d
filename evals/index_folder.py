"""The folder into which a query writes its index files: cycle_0.json for the initial set, then one per cycle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import distributed
from common.files import read_json, remove_leftovers
from datasets.base import Dataset
from datasets.index_files import IndexFile, index_path, numbered_files, write_index_file
from datasets.split import Split
from evals.cycles import Cycle
from utils import InputError


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuses an index folder that holds an earlier query's files, before anything is computed.

    Raises:
        InputError: It holds index files and they are not to be replaced, or one of them has labels that people gave.
    """
    earlier = sorted(path.name for path in folder.glob("cycle_*.json"))
    labeled = [name for name in earlier if _holds_answers(folder / name)]
    if labeled:
        raise InputError(
            f"{folder / labeled[-1]} holds labels that people gave, which no query replaces: give another --index_dir"
        )
    if earlier and not overwrite:
        raise InputError(
            f"{folder} already holds index files ({earlier[0]}, ...): give --overwrite to replace them, or another "
            "--index_dir"
        )
    distributed.barrier()  # every process has looked before the first one writes


def _holds_answers(path: Path) -> bool:
    """Whether an index file is of a query with --annotate; a file that cannot be read is not."""
    try:
        content = read_json(path)
    except InputError:
        return False
    return isinstance(content, dict) and content.get("files") is not None


def begin(folder: Path, initial: IndexFile) -> None:
    """Replaces an earlier query's files with cycle_0.json, when nothing can be refused any more; kept features stay."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder, "cycle_*.json")
    # Written under another name at first: a full disk says so while the earlier query's files are still there.
    new = write_index_file(folder, initial, name=".cycle_0.json.new.tmp")
    for pattern in ("scores/*.npz", "scores/*.png"):
        for path in folder.glob(pattern):
            path.unlink()
    for number in sorted(numbered_files(folder), reverse=True):  # a kill in between leaves no gap
        index_path(folder, number).unlink()
    new.replace(index_path(folder, 0))


def index_file(
    data: Dataset, split: Split, *, strategy: str, settings: dict[str, Any], cycle: Cycle | None = None
) -> IndexFile:
    """The content of a cycle's index file.

    Args:
        data: The data set.
        split: After the cycle.
        strategy: Its name.
        settings: What the query was made from, for the record.
        cycle: The cycle; None for the initial set.
    """
    metrics = cycle.metrics if cycle else {"labeled": len(split.labeled), "pool": len(split.unlabeled)}
    if data.sources:
        indices = cycle.result.indices if cycle else split.unlabeled
        metrics = metrics | {f"{'queried' if cycle else 'pool'}_by_source": data.count_by_source(indices)}
    return IndexFile(
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
        metrics=metrics,
        seconds=round(cycle.seconds, 3) if cycle else 0.0,
    )
