"""An annotated query's images in the folder as it is now: the numbers in its index files are those of their day."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from datasets.base import UNKNOWN, Dataset, shown
from datasets.folder.labels import Finder, class_number
from datasets.index_files import IndexFile
from evals.report.runs import Query
from utils import InputError

LISTS = ("labeled", "queried", "set_aside")
SHOWN = 3  # paths that a note names


def names_images(files: Sequence[IndexFile]) -> bool:
    """Whether these are of a query whose labels people gave, which name images by path and content."""
    return any(content.files is not None for content in files)


def found_again(query: Query, data: Dataset) -> tuple[Query, list[str]]:
    """The query with all numbers of images and classes those of the folder as it is now.

    Returns:
        It, and a sentence on the images that it lacks because they are gone, if any are.

    Raises:
        InputError: A file does not name its images, none of them is there, or the folder of a class is gone.
    """
    if data.digests is None or any(content.files is None for content in query.files):
        raise InputError(f"not all index files of {query.name} name their images, or {data.name} is no folder")
    finder, lost = Finder(data), {}
    known = {name: class_number(name, data.class_names, query.name) for f in query.files for name in f.class_names}
    names = sorted(known, key=known.__getitem__)
    files = [_moved(content, data, finder, names, lost) for content in query.files]
    if not any(content.labeled for content in files):
        raise InputError("none of the query's labeled images is in the folder; name its own with --data_path")
    notes = []
    if lost:
        listing = ", ".join(shown(path) for path in [*lost][:SHOWN]) + (", ..." if len(lost) > SHOWN else "")
        notes.append(
            f"{len(lost)} image(s) of the index files are left out: since then they were removed from the folder, "
            f"changed, or moved back into unlabeled/ ({listing})"
        )
    return dataclasses.replace(query, files=files), notes


def _moved(content: IndexFile, data: Dataset, finder: Finder, names: list[str], lost: dict[str, None]) -> IndexFile:
    """One index file with today's numbers; the paths of what is gone go into ``lost``."""
    places: dict[str, dict[int, int]] = {}  # place in the file's list by today's number
    for name in LISTS:
        places[name] = {}
        for place, (path, digest) in enumerate(content.files[name]):
            image = finder.find(path, digest)
            # As for the classifier: who moves an image out of labeled/ takes its label back.
            if image is None or (path.startswith("labeled/") and data.train_labels[image] == UNKNOWN):
                lost[path] = None
            else:
                places[name].setdefault(image, place)
    given = [content.class_names[content.labels[place]] for place in places["labeled"].values()]
    return dataclasses.replace(
        content,
        target_classes=[data.class_names.index(name) for name in names],
        class_names=names,
        labels=[names.index(name) for name in given],
        files={name: [content.files[name][place] for place in found.values()] for name, found in places.items()},
        **{name: [*found] for name, found in places.items()},
    )
