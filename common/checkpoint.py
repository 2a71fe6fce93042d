"""Checkpoints: written beside and renamed, read without executing pickles.

A run's folder holds last.model (a bare state_dict), last.ckpt (all that a resume needs) and args.json (settings,
versions, git commit, split digest).
"""

from __future__ import annotations

import io
import platform
import random
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn

from common.safe_checkpoint import Refused, check_checkpoint
from common.safe_files import SMALL_JSON, check_fields, is_text
from utils import InputError, atomic_write, read_json, warn, write_json

MODEL_FILE = "last.model"
RESUME_FILE = "last.ckpt"
ARGS_FILE = "args.json"
ARGS_VERSION = 1
# Heads that the original's and CSI's files carry and that nothing uses.
IGNORED_PREFIXES = ("joint_distribution_layer.", "shift_dis.")
KEYS_SHOWN = 6


def save(path: Path, content: Any) -> None:
    """Writes tensors and plain values with torch.save, atomically."""
    buffer = io.BytesIO()
    torch.save(content, buffer)  # straight into a file, a full disk would come out as a RuntimeError of torch's
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def load(path: Path, device: torch.device | str = "cpu") -> Any:
    """Reads what ``save`` wrote; nothing in the file is executed (weights_only).

    Raises:
        InputError: The file is missing, truncated, no checkpoint, or claims sizes that it does not have.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"checkpoint {path} does not exist; train it with contrast_main.py or name another")
    with open(path, "rb") as file:
        try:
            check_checkpoint(file, path)
            file.seek(0)
            return torch.load(file, map_location=device, weights_only=True)
        except (InputError, MemoryError):
            raise
        except Exception as error:  # bytes that merely look like a pickle raise nearly anything
            reason = str(error) if isinstance(error, Refused) else type(error).__name__
            raise InputError(
                f"checkpoint {path} is damaged or no checkpoint ({reason}); train or copy it again"
            ) from None


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
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
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
    encoder.load_state_dict(
        {key: value for key, value in state.items() if key in own and key not in wrong_shape}, strict=False
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


def check_run(model_path: Path, *, split_digest: str, expected: dict[str, Any]) -> None:
    """Compares the args.json beside a checkpoint with what this stage was given; without one it only warns.

    Args:
        model_path: The checkpoint.
        split_digest: Digest of this stage's split.
        expected: Arguments that must agree, by name.

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
    if record.get("split_digest") != split_digest:
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


def versions() -> dict[str, str]:
    """Versions of what results depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
    }


def git_commit() -> str:
    """The commit of this code, with ``-dirty`` where files differ from it; ``unknown`` outside a checkout."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        return answer.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
