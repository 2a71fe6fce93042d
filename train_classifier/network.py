"""The classifier network."""

from __future__ import annotations

import torch
import torchvision
from torch import nn


def build_network(num_classes: int, *, seed: int) -> nn.Module:
    """torchvision's ResNet-18 (7x7/2 stem, max-pool, kaiming_normal fan_out), with weights drawn from ``seed``.

    The draw is made on the CPU and leaves every global random state as it was.

    Args:
        num_classes: Number of outputs.
        seed: Seed of the weights, in [0, 2**64).
    """
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed the GPUs too, and nothing would restore those.
        torch.default_generator.manual_seed(seed)
        return torchvision.models.resnet18(num_classes=num_classes)
