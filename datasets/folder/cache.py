"""The images of a folder, decoded once: a memory-mapped array beside a manifest of the files that it was made of.

The cache folder holds images.npy (uint8, (N, size, size, 3)), manifest.json (every file's path, size, time of change,
SHA-256 and row) and report.csv (see datasets.folder.skipped). The manifest is removed before images.npy is replaced and
written last, so images without one belong to an indexing that did not end, and are made again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.console import log, progress, warn
from common.files import atomic_write, read_json
from common.interruption import Interruption
from common.lock import UNSUPPORTED
from datasets.folder.pictures import CHANGED, Unusable, read_picture, strict_and_quiet
from datasets.folder.walk import Found, Skipped
from utils import InputError, Interrupted

FORMAT_VERSION = 3  # 1: without a checksum; 2: without the time of the last change of status
IMAGES, MANIFEST, LOCK = "images.npy", "manifest.json", "lock"
CHUNK = 32  # files per task of a thread
BLOCK = 1024  # images per step when rows are moved
TRANSIENT = ("unreadable", CHANGED)  # where there is no SHA-256 either, the file itself was not to be had


@dataclass(frozen=True)
class Entry:
    """What is known of one file.

    Attributes:
        path: Relative to the folder.
        size: In bytes.
        mtime_ns, ctime_ns: When it was last changed, see folder_walk.Found.
        sha256: Of its content; None if it was not read to its end.
        problem: Why it is left out, in a word or two; nothing if it is an image.
        detail: The problem in more words; of an image, what was done to it that one would not expect.
        row: In images.npy; None where it is not there.
    """

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int
    sha256: str | None
    problem: str = ""
    detail: str = ""
    row: int | None = None


@dataclass(frozen=True)
class Index:
    """A folder's images.

    Attributes:
        images: Memory-mapped, uint8 (N, size, size, 3).
        entries: One per image, in the order of the rows.
        left_out: Everything else.
    """

    images: np.ndarray
    entries: list[Entry]
    left_out: list[Skipped]


# Chooses among all files that hold an image: those to keep, in their order, and the others with the reason.
Choose = Callable[[Sequence[Entry]], tuple[list[Entry], list[Skipped]]]


def make_index(
    root: Path, files: Sequence[Found], skipped: Sequence[Skipped], *, size: int, folder: Path, choose: Choose
) -> Index:
    """The index of a folder's files; only those that are new or changed since the last time are read.

    Args:
        root: The folder.
        files: Its files, in the order that the images shall have.
        skipped: What else lies there, for the report.
        size: Height and width of the images in pixels.
        folder: Of the cache.
        choose: Which of the images to keep, such as one of several copies.
    """
    with locked(folder):
        known = _known(folder, size)
        entries = {file.path: known[file.path] for file in files if _unchanged(root, file, known.get(file.path))}
        kept, _ = choose([*entries.values()])
        done = len(entries) == len(files) == len(known) and all(entry.row is not None for entry in kept)
        if not done:
            if not os.access(folder, os.W_OK):
                raise InputError(f"{folder} is not up to date and cannot be written; name another --cache_dir")
            known = _rebuild(root, files, entries, size=size, folder=folder, choose=choose)
        return _index(folder, size, known, skipped, choose)


def read_index(folder: Path, *, size: int, choose: Choose) -> Index:
    """The index as another process of this machine has just made it."""
    with locked(folder):
        return _index(folder, size, _known(folder, size), (), choose)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time in a cache folder, across all commands; a folder that cannot be written is only read."""
    import fcntl

    writable = os.access(folder, os.W_OK)
    with open(folder / LOCK, "a" if writable else "r") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f"waiting for another command that reads the images into {folder}")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            warn(f"{folder} cannot be locked ({error.strerror}): start no second command on these images meanwhile")
        yield


def _unchanged(root: Path, file: Found, entry: Entry | None) -> bool:
    if entry is None or _stamp(entry) != _stamp(file):
        return False
    to_be_had = entry.sha256 is None and entry.problem in TRANSIENT
    return not (to_be_had and os.access(os.path.join(root, file.path), os.R_OK))


def _stamp(file: Entry | Found) -> tuple[int, int, int]:
    """Changes with the file. The first two alone would not: archives and copies give many files one time."""
    return file.size, file.mtime_ns, file.ctime_ns


def _known(folder: Path, size: int) -> dict[str, Entry]:
    """The manifest's entries by path; none where there is no manifest, or one that does not fit its images."""
    if not (folder / MANIFEST).is_file():
        return {}
    try:
        content = read_json(folder / MANIFEST)
        assert content["format_version"] == FORMAT_VERSION and content["image_size"] == size
        assert content["sha256"] == _digest(content["files"])
        entries = {values[0]: Entry(*values) for values in content["files"]}
        images = _map(folder)
        rows = sorted(entry.row for entry in entries.values() if entry.row is not None)
        assert images.shape == (len(rows), size, size, 3) and images.dtype == np.uint8 and rows == [*range(len(rows))]
    except Exception as error:  # a damaged file can raise anything; what it says is not needed, only its images
        warn(f"{folder} is damaged ({type(error).__name__}) or of another version: the images are read again")
        return {}
    return entries


def _map(folder: Path) -> np.ndarray:
    # Copy on write: torch wants arrays that can be written, and nothing that does so reaches the file.
    return np.lib.format.open_memmap(folder / IMAGES, mode="c")


def _index(folder: Path, size: int, known: dict[str, Entry], skipped: Sequence[Skipped], choose: Choose) -> Index:
    kept, surplus = choose([*known.values()])
    left_out = [Skipped(entry.path, entry.problem, entry.detail) for entry in known.values() if entry.problem]
    images = _map(folder) if kept else np.empty((0, size, size, 3), dtype=np.uint8)
    return Index(images, kept, [*skipped, *left_out, *surplus])


def _rebuild(
    root: Path, files: Sequence[Found], entries: dict[str, Entry], *, size: int, folder: Path, choose: Choose
) -> dict[str, Entry]:
    """Writes images.npy and the manifest anew, and returns what is in it by path.

    Args:
        root: The folder.
        files: All its files.
        entries: Those whose files need not be read, by path; the others are added.
        size: Of the images.
        folder: Of the cache.
        choose: See make_index.
    """
    temporary = folder / f".{IMAGES}.{os.getpid()}.tmp"
    places = {file.path: place for place, file in enumerate(files)}
    try:
        out = _allocate(temporary, (len(files), size, size, 3))
        if any(entry.row is not None for entry in entries.values()):
            old = _map(folder)
            for entry in entries.values():
                if entry.row is not None:
                    out[places[entry.path]] = old[entry.row]
        stopped = _decode_all(root, files, entries, out, places, choose)
        known = _in_order(files, entries)
        kept = [entry for entry in choose(known)[0] if entry.row is not None]
        _compact(temporary, out, [places[entry.path] for entry in kept])
        del out
        rows = {entry.path: row for row, entry in enumerate(kept)}
        known = [dataclasses.replace(entry, row=rows.get(entry.path)) for entry in known]
        (folder / MANIFEST).unlink(missing_ok=True)
        os.replace(temporary, folder / IMAGES)
        _write_manifest(folder, size, known)
        if stopped:
            raise stopped
        return {entry.path: entry for entry in known}
    finally:
        temporary.unlink(missing_ok=True)


def _in_order(files: Sequence[Found], entries: dict[str, Entry]) -> list[Entry]:
    return [entries[file.path] for file in files if file.path in entries]


def _write_manifest(folder: Path, size: int, entries: Sequence[Entry]) -> None:
    """As JSON with a line per file, which is quick for a million of them."""
    rows = [dataclasses.astuple(entry) for entry in entries]
    lines = ",\n".join(map(json.dumps, rows))
    fields = json.dumps([field.name for field in dataclasses.fields(Entry)])
    head = f'"format_version": {FORMAT_VERSION}, "image_size": {size}, "fields": {fields}, "sha256": "{_digest(rows)}"'
    with atomic_write(folder / MANIFEST) as file:
        file.write(f'{{{head}, "files": [\n{lines}\n]}}\n'.encode())


def _digest(rows: Iterable[Sequence[object]]) -> str:
    """SHA-256 of the manifest's rows: one that is damaged and still JSON would leave images out, or mix them up."""
    content = hashlib.sha256()
    for row in rows:
        content.update(json.dumps(row).encode() + b"\n")
    return content.hexdigest()


def _allocate(path: Path, shape: tuple[int, ...]) -> np.memmap:
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):  # a full disk would end a write through the mapping with a signal
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return out


def _decode_all(
    root: Path,
    files: Sequence[Found],
    entries: dict[str, Entry],
    out: np.memmap,
    places: dict[str, int],
    choose: Choose,
) -> Interrupted | None:
    """Reads the files that have no entry, and images to keep that have no row, into their places.

    Returns:
        What to raise, once the entries so far are saved, where a signal asked for that.
    """
    with Interruption() as interruption:
        while todo := _missing(files, entries, choose):
            with contextlib.closing(_decode(root, todo, out, places)) as found:
                for entry in found:
                    entries[entry.path] = entry
                    if interruption.due():
                        return interruption.stop("the images read so far are kept; the same command reads the others")
    return None


def _missing(files: Sequence[Found], entries: dict[str, Entry], choose: Choose) -> list[Found]:
    """The files that are new or changed; without any, those whose pixels are not at hand: a copy that was left out is
    needed once the file that stood for it is gone."""
    new = [file for file in files if file.path not in entries]
    if new:
        return new
    kept, _ = choose(_in_order(files, entries))
    return [Found(entry.path, *_stamp(entry)) for entry in kept if entry.row is None]


def _decode(root: Path, todo: Sequence[Found], out: np.memmap, places: dict[str, int]) -> Generator[Entry, None, None]:
    """Entries of files, in any order, with several threads: Pillow and SHA-256 leave the interpreter to the others."""

    def run(chunk: Sequence[Found]) -> list[Entry]:
        return [_decode_one(root, file, out, places[file.path]) for file in chunk]

    chunks = [todo[start : start + CHUNK] for start in range(0, len(todo), CHUNK)]
    with strict_and_quiet():
        executor = ThreadPoolExecutor(_cpus())
        try:
            entries = itertools.chain.from_iterable(executor.map(run, chunks))
            yield from progress(entries, description="reading images", total=len(todo), unit="file")
        finally:
            executor.shutdown(cancel_futures=True)


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _decode_one(root: Path, file: Found, out: np.memmap, place: int) -> Entry:
    try:
        picture = read_picture(os.path.join(root, file.path), out.shape[1])
    except Unusable as error:
        return Entry(file.path, *_stamp(file), error.digest, error.problem, error.detail)
    out[place] = picture.pixels
    stamp = picture.size, picture.mtime_ns, picture.ctime_ns
    return Entry(file.path, *stamp, picture.digest, detail=picture.note, row=place)


def _compact(path: Path, out: np.memmap, places: Sequence[int]) -> None:
    """Moves the rows at ``places`` (ascending) to the front and cuts the file off behind them."""
    chosen = np.asarray(places, dtype=np.int64)
    if len(chosen) < len(out):
        for start in range(0, len(chosen), BLOCK):
            rows = chosen[start : start + BLOCK]
            out[start : start + len(rows)] = out[rows]
    out.flush()
    offset, shape = out.offset, (len(chosen), *out.shape[1:])
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    assert header.tell() == offset  # NumPy leaves room in the header for any number of rows
    with open(path, "r+b") as file:
        file.write(header.getvalue())
        file.truncate(offset + int(np.prod(shape)))
        file.flush()
        os.fsync(file.fileno())
