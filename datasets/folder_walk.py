"""Which files lie in a person's folder, and which of them are not even looked into."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Found:
    """A file, by its path relative to the folder (POSIX, as os.fsdecode gives it).

    Attributes:
        path: labeled/cat/a.png, say.
        size: In bytes.
        mtime_ns: When it was last changed.
    """

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Skipped:
    """A file or folder that is left out without being read."""

    path: str
    problem: str
    detail: str = ""


def walk(root: str | os.PathLike, parts: Sequence[str]) -> tuple[list[Found], list[Skipped]]:
    """All files in some subfolders, however deep, part by part and sorted by path within each.

    A link counts as what it leads to if that lies in the folder, too; others are skipped, as are hidden files.

    Args:
        root: The folder.
        parts: Names of subfolders; one that is not there has no files.
    """
    found: list[Found] = []
    skipped: list[Skipped] = []
    real_root = os.path.realpath(root)
    for part in parts:
        entries = list(_walk(os.fspath(root), part, real_root, set()))
        found += sorted((entry for entry in entries if isinstance(entry, Found)), key=lambda entry: entry.path)
        skipped += sorted((entry for entry in entries if isinstance(entry, Skipped)), key=lambda entry: entry.path)
    return found, skipped


def _walk(root: str, path: str, real_root: str, above: set[str]) -> Iterator[Found | Skipped]:
    """What lies below ``path``; ``above`` are the real folders on the way there, so that links cannot go in circles."""
    full = os.path.join(root, path)
    if os.path.islink(full) and (problem := _link_problem(full, real_root)):
        yield Skipped(path, *problem)
        return
    try:
        status = os.stat(full)
        if not stat.S_ISDIR(status.st_mode):
            if stat.S_ISREG(status.st_mode):
                yield Found(path, status.st_size, status.st_mtime_ns)
            else:
                yield Skipped(path, "no regular file")
            return
        real = os.path.realpath(full)
        if real in above:
            yield Skipped(path, "link", "leads back to a folder that holds it")
            return
        with os.scandir(full) as entries:
            names = [entry.name for entry in entries]
    except FileNotFoundError:
        return
    except OSError as error:
        yield Skipped(path, "unreadable", error.strerror or str(error))
        return
    for name in names:
        below = f"{path}/{name}"
        if name.startswith("."):
            yield Skipped(below, "hidden")
        else:
            yield from _walk(root, below, real_root, above | {real})


def _link_problem(full: str, real_root: str) -> tuple[str, str] | None:
    target = os.path.realpath(full)
    if not os.path.exists(target):
        return "link", "leads nowhere"
    if os.path.commonpath([target, real_root]) != real_root:
        return "link", "leads out of the folder"
    return None
