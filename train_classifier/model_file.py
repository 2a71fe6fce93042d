"""A trained classifier in a file: its weights, and all that is needed to use them on other images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from common import checkpoint
from common.files import check_fields, is_count, is_text
from datasets.results_file import Row
from models import BACKBONES
from train_classifier.engine import IMAGENET_MEAN, IMAGENET_STD
from train_classifier.network import NETWORKS, EncoderClassifier, Head, bare_encoder, build_network
from utils import InputError

FORMAT_VERSION = 1
OTHER = "other"  # the name of the output for images of no target class
CHECKS = {
    "format_version": lambda value: value == FORMAT_VERSION,
    "network": lambda value: value in (*NETWORKS, *BACKBONES),
    "class_names": lambda value: isinstance(value, list) and all(map(is_text, value)),
    "other": lambda value: isinstance(value, bool),
    "image_size": lambda value: isinstance(value, list) and len(value) == 2 and all(map(is_count, value)),
    "state_dict": lambda value: checkpoint.is_state(value) and not checkpoint.not_finite(value),
}


@dataclass(frozen=True)
class Model:
    """A classifier that was read."""

    network: nn.Module  # see train_classifier.engine.probabilities
    outputs: tuple[str, ...]  # names of the classes, and OTHER if there is such an output
    image_size: tuple[int, int]  # height and width in pixels


def model_path(folder: Path, *, cycle: int, seed: int) -> Path:
    """Where a classifier's weights go."""
    return folder / f"cycle_{cycle}_seed_{seed}.model"


def save_model(
    path: Path, network: nn.Module, row: Row, *, names: Sequence[str], other: bool, size: tuple[int, int]
) -> None:
    """Writes a network, what its outputs mean, the images' size and normalisation, and its row of results.csv."""
    name = "cifar_resnet18" if isinstance(network, NETWORKS["cifar_resnet18"]) else "torchvision_resnet18"
    encoder = type(getattr(network, "encoder", None))
    content = {"format_version": FORMAT_VERSION, "class_names": list(names), "other": other, "image_size": list(size)}
    content |= {"network": next((name for name, kind in BACKBONES.items() if kind is encoder), name)}
    content |= {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD), "row": dataclasses.asdict(row)}
    checkpoint.save(path, {**content, "state_dict": checkpoint.to_cpu(dict(network.state_dict()))})


def load_model(path: Path) -> Model:
    """Reads what save_model wrote.

    Raises:
        InputError: The file is missing, damaged or of another kind.
    """
    content, remedy = checkpoint.load(path), "give a cycle_N_seed_S.model of the classifier, or train it again"
    check_fields(path, content, CHECKS, remedy=remedy)
    outputs = (*content["class_names"], *([OTHER] if content["other"] else []))
    if content["network"] in NETWORKS:
        network = build_network(len(outputs), seed=0, name=content["network"])
    else:
        encoder = bare_encoder(content["network"])
        network = EncoderClassifier(encoder, Head(torch.zeros(1, encoder.feature_dim), len(outputs)))
    try:
        network.load_state_dict(content["state_dict"])
    except RuntimeError:
        raise InputError(f"{path}: the weights do not fit its {content['network']}; {remedy}") from None
    return Model(network, outputs, tuple(content["image_size"]))
