"""A training run's folder: what may go into it, saving, and continuing exactly where it was left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn
from torch.optim import Optimizer

from common import checkpoint, distributed
from common.console import log, warn
from common.files import check_fields, is_count, is_text, remove_leftovers, require_writable
from common.interruption import Interruption
from common.provenance import LOG_FILE
from datasets.mixed import data_name
from training.engine import Gathered
from training.optim import load_optimizer
from utils import Diverged, InputError

FORMAT_VERSION = 3  # 1: the order of an epoch was drawn on the CPU; 2: without a place within the epoch and a checksum
READABLE_VERSIONS = (2, 3)
# Arguments that may differ when a run is resumed: none is part of the recipe (another device only rounds differently,
# and the split's digest says whether images are the same, wherever they lie).
FREE_ON_RESUME = {
    "cache_dir", "compile", "data_path", "debug", "deterministic", "device", "error_step", "local_rank", "logdir",
    "max_minutes", "no_strict", "others", "others_path", "parallel", "quiet", "resume", "resume_path", "save_step",
    "suffix", "timeout_minutes",
}  # fmt: skip
OWN_FILES = (
    checkpoint.RESUME_FILE, checkpoint.PREVIOUS_FILE, checkpoint.MODEL_FILE, checkpoint.ARGS_FILE, LOG_FILE,
)  # fmt: skip
SAFETY = 1.5  # of the time that saving has taken, kept free before a time limit


def run_folder(logdir: str | None, resume_path: str | None, suffix: str, settings: dict[str, Any]) -> Path:
    """The run's folder, which need not be there yet.

    Raises:
        InputError: The flags contradict each other.
    """
    if resume_path:
        if suffix or (logdir and Path(logdir).resolve() != Path(resume_path).resolve()):
            raise InputError("--resume_path continues a run in its own folder: leave --logdir and --suffix out")
        if settings["resume"] == "auto":
            raise InputError("--resume_path insists on a run to continue and --resume auto does not: give one of them")
        return Path(resume_path)
    name = "_".join(str(settings[key]) for key in ("mismatch", "model", "mode", "shift_trans_type"))
    name = f"{data_name(settings['dataset'], settings['others'])}_{name}"
    name += f"_seed{settings['seed']}"
    folder = Path(logdir) if logdir else Path("logs") / name
    if suffix:
        if Path(suffix).name != suffix or not folder.name:
            raise InputError(f"--suffix {suffix} must be part of a folder's name, and --logdir must name a folder")
        folder = folder.with_name(f"{folder.name}_{suffix}")
    return folder


def check_folder(folder: Path, *, resume_path: str | None) -> None:
    """Refuses a folder that cannot be a run's, before it is made.

    Raises:
        InputError: There is no run to continue in it, or it cannot be written.
    """
    if not resume_path:
        require_writable(folder, "--logdir")
    elif not _checkpoints(folder):
        raise InputError(f"--resume_path {resume_path} holds no {checkpoint.RESUME_FILE}; name the folder of a run")


def find_run(folder: Path, *, resume: bool) -> bool:
    """Whether there is a run in the folder to continue; called by the first process when the folder is locked, for it
    also clears up what a killed run has left half written.

    Args:
        folder: Of the run.
        resume: Whether a run that is there is to be continued.

    Raises:
        InputError: There is a run, and it is not to be continued or cannot be.
    """
    if _checkpoints(folder):
        if resume:
            _clear_up(folder)
            return True
        raise InputError(
            f"{folder} already holds a run: continue it with --resume auto, or give another --logdir or --suffix"
        )
    if (folder / checkpoint.MODEL_FILE).exists():
        raise InputError(
            f"{folder} already holds a {checkpoint.MODEL_FILE} and no {checkpoint.RESUME_FILE} from which it could be "
            "continued: give another --logdir or --suffix"
        )
    if not resume and any((folder / file).exists() for file in (checkpoint.ARGS_FILE, LOG_FILE)):
        raise InputError(
            f"{folder} holds a run that ended before its first checkpoint: start it again with --resume auto, or give "
            "another --logdir or --suffix"
        )
    _clear_up(folder)
    return False


def _clear_up(folder: Path) -> None:
    """Removes what a killed run has left half written, and nothing of anybody else's."""
    for name in OWN_FILES:
        remove_leftovers(folder, name)


def _checkpoints(folder: Path) -> list[Path]:
    names = (checkpoint.RESUME_FILE, checkpoint.PREVIOUS_FILE)
    return [folder / name for name in names if (folder / name).is_file()]


def _are_arguments(value: Any) -> bool:
    """Whether they are flags' values: text, numbers, or short lists of them, which a message may quote."""
    if not isinstance(value, dict):
        return False
    parts = [part for entry in value.values() for part in (entry if isinstance(entry, (list, tuple)) else [entry])]
    return all(isinstance(part, (str, int, float, bool, type(None))) for part in parts)


def _is_list_of_states(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


CONTENT = {
    "epoch": is_count,
    "model": checkpoint.is_state,
    "optimizers": _is_list_of_states,
    "rng": _is_list_of_states,
    "arguments": _are_arguments,
    "split_digest": is_text,
}


@contextlib.contextmanager
def _states_of_a_run(path: Path) -> Iterator[None]:
    """Turns what a checkpoint of other content may raise into an InputError."""
    try:
        yield
    except InputError:
        raise
    except (AttributeError, IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        raise InputError(f"{path} holds no states of such a run ({reason}); start a new run") from None


class Run:
    """What a run is made of, to save it and to put it back.

    Attributes:
        epoch: Finished epochs.
        gathered: What the steps of the epoch under way have yielded.

    Args:
        folder: Of the run.
        encoder: The bare model.
        optimizers: All of them.
        settings: Resolved arguments.
        split_digest: Of the split.
        interruption: Whose margin is to suffice for saving.
    """

    def __init__(
        self,
        folder: Path,
        encoder: nn.Module,
        optimizers: tuple[Optimizer, ...],
        settings: dict[str, Any],
        *,
        split_digest: str,
        interruption: Interruption,
    ) -> None:
        self.epoch = 0
        self.gathered = Gathered()
        self._folder = folder
        self._encoder = encoder
        self._optimizers = optimizers
        self._settings = settings
        self._split_digest = split_digest
        self._interruption = interruption
        self._good: Path | None = None  # the latest checkpoint that can be read
        self._saved = ""  # the place that it holds

    @property
    def place(self) -> str:
        """Where the run stands, in words."""
        steps = len(self.gathered.rows)
        return f"epoch {self.epoch + 1}, step {steps}" if steps else f"the end of epoch {self.epoch}"

    def finish_epoch(self) -> None:
        """Counts an epoch whose averages are on record."""
        self.epoch += 1
        self.gathered = Gathered()

    def save(self) -> None:
        """Writes last.ckpt and last.model from the first process; all of them must call it.

        Raises:
            Diverged: The weights are not finite; the earlier checkpoint stays.
        """
        distributed.enter(f"the saving of {self.place}")
        start = time.perf_counter()
        with self.naming_its_checkpoint():
            content = self._content()
        last, previous = self._folder / checkpoint.RESUME_FILE, self._folder / checkpoint.PREVIOUS_FILE
        if distributed.is_main():
            # A damaged last.ckpt must not take the place of the good one before it.
            checkpoint.save_sealed(last, content, previous=previous if self._good == last else None)
            self.save_model()
        self._good, self._saved = last, self.place
        self._leave_time(time.perf_counter() - start)
        distributed.barrier()  # a launcher ends all processes as soon as one has ended, the one that writes, too

    def save_and_stop(self) -> NoReturn:
        """Saves, as the run was asked to stop, and stops."""
        if self._saved != self.place:
            self.save()
        path = self._folder / checkpoint.RESUME_FILE
        raise self._interruption.stop(f"{self.place} is in {path}; continue with the same flags and --resume auto")

    def save_model(self) -> None:
        """Writes last.model."""
        checkpoint.save(self._folder / checkpoint.MODEL_FILE, self._encoder.state_dict())

    def rehearse_saving(self) -> None:
        """Measures how long saving takes, where there is a time limit before which it must be done."""
        start, content = time.perf_counter(), self._content()
        if self._interruption.limited and distributed.is_main():
            trial = self._folder / f".{checkpoint.RESUME_FILE}.trial.tmp"
            checkpoint.save_sealed(trial, content)
            trial.unlink()
            self._leave_time(time.perf_counter() - start)

    def _leave_time(self, seconds: float) -> None:
        self._interruption.margin = max(self._interruption.margin, SAFETY * seconds)

    def _content(self) -> dict[str, Any]:
        weights = self._encoder.state_dict()
        finite = all(bool(value.isfinite().all()) for value in weights.values())
        own = {"finite": finite, "rng": checkpoint.rng_state(), "gathered": self.gathered.state_dict()}
        everyone = distributed.gather_objects(own)
        if not all(part["finite"] for part in everyone):
            raise Diverged(f"the weights are not finite at {self.place}; lower --lr_init, or raise --warmup")
        return {
            "format_version": FORMAT_VERSION,
            "epoch": self.epoch,
            "model": weights,
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "rng": [part["rng"] for part in everyone],
            "gathered": [part["gathered"] for part in everyone],
            "arguments": self._settings,
            "split_digest": self._split_digest,
        }

    def resume(self, *, strict: bool, device: torch.device) -> None:
        """Puts the run back to where its last readable checkpoint left it.

        Args:
            strict: Whether the encoder's keys must match.
            device: Of the encoder.

        Raises:
            InputError: No file can be read, or it is from a run with other settings or another split.
        """
        path, content = distributed.from_first(lambda: checkpoint.load_last(self._folder))
        with _states_of_a_run(path):
            self._check(path, content)
        checkpoint.require_finite_weights(path, content["model"])
        try:
            self._encoder.load_state_dict(content["model"], strict=strict)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()[:200]
            raise InputError(f"{path} does not fit this encoder ({reason})") from None
        with _states_of_a_run(path):
            self._put_back(path, content, device)

    def _put_back(self, path: Path, content: dict[str, Any], device: torch.device) -> None:
        for optimizer, state in zip(self._optimizers, content["optimizers"], strict=True):
            load_optimizer(optimizer, state)
        self.epoch, self._good = content["epoch"], path
        saved = content.get("gathered")  # version 2 was written between epochs only
        if len(content["rng"]) != distributed.world_size():
            whole = len(content["rng"]) == 1 or bool(content["arguments"].get("global_batch_size"))
            self._change_processes(len(content["rng"]), self._batch_of(content), saved, device, whole=whole)
            return
        checkpoint.restore_rng(content["rng"][distributed.rank()])
        if saved:
            self.gathered = Gathered.from_state(saved[distributed.rank()], device)

    def _change_processes(
        self,
        before: int,
        batch_before: int,
        gathered: list[dict[str, Any]] | None,
        device: torch.device,
        *,
        whole: bool,
    ) -> None:
        """Goes on with another number of processes; each draws from a new stream of its own.

        Args:
            before: Processes that saved.
            batch_before: Images of their steps, all together.
            gathered: What each of them had gathered.
            device: Of the encoder.
            whole: Whether they left an epoch's short last batch out.
        """
        now, batch, begun = distributed.world_size(), self._batch, bool(gathered and gathered[0]["sizes"])
        whole_now = now == 1 or bool(self._settings["global_batch_size"])
        again = f"; epoch {self.epoch + 1} starts again at its first step" if begun else ""
        if batch == batch_before and whole != whole_now:
            short = "left out" if whole_now else "trained on"
            warn(
                f"the run had {before} process(es) and now has {now}: still {batch} images per step, but the "
                f"short last batch of an epoch is {short} from now on, and the result will not equal an uninterrupted "
                f"run's{again}"
            )
            return
        if batch == batch_before:
            if begun:
                self.gathered = Gathered.from_others(gathered, device, batch_size=batch // now)
            own = "; on the CPU each normalises by its own share" if device.type == "cpu" else ""
            log(
                f"the run had {before} process(es) and now has {now}: still {batch} images per step, the same ones, of "
                f"which each takes {batch // now}; sums are rounded in another order{own}"
            )
            return
        warn(
            f"the run had {before} processes and now has {now}: the effective batch is {batch} images instead of "
            f"{batch_before} (--global_batch_size {batch_before} would keep it), and the result will not equal an "
            f"uninterrupted run's{again}"
        )

    def _check(self, path: Path, content: Any) -> None:
        version = content.get("format_version") if isinstance(content, dict) else None
        if version not in READABLE_VERSIONS:
            raise InputError(
                f"{path} is no resume checkpoint of format version {FORMAT_VERSION} (or {READABLE_VERSIONS[0]}); start "
                "a new run"
            )
        check_fields(path, content, CONTENT, remedy="start a new run")
        if content["split_digest"] != self._split_digest:
            raise InputError(f"{path} belongs to another split; give the data and split flags of that run")
        earlier = content["arguments"]
        same_batch = self._settings["global_batch_size"] == self._batch_of(content)
        changed = [
            f"--{name} was {earlier.get(name)}, is {value}"
            for name, value in self._settings.items()
            if name not in FREE_ON_RESUME
            and earlier.get(name) != value
            and not (same_batch and name in ("batch_size", "global_batch_size"))
        ]
        if changed:
            raise InputError(
                f"{path} was trained with other flags ({'; '.join(changed)}); give the same to continue it"
            )

    @property
    def _batch(self) -> int:
        """Images per step, all processes together."""
        return self._settings["global_batch_size"] or self._settings["batch_size"] * distributed.world_size()

    @staticmethod
    def _batch_of(content: dict[str, Any]) -> int:
        """The same, in the run that wrote a checkpoint."""
        earlier = content["arguments"]
        return earlier.get("global_batch_size") or earlier["batch_size"] * len(content["rng"])

    def position(self, steps: int) -> float | None:
        """The fractional epoch at the last update, with ``steps`` per epoch; None before the first one."""
        if done := len(self.gathered.rows):
            return self.epoch + (done - 1) / steps
        return self.epoch - 1 + (steps - 1) / steps if self.epoch else None

    @contextlib.contextmanager
    def naming_its_checkpoint(self) -> Iterator[None]:
        """Has a ``Diverged`` of the block say where the last good checkpoint is."""
        try:
            yield
        except Diverged as error:
            known = f"the last good checkpoint is {self._good}" if self._good else "there is no checkpoint yet"
            raise Diverged(f"{error} ({known})") from None
