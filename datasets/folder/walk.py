"""Which files lie in a person's folder, and which of them are not even looked into."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

CACHE_FOLDER = ".ccal_cache"  # our own


@dataclass(frozen=True)
class Found:
    """A file, by its path relative to the folder (POSIX, as os.fsdecode gives it).

    Attributes:
        path: labeled/cat/a.png, say.
        size: In bytes.
        mtime_ns: When it was last changed, as it says itself.
        ctime_ns: When its content or status was last changed, which programs cannot set.
    """

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True)
class Skipped:
    """A file or folder that is left out without being read."""

    path: str
    problem: str
    detail: str = ""


def walk(root: str | os.PathLike, parts: Sequence[str]) -> tuple[list[Found], list[Skipped]]:
    """All files in some subfolders, however deep, part by part and sorted by path within each.

    A link counts as what it leads to if that lies in the folder, too; others are skipped, as are hidden files. A
    subfolder itself may be a link to anywhere: whoever put it there meant it.

    Args:
        root: The folder.
        parts: Names of subfolders; one that is not there has no files.
    """
    found: list[Found] = []
    skipped: list[Skipped] = []
    for part in parts:
        entries = list(_below(os.fspath(root), part))
        found += sorted((entry for entry in entries if isinstance(entry, Found)), key=lambda entry: entry.path)
        skipped += sorted((entry for entry in entries if isinstance(entry, Skipped)), key=lambda entry: entry.path)
    return found, skipped


def _below(root: str, part: str) -> Iterator[Found | Skipped]:
    """What lies below a subfolder, in any order."""
    real_root = os.path.realpath(root)
    inside = (real_root, os.path.realpath(os.path.join(root, part)))
    # With each path the real folders on the way to it, so that links cannot go in circles.
    above_part = frozenset() if part == "." else frozenset([real_root])
    waiting: list[tuple[str, frozenset[str]]] = [(part, above_part)]
    while waiting:
        path, above = waiting.pop()
        full = os.path.join(root, path)
        try:
            if path != part and os.path.islink(full) and (problem := _link_problem(full, inside)):
                yield Skipped(path, "link", problem)
                continue
            status = os.stat(full)
            if stat.S_ISREG(status.st_mode):
                yield Found(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            elif not stat.S_ISDIR(status.st_mode):
                yield Skipped(path, "no regular file")
            elif (real := os.path.realpath(full)) in above:
                yield Skipped(path, "link", "leads back to a folder that holds it")
            else:
                with os.scandir(full) as entries:
                    names = [entry.name for entry in entries]
                hidden = [name for name in names if name.startswith(".") and name != CACHE_FOLDER]
                yield from (Skipped(f"{path}/{name}", "hidden") for name in hidden)
                waiting += [(f"{path}/{name}", above | {real}) for name in names if not name.startswith(".")]
        except FileNotFoundError:
            continue  # it has gone since its folder was read, or the folder has no such part
        except OSError as error:
            yield Skipped(path, "unreadable", error.strerror or str(error))


def _link_problem(full: str, inside: Sequence[str]) -> str | None:
    target = os.path.realpath(full)
    if not os.path.exists(target):
        return "leads nowhere"
    if not any(os.path.commonpath([target, folder]) == folder for folder in inside):
        return "leads out of the folder"
    return None
