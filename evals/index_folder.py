"""The folder into which a query writes its index files: cycle_0.json for the initial set, then one per cycle."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from common import distributed
from common.files import SMALL_JSON, check_fields, is_text, read_json, remove_leftovers, write_json
from common.settings import require_same
from datasets.base import Dataset
from datasets.index_files import IndexFile, index_path, numbered_files, write_index_file
from datasets.split import Split
from evals.cycles import Cycle
from utils import InputError

SETTINGS = "settings.json"
# From one annotated cycle to the next; where the files lie says nothing of what is in them.
MAY_CHANGE = ("queries_per_class", "precision", "images_digest", "checkpoints", "features")


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Raises InputError before anything is computed if a folder holds index files that must not be replaced."""
    earlier = sorted(path.name for path in folder.glob("cycle_*.json"))
    labeled = [name for name in earlier if _holds_answers(folder / name)]
    if labeled:
        path = folder / labeled[-1]
        raise InputError(f"{path} holds labels that people gave, which no query replaces: give another --index_dir")
    if earlier and not overwrite:
        remedy = "give --overwrite to replace them, or another --index_dir"
        raise InputError(f"{folder} already holds index files ({earlier[0]}, ...): {remedy}")
    distributed.barrier()  # every process has looked before the first one writes


def _holds_answers(path: Path) -> bool:
    """Whether an index file is of a query with --annotate; a file that cannot be read is not."""
    with contextlib.suppress(InputError):
        content = read_json(path)
        return isinstance(content, dict) and content.get("files") is not None
    return False


def remember(folder: Path, words: list[str]) -> None:
    """Writes the flags of an annotated query into settings.json, from which later rounds take them."""
    if distributed.is_main():
        write_json(folder / SETTINGS, {"format_version": 1, "flags": words})


def remembered(folder: Path) -> list[str]:
    """The flags in settings.json; empty where there is none.

    Raises:
        InputError: The file is damaged.
    """
    if not (folder / SETTINGS).is_file():
        return []
    content = read_json(folder / SETTINGS, limit=SMALL_JSON)
    checks = {"format_version": lambda value: value == 1}
    checks["flags"] = lambda value: isinstance(value, list) and all(map(is_text, value))
    check_fields(folder / SETTINGS, content, checks, remedy="restore it, or remove it and give all settings again")
    return content["flags"]


def require_same_settings(recorded: dict[str, Any], record: dict[str, Any], *, what: Path, new: bool) -> None:
    """Compares the settings and encoders of a query with those of the one before, as far as both have them.

    The number of images may change from cycle to cycle, and so may the folder's images; the strategy may not, since the
    results of a folder are those of one. Where ``new`` settings are wanted, all else may.

    Raises:
        InputError: They differ.
    """
    both = [name for name in record if name in recorded and name not in MAY_CHANGE]
    checks = {"give another --index_dir": ["strategy"], "add --new_settings to go on with these": both}
    for remedy, names in [*checks.items()][: 1 if new else 2]:
        before, now = ({name: values[name] for name in names if name in both} for values in (recorded, record))
        require_same(before, now, what=what, remedy=remedy)


def begin(folder: Path, initial: IndexFile) -> None:
    """Replaces an earlier query's files with cycle_0.json, when nothing can be refused any more; kept features stay."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder, "cycle_*.json")
    # Written under another name at first: a full disk says so while the earlier query's files are still there.
    new = write_index_file(folder, initial, name=".cycle_0.json.new.tmp")
    for number in sorted(numbered_files(folder), reverse=True):  # a kill in between leaves no gap
        index_path(folder, number).unlink()
    for pattern in ("cycle_*.npz", "cycle_*.png", "all_scores_*.npz", "sample.npz"):  # and nothing of anybody else's
        for path in (folder / "scores").glob(pattern):
            path.unlink()
    new.replace(index_path(folder, 0))


def index_file(
    data: Dataset, split: Split, *, strategy: str, settings: dict[str, Any], cycle: Cycle | None = None
) -> IndexFile:
    """The content of a cycle's index file, or without a cycle that of the initial set.

    ``split`` is the one after the cycle; ``settings``, from which the query was made, are on record.
    """
    metrics = cycle.metrics if cycle else {"labeled": len(split.labeled), "pool": len(split.unlabeled)}
    if data.sources:
        name, indices = ("queried", cycle.result.indices) if cycle else ("pool", split.unlabeled)
        metrics = metrics | {f"{name}_by_source": data.count_by_source(indices)}
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
