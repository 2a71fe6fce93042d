"""A person's own folder of images, in one of two forms.

Annotation form, for what nobody has labeled yet: ``labeled/<class>/*``, ``unlabeled/**`` and, where there are any,
``test/<class>/*``. Benchmark form, where every class is known: ``train/<class>/*`` and ``test/<class>/*``. Folders
within a class folder belong to the class. Nothing is read from a path below unlabeled/ but the pixels of the file.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common import distributed
from common.console import log, warn
from common.files import require_writable
from datasets.base import UNKNOWN, Dataset, shown
from datasets.folder import cache as image_cache
from datasets.folder.cache import Entry, Index
from datasets.folder.skipped import REPORT, announce
from datasets.folder.walk import CACHE_FOLDER, Found, Skipped, walk
from utils import InputError

DEFAULT_SIZE = 32


@dataclass(frozen=True)
class Form:
    """One of the two forms of a folder.

    Attributes:
        parts: Its subfolders, those of the train images first.
        train: How many of them are of the train images.
        pool: The subfolder without classes, or nothing.
    """

    parts: tuple[str, ...]
    train: int
    pool: str = ""

    def place(self, path: str) -> tuple[str, str | None]:
        """The subfolder that a path lies in, and its class; None in the pool, and of a file in no class folder."""
        part, *between = path.split("/")[:-1]
        return part, between[0] if between and part != self.pool else None


ANNOTATION = Form(("labeled", "unlabeled", "test"), train=2, pool="unlabeled")
OTHERS = Form((".",), train=1, pool=".")  # any folder, of whose images only the pixels matter
OTHERS_TRAIN = Form(("train",), train=1, pool="train")
BENCHMARK = Form(("train", "test"), train=1)


def find_form(root: Path) -> Form:
    """Which form a folder has.

    Raises:
        InputError: It is missing, no folder, of neither form or of both.
    """
    if not root.is_dir():
        raise InputError(f"--dataset folder needs --data_path DIR, and {root} {_is_what(root)}")
    there = sorted(entry.name for entry in os.scandir(root) if not entry.name.startswith("."))
    annotation = {"labeled", "unlabeled"} & set(there)
    if annotation and "train" in there:
        raise InputError(f"{root} holds both train/ and {min(annotation)}/: give them a folder each")
    form = ANNOTATION if annotation else BENCHMARK
    for part in form.parts:
        if part in there and not (root / part).is_dir():
            raise InputError(f"{root / part} {_is_what(root / part)}, and must be one with images in it")
    missing = [part for part in form.parts if part not in there and not (form.pool and part == "test")]
    if missing:
        held = ", ".join(shown(name) for name in there[:8]) + (", ..." if len(there) > 8 else "")
        raise InputError(
            f"{root} lacks {missing[0]}/ (it holds {held or 'nothing'}): --dataset folder needs labeled/<class>/ and "
            "unlabeled/, or, where every class is known, train/<class>/ and test/<class>/"
        )
    return form


def _is_what(root: Path) -> str:
    return "is no folder" if root.exists() else "does not exist"


def load_folder(
    name: str, data_path: Path, *, image_size: int | None = None, cache_dir: str | Path | None = None
) -> Dataset:
    """Loads a folder of either form; what is left out is counted in the log and listed in the cache's report.csv.

    Args:
        name: Of the data set.
        data_path: The folder.
        image_size: Height and width in pixels, 32 if None.
        cache_dir: Where the pixels are kept; None for a hidden folder within ``data_path``.

    Raises:
        InputError: The folder has neither form, or too little in it.
    """
    form, size = find_form(data_path), image_size or DEFAULT_SIZE
    class_names = class_folders(data_path, form)
    cache = cache_folder(data_path, form.parts, size=size, cache_dir=cache_dir)
    index = index_folder(data_path, form, class_names, size=size, cache=cache)
    places = [form.place(entry.path) for entry in index.entries]
    count = sum(part in form.parts[: form.train] for part, _ in places)
    check_parts(data_path, form, class_names, places, report=cache / REPORT)
    numbers = {label: number for number, label in enumerate(class_names)}
    labels = np.asarray([UNKNOWN if label is None else numbers[label] for _, label in places], dtype=np.int64)
    return Dataset(
        name=name,
        train_images=index.images[:count],
        train_labels=labels[:count],
        test_images=index.images[count:],
        test_labels=labels[count:],
        num_classes=len(class_names),
        class_names=class_names,
        paths=tuple(entry.path for entry in index.entries[:count]),
        digests=tuple(entry.sha256 for entry in index.entries[:count]),
        # A test set may be added to the annotation form: neither encoders nor queries depend on it.
        digest=content_digest(index.entries[:count] if form.pool else index.entries, size),
    )


def index_others(root: Path, *, size: int, cache_dir: str | Path | None) -> np.ndarray:
    """The images of any folder, of its train/ where it has one, for a pool that others mix with; uint8 (N, S, S, 3).

    Raises:
        InputError: There is none.
    """
    form = OTHERS_TRAIN if (root / "train").is_dir() else OTHERS
    cache = cache_folder(root, form.parts, size=size, cache_dir=cache_dir, suffix="-others")
    index = index_folder(root, form, (), size=size, cache=cache)
    if not index.entries:
        raise InputError(f"--others {root} holds no usable jpeg, png, webp or bmp image")
    return index.images


def class_folders(root: Path, form: Form) -> tuple[str, ...]:
    """The names of the classes, sorted: of labeled/ in the annotation form, of train/ and test/ in the other.

    Raises:
        InputError: There is none.
    """
    parts = ("labeled",) if form.pool else form.parts
    names = {
        entry.name
        for part in parts
        for entry in os.scandir(root / part)
        if entry.is_dir() and not entry.name.startswith(".")
    }
    if not names:
        raise InputError(
            f"{root / parts[0]} holds no class folder: put the images of each class into a folder of its name, such as "
            f"{parts[0]}/cat/"
        )
    return tuple(sorted(names))


def cache_folder(
    root: Path, parts: Sequence[str], *, size: int, cache_dir: str | Path | None, suffix: str = ""
) -> Path:
    """Where a folder's pixels are kept.

    Raises:
        InputError: That cannot be written, or lies among the images.
    """
    if cache_dir is None:
        cache = root / CACHE_FOLDER / f"{size}{suffix}"
    else:
        real = os.path.realpath(root)
        place = f"{os.path.basename(real)}-{hashlib.sha256(os.fsencode(real)).hexdigest()[:12]}"
        cache = Path(cache_dir).expanduser() / place / f"{size}{suffix}"
        inside = [part for part in parts if Path(os.path.realpath(cache)).is_relative_to(os.path.join(real, part))]
        if inside:
            raise InputError(f"--cache_dir {cache_dir} lies among the images in {root / inside[0]}: name another one")
    if not (cache / image_cache.MANIFEST).is_file():
        require_writable(cache, "--cache_dir")
    return cache


def index_folder(root: Path, form: Form, class_names: Sequence[str], *, size: int, cache: Path) -> Index:
    """The folder's images; one process of each machine reads them, the others see what it has made."""

    def choose(entries: Sequence[Entry]) -> tuple[list[Entry], list[Skipped]]:
        return without_copies([entry for entry in entries if not entry.problem], form)

    distributed.enter(f"the reading of {root}")
    with distributed.first_here():
        if not distributed.is_first_here():
            return image_cache.read_index(cache, size=size, choose=choose)
        files, skipped = sort_out(*walk(root, form.parts), form, class_names)
        cache.mkdir(parents=True, exist_ok=True)
        index = image_cache.make_index(root, files, skipped, size=size, folder=cache, choose=choose)
    announce(index, size=size, folder=cache)
    return index


def sort_out(
    files: Sequence[Found], skipped: Sequence[Skipped], form: Form, class_names: Sequence[str]
) -> tuple[list[Found], list[Skipped]]:
    """Leaves out what lies in no class folder, or in a test/ folder of a class that the train images do not have."""
    known, kept, left_out = set(class_names), [], list(skipped)
    for file in files:
        part, label = form.place(file.path)
        if part == form.pool or label in known:
            kept.append(file)
        elif label is None:
            left_out.append(Skipped(file.path, "in no class folder", f"directly beneath {part}/"))
        else:
            left_out.append(Skipped(file.path, "of no labeled class", f"there is no labeled/{label}/"))
    return kept, left_out


def without_copies(entries: Sequence[Entry], form: Form) -> tuple[list[Entry], list[Skipped]]:
    """Of several files with the same bytes one is kept: a labeled one, else the first.

    Copies that lie in different classes contradict each other: none of them is kept, while one in the pool is.
    """
    groups = defaultdict(list)
    for entry in entries:
        groups[entry.sha256].append(entry)
    dropped: dict[str, Skipped] = {}
    for group in groups.values():
        if len(group) == 1:
            continue
        labeled = [entry for entry in group if form.place(entry.path)[1] is not None]
        pool = [entry for entry in group if form.place(entry.path)[1] is None]
        if len({form.place(entry.path)[1] for entry in labeled}) > 1:
            names = " and ".join(entry.path for entry in labeled)
            dropped |= {entry.path: Skipped(entry.path, "contradiction", names) for entry in labeled}
            labeled = []
        first, *copies = labeled + pool or [None]
        dropped |= {entry.path: Skipped(entry.path, "duplicate", f"of {first.path}") for entry in copies}
    return [entry for entry in entries if entry.path not in dropped], list(dropped.values())


def check_parts(
    root: Path, form: Form, class_names: Sequence[str], places: Sequence[tuple[str, str | None]], *, report: Path
) -> None:
    """Says how many images there are, and refuses a folder with too few.

    Raises:
        InputError: A subfolder, or a class of the annotation form, has no usable image.
    """
    counts = Counter(places)
    totals = Counter(part for part, _ in places)
    required = form.parts[: form.train] if form.pool else form.parts
    empty = [part for part in required if not totals[part]]
    if form.pool:
        empty += [f"labeled/{label}" for label in class_names if not counts["labeled", label]]
    if empty:
        raise InputError(
            f"{root / shown(empty[0])} holds no usable jpeg, png, webp or bmp image (what was left out, and why, is "
            f"listed in {report})"
        )
    first = form.parts[0]
    classes = ", ".join(f"{shown(label)} {counts[first, label]}" for label in class_names[:20])
    classes += ", ..." if len(class_names) > 20 else ""
    others = ", ".join(f"{totals[part]} {part}" for part in form.parts[1:])
    log(f"{root}: {totals[first]} {first} images of {len(class_names)} class(es) ({classes}), {others}")
    if form.pool and len(class_names) == 1:
        warn(f"labeled/ has one class only ({shown(class_names[0])}): the classifier needs two")
    for label in class_names if form.pool else ():
        if counts["labeled", label] == 1:
            warn(f"labeled/{shown(label)} has one image only: the distinctive score needs two")
    nested = sorted({label for part, label in places if label and part == first and _is_nested(root / part / label)})
    if nested:
        log(f"folders within {first}/{shown(nested[0])}/ count as that class")


def _is_nested(folder: Path) -> bool:
    return any(entry.is_dir() and not entry.name.startswith(".") for entry in os.scandir(folder))


def content_digest(entries: Sequence[Entry], size: int) -> str:
    """SHA-256 of what the images are: the paths and contents of their files, and the size that they were brought to."""
    content = hashlib.sha256(f"{size}\n".encode())
    for entry in entries:
        content.update(os.fsencode(entry.path) + b"\0" + entry.sha256.encode() + b"\n")
    return content.hexdigest()
