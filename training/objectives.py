"""What the two encoders learn: SimCLR (semantic) and CSI (distinctive), as two views of one objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import distributed
from common.acceleration import FP32, Precision
from datasets.base import UNKNOWN
from models.counter_random import Purpose, make_keys
from models.transform_layers import SHIFT_COUNTS, Augmentation, shift_images
from training.losses import nt_xent
from utils import InputError


class Batch(NamedTuple):
    """One process's share of a step.

    Attributes:
        images: (B, 3, H, W) in [0, 1].
        labels: All-class labels for the probe, (B,); -1 where there is none.
        indices: Data set indices, (B,); they key the augmentation.
        epoch: From 1; as a tensor on the device, int64 (), it may change without a compiled step being compiled anew.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    epoch: int | Tensor


@dataclass(frozen=True)
class SemanticObjective:
    """SimCLR: NT-Xent over two views of each image of the global batch (CCAL, Sec. 3.2).

    Attributes:
        augmentation: Of the views.
        temperature: Of NT-Xent.
        seed: Keys the views' draws, with epoch, image and view.
        shift: Kind of the shifts; where there are any, the loss of telling them apart is added.
        sim_lambda: Weight of NT-Xent.
        precision: Of the encoder's pass; augmentation and losses are float32.
    """

    augmentation: Augmentation
    temperature: float = 0.5
    seed: int = 0
    shift: str = "none"
    sim_lambda: float = 1.0
    precision: Precision = FP32

    def __call__(self, encoder: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss to minimise (the probe's included, whose features are detached) and what to log."""
        output = self.precision.encode(encoder, self.views(batch))
        losses = {"loss_sim": nt_xent(gather_views(output.projection), temperature=self.temperature)}
        loss, accuracies = self.sim_lambda * losses["loss_sim"], {}
        shifts = SHIFT_COUNTS[self.shift]
        if shifts > 1:
            targets = torch.arange(shifts, device=batch.labels.device).repeat_interleave(len(batch.labels)).repeat(2)
            losses["loss_shift"] = F.cross_entropy(output.shift_logits, targets)
            loss = loss + losses["loss_shift"]
            accuracies["train_shift_accuracy"] = 100 * (output.shift_logits.argmax(1) == targets).float().mean()
        probe, losses["loss_probe"], accuracies["train_probe_accuracy"] = self._probe(output.class_logits, batch.labels)
        stats = {"loss": loss, **losses, **accuracies}
        return loss + probe, {name: value.detach() for name, value in stats.items()}

    def views(self, batch: Batch) -> Tensor:
        """(2 K B, 3, H, W): for each view, for each shift, the batch in order."""
        views = []
        for view in range(2):
            keys = make_keys(self.seed, Purpose.TRAINING, batch.epoch, batch.indices, view)
            # One flip per view: its shifted copies share it.
            flipped = self.augmentation.flip(batch.images, keys)
            views += [shift_images(flipped, self.shift, k) for k in range(SHIFT_COUNTS[self.shift])]
        view = torch.arange(2, device=batch.indices.device)[:, None, None]
        number = torch.arange(SHIFT_COUNTS[self.shift], device=batch.indices.device)[:, None]
        keys = make_keys(self.seed, Purpose.TRAINING, batch.epoch, batch.indices, view, number)  # (2, K, B)
        return self.augmentation.after_shift(torch.cat(views), keys.flatten())

    def _probe(self, class_logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cross entropy of the linear probe on the unshifted copies, 0 without a label, and what to log of it.

        Logged are cross entropy and accuracy in percent; without a label NaN, which the epoch's averages leave out.
        """
        logits = class_logits.view(2, SHIFT_COUNTS[self.shift], len(labels), -1)[:, 0].flatten(0, 1)
        targets = labels.repeat(2)
        known = targets != UNKNOWN
        losses = F.cross_entropy(logits, targets, ignore_index=UNKNOWN, reduction="sum")
        hits = (logits.argmax(1) == targets) & known
        count = known.sum()
        loss = losses / count.clamp(min=1)
        shown = torch.where(count > 0, loss, torch.full_like(loss, torch.nan))
        return loss, shown, 100 * hits.sum() / count


@dataclass(frozen=True)
class DistinctiveObjective(SemanticObjective):
    """CSI: every shifted copy is an instance of its own, and a head tells the shifts apart (CCAL, Sec. 3.3).

    Loss = ``sim_lambda`` * NT-Xent over the 2 K B copies + cross entropy of ``shift_cls_layer``.
    """

    shift: str = "rotation"


def gather_views(projection: Tensor) -> Tensor:
    """Unit-norm projections of all processes, (2N, D) here to (2 N W, D): rows i and i + N W are two views."""
    views = F.normalize(projection, dim=1).view(2, -1, projection.shape[1])
    return distributed.all_gather(views, dim=1).flatten(0, 1)


def check_mode(mode: str, shift: str) -> None:
    """Raises InputError for SimCLR with shifts, or CSI without."""
    if mode == "semantic" and shift != "none":
        raise InputError(f"--mode semantic is SimCLR, which has no shifts: give --shift_trans_type none, not {shift}")
    if mode == "distinctive" and shift == "none":
        raise InputError("--mode distinctive is CSI, which needs shifts: give --shift_trans_type rotation or cutperm")
