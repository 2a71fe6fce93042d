"""The classifier network: drawn from a seed, or a contrastive encoder with a new head."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from common import checkpoint
from models import BACKBONES, ContrastiveEncoder, build_encoder
from models.resnet import ResNet18
from train_classifier.engine import EVALUATION_BATCH, LabeledImages, channel_constants, normalize
from utils import InputError

HEAD_BELOW = 100  # labeled images per class, on average; with fewer, the encoder stays as it is


class CifarClassifier(ResNet18):
    """The encoders' ResNet-18 for small images (3x3 stem, no max-pool) with one linear layer as its only head."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes=num_classes, shifts=1)
        self.simclr_layer = self.shift_cls_layer = None

    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear(self.penultimate(inputs))


NETWORKS = {"torchvision_resnet18": torchvision.models.resnet18, "cifar_resnet18": CifarClassifier}


def build_network(num_classes: int, *, seed: int, name: str = "torchvision_resnet18") -> nn.Module:
    """A network with weights drawn from ``seed``. torchvision's has a 7x7/2 stem, max-pool and kaiming_normal fan_out.

    The draw is made on the CPU and leaves every global random state as it was.

    Args:
        num_classes: Number of outputs.
        seed: Seed of the weights, in [0, 2**64).
        name: One of NETWORKS.
    """
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed the GPUs too, and nothing would restore those.
        torch.default_generator.manual_seed(seed)
        return NETWORKS[name](num_classes=num_classes)


def bare_encoder(backbone: str) -> ContrastiveEncoder:
    """An encoder by the name of its backbone, without heads."""
    encoder = build_encoder(backbone, num_classes=1, shifts=1)
    encoder.linear = encoder.simclr_layer = encoder.shift_cls_layer = None
    return encoder


def load_encoder(path: Path) -> ContrastiveEncoder:
    """The encoder of a checkpoint, without heads; the names and shapes of its weights tell the backbone.

    Raises:
        InputError: The file cannot be read, or is of no backbone of ours.
    """
    state = checkpoint.read_state(path)
    for backbone in BACKBONES:
        encoder = bare_encoder(backbone)
        own = encoder.state_dict()
        if all(name in state and state[name].shape == value.shape for name, value in own.items()):
            if bad := checkpoint.not_finite({name: state[name] for name in own}):
                raise InputError(f"--init {path} holds weights that are not finite ({bad}): train it again")
            encoder.load_state_dict({name: state[name] for name in own})
            return encoder
    raise InputError(f"--init {path} is not an encoder of contrastive training ({', '.join(BACKBONES)}): give its file")


class Head(nn.Module):
    """A linear layer, zero at first, on features, (B, D), of which ``features``, (N, D), get mean 0 and deviation 1."""

    def __init__(self, features: Tensor, outputs: int) -> None:
        super().__init__()
        deviation = features.std(0, correction=0)
        self.register_buffer("mean", features.mean(0))
        # What hardly varies here may vary elsewhere, and must not grow out of proportion then.
        self.register_buffer("std", deviation.clamp(min=max(0.1 * float(deviation.mean()), 1e-6)))
        self.linear = nn.Linear(features.shape[1], outputs, device=features.device)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear((features - self.mean) / self.std)


class EncoderClassifier(nn.Module):
    """A head on an encoder's penultimate features; its inputs are normalised as those of build_network."""

    def __init__(self, encoder: ContrastiveEncoder, head: Head) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(penultimate(self.encoder, inputs))


def penultimate(encoder: ContrastiveEncoder, inputs: Tensor) -> Tensor:
    """Features, (B, D), of images normalised with ImageNet's constants: encoders take (x - 0.5) / 0.5, x in [0, 1]."""
    mean, std = channel_constants(inputs.device)
    return encoder.penultimate((inputs * std + mean - 0.5) / 0.5)


@functools.lru_cache(4)  # a cycle's images and the test images, targets and others, which serve every cycle
@torch.no_grad()
def encode(encoder: ContrastiveEncoder, data: LabeledImages) -> LabeledImages:
    """What the frozen encoder makes of images and of the mirrored ones."""
    encoder.eval()
    batches = data.images.split(EVALUATION_BATCH)
    plain = [penultimate(encoder, normalize(batch)) for batch in batches]
    mirrored = [penultimate(encoder, normalize(batch.flip(3))) for batch in batches]
    return LabeledImages(torch.cat(plain), data.labels, torch.cat(mirrored))


def start_networks(
    start: ContrastiveEncoder | str, data: LabeledImages, *, outputs: int, seeds: Sequence[int]
) -> list[nn.Module]:
    """A network per seed, on the images' device: one of NETWORKS, drawn from the seed, or an encoder with a head.

    Where ``data`` is what ``encode`` made of images, the networks share the encoder: only heads are to be trained.
    """
    if isinstance(start, str):
        return [build_network(outputs, seed=seed, name=start).to(data.labels.device) for seed in seeds]
    frozen = data.mirrored is not None
    features = (data if frozen else encode(start, data)).images
    return [EncoderClassifier(start if frozen else copy.deepcopy(start), Head(features, outputs)) for _ in seeds]
