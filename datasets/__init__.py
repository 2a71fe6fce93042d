"""Data sets, the split protocol and the index files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datasets.base import Dataset
from datasets.cifar import load_cifar
from datasets.digits import load_digits
from datasets.npz import load_npz
from datasets.split import PROTOCOLS, Split, make_split
from utils import InputError

LOADERS = {"cifar10": load_cifar, "cifar100": load_cifar, "digits": load_digits, "npz": load_npz}
DEFAULT_BUDGET = 800


def load_dataset(name: str, data_path: str | Path = "~/data") -> Dataset:
    """Loads a data set by its name.

    Args:
        name: ``cifar10``, ``cifar100``, ``digits`` or ``npz``.
        data_path: The folder of CIFAR, or the npz file; digits need none.

    Raises:
        InputError: The name is unknown, or the files are missing or unusable.
    """
    if name not in LOADERS:
        raise InputError(f"--dataset {name} is unknown; choose from {', '.join(LOADERS)}")
    return LOADERS[name](name, Path(data_path).expanduser())


def load_data_and_split(
    name: str,
    data_path: str | Path,
    *,
    mismatch: float,
    target_classes: Sequence[int] | None = None,
    initial_budget: int | None = None,
    split_seed: int = 0,
) -> tuple[Dataset, Split]:
    """Loads a data set and draws its initial split; what is None takes the value of the data set's protocol.

    Raises:
        InputError: See load_dataset and make_split; a data set without a protocol needs target classes.
    """
    protocol = PROTOCOLS.get(name)
    if target_classes is None:
        if protocol is None:
            raise InputError(f"--dataset {name} needs --target_classes (the classes that matter), such as 0 1")
        target_classes = protocol.target_classes
    if initial_budget is None:
        initial_budget = protocol.initial_budget if protocol else DEFAULT_BUDGET
    data = load_dataset(name, data_path)
    split = make_split(
        data.train_labels,
        data.test_labels,
        target_classes=target_classes,
        mismatch=mismatch,
        initial_budget=initial_budget,
        seed=split_seed,
    )
    return data, split
