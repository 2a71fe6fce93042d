"""A folder of images, in one of two forms.

Annotation form, for images that nobody has labeled yet: ``unlabeled/**`` and, where there are any,
``labeled/<class>/*`` and ``test/<class>/*``. Benchmark form, where every class is known: ``train/<class>/*`` and
``test/<class>/*``. Folders within a class folder belong to the class. Of a file below unlabeled/ only the pixels are
used: names there say nothing.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common import distributed
from common.console import listed, log, shown, warn
from common.files import atomic_write, require_writable
from datasets.base import UNKNOWN, Dataset
from datasets.folder.cache import MANIFEST, ONE_COLOUR, read_images
from datasets.folder.walk import ANNOTATION, BENCHMARK, CACHE_FOLDER, File, find_classes, find_form, walk
from utils import InputError, is_first_process

REPORT = "report.csv"


def load_folder(
    name: str, data_path: Path, *, image_size: int | None = None, cache_dir: str | Path | None = None
) -> Dataset:
    """Loads a folder of either form; files that are left out are counted in the log and listed in report.csv.

    The images are ``image_size`` pixels high and wide (32 if None). Their pixels are kept in ``cache_dir``, or, if that
    is None, in a hidden folder within ``data_path``.

    Raises:
        InputError: The folder has neither form, or a part or class of it has no usable image.
    """
    form, size = find_form(data_path), image_size or 32
    class_names = find_classes(data_path, form)
    cache = cache_folder(data_path, form, str(size), cache_dir)
    images, files = index_folder(data_path, form, class_names, size=size, cache=cache)
    check_counts(data_path, form, class_names, files, report=cache / REPORT)
    files = [file for file in files if file.row is not None]
    count = sum(not file.path.startswith("test/") for file in files)
    numbers = {None: UNKNOWN} | {label: number for number, label in enumerate(class_names)}
    labels = np.asarray([numbers[file.label] for file in files], dtype=np.int64)
    # A test set may be added to the annotation form: neither encoders nor queries depend on it.
    content = hashlib.sha256(f"{size}\n".encode())
    for file in files[:count] if form is ANNOTATION else files:
        content.update(os.fsencode(file.path) + b"\0" + file.sha256.encode() + b"\n")
    return Dataset(
        name=name,
        train_images=images[:count],
        train_labels=labels[:count],
        test_images=images[count:],
        test_labels=labels[count:],
        num_classes=len(class_names),
        class_names=class_names,
        paths=tuple(file.path for file in files[:count]),
        digests=tuple(file.sha256 for file in files[:count]),
        digest=content.hexdigest(),
    )


def index_others(root: Path, *, size: int, cache_dir: str | Path | None) -> np.ndarray:
    """The images of any folder, or of its train/ if it has one, for a mixed pool; uint8 (N, size, size, 3).

    Raises:
        InputError: There are none.
    """
    parts = ["train" if (root / "train").is_dir() else "."]
    cache = cache_folder(root, parts, f"{size}-others", cache_dir)
    images, files = index_folder(root, parts, None, size=size, cache=cache)
    if not len(images):
        raise InputError(f"--others {root} {_nothing_usable(files, parts[0], cache / REPORT)}")
    return images


def cache_folder(root: Path, parts: Sequence[str], name: str, cache_dir: str | Path | None) -> Path:
    """The folder for the pixels; raises InputError if it cannot be written, or lies among the images."""
    cache = root / CACHE_FOLDER / name
    if cache_dir is not None:
        real = os.path.realpath(root)
        digest = hashlib.sha256(os.fsencode(real)).hexdigest()[:12]
        cache = Path(cache_dir).expanduser() / f"{os.path.basename(real)}-{digest}" / name
        for part in parts:
            if Path(os.path.realpath(cache)).is_relative_to(os.path.realpath(root / part)):
                raise InputError(f"--cache_dir {cache_dir} lies among the images in {root / part}: name another one")
    if not (cache / MANIFEST).is_file():
        require_writable(cache, "--cache_dir")
    return cache


def index_folder(
    root: Path, parts: Sequence[str], class_names: Sequence[str] | None, *, size: int, cache: Path
) -> tuple[np.ndarray, list[File]]:
    """The images of a folder, uint8 (N, size, size, 3), and all files; one process of each machine reads them."""
    with distributed.first_here():
        found = walk(root, parts, class_names) if is_first_process(on_this_machine=True) else None
        to_read = found and [file for file in found if not file.problem]
        images, files = read_images(root, to_read, size=size, cache=cache)
        if found is not None:
            log(f"images of {size}x{size} pixels in {cache}")
            files = [file for file in found if file.problem] + files
            write_report(files, cache / REPORT)
    return images, files


def write_report(files: Sequence[File], path: Path) -> None:
    """Lists files that are left out, and images that are odd or used otherwise than one would expect; logs how many."""
    left_out = [(file.path, file.problem) for file in files if file.problem]
    noted = [(file.path, file.note) for file in files if file.note and not file.problem]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "reason"))
    for state, rows in (("left out", left_out), ("used", noted)):
        writer.writerows((file, f"{state}, {reason}") for file, reason in rows)
        if rows:
            counts = Counter(reason.split(":")[0] for _, reason in rows).most_common()
            log(f"{state}: {', '.join(f'{count} {kind}' for kind, count in counts)}; listed in {path}")
    _warn_of_odd(files, path)
    content = text.getvalue().encode("utf-8", "backslashreplace")
    if os.access(path.parent, os.W_OK) and not (path.is_file() and path.read_bytes() == content):
        with atomic_write(path) as file:
            file.write(content)


def _warn_of_odd(files: Sequence[File], report: Path) -> None:
    """Warns of what a person would want to know before any training."""
    in_two = dict.fromkeys(file.problem[15:] for file in files if file.problem.startswith("contradiction: "))
    if in_two:
        warn(f"{len(in_two)} picture(s) stand under two classes and are left out: {listed([*in_two])}")
    flat = [file.path for file in files if ONE_COLOUR in file.note]
    if flat:
        warn(f"{len(flat)} picture(s) are of one colour everywhere: {listed(flat)}; see {report}")
    dark = [(file.path, found) for file in files if (found := re.search(r"black: (.* (\d+) of \d+)$", file.note))]
    if dark:
        largest, paths = max((int(found[2]), found[1]) for _, found in dark)[1], [path for path, _ in dark]
        warn(f"{len(dark)} picture(s) are nearly black ({largest}; another range?): {listed(paths)}; see {report}")


def _nothing_usable(files: Sequence[File], part: str, report: Path) -> str:
    """Says that a part of a folder has no usable image, and why its files are left out, in words."""
    kinds: dict[str, list[str]] = {}
    for file in files:
        if file.problem and (part == "." or f"{file.path}/".startswith(f"{part}/")):
            kind, _, details = file.problem.partition(": ")
            kinds.setdefault(kind, []).append(details)
    reasons = ", ".join(f"{len(found)} {kind}{f' ({found[0]})' if found[0] else ''}" for kind, found in kinds.items())
    remedy = "; links may only lead to files in the folder: copy these, or make labeled/ or the like itself a link"
    why = f"left out: {reasons}; listed in {report}" if kinds else "it is empty"
    return f"holds no usable jpeg, png, webp or bmp image ({why}){remedy * ('link' in kinds)}"


def check_counts(root: Path, form: Sequence[str], names: Sequence[str], files: Sequence[File], *, report: Path) -> None:
    """Logs how many images there are; raises InputError if a subfolder, or a class of labeled/, has no usable one."""
    per_class = Counter((file.path.split("/")[0], file.label) for file in files if file.row is not None)
    totals = Counter(part for part, _ in per_class.elements())
    optional = () if form is BENCHMARK else ("test",) if names else ("labeled", "test")
    empty = [part for part in form if not totals[part] and part not in optional]
    if form is ANNOTATION:
        empty += [f"labeled/{label}" for label in names if not per_class["labeled", label]]
    if empty:
        raise InputError(f"{root / shown(empty[0])} {_nothing_usable(files, empty[0], report)}")
    classes = listed([f"{label} {per_class[form[0], label]}" for label in names], 20) or "none"
    others = ", ".join(f"{totals[part]} {part}" for part in form[1:])
    log(f"{root}: {totals[form[0]]} {form[0]} images of {len(names)} class(es) ({classes}), {others}")
    for label in names if form is ANNOTATION else ():
        if per_class["labeled", label] == 1:
            warn(f"labeled/{shown(label)} has one image only: the distinctive score needs two")
