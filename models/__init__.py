"""Encoders and the augmentations in front of them."""

from __future__ import annotations

import torch

from models.encoder import ContrastiveEncoder, EncoderOutput
from models.resnet import BACKBONES
from utils import InputError

__all__ = ["BACKBONES", "ContrastiveEncoder", "EncoderOutput", "build_encoder"]


def build_encoder(
    name: str, *, num_classes: int, shifts: int, simclr_dim: int = 128, seed: int = 0
) -> ContrastiveEncoder:
    """Builds an encoder by its backbone's name; torch's global generator stays as it is.

    The arguments are those of ContrastiveEncoder, and the seed of the initial weights.

    Raises:
        InputError: The name is unknown.
    """
    if name not in BACKBONES:
        raise InputError(f"--model {name} is unknown; choose from {', '.join(BACKBONES)}")
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs, too
        return BACKBONES[name](num_classes=num_classes, shifts=shifts, simclr_dim=simclr_dim)
