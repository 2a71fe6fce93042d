"""A training run's folder: what may go into it, what a checkpoint holds, and resuming after the last finished epoch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from torch import nn
from torch.optim import Optimizer

from common import checkpoint, distributed
from common.checkpoint import ARGS_FILE, MODEL_FILE, PREVIOUS_FILE, RESUME_FILE
from common.console import log, warn
from common.files import check_fields, is_count, remove_leftovers, require_writable
from common.provenance import LOG_FILE
from common.session import StopRequest
from common.settings import TrainingSettings, require_same
from training.engine import Batches
from training.optim import LearningRate, load_optimizer
from utils import Diverged, InputError

FORMAT_VERSION = 4  # 3 had random states and the steps of an unfinished epoch


def run_folder(training: TrainingSettings, *, name: str) -> Path:
    """The run's folder, which need not exist yet; without --logdir it is logs/``name``.

    Raises:
        InputError: The flags contradict each other, it cannot be written, or it holds no run to continue.
    """
    logdir, suffix = training.logdir, training.suffix
    if training.resume_path:
        folder = Path(training.resume_path)
        if suffix or (logdir and Path(logdir).resolve() != folder.resolve()):
            raise InputError("--resume_path continues a run in its own folder: leave --logdir and --suffix out")
        if not _has_checkpoint(folder):
            raise InputError(f"--resume_path {folder} holds no {RESUME_FILE}; name the folder of a run")
        return folder
    folder = Path(logdir) if logdir else Path("logs") / name
    if suffix:
        if Path(suffix).name != suffix or not folder.name:
            raise InputError(f"--suffix {suffix} must be part of a folder's name, and --logdir must name a folder")
        folder = folder.with_name(f"{folder.name}_{suffix}")
    require_writable(folder, "--logdir")
    return folder


def find_run(folder: Path, *, resume: bool) -> bool:
    """Whether the folder, which is locked, holds a run to continue; also removes what a killed run left half written.

    Raises:
        InputError: There is a run, and it is not to be continued or cannot be.
    """
    found, other_folder = _has_checkpoint(folder), "give another --logdir or --suffix"
    if found and not resume:
        raise InputError(f"{folder} already holds a run: continue it with --resume auto, or {other_folder}")
    if not found and (folder / MODEL_FILE).exists():
        raise InputError(f"{folder} holds a {MODEL_FILE}, and no {RESUME_FILE} to continue from: {other_folder}")
    if not resume and any((folder / name).exists() for name in (ARGS_FILE, LOG_FILE)):
        raise InputError(f"{folder} holds a run without a checkpoint: start it with --resume auto, or {other_folder}")
    for name in (RESUME_FILE, PREVIOUS_FILE, MODEL_FILE, ARGS_FILE, LOG_FILE):
        remove_leftovers(folder, name)
    return found


def _has_checkpoint(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (RESUME_FILE, PREVIOUS_FILE))


@dataclass
class TrainingRun:
    """What a run is made of, to save it and to continue it after its last finished epoch.

    Every draw is a hash of seed, epoch and image, so beside weights and optimizers there is no state to save.

    Attributes:
        encoder: The bare model.
        learning_rate: Of the first optimizer.
        identity: Settings and digests that make the run what it is, see common.settings.
        stop: Requests to stop, of which a time limit must leave the time for saving.
        epoch: Finished epochs.
    """

    folder: Path
    encoder: nn.Module
    optimizers: tuple[Optimizer, ...]
    learning_rate: LearningRate
    batches: Batches
    identity: Mapping[str, Any]
    stop: StopRequest
    epoch: int = 0
    _state: dict[str, Any] = field(default_factory=dict)  # a checkpoint's content, at the first process
    _saved: int = 0  # the epoch on disk
    _good: Path | None = None  # the latest checkpoint that can be read
    _longest: float = 0.0  # seconds that a save took

    def finish_epoch(self) -> None:
        """Counts an epoch; the first process copies what a checkpoint holds into the host's memory."""
        self.epoch += 1
        self._keep_state()

    def _keep_state(self) -> None:
        if not distributed.is_main():
            return
        self._state = {
            "format_version": FORMAT_VERSION,
            "epoch": self.epoch,
            "processes": self.batches.processes,
            "batch_size": self.batches.together,
            "steps": self.batches.steps,
            "identity": dict(self.identity),
            "model": checkpoint.to_cpu(self.encoder.state_dict()),
            "optimizers": [checkpoint.to_cpu(optimizer.state_dict()) for optimizer in self.optimizers],
        }

    def save(self) -> None:
        """Has the first process write the last finished epoch; all processes must call it.

        Raises:
            Diverged: The weights are not finite; the earlier checkpoint stays.
        """
        distributed.from_first(self._write)
        self._good, self._saved = self.folder / RESUME_FILE, self.epoch

    def _write(self) -> None:
        start, last = time.perf_counter(), self.folder / RESUME_FILE
        if bad := checkpoint.not_finite(self._state["model"]):
            problem = f"weights are not finite after epoch {self.epoch} ({bad})"
            raise Diverged(f"{problem}; lower --lr_init, or raise --warmup")
        # A damaged last.ckpt must not take the place of the good one before it.
        checkpoint.save(last, self._state, previous=self.folder / PREVIOUS_FILE if self._good == last else None)
        checkpoint.save(self.folder / MODEL_FILE, self._state["model"])
        self._longest = max(self._longest, time.perf_counter() - start)
        self.stop.reserve(1.5 * self._longest)

    def save_and_stop(self) -> NoReturn:
        """Saves the last finished epoch, unless that is done, and raises Interrupted."""
        if not self.epoch:
            raise self.stop.interrupted("no epoch was finished, so nothing is saved; start again with --resume auto")
        if self._saved != self.epoch:
            self.save()
        path = self.folder / RESUME_FILE
        raise self.stop.interrupted(f"epoch {self.epoch} is in {path}; continue with the same flags and --resume auto")

    def resume(self, *, strict: bool) -> None:
        """Continues from the last checkpoint that can be read; ``strict``: whether the encoder's keys must match.

        Raises:
            InputError: No file can be read, or it is from a run with other settings, another split or other images.
        """
        path, content = distributed.from_first(lambda: checkpoint.load_last(self.folder))
        fields = dict.fromkeys(("epoch", "processes", "batch_size", "steps"), is_count)
        fields |= {"format_version": lambda value: value == FORMAT_VERSION, "model": checkpoint.is_state}
        fields |= {"identity": lambda value: isinstance(value, dict)}
        check_fields(path, content, fields, remedy="start a new run")
        require_same(content["identity"], self.identity, what=path, remedy="give another --logdir or --suffix")
        self._compare_batches(path, content)
        checkpoint.fill(self.encoder, content["model"], path, strict=strict)
        try:
            for optimizer, state in zip(self.optimizers, content["optimizers"], strict=True):
                load_optimizer(optimizer, state)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[-1].strip()[:200]
            raise InputError(f"{path} does not fit this encoder and its optimizers ({reason})") from None
        self.epoch, self._saved, self._good = content["epoch"], content["epoch"], path
        self.learning_rate.set(max(0.0, self.epoch - 1 + (self.batches.steps - 1) / self.batches.steps))
        self._keep_state()
        if distributed.is_main():  # a kill between the two files of a save leaves an older last.model, or none
            checkpoint.save(self.folder / MODEL_FILE, self._state["model"])

    def _compare_batches(self, path: Path, content: Mapping[str, Any]) -> None:
        """Says what another number of processes changes; refuses another batch with as many."""
        were, are = content["processes"], self.batches.processes
        before, now = (content["batch_size"], content["steps"]), (self.batches.together, self.batches.steps)
        change = f"{now[0]} images per step and {now[1]} steps per epoch instead of {before[0]} and {before[1]}"
        if were == are and before != now:
            raise InputError(f"{path} cannot go on with {change}: give that run's batch size")
        if before != now:
            change += "; the result will not equal an uninterrupted run's"
            warn(f"the run had {were} process(es) and now has {are}: {change} (--global_batch_size avoids that)")
        elif were != are:
            log(f"the run had {were} process(es) and now has {are}, for the same images per step: sums round otherwise")

    @contextlib.contextmanager
    def naming_its_checkpoint(self) -> Iterator[None]:
        """Has a ``Diverged`` of the block say where the last good checkpoint is."""
        try:
            yield
        except Diverged as error:
            raise Diverged(f"{error} (the last good checkpoint: {self._good or 'none yet'})") from None
