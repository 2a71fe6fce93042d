"""The encoder that both contrastive trainers share: a backbone and its heads."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn


class EncoderOutput(NamedTuple):
    """What one forward pass gives.

    Attributes:
        features: Penultimate features, (B, feature_dim).
        projection: Output of ``simclr_layer``, not normalised, (B, simclr_dim).
        shift_logits: Output of ``shift_cls_layer``, (B, K).
        class_logits: Output of the probe ``linear`` on detached features, (B, num_classes).
    """

    features: Tensor
    projection: Tensor
    shift_logits: Tensor
    class_logits: Tensor


class ContrastiveEncoder(nn.Module):
    """Heads on a backbone's penultimate features, named as in CSI's checkpoints (https://arxiv.org/abs/2007.08176).

    A backbone is a subclass that sets ``feature_dim``, registers its layers and implements ``penultimate``.

    Args:
        num_classes: All classes of the data set, for the online probe.
        shifts: K, the number of shifts that ``shift_cls_layer`` tells apart; 1 without shifts.
        simclr_dim: Dimensions of the projection.
    """

    feature_dim: int

    def __init__(self, *, num_classes: int, shifts: int, simclr_dim: int = 128) -> None:
        super().__init__()
        self.linear = nn.Linear(self.feature_dim, num_classes)
        self.simclr_layer = nn.Sequential(
            nn.Linear(self.feature_dim, self.feature_dim), nn.ReLU(), nn.Linear(self.feature_dim, simclr_dim)
        )
        self.shift_cls_layer = nn.Linear(self.feature_dim, shifts)
        # One class cannot be told from itself: without shifts the head has nothing to learn.
        self.shift_cls_layer.requires_grad_(shifts > 1)

    def penultimate(self, images: Tensor) -> Tensor:
        """Features before the heads: (B, 3, H, W) normalised images to (B, feature_dim)."""
        raise NotImplementedError(f"{type(self).__name__} must implement penultimate(images)")

    def forward(self, images: Tensor) -> EncoderOutput:
        """Encodes images, (B, 3, H, W) in [0, 1]; they are normalised to [-1, 1] here."""
        features = self.penultimate((images - 0.5) / 0.5)
        return EncoderOutput(
            features=features,
            projection=self.simclr_layer(features),
            shift_logits=self.shift_cls_layer(features),
            class_logits=self.linear(features.detach()),
        )
