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
    """Fills an encoder's backbone, and the heads that fit, from a file, and says what was taken.

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
        # conv1 expects (x - MEAN) / DEVIATION and is given y = (x - 0.5) / 0.5. The former is y * 0.5 / DEVIATION plus
        # (0.5 - MEAN) / DEVIATION: the factor goes into conv1, and what the constant adds to its outputs is taken from
        # bn1's running mean. At the edges that differs: the padding's zeros are gray now and were ImageNet's mean.
        mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, DEVIATION))
        with torch.no_grad():
            encoder.bn1.running_mean -= (encoder.conv1.weight * (0.5 - mean) / deviation).sum((1, 2, 3))
            encoder.conv1.weight *= 0.5 / deviation
    folded = "" if ours else "; ImageNet's normalisation went into conv1 and bn1 (exact but at the edges)"
    fresh = sorted({key.split(".")[0] for key in heads.keys() - taken.keys()})
    log(f"started from {path}; new are {', '.join(fresh) or 'no layers'}{folded}")
