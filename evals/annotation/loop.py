"""The loop with people in it: a query is written out, its labels come back, and the next query follows.

One command takes the labels of the query before, if there is one, and makes the next query.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common import distributed
from common.console import finish, log, warn
from common.provenance import file_digest
from datasets.base import Dataset, shown
from datasets.folder.labels import SET_ASIDE, Finder, class_number
from datasets.folder.pictures import read_thumbnail
from datasets.index_files import IndexFile, index_path, read_index_file, write_index_file
from datasets.split import Split
from evals.annotation.label_csv import OTHER as OTHER_LABEL
from evals.annotation.label_csv import Asked, finite_or_none, is_about, read_labels
from evals.annotation.page import labels_file
from evals.annotation.state import State, check_data, read_state
from evals.annotation.waiting_query import (
    PAGE,
    TABLE,
    WaitingQuery,
    cycle_folder,
    is_filled,
    read_query,
    write_query,
)
from evals.cycles import Cycle
from evals.metrics import query_metrics
from utils import InputError

THUMBNAIL = 256  # pixels of the longer side


def announce(folder: Path, query: WaitingQuery) -> None:
    """Says what to do with a query that waits."""
    place = cycle_folder(folder, query.cycle)
    log(
        f"cycle {query.cycle} waits for the labels of {len(query.images)} images: open {place / PAGE} in a browser, "
        f"which saves them as {labels_file(query.cycle)}, or fill in the column label of {place / TABLE}"
    )


def advance(
    folder: Path,
    data: Dataset,
    split: Split,
    *,
    file: str | None,
    partial: bool,
    overwrite: bool,
    again: Callable[[str], str],
) -> State | None:
    """Brings the loop to where the next query is to be made; None where there is none to make now.

    Args:
        folder: The index folder.
        data: The folder of images.
        split: Its labeled images and its pool as they lie there.
        file: A filled csv, or None.
        partial: Take it though labels are missing.
        overwrite: Make a query anew that waits for its labels.
        again: The command that takes a csv of this name.

    Raises:
        InputError: The data need no labels, the index folder or the csv is not in order, or a query that is to be made
            anew has labels.
    """
    check_data(data)
    state = read_state(folder, data, split)
    if file is not None:
        state = take_labels(folder, Path(file), state, data, partial=partial)
    if state.waiting and overwrite:
        if is_filled(folder, state.waiting):
            table = cycle_folder(folder, state.waiting.cycle) / TABLE
            raise InputError(f"{table} is filled in: take it with --labels, or move it away before --overwrite")
    elif state.waiting:
        announce(folder, state.waiting)
        log(f"next: {again(labels_file(state.waiting.cycle))}")
        return None
    if not len(state.split.unlabeled):
        log("the pool is empty: every image is labeled or set aside")
        return None
    return state


def take_labels(folder: Path, file: Path, state: State, data: Dataset, *, partial: bool) -> State:
    """Takes the labels of the waiting query from a csv and writes the cycle's index file.

    Labels that are in already change nothing, so that a command may be given twice.

    Raises:
        InputError: See label_csv.read_labels; or no query waits, or the labels contradict those that are in.
    """
    if _are_in_already(folder, file, state, data):
        log(f"the labels in {file} are in {index_path(folder, state.cycle).name} already")
        return state
    query = state.waiting
    if query is None:
        raise InputError(
            f"--labels {file}: no query in {folder} waits for labels; leave --labels out to make that of cycle "
            f"{state.cycle + 1}"
        )
    answers = read_labels(file, query.paths, query.class_names, partial=partial)
    finder, labels = Finder(data), state.labels.copy()
    digests = {image.path: image.digest for image in query.images}
    pool = set(state.split.unlabeled.tolist())
    found: list[int] = []
    gone: list[str] = []
    for path, name in answers.items():
        image = finder.find(path, digests[path])
        if image not in pool:
            gone.append(shown(path))
            continue
        labels[image] = SET_ASIDE if name is None else class_number(name, data.class_names, str(file))
        found.append(image)
    if gone:
        warn(
            f"{len(gone)} label(s) are not used: the images are no longer in unlabeled/ as they were asked "
            f"for ({', '.join(gone[:3])}{', ...' if len(gone) > 3 else ''})"
        )
    queried = np.asarray(found, dtype=np.int64)
    split = state.split.annotate(queried, labels)
    content = index_file(data, split, labels, query, queried=queried)
    log(answer_line(content, asked=len(query.images)))
    distributed.barrier()  # every process has read the folder before the first one writes
    if distributed.is_main():
        path = write_index_file(folder, content)
        log(f"wrote {path}, which the classifier trains on with --split {query.cycle}")
    return State(query.cycle, split, labels, None)


def _are_in_already(folder: Path, file: Path, state: State, data: Dataset) -> bool:
    """Whether a csv is of the last cycle whose labels are in, and says the same.

    Raises:
        InputError: It says something else, or more.
    """
    earlier = read_query(folder, state.cycle) if state.cycle else None
    if earlier is None or not is_about(file, earlier.paths):
        return False
    if state.waiting and is_about(file, state.waiting.paths):  # both asked for these images
        return False
    answers = read_labels(file, earlier.paths, earlier.class_names, partial=True)
    content = read_index_file(index_path(folder, state.cycle))
    names = [content.class_names[number] for number in content.labels]
    known: dict[str, str | None] = {path: name for (path, _), name in zip(content.files["labeled"], names)}
    known |= {path: None for path, _ in content.files["set_aside"]}
    differs = [path for path, name in answers.items() if path in known and known[path] != name]
    if differs:
        raise InputError(
            f"--labels {file}: the labels of cycle {state.cycle} are in already, and this file says otherwise of "
            f"{len(differs)} image(s), such as {shown(differs[0])} ({answers[differs[0]] or OTHER_LABEL}, not "
            f"{known[differs[0]] or OTHER_LABEL}); {_how_to_take_anew(folder, state, content, answers)}"
        )
    finder, pool = Finder(data), set(state.split.unlabeled.tolist())
    digests = {image.path: image.digest for image in earlier.images}
    unknown = [path for path in answers if path not in known]
    late = [path for path in unknown if finder.find(path, digests[path]) in pool]
    if late:
        raise InputError(
            f"--labels {file}: the labels of cycle {state.cycle} are in already, without {len(late)} that this file "
            f"has, such as that of {shown(late[0])}, whose images are in the pool again; "
            f"{_how_to_take_anew(folder, state, content, answers)}"
        )
    if unknown:
        warn(f"{len(unknown)} label(s) in {file} are of images that are no longer in unlabeled/")
    return True


def _how_to_take_anew(folder: Path, state: State, content: IndexFile, answers: Mapping[str, str | None]) -> str:
    """What to do so that a csv replaces the labels of the last cycle."""
    later = cycle_folder(folder, state.cycle + 1)
    moved = f"{index_path(folder, state.cycle)} away" + f", and {later}, whose query followed it," * later.is_dir()
    lacking = sum(path not in answers for path, _ in content.files["queried"])
    added = f" with the {lacking} label(s) added that it lacks" if lacking else ""
    return f"to take what it says, move {moved} and give this file again{added}"


def index_file(
    data: Dataset, split: Split, labels: np.ndarray, query: WaitingQuery, *, queried: np.ndarray
) -> IndexFile:
    """A cycle's index file, with the labels that people gave.

    Args:
        data: The folder of images.
        split: After the answers.
        labels: Of all train images.
        query: What was asked; cycle 0 for the initial set.
        queried: The images that were answered for, (Q,).
    """
    metrics = query_metrics(labels[queried], target_classes=split.target_classes, found_before=0, pool_targets=0)
    if query.cycle == 0:
        metrics = {}
    elif len(queried) < len(query.images):
        metrics["unanswered"] = len(query.images) - len(queried)
    metrics |= {"labeled": len(split.labeled), "pool": len(split.unlabeled)}
    parts = {"labeled": split.labeled, "queried": queried, "set_aside": split.set_aside}
    return IndexFile(
        dataset=data.name,
        mismatch=split.mismatch,
        split_digest=split.digest,
        target_classes=list(split.target_classes),
        strategy=query.strategy,
        cycle=query.cycle,
        **{name: images.tolist() for name, images in parts.items()},
        settings=query.settings,
        metrics=metrics,
        seconds=query.seconds,
        class_names=[data.class_names[label] for label in split.target_classes],
        labels=split.class_numbers(labels[split.labeled]).tolist(),
        files={name: [[data.paths[image], data.digests[image]] for image in images] for name, images in parts.items()},
    )


def answer_line(content: IndexFile, *, asked: int) -> str:
    """What a cycle's labels say, in one line."""
    metrics = content.metrics
    per_class = ", ".join(
        f"{shown(name)} {found}" for name, found in zip(content.class_names, metrics["found_per_class"], strict=True)
    )
    answered = f"{metrics['queried']} labels" + ("" if metrics["queried"] == asked else f" of {asked} asked for")
    precision = "-" if metrics["precision"] is None else f"{metrics['precision']:.1f} %"
    return (
        f"cycle {content.cycle}: {answered}, target {metrics['found']} ({per_class}), other "
        f"{metrics['queried'] - metrics['found']}, precision {precision}, labeled {metrics['labeled']}, pool "
        f"{metrics['pool']}"
    )


def ask(
    folder: Path,
    root: Path,
    state: State,
    data: Dataset,
    cycle: Cycle,
    *,
    strategy: str,
    settings: dict[str, Any],
    again: Callable[[str], str],
) -> None:
    """Writes the files of a query and says what to do with them; before the first, the initial set's index file.

    Args:
        folder: The index folder.
        root: The folder of images.
        state: Where the loop stands.
        data: The images.
        cycle: The query.
        strategy: Its name.
        settings: For the record.
        again: The command that takes a csv of this name.
    """
    names = [data.class_names[label] for label in state.split.target_classes]
    query = WaitingQuery(
        cycle=cycle.number,
        after="",
        class_names=names,
        strategy=strategy,
        settings=settings,
        seconds=round(cycle.seconds, 3),
        images=asked_images(data, cycle, names),
    )
    numbers = {data.paths[image]: image for image in cycle.result.indices}

    def picture(path: str) -> Image.Image:
        whole = read_thumbnail(root / path, THUMBNAIL, digest=data.digests[numbers[path]])
        return whole or Image.fromarray(np.array(data.train_images[numbers[path]]))  # as it was scored

    distributed.barrier()  # every process has read the folder before the first one writes
    if distributed.is_main():
        before = index_path(folder, state.cycle)
        if not before.is_file():
            initial = dataclasses.replace(query, cycle=0, images=[], seconds=0.0)
            empty = np.empty(0, dtype=np.int64)
            write_index_file(folder, index_file(data, state.split, state.labels, initial, queried=empty))
        write_query(folder, dataclasses.replace(query, after=file_digest(before)), picture)
    for number, missing in cycle.result.shortfall.items():
        log(f"class {shown(names[number])}: {missing} fewer than --target, no more candidates")
    announce(folder, query)
    place = cycle_folder(folder, query.cycle)
    finish([place / name for name in (PAGE, TABLE)], then=again(labels_file(query.cycle)))


def asked_images(data: Dataset, cycle: Cycle, names: Sequence[str]) -> list[Asked]:
    """The query's images; where the strategy looks at no score, the class that it dealt them to is no suggestion."""
    result, suggests = cycle.result, cycle.inputs.scores.pseudo_class is not None
    rows = zip(result.indices, result.pseudo_class, result.utility, result.semantic, result.distinctive, strict=True)
    return [
        Asked(
            path=data.paths[image],
            digest=data.digests[image],
            suggestion=names[number] if suggests else None,
            joint=finite_or_none(utility) if suggests else None,
            semantic=finite_or_none(semantic),
            distinctive=finite_or_none(distinctive),
        )
        for image, number, utility, semantic, distinctive in rows
    ]
