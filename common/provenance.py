"""What a run says of itself: its log, versions, commit and digests."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torchvision

from common.files import atomic_write, is_number, naming_file, read_regular

LOG_FILE = "log.jsonl"
DRAWABLE = -1e100, 1e100  # beyond, a figure's axes overflow


def int64_digest(indices: np.ndarray | Sequence[int]) -> str:
    """SHA-256 of an index list, in order, as little-endian int64 bytes."""
    return hashlib.sha256(np.asarray(indices, dtype="<i8").tobytes()).hexdigest()


class RunLog:
    """A run's written record: one JSON line per epoch in log.jsonl and the same values as tensorboard scalars.

    Args:
        folder: Where both go.
        enabled: False at all processes but the first.
        done: Epochs that a resumed run has finished; lines of later ones (trained, but lost with a kill before their
            checkpoint) are dropped, since they will be trained and written again.
    """

    def __init__(self, folder: str | os.PathLike, *, enabled: bool = True, done: int = 0) -> None:
        self._path = Path(folder) / LOG_FILE
        self._writer = None
        if enabled:
            from tensorboardX import SummaryWriter

            self._keep(done)
            self._writer = SummaryWriter(str(Path(folder) / "tensorboard"), purge_step=done + 1 if done else None)

    def _keep(self, done: int) -> None:
        # What is no text is no line of an epoch: it goes, as a line does that a kill cut short.
        there = os.path.lexists(self._path)
        lines = read_regular(self._path).decode(errors="replace").splitlines() if there else []
        kept = [line for line in lines if _epoch_of(line) <= done]
        if len(kept) != len(lines) or self._path.is_symlink():  # lines must not go where a link leads
            with atomic_write(self._path) as file:
                file.write("".join(line + "\n" for line in kept).encode())

    def write(self, epoch: int, values: dict[str, float]) -> None:
        """Appends the line {"epoch": epoch, **values} and adds each value as a scalar at that epoch."""
        if self._writer is None:
            return
        with naming_file(self._path), open(self._path, "a") as file:
            file.write(json.dumps({"epoch": epoch, **values}) + "\n")
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def read_log(folder: str | os.PathLike) -> tuple[list[dict[str, float]], int]:
    """The epochs of a run's log.jsonl in order, finite numbers by name, and how many lines are damaged and left out."""
    path = Path(folder) / LOG_FILE
    lines = read_regular(path).decode(errors="replace").splitlines() if path.is_file() else []
    epochs = [values for line in lines if "epoch" in (values := _numbers(line))]
    return epochs, len(lines) - len(epochs)


def _numbers(line: str) -> dict[str, float]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    items = content.items() if isinstance(content, dict) else ()
    return {name: value for name, value in items if is_number(value, *DRAWABLE)}


def _epoch_of(line: str) -> float:
    return _numbers(line).get("epoch", float("inf"))  # a line that a kill cut short


HASH_BLOCK = 4096  # images per update of their digest


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


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def image_digest(images: np.ndarray, indices: np.ndarray) -> str:
    """SHA-256 of the pixels of some images: uint8 (M, H, W, 3) at (N,)."""
    pixels = hashlib.sha256()
    for start in range(0, len(indices), HASH_BLOCK):
        pixels.update(images[indices[start : start + HASH_BLOCK]].tobytes())
    return pixels.hexdigest()
