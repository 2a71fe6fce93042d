"""Where the loop with people in it stands.

All that it knows lies in the index folder: cycle_N.json for each cycle whose labels are in, and cycle_N/ for the one
that waits. Images are known by the content of their files, so the folder of images may change in between.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.console import log, warn
from common.provenance import file_digest
from datasets.base import Dataset, shown
from datasets.folder.labels import locate
from datasets.index_files import index_path, numbered_files, read_index_file
from datasets.split import Split
from evals.annotation.label_csv import check_class_names
from evals.annotation.waiting_query import WaitingQuery, read_query
from utils import InputError


@dataclass(frozen=True)
class State:
    """Where the loop stands.

    Attributes:
        cycle: The last one whose labels are in; 0 before the first.
        split: What is labeled, set aside and in the pool by now.
        labels: Of all train images, as far as they are known, int64 (N,); see datasets.folder.labels.
        waiting: The query whose labels are still to come.
    """

    cycle: int
    split: Split
    labels: np.ndarray
    waiting: WaitingQuery | None


def check_data(data: Dataset) -> None:
    """Refuses data that nobody needs to label, and names that a csv cannot carry.

    Raises:
        InputError: The data set knows all its labels, or a name is no text.
    """
    if data.paths is None or data.has_oracle:
        raise InputError(
            f"--annotate is for images that nobody has labeled yet (--dataset folder with labeled/ and unlabeled/); "
            f"{data.name} has all its labels: leave --annotate out"
        )
    check_class_names(data.class_names)
    for name in data.class_names:
        if not _is_text(name):
            raise InputError(f"labeled/{shown(name)}: this name is no UTF-8 text; rename the folder")


def _is_text(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def read_state(folder: Path, data: Dataset, split: Split) -> State:
    """Reads how far the loop has come, and finds its images in the folder as it is now.

    Args:
        folder: The index folder.
        data: The folder of images.
        split: Its labeled images and its pool as they lie there.

    Raises:
        InputError: The folder's files are damaged or of something else.
    """
    cycle, labels, current, waiting = last_cycle(folder), data.train_labels, split, None
    if cycle is not None:
        path = index_path(folder, cycle)
        located = locate(read_index_file(path), str(path), data)
        if not len(located.labeled):
            raise InputError(
                f"none of the labeled images of {path} is in the folder of --data_path: name that of its run"
            )
        located.warn(path.name)
        labels, current = located.labels, with_answers(split, located.annotated, located.set_aside)
        waiting = read_query(folder, cycle + 1)
        if waiting and waiting.after != file_digest(path):
            log(f"the query of cycle {waiting.cycle} was made before the labels in {path.name}: it is made anew")
            waiting = None
    nameless = np.asarray([image for image in current.unlabeled if not _is_text(data.paths[image])], dtype=np.int64)
    if len(nameless):
        warn(f"{len(nameless)} image(s) are left out of the query: their names are no UTF-8 text; rename them")
        current = dataclasses.replace(current, unlabeled=np.setdiff1d(current.unlabeled, nameless))
    return State(cycle or 0, current, labels, waiting)


def last_cycle(folder: Path) -> int | None:
    """The last of the folder's index files; None where there is none.

    Raises:
        InputError: One before it is missing.
    """
    numbers = numbered_files(folder)
    for place, number in enumerate(numbers):
        if number != place:
            raise InputError(
                f"{folder} holds cycle_{number}.json but no cycle_{place}.json: restore it, or move those after it "
                "away, too"
            )
    return numbers[-1] if numbers else None


def with_answers(split: Split, targets: np.ndarray, others: np.ndarray) -> Split:
    """The split after people's answers: targets join the labeled images, others are set aside."""
    gone = np.concatenate([targets, others])
    return dataclasses.replace(
        split,
        labeled=np.concatenate([split.labeled, targets]),
        unlabeled=split.unlabeled[~np.isin(split.unlabeled, gone)],
        set_aside=np.concatenate([split.set_aside, others]),
    )
