"""Fixtures and options that all tests share."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

# The tensors of the tests are small: more threads only wait for each other, here and in the commands that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow; run with --slow"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the repository; tests that need it are skipped where it is absent."""
    folder = ROOT.parent / "shared"
    if not (folder / "golden").is_dir():
        pytest.skip("no ../shared with reference data here")
    return folder


@pytest.fixture
def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 train and 20 test images of 8 x 8 pixels, 4 classes."""
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    generator = np.random.default_rng(0)
    np.savez(
        path,
        train_images=generator.integers(0, 256, (64, 8, 8, 3), dtype=np.uint8),
        train_labels=np.arange(64) % 4,
        test_images=generator.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8),
        test_labels=np.arange(20) % 4,
    )
    return path


@pytest.fixture(scope="session")
def flags(tiny_data: Path) -> Callable[..., list[str]]:
    """The words of a training run, settings over the defaults of tests/runs.py: flags(epochs=2, logdir=folder)."""
    from tests.runs import run_flags

    return functools.partial(run_flags, tiny_data)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, flags: Callable[..., list[str]]) -> Callable[..., Path]:
    """Folders of uninterrupted runs of 4 epochs, trained once per mode and settings."""
    import contrast_main

    runs: dict[tuple, Path] = {}

    def folder(mode: str, **settings: object) -> Path:
        key = (mode, *settings.items())
        if key not in runs:
            runs[key] = tmp_path_factory.mktemp("whole") / "run"
            contrast_main.main(flags(mode, logdir=runs[key], **settings))
        return runs[key]

    return folder
