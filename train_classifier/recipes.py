"""Recipes of the classifier: the paper's, and those of two benchmarks of open-set active learning."""

from __future__ import annotations

import dataclasses

from common.settings import ClassifierSettings

PADDING = 4  # black pixels around an image that is cropped at random


@dataclasses.dataclass(frozen=True)
class TrainingRecipe:
    """How a classifier is trained; flags override ``epochs``, ``batch_size`` and ``lr``."""

    epochs: int = 100
    batch_size: int = 32
    lr: float = 5e-4
    milestones: tuple[int, ...] = ()  # epochs after which the rate is halved; they scale with the epochs
    momentum: float = 0.0  # of SGD; 0: Adam
    weight_decay: float = 0.0
    steps: int | None = None  # per epoch, drawn on from reshuffled passes; None: one pass
    network: str = "torchvision_resnet18"  # of train_classifier.network.NETWORKS
    crop: bool = False  # at random, of padded images, beside the flips
    repeats: bool = False  # the first epoch's order and flips, with BatchNorm as it has left it

    def rate(self, epoch: int, *, lr: float, epochs: int) -> float:
        """The learning rate in one of ``epochs`` epochs, counted from 1; in the first one it is ``lr``."""
        return lr * 0.5 ** sum((epoch - 1) * self.epochs >= milestone * epochs for milestone in self.milestones)


_SGD = TrainingRecipe(momentum=0.9, weight_decay=5e-4, network="cifar_resnet18", crop=True)
RECIPES = {
    "proper": TrainingRecipe(),
    "original": TrainingRecipe(repeats=True),
    # LfOSA (Ning et al., CVPR 2022; ningkp/LfOSA), without its rotations, center loss and 2-d features
    "lfosa": dataclasses.replace(_SGD, batch_size=128, lr=0.01, milestones=(20, 40, 60, 80)),
    # MQ-Net (Park et al., NeurIPS 2022; kaist-dmlab/MQNet, whose epochs go on to the end of a pass)
    "mqnet": dataclasses.replace(_SGD, epochs=200, batch_size=64, lr=0.1, milestones=(100, 150), steps=100),
}


def resolved(settings: ClassifierSettings) -> ClassifierSettings:
    """The settings with the recipe's own epochs, batch size and learning rate where none are given."""
    recipe = RECIPES[settings.recipe]
    own = {name: getattr(recipe, name) for name in ("epochs", "batch_size", "lr") if getattr(settings, name) is None}
    return dataclasses.replace(settings, **own)
