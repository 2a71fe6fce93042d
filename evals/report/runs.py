"""What a folder of results holds, found by content: encoders, queries and what they kept, results of the classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.checkpoint import ARGS_FILE
from common.files import SMALL_JSON, is_number, read_json
from common.provenance import read_log
from datasets.index_files import IndexFile, index_path, numbered_files, read_index_file
from datasets.results_file import Row, read_rows
from evals import kept
from evals.summary import CycleRow, cycle_rows
from utils import InputError

RESULTS_FILE = "results.csv"
HINT = "name a folder into which an encoder was trained or a query was written"
UNKNOWN, OTHER, TARGET = -1, 0, 1  # what is known of an image
NOT_ANNOTATED = "not annotated"


@dataclass(frozen=True)
class EncoderRun:
    """One encoder's training."""

    mode: str  # semantic or distinctive
    name: str  # the folder within the run
    record: dict[str, Any]  # args.json: arguments, split_digest, processes, versions, git_commit
    epochs: list[dict[str, float]]  # log.jsonl


@dataclass(frozen=True)
class Query:
    """The index files of one query."""

    folder: Path
    name: str  # the folder within the run
    files: list[IndexFile]  # from cycle 0 on, at least that one
    rows: list[CycleRow]  # what each of them says
    strategy: str
    targets: list[str]  # names of the target classes
    classifier: Row | None  # the last of those trained on its labeled sets


@dataclass(frozen=True)
class Run:
    """All that was found in one folder."""

    name: str  # told from those of the other runs
    encoders: list[EncoderRun]  # semantic ones first
    queries: list[Query]  # the one whose scores and images are shown first, random ones last
    classifier_seconds: float  # of all rows of results.csv
    feature_seconds: dict[str, float]  # of making the features that are kept, by digest of the encoder's checkpoint
    notes: list[str]  # files that could not be used, and why


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """Looks through the folders of some runs; raises InputError if one was given twice or holds nothing to show."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError("a run was given twice; name each folder once")
    return [find_run(folder, name) for folder, name in zip(folders, names, strict=True)]


def find_run(folder: Path, name: str) -> Run:
    """Looks through the folder of one run; see find_runs."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; {HINT}")
    notes: list[str] = []
    encoders = readable(folder.rglob(ARGS_FILE), lambda path: read_encoder(path, folder, notes), notes)
    results = readable(folder.rglob(RESULTS_FILE), read_rows, notes)
    folders = {path.parent for path in folder.rglob("cycle_*.json")}
    cycles = readable(folders, lambda path: read_cycles(path, notes), notes)
    if not (encoders or cycles):
        damaged = f" ({notes[0]})" if notes else ""
        raise InputError(f"{folder} holds no encoder and no index file that a report could show{damaged}; {HINT}")
    samples = readable(filter(Path.is_file, map(kept.sample_path, cycles)), kept.read_sample, []).items()
    names = {cycles[path.parent.parent][0].split_digest: sample.class_names for path, sample in samples}
    queries = [make_query(path, folder, files, [*results.values()], names) for path, files in cycles.items()]
    queries.sort(key=lambda query: ({"ccal": 0, "random": 2}.get(query.strategy, 1), query.name))
    seconds = sum(row.seconds for rows in results.values() for row in rows)
    trained = sorted(encoders.values(), key=lambda encoder: encoder.mode != "semantic")
    return Run(name, trained, queries, seconds, feature_seconds(folder), notes)


def readable(paths: Iterable[Path], read: Callable[[Path], Any], notes: list[str]) -> dict[Path, Any]:
    """What can be read of some files or folders, in the order of their names; errors go into the notes."""
    found = {}
    for path in sorted(paths):
        try:
            found[path] = read(path)
        except InputError as error:
            notes.append(str(error))
    return found


def read_encoder(path: Path, folder: Path, notes: list[str]) -> EncoderRun:
    """Reads an encoder's args.json, and the log beside it, of which damaged lines go into the notes.

    Raises InputError where the file is damaged, or another command's.
    """
    record = read_json(path, limit=SMALL_JSON)
    arguments = record.get("arguments") if isinstance(record, dict) else None
    mode = arguments.get("mode") if isinstance(arguments, dict) else None
    if mode not in ("semantic", "distinctive"):
        raise InputError(f"{path} is not the settings file of an encoder (mode: {str(mode)[:40]})")
    epochs, damaged = read_log(path.parent)
    if damaged:
        notes.append(f"the log beside {path}: {damaged} of {len(epochs) + damaged} lines are damaged and left out")
    return EncoderRun(mode, path.parent.relative_to(folder).as_posix(), record, epochs)


def read_cycles(folder: Path, notes: list[str]) -> list[IndexFile]:
    """All index files up to the first unusable one, which goes into the notes; InputError if that is cycle_0.json."""
    files = [read_index_file(index_path(folder, 0))]
    while (path := index_path(folder, len(files))).is_file():
        try:
            content = read_index_file(path)
            if (content.strategy, content.cycle) != (files[0].strategy, len(files)):
                raise InputError(f"{path} is of another query than cycle_0.json")
        except InputError as error:
            notes.append(f"{error}; this cycle and those after it are left out")
            break
        files.append(content)
    later = [number for number in numbered_files(folder) if number > len(files)]
    if later and not path.is_file():
        notes.append(f"{folder} holds cycle_{later[0]}.json but not {path.name}: those after it are left out")
    return files


def feature_seconds(folder: Path) -> dict[str, float]:
    """Looks for features that queries of one run have kept; see Run."""
    paths = (path.with_suffix(".json") for path in folder.rglob("*.npy"))
    found = readable(paths, lambda path: read_json(path, limit=SMALL_JSON), []).values()
    records = [record for record in found if isinstance(record, dict) and is_number(record.get("seconds"), 0)]
    return {str(record.get("checkpoint")): record["seconds"] for record in records}


def make_query(path: Path, folder: Path, files: list[IndexFile], results: list[list[Row]], names: dict) -> Query:
    """A query with the accuracies of its labeled sets, from the first results.csv that has any.

    ``names`` of all classes are by split digest; a class whose name no file holds is called by its number.
    """
    strategy, rows, classifier, last = files[0].strategy, cycle_rows(files), None, files[-1]
    known = dict(enumerate(names.get(last.split_digest, ())))
    targets = last.class_names or [known.get(number, f"class {number}") for number in last.target_classes]
    for table in results:
        found = cycle_rows(files, results=table)
        if classifier is None and any(row.seeds for row in found):
            rows, classifier = found, [row for row in table if row.strategy == strategy][-1]
    return Query(path, path.relative_to(folder).as_posix(), files, rows, strategy, targets, classifier)


@dataclass(frozen=True)
class Pool:
    """A run's first query as it saw its pool, and what is known of the images by now.

    An image is known by its number; where people label images of a folder, which may come and go, by its digest.
    """

    key: str  # short and safe for the names of files
    title: str
    query: Query
    cycles: list[tuple[int, kept.KeptCycle]]  # by number, as far as they were kept
    sample: kept.KeptSample | None
    notes: list[str]  # files that could not be used, and why
    answers: dict[int | str, tuple[int, str]]  # by image, OTHER or TARGET, and the class in words
    digests: dict[str, str]  # of the files that index files name, by path

    def keys(self, images: np.ndarray, paths: np.ndarray | None) -> list[int] | list[str]:
        """By what some images, (n,), are known."""
        return [self.digests.get(path, path) for path in paths.tolist()] if self.digests else images.tolist()

    def known(self, images: np.ndarray, paths: np.ndarray | None) -> tuple[np.ndarray, list[str]]:
        """UNKNOWN, OTHER or TARGET of some images, (n,), and their classes in words."""
        found = [self.answers.get(key, (UNKNOWN, NOT_ANNOTATED)) for key in self.keys(images, paths)]
        return np.array([truth for truth, _ in found], dtype=np.int64), [words for _, words in found]

    def truth(self, cycle: kept.KeptCycle) -> np.ndarray:
        """UNKNOWN, OTHER or TARGET of each image of the pool, (U,)."""
        if cycle.is_target is not None:
            return np.where(cycle.is_target, TARGET, OTHER)
        truth = np.full(len(cycle.pool), UNKNOWN)
        truth[cycle.rows] = self.known(cycle.queried, cycle.paths)[0]
        return truth

    def fates(self) -> dict[tuple[str, str], np.ndarray]:
        """What became of each image of the sample in all cycles and what it is, as masks, (n,)."""
        keys, (truth, _) = (part(self.sample.images, self.sample.paths) for part in (self.keys, self.known))
        start = np.isin(keys, listed(self.query.files[0], "labeled"))
        queried = ~start & np.isin(keys, [key for content in self.query.files for key in listed(content, "queried")])
        names = {"target": TARGET, "other": OTHER, NOT_ANNOTATED: UNKNOWN}
        fates = {("queried", name): queried & (truth == value) for name, value in names.items()}
        return {("labeled at the start", "target"): start, **fates, ("", "not queried"): ~start & ~queried}

    def classes(self) -> np.ndarray:
        """Class names of the images of the sample, (n,)."""
        names, (_, words) = dict(enumerate(self.sample.class_names)), self.known(self.sample.images, self.sample.paths)
        labels = self.sample.labels.tolist()
        return np.array([word if n < 0 else names.get(n, f"class {n}") for n, word in zip(labels, words)])


def listed(content: IndexFile, name: str) -> list[int] | list[str]:
    """One of an index file's lists of images: their numbers, or their digests where it has any."""
    return getattr(content, name) if content.files is None else [digest for _, digest in content.files[name]]


def read_pool(run: Run, key: str) -> Pool:
    """Reads what the run's first query kept; what cannot be used goes into the notes."""
    query, notes, cycles = run.queries[0], [], []
    paths = {kept.cycle_path(query.folder, content.cycle): content for content in query.files}
    for path, cycle in readable(filter(Path.is_file, paths), kept.read_cycle, notes).items():
        if is_of(cycle, paths[path]):
            cycles.append((paths[path].cycle, cycle))
        else:
            notes.append(f"{path} is of another query than the index file of its cycle")
    sample_path, last = kept.sample_path(query.folder), query.files[-1]
    sample = readable(filter(Path.is_file, [sample_path]), kept.read_sample, notes).get(sample_path)
    names = ["target" if last.labels is None else last.class_names[label] for label in last.labels or last.labeled]
    answers: dict[int | str, tuple[int, str]] = dict.fromkeys(listed(last, "set_aside"), (OTHER, "other"))
    answers |= {image: (TARGET, name) for image, name in zip(listed(last, "labeled"), names)}
    digests = dict(pair for content in query.files for part in (content.files or {}).values() for pair in part)
    cycles.sort(key=lambda cycle: cycle[0])
    return Pool(key, f"{run.name}: {query.strategy}", query, cycles, sample, notes, answers, digests)


def is_of(cycle: kept.KeptCycle, content: IndexFile) -> bool:
    """Whether what was kept is of the same query as an index file; people may have answered for a part of it."""
    if content.files is None or cycle.paths is None:
        return content.files is None and cycle.queried.tolist() == content.queried
    answered = {path for path, _ in content.files["queried"]}
    return not answered or not answered.isdisjoint(cycle.paths.tolist())
