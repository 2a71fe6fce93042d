"""The images of a folder, decoded once: a memory-mapped array beside a manifest of the files that it was made from.

The manifest is removed before images.npy is replaced, and written last: images without one are read again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import os
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np

from common.console import log, progress, warn
from common.files import atomic_write, naming_file, read_json, remove_leftovers
from common.session import NO_LOCKS
from datasets.base import pixel_digest
from datasets.folder.pictures import Unusable, read_picture
from datasets.folder.walk import File
from utils import InputError

FORMAT_VERSION = 5
ONE_COLOUR = "of one colour"  # a note
IMAGES, MANIFEST, LOCK = "images.npy", "manifest.json", "lock"


def read_images(root: Path, found: Sequence[File] | None, *, size: int, cache: Path) -> tuple[np.ndarray, list[File]]:
    """Reads the images of the folder ``root`` that are new or changed; the pixels of the others are kept.

    ``found`` are its files in the order that the images shall have, or None if another process has just called this.

    Returns:
        The images, memory-mapped, uint8 (N, size, size, 3), and the files with what is known of each.

    Raises:
        InputError: The cache is not up to date and cannot be written.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache):
        files = _read_manifest(cache, size)
        if found is not None:
            known = {file.path: file for file in files or ()}
            current = [_if_unchanged(root, file, known.get(file.path)) for file in found]
            if current != files:
                files = _rebuild(root, found, current, files or [], size=size, cache=cache)
        elif files is None:
            raise InputError(f"{cache} was removed while it was in use; start again")
        return _open_images(cache), files


@contextlib.contextmanager
def locked(cache: Path) -> Iterator[None]:
    """One process at a time in a cache folder, across all commands."""
    with open(cache / LOCK, "a" if os.access(cache, os.W_OK) else "r") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f"waiting for another command that reads the images into {cache}")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            warn(f"{cache} cannot be locked ({error.strerror}): start no second command on these images meanwhile")
        yield


def _if_unchanged(root: Path, file: File, known: File | None) -> File | None:
    same = known is not None and (known.label, known.size, known.mtime_ns) == (file.label, file.size, file.mtime_ns)
    if not same or (known.problem.startswith("unreadable") and os.access(root / file.path, os.R_OK)):
        return None
    return known


def _read_manifest(cache: Path, size: int) -> list[File] | None:
    """The files in the manifest; None where there is no manifest, or one that does not match the images."""
    if not (cache / MANIFEST).is_file():
        return None
    with contextlib.suppress(Exception):  # a damaged file can raise anything
        content = read_json(cache / MANIFEST)
        files = [File(*values) for values in content["files"]]
        shape = (sum(file.row is not None for file in files), size, size, 3)
        images = _open_images(cache)
        actual = (content["format_version"], content["sha256"], images.dtype, images.shape)
        if actual == (FORMAT_VERSION, _digest(content["files"]), np.uint8, shape):
            return files
    warn(f"{cache} is damaged or of another version: the images are read again")
    return None


def _digest(rows: list) -> str:
    # Damage might make one image the copy of another.
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _open_images(cache: Path) -> np.ndarray:
    # Copy on write: torch wants arrays that can be written, and nothing that does so reaches the file.
    return np.lib.format.open_memmap(cache / IMAGES, mode="c")


def _rebuild(
    root: Path, found: Sequence[File], current: list[File | None], old: Sequence[File], *, size: int, cache: Path
) -> list[File]:
    """Writes images.npy and the manifest anew; ``current`` is what is known of each file, None if it must be read."""
    if not os.access(cache, os.W_OK):
        raise InputError(f"{cache} is not up to date and cannot be written; name another --cache_dir")
    remove_leftovers(cache, "*")  # of a command that was killed
    rows = {file.picture: file.row for file in old if file.row is not None}
    pixels, bytes_each = _open_images(cache) if rows else None, 3 * size**2
    # An image that is known and has no row was a copy in several classes.
    to_read = [i for i, file in enumerate(current) if file is None or (file.picture and file.picture not in rows)]
    with tempfile.TemporaryFile(dir=cache) as scratch, naming_file(cache / IMAGES):
        fresh = _read_files(root, {i: found[i] for i in to_read}, size, scratch.fileno())
        files = without_copies([fresh.get(i, file) for i, file in enumerate(current)])
        shape = (sum(file.row is not None for file in files), size, size, 3)
        with atomic_write(cache / IMAGES) as out:
            np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for i, file in enumerate(files):
                if file.row is not None and i in fresh:
                    out.write(os.pread(scratch.fileno(), bytes_each, bytes_each * i))
                elif file.row is not None:
                    out.write(pixels[rows[file.picture]])
            (cache / MANIFEST).unlink(missing_ok=True)
    lines = [[*vars(file).values()] for file in files]
    with atomic_write(cache / MANIFEST) as out:
        out.write(json.dumps({"format_version": FORMAT_VERSION, "sha256": _digest(lines), "files": lines}).encode())
    return files


def _read_files(root: Path, files: dict[int, File], size: int, scratch: int) -> dict[int, File]:
    """Decodes numbered files, with threads, and writes the pixels of each to its place in the scratch file."""

    def read(task: tuple[int, File]) -> tuple[int, File]:
        i, file = task
        try:
            picture = read_picture(root / file.path, size)
        except Unusable as error:
            return i, replace(file, problem=str(error))
        if os.pwrite(scratch, picture.pixels.tobytes(), picture.pixels.size * i) < picture.pixels.size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain = (picture.pixels == picture.pixels[0, 0]).all()
        note = ONE_COLOUR + f" ({picture.note})" * bool(picture.note) if plain else picture.note
        return i, replace(file, sha256=picture.sha256, note=note, picture=pixel_digest(picture.pixels).hex())

    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPool(threads) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of huge images, which are left out, and of odd metadata
        try:
            done = pool.imap_unordered(read, files.items(), chunksize=32)
            return dict(progress(done, description="reading images", total=len(files), unit="file"))
        finally:
            pool.terminate()
            pool.join()  # no thread may write once the scratch file is closed


def without_copies(files: Sequence[File]) -> list[File]:
    """Chooses one of several files with the same pixels, a labeled one or else the first, and numbers the rows.

    Copies in different classes contradict each other: none of them is used, while one in the pool is.
    """
    groups = defaultdict(list)
    for file in sorted(files, key=lambda file: file.label is None):
        if file.picture:
            groups[file.picture].append(file)
    problems = {file.path: file.problem for file in files if not file.picture}
    for group in groups.values():
        labeled = [file for file in group if file.label is not None]
        if len({file.label for file in labeled}) > 1:
            names = " and ".join(file.path for file in labeled)
            problems |= {file.path: f"contradiction: {names}" for file in labeled}
            group = group[len(labeled) :]
        problems |= {file.path: f"duplicate: of {group[0].path}" for file in group[1:]}
    row, chosen = itertools.count(), []
    for file in files:
        problem = problems.get(file.path, "")
        chosen.append(replace(file, problem=problem, row=None if problem else next(row)))
    return chosen
