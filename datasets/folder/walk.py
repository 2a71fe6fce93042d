"""The form of a folder of images, and which files lie in it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path

from common.console import log, shown
from datasets.base import plain_name, twins
from utils import InputError

# The two forms of a folder, by their subfolders; the files in unlabeled/ have no class folders.
ANNOTATION = ("labeled", "unlabeled", "test")
BENCHMARK = ("train", "test")
CACHE_FOLDER = ".ccal_cache"
# What network disks, archives and systems put beside people's files, in lower case; all else of theirs is hidden.
SYSTEM = {"@eadir", "__macosx", "#recycle", "#snapshot", "$recycle.bin", "system volume information", "lost+found"}


@dataclass(frozen=True)
class File:
    """What the walk finds of a file and, from sha256 on, what reading it adds."""

    path: str  # relative to the folder, such as labeled/cat/a.png (POSIX, as os.fsdecode gives it)
    label: str | None = None  # the class folder that it lies in, if there are any
    size: int = 0  # bytes
    mtime_ns: int = 0
    sha256: str = ""  # of the content; empty if that is not a usable image
    problem: str = ""  # why it is left out, a kind and perhaps details ("link: leads nowhere"); empty if it is used
    note: str = ""  # what was done to the image that one would not expect
    row: int | None = None  # in images.npy; None if it is left out
    picture: str = ""  # SHA-256 of the pixels, which files of other bytes may share


def find_form(root: Path) -> tuple[str, ...]:
    """Tells whether a folder has the annotation form or the benchmark form.

    Raises:
        InputError: It is missing, or of neither form, or of both.
    """
    if not root.is_dir():
        state = "is not a folder" if root.exists() else "does not exist"
        raise InputError(f"--dataset folder needs --data_path DIR, and {root} {state}")
    names = sorted(name for name in os.listdir(root) if name[0] != ".")
    annotation = {"labeled", "unlabeled"} & set(names)
    if annotation and "train" in names:
        raise InputError(f"{root} holds both train/ and {min(annotation)}/: put them into folders of their own")
    form = ANNOTATION if annotation else BENCHMARK
    for part in form:
        if part in names and not (root / part).is_dir():
            raise InputError(f"{root / part} is not a folder, and must be one with images in it")
        if part not in names and (part == "unlabeled" or form is BENCHMARK):
            listing = ", ".join(map(shown, names[:8])) + (", ..." if len(names) > 8 else "")
            raise InputError(
                f"{root} lacks {part}/ (it holds {listing or 'nothing'}): --dataset folder needs labeled/<class>/ and "
                "unlabeled/, or, where every class is known, train/<class>/ and test/<class>/"
            )
    return form


def find_classes(root: Path, form: tuple[str, ...]) -> tuple[str, ...]:
    """The sorted names of the class folders; there are none where nobody has labeled anything (unlabeled/ alone).

    A folder of test/ whose name is another one's to people (Cat and cat, or other forms of accents) is of that class.

    Raises:
        InputError: labeled/ or train/ has no class folder, or two folders beside each other are one name to people.
    """
    classes: dict[str, str] = {}
    for part in (part for part in form if part != "unlabeled" and (root / part).is_dir()):
        folders = (folder for folder in (root / part).iterdir() if folder.is_dir())
        names = sorted(folder.name for folder in folders if not _of_the_system(folder.name))
        if not names and part != "test":
            raise InputError(f"{root / part} holds no class folder: put each class's images into a folder of its own")
        if pair := twins(names):
            listing = " and ".join(map(ascii, pair))
            raise InputError(f"{root / part} holds {listing}, which people read as one name: rename or merge them")
        for name in names if part != "test" or form is BENCHMARK else ():
            classes.setdefault(plain_name(name), name)
        for name in (name for name in names if classes.get(plain_name(name), name) != name):
            log(f"{part}/{shown(name)} is the class {shown(classes[plain_name(name)])}, in another form of the name")
    return tuple(sorted(classes.values()))


def _of_the_system(name: str) -> bool:
    return name[0] == "." or name.lower() in SYSTEM


def walk(root: Path, parts: Sequence[str], class_names: Sequence[str] | None) -> list[File]:
    """Finds all files in some subfolders, at any depth, subfolder by subfolder and sorted by path within each.

    A link counts as what it leads to if that lies in the folder, too. A subfolder itself may be a link to anywhere.
    Without class names no file has a label.
    """
    files, classes = [], {plain_name(name): name for name in class_names or ()}
    for part in parts:
        for file in sorted(_below(os.fspath(root), part), key=attrgetter("path")):
            folder, *deeper = file.path[len(part) + 1 :].split("/")
            if class_names is not None and part != "unlabeled" and not file.problem:
                if not deeper:
                    file = replace(file, problem=f"in no class folder: directly in {part}/")
                elif plain_name(folder) not in classes:
                    file = replace(file, problem=f"of no labeled class: there is no labeled/{folder}/")
                else:
                    file = replace(file, label=classes[plain_name(folder)])
            files.append(file)
    return files


def _below(root: str, part: str) -> Iterator[File]:
    """The files below a subfolder, in any order, without labels; what must not be read has a problem."""
    inside = [os.path.realpath(root), os.path.realpath(os.path.join(root, part))]
    # Beside each path the real folders on the way to it, so that links cannot go in circles.
    waiting = [(part, frozenset(inside[:1]) - {inside[1]})]
    while waiting:
        path, above = waiting.pop()
        full = os.path.join(root, path)
        link, problem = path != part and os.path.islink(full), ""
        try:
            status = os.stat(full)
            real = os.path.realpath(full) if link or stat.S_ISDIR(status.st_mode) else full
            if link and not any(os.path.commonpath([real, folder]) == folder for folder in inside):
                problem = "link: leads out of the folder"
            elif stat.S_ISREG(status.st_mode):
                yield File(path, None, status.st_size, status.st_mtime_ns)
            elif not stat.S_ISDIR(status.st_mode):
                problem = "not a regular file"
            elif real in above:
                problem = "link: leads back to a folder that holds it"
            else:
                names = [name for name in os.listdir(full) if name != CACHE_FOLDER]
                for name in filter(_of_the_system, names):
                    yield File(f"{path}/{name}", problem="hidden" if name[0] == "." else "of the system")
                above |= {real}
                waiting += [(f"{path}/{name}", above) for name in names if not _of_the_system(name)]
        except FileNotFoundError:  # unless it is a link, it has gone since its folder was read, or is an absent part
            problem = "link: leads nowhere" if link else ""
        except OSError as error:
            problem = f"unreadable: {error.strerror or error}"
        if problem:
            yield File(path, problem=problem)
