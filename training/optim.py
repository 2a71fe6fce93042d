"""Optimizers and the learning rate: warm-up, then cosine or step decay."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from warmup_scheduler import GradualWarmupScheduler

from common.settings import TrainingSettings
from models import ContrastiveEncoder

PEAK = 10.0  # the warm-up multiplies the base rate by this
STEP_DECAY = {"sgd": 0.1, "lars": 0.1, "adam": 0.3}


class LARS(Optimizer):
    """SGD with momentum on layer-wise rescaled gradients (LARS, https://arxiv.org/abs/1708.03888).

    Per tensor the gradient becomes (g + wd p) * trust |p| / (|g| + wd |p| + 1e-8), with factor 1 where |p| or |g|
    is 0.

    Args:
        params: Parameters, or parameter groups.
        weight_decay: wd.
        trust: The trust coefficient.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Updates every parameter that has a gradient; returns the closure's loss, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(params, group)
        return loss

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """A few kernels for all tensors; the scaling by each one's ratio alone is a kernel per tensor."""
        grads, decay = [p.grad for p in params], group["weight_decay"]
        p_norms, g_norms = torch.stack(torch._foreach_norm(params)), torch.stack(torch._foreach_norm(grads))
        ratios = group["trust"] * p_norms / (g_norms + decay * p_norms + 1e-8)
        ratios = torch.where((p_norms > 0) & (g_norms > 0), ratios, torch.ones_like(ratios))
        steps = torch._foreach_mul(torch._foreach_add(grads, params, alpha=decay), ratios.unbind())
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        momenta = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, steps)
        torch._foreach_add_(params, momenta, alpha=-group["lr"])


def build_optimizer(name: str, parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float) -> Optimizer:
    """sgd (momentum 0.9), adam (betas 0.9, 0.999) or lars, over the parameters that require a gradient.

    sgd and adam update all tensors in one fused kernel, or in a few foreach kernels where a fused one on a GPU would
    refuse a gradient: a 1x1 convolution's may differ from its weight in strides that mean nothing
    (https://github.com/pytorch/pytorch/issues/126585).
    """
    parameters = [p for p in parameters if p.requires_grad]
    if name == "lars":
        return LARS(parameters, lr=lr, weight_decay=weight_decay)
    fused = all(p.device.type == "cpu" or p.ndim == 1 or 1 not in p.shape for p in parameters)
    kernels = {"fused": True} if fused else {"foreach": True}
    if name == "adam":
        return torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.999), weight_decay=weight_decay, **kernels)
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=weight_decay, **kernels)


class _Decay(LRScheduler):
    """Base rate times a function of the epochs since the warm-up; base rates are set to the peak by the warm-up."""

    def __init__(self, optimizer: Optimizer, shape: Callable[[float], float]) -> None:
        self._shape = shape
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        return [base * self._shape(self.last_epoch) for base in self.base_lrs]


class LearningRate:
    """The learning rate as a function of the fractional epoch e = epoch - 1 + n / len(loader), set after update n.

    With base rate b and W warm-up epochs: b (1 + 9 e / W) for e <= W; then 10 b * 0.5 (1 + cos(pi (e - W) / epochs)),
    or 10 b times 0.1 (adam: 0.3) for each of int(epochs / 2) and int(3 epochs / 4) that e - W has reached. The
    cosine's period is ``epochs``, so it ends just above 0, as in the original.

    It has no state but e, so a resumed run is exact. GradualWarmupScheduler's own ``step`` hands over to the decay with
    one stale value; here both positions are set before it is asked.
    """

    def __init__(self, optimizer: Optimizer, *, optimizer_name: str, kind: str, epochs: int, warmup: int) -> None:
        self._optimizer = optimizer
        self._warmup = warmup
        factor = STEP_DECAY[optimizer_name]
        milestones = int(epochs / 2), int(3 * epochs / 4)
        shapes = {
            "cosine": lambda e: 0.5 * (1 + math.cos(math.pi * e / epochs)),
            "step_decay": lambda e: factor ** sum(e >= milestone for milestone in milestones),
        }
        self._decay = _Decay(optimizer, shapes[kind])
        self._schedule: LRScheduler = self._decay
        if warmup:
            self._schedule = GradualWarmupScheduler(optimizer, PEAK, warmup, after_scheduler=self._decay)
        else:
            self._decay.base_lrs = [base * PEAK for base in self._decay.base_lrs]
        self.set(0.0)

    def set(self, e: float) -> None:
        """Sets the optimizer's rate to the value at fractional epoch ``e``."""
        self._schedule.last_epoch = e
        self._decay.last_epoch = e - self._warmup
        for group, lr in zip(self._optimizer.param_groups, self._schedule.get_lr()):
            group["lr"] = lr

    @property
    def value(self) -> float:
        """The current learning rate."""
        return self._optimizer.param_groups[0]["lr"]


def build_optimizers(
    encoder: ContrastiveEncoder, settings: TrainingSettings
) -> tuple[tuple[Optimizer, Optimizer], LearningRate]:
    """The optimizers of the encoder and of its linear probe, and the learning rate of the first."""
    parameters = [p for name, p in encoder.named_parameters() if not name.startswith("linear.")]
    optimizer = build_optimizer(settings.optimizer, parameters, lr=settings.lr_init, weight_decay=settings.weight_decay)
    probe = build_optimizer("adam", encoder.linear.parameters(), lr=1e-3, weight_decay=1e-6)
    chosen = {"kind": settings.lr_scheduler, "epochs": settings.epochs, "warmup": settings.warmup}
    return (optimizer, probe), LearningRate(optimizer, optimizer_name=settings.optimizer, **chosen)


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Puts an optimizer back to where its ``state_dict`` says.

    Its tensors take their parameters' strides: torch's fused kernels on CPUs walk through memory and would mix up the
    elements of another layout, without a word (seen with torch 2.14).

    Raises:
        ValueError: Its tensors are not of the parameters' shapes, which torch would find out at the next step only.
    """
    groups = [
        saved | {name: own[name] for name in ("fused", "foreach") if name in own}  # the kernels are this device's
        for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if not isinstance(value, Tensor) or not value.dim():
                continue
            if value.shape != parameter.shape:
                raise ValueError(f"{name} of shape {tuple(value.shape)} for a weight of {tuple(parameter.shape)}")
            values[name] = torch.empty_like(parameter, requires_grad=False).copy_(value)
