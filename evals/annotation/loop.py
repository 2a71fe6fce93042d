"""The active learning loop with people as the oracle: a query is written out, its labels come back, the next follows.

All state is in the index folder: cycle_N.json for each cycle whose labels were taken, and cycle_N/ for the query that
waits for labels. Images are identified by the content of their files, so the data folder may change in between.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common import distributed
from common.console import log, shown, warn
from common.provenance import file_digest
from datasets.base import Dataset
from datasets.folder.labels import SET_ASIDE, Finder, class_number, locate
from datasets.folder.pictures import read_thumbnail
from datasets.index_files import IndexFile, index_path, numbered_files, read_index_file, write_index_file
from datasets.split import Split
from evals.annotation.label_csv import OTHER_LABEL, QueriedImage, check_class_names, is_unicode, lists_only, read_labels
from evals.annotation.page import render_page
from evals.annotation.queries import AnnotationQuery, read_query, write_query
from evals.cycles import Cycle
from evals.index_folder import index_file
from evals.metrics import query_metrics
from utils import InputError

THUMBNAIL = 512  # pixels of the longer side; half of it from MANY images on, so that a page stays below about 20 MB
MANY = 500
EXAMPLES = 6  # labeled images of each class that the page shows


@dataclass(frozen=True)
class Progress:
    """Where the loop stands.

    Attributes:
        cycle: The last one whose labels were taken; 0 before the first.
        split: What is labeled, set aside and in the pool after it.
        labels: Of all train images as far as they are known, int64 (N,); see datasets.folder.labels.
        waiting: The query whose labels are still to come; None where the next one can be made.
    """

    cycle: int
    split: Split
    labels: np.ndarray
    waiting: AnnotationQuery | None


def resume_annotation(
    index_folder: Path, data: Dataset, split: Split, *, file: Path | None, partial: bool, overwrite: bool
) -> Progress:
    """Takes the labels of the waiting query, if they are given, and returns where the loop stands.

    Args:
        index_folder: Where the index files are.
        data: The folder of images.
        split: Its labeled images and its pool as they are now.
        file: A csv with labels.
        partial: Take it even if labels are missing.
        overwrite: Leave the waiting query out of the result, so that it is made anew.

    Raises:
        InputError: The data need no labels, a file is damaged or does not fit, or the replaced query is filled in.
    """
    if data.paths is None or data.has_oracle:
        raise InputError(
            f"--annotate is for images that nobody has labeled yet (--dataset folder with labeled/ and unlabeled/); "
            f"{data.name} has all its labels: leave --annotate out"
        )
    check_class_names(data.class_names)
    progress = read_progress(index_folder, data, split)
    if file:
        progress = take_labels(index_folder, file, progress, data, partial=partial)
    query = progress.waiting
    if query and overwrite:
        if query.is_filled():
            raise InputError(f"{query.table} is filled in: take it with --labels, or move it away before --overwrite")
        return dataclasses.replace(progress, waiting=None)
    if query:
        log_waiting(query)
    elif not len(progress.split.unlabeled):
        log("the pool is empty: every image is labeled or set aside")
    return progress


def read_progress(index_folder: Path, data: Dataset, split: Split) -> Progress:
    """Reads which labels were taken and finds their images in the data folder as it is now.

    Raises:
        InputError: A file is missing, damaged or of something else.
    """
    labels, waiting = data.train_labels, None
    numbers = numbered_files(index_folder)
    if missing := set(range(len(numbers))) - set(numbers):
        gap = f"{index_folder} holds cycle_{numbers[-1]}.json but no cycle_{min(missing)}.json"
        raise InputError(f"{gap}: restore it, or move those after it away, too")
    if numbers:
        path = index_path(index_folder, numbers[-1])
        located = locate(read_index_file(path), str(path), data)
        if not len(located.labeled):
            raise InputError(f"none of the labeled images of {path} is in --data_path: name the folder of its run")
        located.warn(path.name)
        labels = located.labels
        split = split.annotate(np.concatenate([located.annotated, located.set_aside]), labels)
        waiting = read_query(index_folder, numbers[-1] + 1)
        if waiting and waiting.after != file_digest(path):
            log(f"the query of cycle {waiting.cycle} was made before the labels in {path.name}: it is made anew")
            waiting = None
    unnamable = [image for image in split.unlabeled if not is_unicode(data.paths[image])]
    if unnamable:
        warn(f"{len(unnamable)} image(s) are left out of the query: their names are not valid UTF-8; rename them")
        split = dataclasses.replace(split, unlabeled=np.setdiff1d(split.unlabeled, unnamable))
    return Progress(max(len(numbers) - 1, 0), split, labels, waiting)


def last_settings(index_folder: Path, *, overwrite: bool) -> dict[str, Any]:
    """The settings of the query that waits, unless that is made anew, or of the last one that has answers.

    Empty where there is neither. Raises InputError for a damaged file.
    """
    last = max(numbered_files(index_folder), default=None)
    if last is None:
        return {}
    path = index_path(index_folder, last)
    waiting = None if overwrite else read_query(index_folder, last + 1)
    if waiting and waiting.after == file_digest(path):
        return waiting.settings
    return read_index_file(path).settings if last else {}


def take_labels(index_folder: Path, file: Path, progress: Progress, data: Dataset, *, partial: bool) -> Progress:
    """Reads the labels of the waiting query from a csv and writes the cycle's index file.

    Labels that were taken already change nothing, so a command may be repeated.

    Raises:
        InputError: See read_labels; or no query waits, or the labels contradict those that were taken.
    """
    if _were_taken(index_folder, file, progress, data):
        log(f"the labels in {file} are in {index_path(index_folder, progress.cycle).name} already")
        return progress
    query = progress.waiting
    if query is None:
        remedy = f"leave --labels out to make that of cycle {progress.cycle + 1}"
        raise InputError(f"--labels {file}: no query in {index_folder} waits for labels; {remedy}")
    answers = read_labels(file, query.paths, query.class_names, partial=partial, images=query.images)
    found = _find_in_pool(answers, query, progress, data)
    if lost := [shown(path) for path in answers if path not in found]:
        names = ", ".join(lost[:3]) + ", ..." * (len(lost) > 3)
        warn(f"{len(lost)} label(s) are not used: the images are no longer in unlabeled/ as queried ({names})")
    labels = progress.labels.copy()
    for path, image in found.items():
        name = answers[path]
        labels[image] = SET_ASIDE if name is None else class_number(name, data.class_names, str(file))
    queried = np.asarray(list(found.values()), dtype=np.int64)
    split = progress.split.annotate(queried, labels)
    content = _index_content(data, split, labels, query, queried)
    log(_summary(content, wanted=len(query.images)))
    distributed.barrier()  # every process has read the folder before the first one writes
    if distributed.is_main():
        log(f"wrote {write_index_file(index_folder, content)}")
        log(worth_of(index_folder))
    return Progress(query.cycle, split, labels, None)


def _find_in_pool(paths: Iterable[str], query: AnnotationQuery, progress: Progress, data: Dataset) -> dict[str, int]:
    """Queried images that are still in the pool, by path."""
    finder, pool = Finder(data), set(progress.split.unlabeled.tolist())
    digests = {image.path: image.digest for image in query.images}
    found = {path: finder.find(path, digests[path]) for path in paths}
    return {path: image for path, image in found.items() if image in pool}


def _were_taken(index_folder: Path, file: Path, progress: Progress, data: Dataset) -> bool:
    """Whether a csv belongs to the last cycle whose labels were taken and agrees with them.

    Raises:
        InputError: It has other labels, or more.
    """
    query, waiting = read_query(index_folder, progress.cycle), progress.waiting
    if query is None or not lists_only(file, query.paths) or (waiting and lists_only(file, waiting.paths)):
        return False
    answers = read_labels(file, query.paths, query.class_names, partial=True, images=query.images)
    path = index_path(index_folder, progress.cycle)
    content = read_index_file(path)
    names = [content.class_names[number] for number in content.labels] + [None] * len(content.set_aside)
    taken = {path: name for (path, _), name in zip(content.files["labeled"] + content.files["set_aside"], names)}
    added = _find_in_pool([path for path in answers if path not in taken], query, progress, data)
    differing = [path for path in answers if path in added or taken.get(path, answers[path]) != answers[path]]
    if differing:
        first = differing[0]
        before = "without one" if first in added else taken[first] or OTHER_LABEL
        raise InputError(
            f"--labels {file}: the labels of cycle {progress.cycle} were taken already, and {len(differing)} in this "
            f"file differ, such as that of {shown(first)} ({answers[first] or OTHER_LABEL}, before {before}); to "
            f"replace them, move {path} away and give a csv with all labels of the cycle"
        )
    return True


def _index_content(
    data: Dataset, split: Split, labels: np.ndarray, query: AnnotationQuery, queried: np.ndarray
) -> IndexFile:
    """A cycle's index file; ``split`` is that after the answers, ``queried`` the images that have one, (Q,)."""
    content = index_file(data, split, strategy=query.strategy, settings=query.settings)
    metrics = content.metrics
    if query.cycle:
        metrics |= query_metrics(labels[queried], target_classes=split.target_classes, found_before=0, pool_targets=0)
    if len(queried) < len(query.images):
        metrics["unanswered"] = len(query.images) - len(queried)
    parts = {"labeled": split.labeled, "queried": queried, "set_aside": split.set_aside}
    return dataclasses.replace(
        content,
        cycle=query.cycle,
        queried=queried.tolist(),
        metrics=metrics,
        seconds=query.seconds,
        class_names=[data.class_names[label] for label in split.target_classes],
        labels=split.class_numbers(labels[split.labeled]).tolist(),
        files={name: [[data.paths[image], data.digests[image]] for image in images] for name, images in parts.items()},
    )


def _summary(content: IndexFile, *, wanted: int) -> str:
    """A cycle's labels in one line."""
    metrics = content.metrics
    queried, found = metrics["queried"], metrics["found"]
    counts = ", ".join(f"{shown(name)} {n}" for name, n in zip(content.class_names, metrics["found_per_class"]))
    precision = f"{metrics['precision']:.1f} %" if queried else "-"
    start = f"cycle {content.cycle}: {queried} labels{f' of {wanted} asked for' * (queried < wanted)}"
    kinds = f"target {found} ({counts}), other {queried - found}, precision {precision}"
    return f"{start}, {kinds}, labeled {metrics['labeled']}, pool {metrics['pool']}"


def worth_of(index_folder: Path) -> str:
    """What the last two cycles found, how many of a random hundred would be targets, and whether to stop.

    Images that a strategy chose say nothing of the pool: the estimate is of a query at random, or there is none.
    """
    cycles = [read_index_file(index_path(index_folder, number)) for number in numbered_files(index_folder)[1:]]
    counts = [(c.cycle, c.metrics.get("found", 0), c.metrics["queried"]) for c in cycles if c.metrics.get("queried")]
    if not counts:
        return ""
    text = "targets: " + ", ".join(f"{found} of {queried} in cycle {n}" for n, found, queried in counts[-1:-3:-1])
    shares = [found / queried for _, found, queried in counts]
    if cycles[-1].strategy == "random":
        _, found, queried = map(sum, zip(*counts, strict=True))
        text += f"; of any random hundred about {100 * found / queried:.0f} would be (by these {queried})"
    elif shares[-1] < max(shares) / 2:
        text += "; less than half of what the best cycle found: few targets are left, or the scores do not find them: "
        text += "consider stopping"
    return text


def write_next_query(
    index_folder: Path,
    images_folder: Path,
    progress: Progress,
    data: Dataset,
    cycle: Cycle,
    *,
    strategy: str,
    settings: dict[str, Any],
) -> AnnotationQuery:
    """Writes a query for people to label; before the first one, also the index file of the initial set."""
    class_names = [data.class_names[label] for label in progress.split.target_classes]
    folder, seconds = index_path(index_folder, cycle.number).with_suffix(""), round(cycle.seconds, 3)
    images = _queried_images(data, cycle, class_names)
    query = AnnotationQuery(folder, cycle.number, "", class_names, strategy, settings, seconds, images)
    labeled = progress.split.labeled
    examples = {
        name: labeled[progress.labels[labeled] == label][:EXAMPLES]
        for name, label in zip(class_names, progress.split.target_classes, strict=True)
    }
    indices = {data.paths[image]: image for image in np.concatenate([cycle.result.indices, *examples.values()])}
    side = THUMBNAIL if len(images) < MANY else THUMBNAIL // 2

    def thumbnail(path: str) -> Image.Image:
        image = indices[path]
        whole = read_thumbnail(images_folder / path, side, digest=data.digests[image])
        return whole or Image.fromarray(np.array(data.train_images[image]))  # as it was scored

    distributed.barrier()  # every process has read the folder before the first one writes
    if distributed.is_main():
        before = index_path(index_folder, progress.cycle)
        if not before.is_file():
            initial, nothing = dataclasses.replace(query, cycle=0, images=[], seconds=0.0), np.empty(0, dtype=np.int64)
            write_index_file(index_folder, _index_content(data, progress.split, progress.labels, initial, nothing))
        query = dataclasses.replace(query, after=file_digest(before))
        paths = {name: [data.paths[image] for image in some] for name, some in examples.items()}
        worth = worth_of(index_folder) or None
        write_query(query, render_page(query, thumbnail, images_folder=images_folder, examples=paths, worth=worth))
    for number, missing in cycle.result.shortfall.items():
        log(f"class {shown(class_names[number])}: {missing} image(s) fewer than wanted, there are no more candidates")
    log_waiting(query)
    return query


def _queried_images(data: Dataset, cycle: Cycle, class_names: list[str]) -> list[QueriedImage]:
    """The images in the order of the query, those with one suggestion together: the class of the largest utility.

    Where the strategy deals images out to the classes, an image's class is not a suggestion.
    """
    result, suggests = cycle.result, cycle.by_class
    rows = {image: row for row, image in enumerate(cycle.inputs.pool.tolist())}
    utilities = cycle.utilities[[rows[image] for image in result.indices.tolist()]].cpu().numpy()
    likeliest = utilities.argmax(1) if suggests else result.pseudo_class
    scores = np.stack([utilities.max(1), result.semantic, result.distinctive], axis=1).tolist()
    images = []
    for row in np.argsort(likeliest, kind="stable"):
        image, name = result.indices[row], class_names[likeliest[row]]
        joint, semantic, distinctive = (value if math.isfinite(value) else None for value in scores[row])
        suggestion, joint = (name, joint) if suggests else (None, None)
        images.append(QueriedImage(data.paths[image], data.digests[image], suggestion, joint, semantic, distinctive))
    return images


def log_waiting(query: AnnotationQuery) -> None:
    """Says where a query can be labeled."""
    log(
        f"cycle {query.cycle} waits for the labels of {len(query.images)} images: open {query.page} in a browser, "
        f"which saves them as {query.labels_file}, or fill in the column label of {query.table}"
    )
