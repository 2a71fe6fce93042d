"""The record of a run of several stages: what it was started with, and which stages are done."""

from __future__ import annotations

import contextlib
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from common.checkpoint import MODEL_FILE, PREVIOUS_FILE, RESUME_FILE, is_state, load, load_last
from common.console import duration, log
from common.files import SMALL_JSON, check_fields, is_count, is_number, is_text, read_json, require_writable, write_json
from common.lock import LOCK_FILE
from common.provenance import LOG_FILE, git_commit, versions
from utils import InputError

FORMAT_VERSION = 1


def _is_budget(value: Any) -> bool:
    """What a start with --budget_minutes has measured, or None."""
    if value is None:
        return True
    predicted = value.get("predicted") if isinstance(value, dict) else None
    return isinstance(predicted, dict) and is_number(value.get("spent"), 0) and _are_numbers(predicted)


def _are_numbers(value: dict[str, Any]) -> bool:
    return all(is_number(entry, 0) for entry in value.values())


def _is_stage(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and is_number(value.get("seconds"), 0)
        and is_text(value.get("device"))
        and is_text(value.get("git_commit"))
        and isinstance(value.get("inputs"), dict)
        and all(map(is_text, value["inputs"].values()))
    )


FIELDS = {
    "settings": lambda value: isinstance(value, dict),
    "scale": lambda value: is_number(value, 0, 1) and value > 0,
    "budget": _is_budget,
    "versions": lambda value: isinstance(value, dict) and all(map(is_text, value.values())),
    "stages": lambda value: isinstance(value, dict) and all(map(_is_stage, value.values())),
}


class Record:
    """A json file in the run's folder.

    Attributes:
        content: ``settings`` (that a later start must repeat), and whatever else was resolved at the first start.
        stages: Seconds, inputs, device and commit of each stage that is done.

    Args:
        path: The file.
        content: All of it.
    """

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self._path = path
        self.content = content
        self.stages: dict[str, dict[str, Any]] = content["stages"]

    @classmethod
    def start(cls, path: Path, settings: dict[str, Any], **resolved: Any) -> Record:
        """Writes the record of a new run."""
        content = {"format_version": FORMAT_VERSION, "settings": settings, **resolved, "versions": versions()}
        record = cls(path, {**content, "stages": {}})
        write_json(path, record.content)
        return record

    @classmethod
    def find(cls, path: Path, settings: dict[str, Any]) -> Record | None:
        """The record of an earlier start with the same settings; None in a new or empty folder.

        Raises:
            InputError: The folder cannot be written, holds something else, or a run with other settings.
        """
        require_writable(path.parent, "--out")
        if not path.is_file():
            if path.parent.is_dir() and any(other.name != LOCK_FILE for other in path.parent.iterdir()):
                raise InputError(f"{path.parent} holds files but no {path.name}: give a new or empty folder as --out")
            return None
        content = read_json(path, limit=SMALL_JSON)
        if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION:
            raise InputError(f"{path} is no record of format version {FORMAT_VERSION}; give another --out")
        check_fields(path, content, FIELDS, remedy="restore it, or give another --out")
        earlier = content["settings"]
        differs = [
            f"{name} was {earlier.get(name)}, is {settings.get(name)}"
            for name in {**settings, **earlier}
            if earlier.get(name) != settings.get(name)
        ]
        if differs:
            raise InputError(
                f"{path.parent} was started with other settings ({'; '.join(differs)}): give the same ones (and as "
                "many GPUs) to continue it, or another --out"
            )
        return cls(path, content)

    def is_done(self, stage: str, inputs: dict[str, str]) -> bool:
        """Whether a stage has ended, with the same inputs."""
        return stage in self.stages and self.stages[stage]["inputs"] == inputs

    @contextlib.contextmanager
    def stage(self, name: str, *, inputs: dict[str, str], device: str, spent: float = 0.0) -> Iterator[None]:
        """Puts a stage on record once the block has ended.

        Args:
            name: Of the stage.
            inputs: Digests of what it reads.
            device: What it runs on.
            spent: Seconds that earlier starts have put into what this one continues.
        """
        start = time.perf_counter()
        yield
        seconds = spent + time.perf_counter() - start
        self.stages[name] = {
            "seconds": round(seconds, 3),
            "device": device,
            "git_commit": git_commit(),
            "inputs": inputs,
        }
        write_json(self._path, self.content)
        log(f"{name}: done in {duration(seconds)}")


def describe_device(name: str, processes: int = 1) -> str:
    """What ``--device`` stands for here: the GPUs by name, or the processor and the threads that torch uses."""
    if name != "cpu" and torch.cuda.is_available():
        return f"{processes} x {torch.cuda.get_device_name()}"
    return f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} thread(s)"


def logged_seconds(folder: Path, epochs: int | None = None) -> list[float]:
    """Seconds of each of the first epochs (or of all) in an encoder's log.

    Raises:
        InputError: The log is damaged.
    """
    path = folder / LOG_FILE
    try:
        lines = path.read_bytes().decode().splitlines() if path.is_file() else []
        seconds = [json.loads(line)["seconds"] for line in lines[:epochs]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is damaged ({reason}): restore it, or remove {folder} to train again") from None
    if not all(is_number(value, 0) for value in seconds):
        raise InputError(f"{path} is damaged (an epoch's seconds): restore it, or remove {folder} to train again")
    return seconds


def finished_epochs(folder: Path) -> tuple[int, bool]:
    """Epochs that an encoder's last.ckpt holds (0 without one), and whether last.model is of the same moment.

    Raises:
        InputError: A file is damaged.
    """
    model = folder / MODEL_FILE
    if not any((folder / name).is_file() for name in (RESUME_FILE, PREVIOUS_FILE)):
        return 0, False
    path, content = load_last(folder)
    if not isinstance(content, dict) or not is_count(content.get("epoch")) or not is_state(content.get("model")):
        raise InputError(f"{path} is no checkpoint of a run: restore it, or remove {folder} to train again")
    weights = load(model) if model.is_file() else None
    same = is_state(weights) and weights.keys() == content["model"].keys()
    return content["epoch"], same and all(torch.equal(weights[key], value) for key, value in content["model"].items())
