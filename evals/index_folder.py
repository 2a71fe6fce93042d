"""The folder into which a query writes its index files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import distributed
from datasets.base import Dataset
from datasets.index_files import IndexFile, write_index_file
from datasets.split import Split
from evals.cycles import Cycle
from utils import InputError, require_writable


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
