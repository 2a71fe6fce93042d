"""What a folder of results holds, found by content: encoders, queries, results of the classifier, kept features."""

from __future__ import annotations

import csv
import json
import math
import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.checkpoint import ARGS_FILE
from common.files import SMALL_JSON, read_json
from common.provenance import LOG_FILE, int64_digest
from datasets.index_files import IndexFile, index_path, read_index_file
from evals.summary import CLASSIFIER_SETTINGS, read_accuracies
from utils import InputError

RECORD_FILE = "reproduce.json"
RESULTS_FILE = "results.csv"
DEPTH = 6  # folders below each other that are looked into
HINT = "name a folder that contrast_main.py, active_main.py, train_classifier/main.py or reproduce.py wrote"


@dataclass(frozen=True)
class EncoderRun:
    """One encoder's training.

    Attributes:
        mode: ``semantic`` or ``distinctive``.
        folder: With the checkpoint, if it was kept.
        name: The folder within the run.
        record: args.json: arguments, split_digest, processes, versions, git_commit.
        epochs: Lines of log.jsonl, in order; values are finite numbers.
    """

    mode: str
    folder: Path
    name: str
    record: dict[str, Any]
    epochs: list[dict[str, float]]

    @property
    def arguments(self) -> dict[str, Any]:
        """The flags it was trained with."""
        return self.record["arguments"]


@dataclass(frozen=True)
class Query:
    """The index files of one query.

    Attributes:
        folder: That holds them.
        name: The folder within the run.
        files: From cycle 0 on, at least that one.
        accuracies: (labeled images, mean, deviation or None, seeds) by cycle that has any, in percent.
        classifier: Settings of the classifier that these are of.
    """

    folder: Path
    name: str
    files: list[IndexFile]
    accuracies: list[tuple[int, float, float | None, int]] = field(default_factory=list)
    classifier: dict[str, str] = field(default_factory=dict)

    @property
    def strategy(self) -> str:
        """By which it was made."""
        return self.files[0].strategy

    @property
    def cycles(self) -> list[IndexFile]:
        """The files of cycles in which something was queried."""
        return [content for content in self.files if content.cycle > 0]


@dataclass(frozen=True)
class Run:
    """All that was found in one folder.

    Attributes:
        name: Told from those of the other runs.
        folder: As it was given.
        encoders: In the order semantic, distinctive.
        queries: The main one first, see main_query, random ones last.
        features: Folders that hold kept features.
        record: reproduce.json.
        classifier_seconds: Time that all rows of results.csv took; None without one.
        notes: Files that could not be used, and why.
    """

    name: str
    folder: Path
    encoders: list[EncoderRun]
    queries: list[Query]
    features: list[Path]
    record: dict[str, Any] | None
    classifier_seconds: float | None
    notes: list[str]

    @property
    def main_query(self) -> Query | None:
        """The query whose scores and images are shown: not the random one, where there is another."""
        return self.queries[0] if self.queries else None


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """Looks through the folders of some runs.

    Raises:
        InputError: One is no folder, or holds nothing for a report.
    """
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError("a run was given twice; name each folder once")
    return [find_run(folder, name) for folder, name in zip(folders, names, strict=True)]


def find_run(folder: Path, name: str) -> Run:
    """Looks through the folder of one run.

    Raises:
        InputError: It is no folder, or holds nothing for a report.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; {HINT}")
    encoders, queries, results, features, notes = [], [], [], [], []
    record = None
    for place, files in _walk(folder):
        where = place.relative_to(folder).as_posix()
        try:
            if ARGS_FILE in files:
                encoders.append(read_encoder(place, where, notes))
            if any(file.startswith("cycle_") and file.endswith(".json") for file in files):
                queries.append(Query(place, where, read_cycles(place, notes)))
            if RESULTS_FILE in files:
                results.append(place / RESULTS_FILE)
            if RECORD_FILE in files:
                record = read_record(place / RECORD_FILE)
        except InputError as error:
            notes.append(str(error))
        if any({f"{encoder}.npy", f"{encoder}.json"} <= files for encoder in ("semantic", "distinctive")):
            features.append(place)
    queries, seconds = add_results(queries, results, notes)
    if not (encoders or queries):
        damaged = f" ({notes[0]})" if notes else ""
        raise InputError(f"{folder} holds no encoder and no index file that a report could show{damaged}; {HINT}")
    encoders.sort(key=lambda encoder: (encoder.mode != "semantic", encoder.name))
    order = {"ccal": 0, "random": 2}
    queries.sort(key=lambda query: (order.get(query.strategy, 1), query.name))
    return Run(name, folder, encoders, queries, features, record, seconds, notes)


def _walk(folder: Path) -> Iterator[tuple[Path, set[str]]]:
    """Every folder up to DEPTH below, and its files' names, in an order that does not depend on the file system."""
    for place, folders, files in os.walk(folder):
        depth = len(Path(place).relative_to(folder).parts)
        folders[:] = [] if depth >= DEPTH else sorted(name for name in folders if not name.startswith("."))
        yield Path(place), set(files)


def read_encoder(folder: Path, name: str, notes: list[str]) -> EncoderRun:
    """Reads args.json and log.jsonl of one encoder; lines that cannot be used go into the notes.

    Raises:
        InputError: args.json is damaged, or another command's.
    """
    path = folder / ARGS_FILE
    record = read_json(path, limit=SMALL_JSON)
    if not isinstance(record, dict) or not isinstance(record.get("arguments"), dict):
        raise InputError(f"{path} is no settings file of contrast_main.py")
    mode = record["arguments"].get("mode")
    if mode not in ("semantic", "distinctive"):
        raise InputError(f"{path} names no mode of an encoder ({str(mode)[:40]})")
    epochs, bad = [], 0
    log_path = folder / LOG_FILE
    lines = log_path.read_text(errors="replace").splitlines() if log_path.is_file() else []
    for line in lines:
        values = _numbers_of(line)
        if "epoch" in values:
            epochs.append(values)
        else:
            bad += 1
    if bad:
        notes.append(f"{log_path}: {bad} of {len(lines)} lines are damaged and left out")
    return EncoderRun(mode, folder, name, record, epochs)


def _numbers_of(line: str) -> dict[str, float]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    items = content.items() if isinstance(content, dict) else ()
    return {name: value for name, value in items if number(value) is not None}


def number(value: Any) -> float | None:
    """The value if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # an int of 400 digits
        return None


def read_cycles(folder: Path, notes: list[str]) -> list[IndexFile]:
    """All index files from cycle 0 on; the first damaged one ends the row and goes into the notes.

    Raises:
        InputError: There is no usable cycle_0.json.
    """
    files = [read_index_file(index_path(folder, 0))]
    while index_path(folder, len(files)).is_file():
        try:
            content = read_index_file(index_path(folder, len(files)))
        except InputError as error:
            notes.append(f"{error}; this cycle and those after it are left out")
            break
        if (content.strategy, content.cycle) != (files[0].strategy, len(files)):
            notes.append(f"{index_path(folder, len(files))} is of another query than cycle_0.json and left out")
            break
        files.append(content)
    return files


def read_record(path: Path) -> dict[str, Any]:
    """reproduce.json.

    Raises:
        InputError: It is damaged.
    """
    content = read_json(path, limit=SMALL_JSON)
    parts = [content.get(name) for name in ("settings", "stages")] if isinstance(content, dict) else []
    if not parts or not all(isinstance(part, dict) for part in parts):
        raise InputError(f"{path} is no record of reproduce.py")
    return content


def add_results(queries: list[Query], results: list[Path], notes: list[str]) -> tuple[list[Query], float | None]:
    """Gives each query the accuracies of its labeled sets, from the first results.csv that has any.

    Returns:
        The queries, and the seconds that all classifiers took together (None without a results.csv).
    """
    seconds, filled, used = None, [], set()
    for path in results:
        try:
            seconds = (seconds or 0) + sum(row["seconds"] for row in read_results(path))
        except InputError as error:
            notes.append(str(error))
            results = [other for other in results if other != path]
    for query in queries:
        for path in results:
            points = accuracy_points(path, query)
            if points:
                used.add(path)
                rows = [row for row in read_results(path) if row["strategy"] == query.strategy]
                settings = {name: rows[-1][name] for name in CLASSIFIER_SETTINGS}
                query = Query(query.folder, query.name, query.files, points, settings)
                break
        filled.append(query)
    notes += [f"{path} has no row for an index file of this run" for path in results if path not in used]
    return filled, seconds


def accuracy_points(path: Path, query: Query) -> list[tuple[int, float, float | None, int]]:
    """(labeled images, mean, deviation or None, seeds) of each cycle's classifiers in a results.csv."""
    by_digest = read_accuracies(path, query.strategy)
    points = []
    for content in query.files:
        values = by_digest.get(int64_digest(content.labeled), [])
        if values:
            deviation = statistics.stdev(values) if len(values) > 1 else None
            points.append((len(content.labeled), statistics.fmean(values), deviation, len(values)))
    return points


def read_results(path: Path) -> list[dict[str, Any]]:
    """The rows of results.csv, of which the columns that the report uses are checked.

    Raises:
        InputError: The file is damaged, or something else.
    """
    try:
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
        for row in rows:
            values = float(row["accuracy"]), float(row["seconds"])
            if not all(map(math.isfinite, values)) or not all(row[name] for name in ("strategy", "index_digest")):
                raise ValueError("a value is missing or not finite")
            row["seconds"] = values[1]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(f"{path} is no results.csv of the classifier ({error})") from None
    return rows
