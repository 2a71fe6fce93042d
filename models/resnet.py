"""Residual backbones (He et al., https://arxiv.org/abs/1512.03385)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
import torchvision.models
from torch import Tensor, nn

from models.encoder import ContrastiveEncoder


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride=stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_planes != planes:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_planes, planes, 1, stride=stride, bias=False), nn.BatchNorm2d(planes)
            )

    def forward(self, x: Tensor) -> Tensor:
        # In place: BatchNorm's and the sum's backward passes do not look at their outputs.
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out, inplace=True)


class CifarResNet(ContrastiveEncoder):
    """A ResNet for small images: 3x3 stem of stride 1, no max-pool, one stage per width."""

    widths: ClassVar[Sequence[int]]
    blocks: ClassVar[int]

    def __init__(self, *, num_classes: int, shifts: int, simclr_dim: int = 128) -> None:
        self.feature_dim = self.widths[-1]
        super().__init__(num_classes=num_classes, shifts=shifts, simclr_dim=simclr_dim)
        self.conv1 = nn.Conv2d(3, self.widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(self.widths[0])
        in_planes = self.widths[0]
        for stage, planes in enumerate(self.widths, start=1):
            strides = [1 if stage == 1 else 2] + [1] * (self.blocks - 1)
            layer = nn.Sequential()
            for stride in strides:
                layer.append(BasicBlock(in_planes, planes, stride))
                in_planes = planes
            self.add_module(f"layer{stage}", layer)

    def penultimate(self, images: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(images)), inplace=True)
        for stage in range(1, len(self.widths) + 1):
            out = getattr(self, f"layer{stage}")(out)
        return F.adaptive_avg_pool2d(out, 1).flatten(1)


class ResNet18(CifarResNet):
    """The paper's network: ResNet-18 with a CIFAR stem, 11.2 M parameters."""

    widths = (64, 128, 256, 512)
    blocks = 2


class ResNet20(CifarResNet):
    """ResNet-20 of the original ResNet paper's CIFAR experiments (1x1 convolutions as shortcuts), 0.27 M parameters."""

    widths = (16, 32, 64)
    blocks = 3


class ResNet8(CifarResNet):
    """The shallowest of that family (6n + 2 layers, n = 1), for CPUs and demonstrations."""

    widths = (16, 32, 64)
    blocks = 1


class ResNet18ImageNet(ContrastiveEncoder):
    """torchvision's ResNet-18 for images of about 224 pixels: 7x7 stem, max-pool, kaiming_normal fan_out."""

    feature_dim = 512

    def __init__(self, *, num_classes: int, shifts: int, simclr_dim: int = 128) -> None:
        super().__init__(num_classes=num_classes, shifts=shifts, simclr_dim=simclr_dim)
        network = torchvision.models.resnet18(weights=None)
        for name in ("conv1", "bn1", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            self.add_module(name, getattr(network, name))

    def penultimate(self, images: Tensor) -> Tensor:
        out = self.maxpool(F.relu(self.bn1(self.conv1(images))))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return F.adaptive_avg_pool2d(out, 1).flatten(1)


BACKBONES: dict[str, type[ContrastiveEncoder]] = {
    "resnet18": ResNet18,
    "resnet18_imagenet": ResNet18ImageNet,
    "resnet20": ResNet20,
    "resnet8": ResNet8,
}
