"""Index files: what one query cycle hands to the classifier, as JSON.

cycle_0.json holds the initial labeled set, so that the classifier has no special case.

Format version 1 has indices alone. Version 2, of a query whose labels people give, also has the labels, and names each
image by path and content, see datasets.folder.labels.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.files import SMALL_JSON, is_count, is_number, is_text, read_json, write_json
from utils import InputError

FORMAT_VERSIONS = (1, 2)
LISTS = ("labeled", "queried", "set_aside")
ANNOTATED = ("class_names", "labels", "files")  # fields of version 2 only
# In the text: an image stands in two lists at most, by a number and, in version 2, by a path and a digest.
BYTES_PER_IMAGE = 1024


@dataclass(frozen=True)
class IndexFile:
    """One cycle's result; indices point into the data set's train images.

    Attributes:
        dataset: The data set's name.
        mismatch: Share of other-class images in the initial pool; None where nobody knows it.
        split_digest: Digest of the initial split, see datasets.split.
        target_classes: Data set classes, in the classifier's order.
        strategy: The query strategy's name.
        cycle: 0 for the initial set.
        labeled: Cumulative labeled target images.
        queried: Images queried in this cycle, in the order of their selection.
        set_aside: Cumulative queried images of other classes.
        settings: k, t, target, seed and the like: whatever the query wants on record.
        metrics: Precision, recall and so on of this cycle.
        seconds: Time that the cycle took.
        class_names: Names of ``target_classes``; like the next two, None where the data set knows all labels.
        labels: Place of each labeled image's class in ``target_classes``.
        files: Path and SHA-256 of each image of ``labeled``, ``queried`` and ``set_aside``, by these names.
    """

    dataset: str
    mismatch: float | None
    split_digest: str
    target_classes: list[int]
    strategy: str
    cycle: int
    labeled: list[int]
    queried: list[int]
    set_aside: list[int]
    settings: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    class_names: list[str] | None = None
    labels: list[int] | None = None
    files: dict[str, list[list[str]]] | None = None


def default_index_dir(root: Path, dataset: str, mismatch: float | None, strategy: str) -> Path:
    """train_classifier/get_index_80/cifar10 for mismatch 0.8; other strategies than ccal in a subfolder."""
    percent = "unknown" if mismatch is None else f"{mismatch * 100:.10g}"
    folder = root / "train_classifier" / f"get_index_{percent}" / dataset
    return folder if strategy == "ccal" else folder / strategy


def index_path(folder: Path, cycle: int) -> Path:
    """Path of a cycle's index file."""
    return Path(folder) / f"cycle_{cycle}.json"


def numbered_files(folder: Path) -> list[int]:
    """The cycles whose index files are in the folder, whatever these contain, ascending."""
    names = (path.name[len("cycle_") : -len(".json")] for path in Path(folder).glob("cycle_*.json"))
    return sorted(int(name) for name in names if name.isdecimal() and str(int(name)) == name)


def write_index_file(folder: Path, content: IndexFile, *, name: str | None = None) -> Path:
    """Writes cycle_N.json, or a file of another name, into the folder, atomically, and returns its path."""
    path = Path(folder) / name if name else index_path(folder, content.cycle)
    fields = dataclasses.asdict(content)
    if content.files is None:
        fields = {name: value for name, value in fields.items() if name not in ANNOTATED}
    write_json(path, {"format_version": 1 if content.files is None else 2, **fields})
    return path


def read_index_file(path: Path, *, split_digest: str | None = None, n_images: int | None = None) -> IndexFile:
    """Reads and checks an index file.

    Raises:
        InputError: The file is missing, is not an index file, has duplicate or contradicting indices, indices that are
            not below ``n_images``, or another split's digest than ``split_digest``, where these are given.
    """
    limit = None if n_images is None else SMALL_JSON + BYTES_PER_IMAGE * n_images
    raw = read_json(path, limit=limit)
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if not is_count(version) or version not in FORMAT_VERSIONS:
        versions = " or ".join(map(str, FORMAT_VERSIONS))
        raise InputError(f"{path} is not an index file of format version {versions}; query again")
    raw.pop("format_version")
    fields = {entry.name for entry in dataclasses.fields(IndexFile)} - ({*ANNOTATED} if version == 1 else set())
    if set(raw) != fields:
        raise InputError(f"{path}: wrong fields {sorted(set(raw) ^ set(fields))}; query again")
    checks = {
        "dataset": _is_name(raw["dataset"]),
        "mismatch": raw["mismatch"] is None or (is_number(raw["mismatch"], 0, 1) and raw["mismatch"] < 1),
        "split_digest": isinstance(raw["split_digest"], str),
        "strategy": _is_name(raw["strategy"]),
        "cycle": is_count(raw["cycle"]),
        "settings": isinstance(raw["settings"], dict),
        "metrics": isinstance(raw["metrics"], dict) and all(map(_is_metric, raw["metrics"].items())),
        "seconds": is_number(raw["seconds"]),
    }
    for name in ("target_classes", *LISTS):
        checks[name] = isinstance(raw[name], list) and all(map(is_count, raw[name]))
    if version == 2 and all(checks.values()):
        checks |= _annotated_checks(raw)
    bad = [name for name, good in checks.items() if not good]
    if bad:
        raise InputError(f"{path}: {bad[0]} has a wrong type or value; query again")
    content = IndexFile(**raw)
    for name in ("target_classes", *LISTS):
        values = getattr(content, name)
        if len(set(values)) != len(values):
            raise InputError(f"{path}: {name} holds an index twice")
        if name in LISTS and n_images is not None and max(values, default=-1) >= n_images:
            raise InputError(f"{path}: {name} holds index {max(values)}, but the data set has {n_images} images")
    if not content.labeled:
        raise InputError(f"{path}: no labeled image, nothing to train on")
    if not content.target_classes:
        raise InputError(f"{path}: no target class; query again")
    if both := set(content.labeled) & set(content.set_aside):
        raise InputError(f"{path}: image {min(both)} is both labeled and set aside; query again")
    if split_digest is not None and content.split_digest != split_digest:
        same = "the same --dataset, --mismatch, --target_classes, --initial_budget and --split_seed as the query"
        found = f"digest {content.split_digest[:12]}, here {split_digest[:12]}"
        raise InputError(f"{path} belongs to another split ({found}); give {same}")
    return content


def _is_name(value: Any) -> bool:
    """A name that is no path and fits into a table."""
    return is_text(value) and re.fullmatch(r"[\w-][\w.+-]{0,99}", value) is not None


def _annotated_checks(raw: dict[str, Any]) -> dict[str, bool]:
    """Whether each field of version 2 has the right type and length; the others are checked already."""
    names, labels, files, count = raw["class_names"], raw["labels"], raw["files"], len(raw["target_classes"])
    return {
        "class_names": _are_strings(names) and len(names) == len(set(names)) == count,
        "labels": isinstance(labels, list)
        and len(labels) == len(raw["labeled"])
        and all(is_count(label) and label < count for label in labels),
        "files": isinstance(files, dict)
        and set(files) == set(LISTS)
        and all(isinstance(files[name], list) and len(files[name]) == len(raw[name]) for name in LISTS)
        and all(_are_strings(pair) and len(pair) == 2 for name in LISTS for pair in files[name]),
    }


def _are_strings(values: Any) -> bool:
    return isinstance(values, list) and all(map(is_text, values))


def _is_metric(item: tuple[str, Any]) -> bool:
    """Those that are shown later must be what they are shown as; a strategy may put others beside them."""
    name, value = item
    if name in ("queried", "found", "labeled", "pool"):
        return is_count(value)
    if name in ("precision", "recall"):
        return value is None or is_number(value, 0, 100)
    if name in ("auroc_semantic", "auroc_utility"):
        return value is None or is_number(value, 0, 1)
    return name != "found_per_class" or (isinstance(value, list) and all(map(is_count, value)))
