"""Checkpoints: written beside and renamed, read without executing anything.

A run's folder holds last.model (a bare state_dict), last.ckpt (all that a resume needs), last.prev.ckpt (the last.ckpt
before) and args.json (settings, digests, versions, git commit). All tensors are saved from the CPU.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.console import listed, log, warn
from common.files import SMALL_JSON, atomic_write, check_archive, check_fields, is_count, is_text, read_json, write_json
from common.provenance import git_commit, versions
from common.settings import require_same
from utils import InputError

MODEL_FILE = "last.model"
RESUME_FILE = "last.ckpt"
PREVIOUS_FILE = "last.prev.ckpt"
ARGS_FILE = "args.json"
ARGS_VERSION = 1
# Heads that the original's and CSI's files carry and that nothing uses.
IGNORED_PREFIXES = ("joint_distribution_layer.", "shift_dis.")
# What DistributedDataParallel, torch.compile, Lightning and the like put before every name.
WRAPPERS = ("module.", "model.", "encoder.", "backbone.", "_orig_mod.")
COUNTER = "num_batches_tracked"  # of BatchNorm, which nothing reads
KEYS_SHOWN = 6
DIGESTS = ("split_digest", "images_digest")  # of what an encoder was trained on


def to_cpu(value: Any) -> Any:
    """A copy of nested dicts and lists in which every tensor lies in the host's memory, in its own layout."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: to_cpu(entry) for key, entry in value.items()}
    return type(value)(map(to_cpu, value)) if isinstance(value, (list, tuple)) else value


def save(path: Path, content: Any, *, previous: Path | None = None) -> None:
    """Writes plain values and tensors, which lie in the host's memory, with torch.save, atomically.

    Under the name ``previous`` the file that the new one replaces is kept: at every moment one of the two is whole.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)  # straight into a file, a full disk would come out as a RuntimeError of torch's
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())
        if previous is not None and path.exists():
            file.flush()
            os.fsync(file.fileno())  # the old file gives way to one that is whole
            os.replace(path, previous)


def load(path: Path) -> Any:
    """Reads what torch.save or safetensors wrote, into the host's memory; nothing in it is executed (weights_only).

    Raises:
        InputError: The file is missing, damaged (checksums tell, but in the format before torch 1.6), or another kind.
    """
    if not path.is_file():
        raise InputError(f"checkpoint {path} does not exist; train it or name another")
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickles that torch has not written
        try:
            if path.suffix == ".safetensors":
                return importlib.import_module("safetensors.torch").load_file(path)
            if zipfile.is_zipfile(file):
                with check_archive(file, path, stored=True) as archive:
                    if damaged := archive.testzip():  # torch itself does not look at the checksums
                        raise zipfile.BadZipFile(f"the checksum of {damaged} does not fit")
                source = file
            else:  # a length declared in a pickle takes no more memory than the buffer has
                file.seek(0)
                source = io.BytesIO(file.read())
            source.seek(0)
            return torch.load(source, map_location="cpu", weights_only=True)
        except (InputError, MemoryError):
            raise
        except ModuleNotFoundError as error:
            raise InputError(f"{path} needs a package that is not here ({error}): pip install safetensors") from None
        except Exception as error:  # bytes that merely look like a pickle raise nearly anything
            reason = str(error) if isinstance(error, zipfile.BadZipFile) else type(error).__name__
            if objects := re.search(r"GLOBAL (\S{1,80})", str(error)):
                reason = f"it holds {objects[1]}, and tensors alone are loaded: save its state_dict"
            raise InputError(f"{path} is damaged or not a checkpoint ({reason}); train or copy it again") from None


def load_last(folder: Path) -> tuple[Path, Any]:
    """Path and content of a run's last.ckpt or, where that is damaged or missing, of last.prev.ckpt, with a warning.

    Raises:
        InputError: None of the two can be read.
    """
    problems = []
    for path in (Path(folder) / RESUME_FILE, Path(folder) / PREVIOUS_FILE):
        try:
            content = load(path)
        except InputError as error:
            problems.append(str(error).split(";")[0])
            continue
        if problems:
            warn(f"{problems[0]}; the one before it, {path}, is used")
        return path, content
    raise InputError(f"{' and '.join(problems)}: copy one from elsewhere, or remove the folder to start a new run")


def load_weights(path: Path, encoder: nn.Module, *, strict: bool = True) -> None:
    """Loads a file's weights into an encoder, see ``read_state`` and ``fill``."""
    fill(encoder, read_state(path), path, strict=strict)


def read_state(path: Path) -> dict[str, Tensor]:
    """A file's state_dict, bare or in a dictionary; what stands before every name is taken off, and said.

    Raises:
        InputError: The file cannot be read, or holds no state_dict.
    """
    state = load(path)
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not is_state(state):
        holds = f" (it holds {listed([*state], KEYS_SHOWN)})" if isinstance(state, dict) else ""
        raise InputError(f"checkpoint {path} is not a state_dict{holds}; give the file {MODEL_FILE}, not {RESUME_FILE}")
    taken = ""
    while prefix := next((word for word in WRAPPERS if state and all(key.startswith(word) for key in state)), ""):
        taken, state = taken + prefix, {key.removeprefix(prefix): value for key, value in state.items()}
    if taken:
        log(f"{path}: {taken} was taken off the names of all {len(state)} entries")
    return state


def fill(encoder: nn.Module, state: Mapping[str, Tensor], path: Path, *, strict: bool) -> None:
    """Loads a state_dict into an encoder; the original's two unused heads and BatchNorm's counters are ignored.

    Keys that do not match are an error if ``strict``; otherwise they are listed and left as they are.

    Raises:
        InputError: A weight is not finite, no convolution fits or, if strict, some key or shape does not.
    """
    state = {key: value for key, value in state.items() if not key.startswith(IGNORED_PREFIXES)}
    own = encoder.state_dict()
    differ = [key for key in own if key in state and own[key].shape != state[key].shape]
    found = {
        "lacks": [key for key in own if key not in state and not key.endswith(COUNTER)],
        "does not know": [key for key in state if key not in own and not key.endswith(COUNTER)],
        "differs in the shape of": [key for key in differ if not key.startswith("linear.")],
    }
    if (probe := "linear.weight") in differ:  # a folder's classes may be new; nothing but training looks at the probe
        counts = f"its probe is of {len(state[probe])} class(es) and here are {len(own[probe])}"
        warn(f"{path}: {counts}, so that is left as initialised: make sure that it was trained on these data")
    problems = [f"{what} {listed(keys, KEYS_SHOWN)}" for what, keys in found.items() if keys]
    if problems and strict:
        raise InputError(
            f"checkpoint {path} does not fit this encoder: it {'; it '.join(problems)}. Give the flags of its training "
            "(--model, --simclr_dim, --shift_trans_type, --dataset)"
        )
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    layers = [key for key, value in own.items() if value.ndim == 4] or [*own]
    if not any(key in fitting for key in layers):
        raise InputError(f"checkpoint {path} has no convolution that fits this encoder: it {'; it '.join(problems)}")
    if problems:
        warn(f"{path}: {'; '.join(problems)}; left as initialised (--no_strict)")
    if bad := not_finite(fitting):
        raise InputError(f"checkpoint {path} holds weights that are not finite ({bad}): train it again")
    encoder.load_state_dict(fitting, strict=False)


def is_state(value: Any) -> bool:
    """Whether something is a state_dict."""
    return isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def not_finite(state: Mapping[str, Tensor]) -> str:
    """The names of a state_dict's entries with a NaN or an infinity, in words; empty where there are none."""
    return listed([key for key, value in state.items() if not value.isfinite().all()], KEYS_SHOWN)


def write_args(folder: Path, arguments: Mapping[str, Any], *, processes: int, **digests: str | None) -> None:
    """Writes args.json: settings, digests by name (of split, training images and start), versions and git commit."""
    content = {"format_version": ARGS_VERSION, "arguments": arguments, "processes": processes, **digests}
    write_json(Path(folder) / ARGS_FILE, {**content, "versions": versions(), "git_commit": git_commit()})


def check_run(
    model_path: Path,
    *,
    split_digest: str,
    images_digest: str | None = None,
    expected: Mapping[str, Any],
    may_have_changed: bool = False,
) -> None:
    """Compares the args.json beside a checkpoint with what this stage was given; without one it only warns.

    Args:
        images_digest: None is not compared.
        expected: Settings that must be equal, by name.
        may_have_changed: Whether people add images to the folder, so that another split or other images are no error.

    Raises:
        InputError: The settings or the digests differ, or the file cannot be read.
    """
    args_path = Path(model_path).parent / ARGS_FILE
    if not args_path.is_file():
        warn(f"{model_path} has no {ARGS_FILE} beside it: its split and settings cannot be checked")
        return
    record, remedy = read_json(args_path, limit=SMALL_JSON), "restore it, or remove it to load unchecked"
    fields = {"arguments": lambda value: isinstance(value, dict), "split_digest": is_text}
    check_fields(args_path, record, fields, remedy=remedy)
    if (version := record.get("format_version", ARGS_VERSION)) != ARGS_VERSION:  # the first files had none
        raise InputError(f"{args_path} has format version {version} and this code reads {ARGS_VERSION}; {remedy}")
    wanted = {**expected, "split_digest": split_digest, "images_digest": images_digest}
    recorded = {**record["arguments"], **{name: record.get(name) for name in DIGESTS}}
    _warn_if_unfinished(Path(model_path), record["arguments"].get("epochs"))
    # Files of earlier versions lack what was added since.
    wanted = {name: value for name, value in wanted.items() if None not in (value, recorded.get(name))}
    if may_have_changed and any(recorded[name] != wanted.get(name, recorded[name]) for name in DIGESTS):
        warn(f"{model_path} was trained before the folder changed; train again once much of it is new")
        wanted = {name: value for name, value in wanted.items() if name not in DIGESTS}
    require_same({name: recorded[name] for name in wanted}, wanted, what=model_path, remedy="name another checkpoint")


def _warn_if_unfinished(model_path: Path, asked: Any) -> None:
    """Warns of the weights of a training that was stopped, which nobody might notice in their features."""
    content = None
    if model_path.name == MODEL_FILE:
        with contextlib.suppress(InputError):  # who copies the weights alone has finished, we trust
            content = load(model_path.with_name(RESUME_FILE))
    done = content.get("epoch") if isinstance(content, dict) else None
    if is_count(done) and is_count(asked) and done < asked:
        warn(f"{model_path} is of epoch {done} of {asked}: its training was stopped; --resume auto would finish it")
