"""Checkpoints: written beside and renamed, read without executing pickles.

A run's folder holds last.model (a bare state_dict), last.ckpt (all that a resume needs), last.prev.ckpt (the last.ckpt
before) and args.json (settings, versions, git commit, split digest). last.ckpt is sealed: its first line is the SHA-256
of the rest, which is what torch.save writes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.console import warn
from common.files import (
    SMALL_JSON,
    atomic_write,
    check_fields,
    is_text,
    memory_size,
    read_json,
    read_regular,
    write_json,
)
from common.provenance import git_commit, versions
from common.safe_checkpoint import Refused, check_checkpoint
from utils import InputError

MODEL_FILE = "last.model"
RESUME_FILE = "last.ckpt"
PREVIOUS_FILE = "last.prev.ckpt"
ARGS_FILE = "args.json"
ARGS_VERSION = 1
# Heads that the original's and CSI's files carry and that nothing uses.
IGNORED_PREFIXES = ("joint_distribution_layer.", "shift_dis.")
KEYS_SHOWN = 6
SEAL = b"CCAL checkpoint, SHA-256 of what follows this line: "


class Damaged(InputError):
    """A checkpoint cannot be read.

    Attributes:
        reason: In a few words.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"checkpoint {path} is damaged or no checkpoint ({reason}); train or copy it again")
        self.reason = reason


def save(path: Path, content: Any) -> None:
    """Writes tensors and plain values with torch.save, atomically."""
    payload = _serialised(content)
    with atomic_write(path) as file:
        file.write(payload)


def save_sealed(path: Path, content: Any, *, previous: Path | None = None) -> None:
    """Writes like ``save``, behind a checksum.

    Args:
        path: The file.
        content: Tensors and plain values.
        previous: Name under which the file that the new one replaces is kept. At every moment one of the two names
            has a whole file.
    """
    payload = _serialised(content)
    with atomic_write(path) as file:
        file.write(SEAL + hashlib.sha256(payload).hexdigest().encode() + b"\n")
        file.write(payload)
        if previous is not None and path.exists():
            file.flush()
            os.fsync(file.fileno())  # the old file gives way to one that is whole
            _rename_to(path, previous)


def _serialised(content: Any) -> memoryview:
    buffer = io.BytesIO()
    torch.save(content, buffer)  # straight into a file, a full disk would come out as a RuntimeError of torch's
    return buffer.getbuffer()


def _rename_to(path: Path, previous: Path) -> None:
    """Gives a file another name; it keeps the old one, too, where the file system can have that."""
    scratch = previous.with_name(f".{previous.name}.link.tmp")
    try:
        scratch.unlink(missing_ok=True)
        os.link(path, scratch)
        os.replace(scratch, previous)
    except OSError:
        os.replace(path, previous)
    with contextlib.suppress(OSError):
        scratch.unlink(missing_ok=True)  # it is still there where both names were one file's before


def load(path: Path, device: torch.device | str = "cpu") -> Any:
    """Reads what ``save`` or ``save_sealed`` wrote; nothing in the file is executed (weights_only).

    Raises:
        InputError: The file is missing, or claims sizes that it does not have; or ``Damaged``, where it is truncated,
            changed or no checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"checkpoint {path} does not exist; train it with contrast_main.py or name another")
    # Three times: the file, what follows its seal, and the tensors.
    file, sealed = io.BytesIO(read_regular(path, limit=memory_size() // 3)), _is_sealed(path)
    try:
        if sealed:
            seal, payload = file.readline(), file.read()
            if seal != SEAL + hashlib.sha256(payload).hexdigest().encode() + b"\n":
                raise Refused("its checksum does not fit")
            file = io.BytesIO(payload)
        check_checkpoint(file, path)
        file.seek(0)
        if not sealed and zipfile.is_zipfile(file) and zipfile.ZipFile(file).testzip():
            raise Refused("a checksum in it does not fit")
        file.seek(0)
        return torch.load(file, map_location=device, weights_only=True)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # bytes that merely look like a pickle raise nearly anything
        raise Damaged(path, str(error) if isinstance(error, Refused) else type(error).__name__) from None


def _is_sealed(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(len(SEAL)) == SEAL


def load_last(folder: Path, device: torch.device | str = "cpu") -> tuple[Path, Any]:
    """Reads a run's last.ckpt or, where that is damaged or missing, last.prev.ckpt, with a warning.

    Returns:
        The path of what was read, and its content.

    Raises:
        InputError: None of the two can be read.
    """
    last, previous = Path(folder) / RESUME_FILE, Path(folder) / PREVIOUS_FILE
    problems = {}
    for path in (last, previous):
        try:
            content = load(path, device) if path.is_file() else None
        except InputError as damage:
            problems[path] = str(damage)
            if isinstance(damage, Damaged):
                problems[path] = f"{path} is damaged or no checkpoint ({damage.reason})"
            continue
        if content is None:
            problems[path] = f"{path} is not there"
            continue
        if path == previous:
            warn(f"{problems[last]}; the one before it, {previous}, is used")
        elif not _is_sealed(path):
            warn(f"{path} has no checksum, as earlier versions of this code wrote it: damage would go unseen")
        return path, content
    raise InputError(
        f"{' and '.join(problems.values())}: copy one of them from elsewhere, or remove the folder to start anew"
    )


def load_weights(path: Path, encoder: nn.Module, *, strict: bool = True) -> None:
    """Loads a bare state_dict into an encoder; the original's two unused heads are ignored.

    Args:
        path: last.model of this code, of the original or of CSI.
        encoder: The encoder to fill, on its device.
        strict: Whether keys that do not match are an error; otherwise they are listed and left as they are.

    Raises:
        InputError: The file cannot be read, or (if strict) its keys or shapes do not fit; the message names them.
    """
    state = load(path)
    if not is_state(state):
        raise InputError(f"checkpoint {path} is no state_dict; give the file last.model, not {RESUME_FILE}")
    state = {key: value for key, value in state.items() if not key.startswith(IGNORED_PREFIXES)}
    own = encoder.state_dict()
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    wrong_shape = [key for key in own if key in state and own[key].shape != state[key].shape]
    problems = [
        f"{what} {_listing(keys)}"
        for what, keys in (("lacks", missing), ("does not know", unexpected), ("differs in the shape of", wrong_shape))
        if keys
    ]
    if problems and strict:
        raise InputError(
            f"checkpoint {path} does not fit this encoder: it {'; it '.join(problems)}. Give the flags of its training "
            "(--model, --simclr_dim, --shift_trans_type, --dataset)"
        )
    if problems:
        warn(f"{path}: {'; '.join(problems)}; left as initialised (--no_strict)")
    require_finite_weights(path, state)
    encoder.load_state_dict(
        {key: value for key, value in state.items() if key in own and key not in wrong_shape}, strict=False
    )


def is_state(value: Any) -> bool:
    """Whether something is a state_dict."""
    return isinstance(value, dict) and all(isinstance(entry, Tensor) for entry in value.values())


def require_finite_weights(path: Path, state: dict[str, Tensor]) -> None:
    """Checks a state_dict's values.

    Raises:
        InputError: A weight is NaN or infinite; the message names it.
    """
    bad = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise InputError(
            f"checkpoint {path} holds weights that are not finite ({_listing(bad)}): its training went wrong, train it "
            "again"
        )


def _listing(keys: list[str]) -> str:
    more = f" and {len(keys) - KEYS_SHOWN} more" if len(keys) > KEYS_SHOWN else ""
    return ", ".join(keys[:KEYS_SHOWN]) + more


def rng_state() -> dict[str, Any]:
    """The state of every global random source: Python, NumPy, torch and all GPUs."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [name, keys.tolist(), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_rng(state: dict[str, Any]) -> None:
    """Puts every global random source back to where ``rng_state`` found it."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    if not 0 <= position <= len(keys):  # NumPy would read whatever lies in memory there
        raise ValueError(f"a random state at {position} of {len(keys)} numbers")
    np.random.set_state((name, np.asarray(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([value.cpu() for value in state["cuda"]])


def write_args(folder: Path, arguments: dict[str, Any], *, split_digest: str, processes: int) -> None:
    """Writes args.json: resolved arguments, split digest, number of processes, versions and git commit."""
    write_json(
        Path(folder) / ARGS_FILE,
        {
            "format_version": ARGS_VERSION,
            "arguments": arguments,
            "split_digest": split_digest,
            "processes": processes,
            "versions": versions(),
            "git_commit": git_commit(),
        },
    )


def check_run(model_path: Path, *, split_digest: str, expected: dict[str, Any], may_have_changed: bool = False) -> None:
    """Compares the args.json beside a checkpoint with what this stage was given; without one it only warns.

    Args:
        model_path: The checkpoint.
        split_digest: Digest of this stage's split.
        expected: Arguments that must agree, by name.
        may_have_changed: Whether another split is no error: people add images to a folder, and an encoder trained on
            those before encodes the new ones, too.

    Raises:
        InputError: Another split, or another value of an argument.
    """
    args_path = Path(model_path).parent / ARGS_FILE
    if not args_path.is_file():
        warn(f"{model_path} has no {ARGS_FILE} beside it: its split and settings cannot be checked")
        return
    record = read_json(args_path, limit=SMALL_JSON)
    remedy = "restore it, or remove it to load unchecked"
    if not isinstance(record, dict) or not isinstance(record.get("arguments"), dict):
        raise InputError(f"{args_path} is no settings file of contrast_main.py; {remedy}")
    version = record.get("format_version", ARGS_VERSION)  # the first files had none
    if version != ARGS_VERSION:
        raise InputError(f"{args_path} is of format version {version} and this code reads {ARGS_VERSION}; {remedy}")
    check_fields(args_path, record, {"split_digest": is_text}, remedy=remedy)
    if record.get("split_digest") != split_digest and may_have_changed:
        warn(f"{model_path} was trained before the folder changed; train again once much of it is new")
    elif record.get("split_digest") != split_digest:
        raise InputError(
            f"{model_path} was trained on another split (digest {str(record.get('split_digest'))[:12]}, here "
            f"{split_digest[:12]}); give its training's --dataset, --mismatch, --target_classes, --initial_budget and "
            "--split_seed"
        )
    for name, value in expected.items():
        trained = record["arguments"].get(name, value)
        if trained != value:
            raise InputError(
                f"{model_path} was trained with --{name} {trained}, not {value}; give the flag or file that fits"
            )
