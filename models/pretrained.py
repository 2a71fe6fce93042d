"""Starting an encoder from weights that are there: torchvision's ResNet-18, or another encoder of ours."""

from __future__ import annotations

from pathlib import Path

import torch

from common.checkpoint import fill, read_state
from common.console import log
from models.encoder import ContrastiveEncoder
from models.resnet import ResNet18ImageNet
from utils import InputError

HEADS = ("linear.", "simclr_layer.", "shift_cls_layer.")
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet; torchvision normalises images by these


def start_from(path: Path, encoder: ContrastiveEncoder) -> None:
    """Fills an encoder's backbone from a file, and the heads that fit; says what was taken.

    Raises:
        InputError: The file cannot be read, or is not of this backbone.
    """
    state, own = read_state(path), encoder.state_dict()
    ours = any(key.startswith("simclr_layer.") for key in state)
    if not ours and not isinstance(encoder, ResNet18ImageNet):
        raise InputError(f"--init {path} is no encoder of this code; torchvision's go with --model resnet18_imagenet")
    heads = {key: value for key, value in own.items() if key.startswith(HEADS)}
    taken = {key: state[key] for key, value in heads.items() if key in state and state[key].shape == value.shape}
    backbone = {key: value for key, value in state.items() if not key.startswith((*HEADS, "fc."))}
    fill(encoder, backbone | heads | taken, path, strict=True)
    if not ours:
        _fold_normalisation(encoder)
    fresh = sorted({key.split(".")[0] for key in heads.keys() - taken.keys()})
    folded = "ImageNet weights, whose normalisation went into conv1 and bn1 (exact but at edges)"
    log(f"--init {path}: {'an encoder' if ours else folded}; starting anew: {', '.join(fresh) or 'nothing'}")


@torch.no_grad()
def _fold_normalisation(encoder: ResNet18ImageNet) -> None:
    """Makes the first layers expect (x - 0.5) / 0.5, which the encoder feeds, instead of (x - MEAN) / DEVIATION.

    The latter is y * 0.5 / DEVIATION + (0.5 - MEAN) / DEVIATION for y = (x - 0.5) / 0.5. The factor goes into conv1;
    what the constant adds to conv1's outputs is taken from bn1's running mean. That is exact but where conv1 sees
    padding: zeros are gray now and were ImageNet's mean.
    """
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, DEVIATION))
    encoder.bn1.running_mean -= (encoder.conv1.weight * (0.5 - mean) / deviation).sum((1, 2, 3))
    encoder.conv1.weight *= 0.5 / deviation
