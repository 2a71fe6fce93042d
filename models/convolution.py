"""A convolution whose weight gradient, where its maps are small, is a few matrix products."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# On a CPU, products are the faster way from this many input channels, for outputs of up to this size times the stride.
CHANNELS, MAP = 128, 4


class Conv2d(nn.Conv2d):
    """torch's convolution, but for the weight gradient of many channels on a small map on a CPU.

    A 3x3 kernel on a 4x4 map meets the padding in 31 % of its products. Without these, and as matrix products, the
    gradient of a ResNet-18's last stage takes about two thirds of the time (docs/performance.md). Weights, checkpoints
    and results are those of ``torch.nn.Conv2d``, to rounding. There it has first derivatives only, and none for
    torch.func or jit.trace.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self._products_pay(x):
            return super().forward(x)
        return _WithProducts.apply(x, self.weight, self.stride, self.padding)

    def _products_pay(self, x: Tensor) -> bool:
        trained = torch.is_grad_enabled() and self.weight.requires_grad and not torch.compiler.is_compiling()
        if not trained or x.device.type != "cpu" or x.dim() != 4 or self.in_channels < CHANNELS:
            return False
        plain = self.bias is None and self.groups == 1 and self.dilation == (1, 1) and self.padding_mode == "zeros"
        if not plain or isinstance(self.padding, str):
            return False
        sizes = zip(x.shape[2:], self.kernel_size, self.stride, self.padding)
        return all((size + 2 * pad - kernel) // stride < MAP * stride for size, kernel, stride, pad in sizes)


class _WithProducts(torch.autograd.Function):
    """The convolution itself, with weight_gradient in its backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, stride=stride, padding=padding)  # under autocast in its number format

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        given, weight = ctx.saved_tensors
        x, of_x = given.to(gradient.dtype), None
        if ctx.needs_input_grad[0]:
            settings = None, ctx.stride, ctx.padding, (1, 1), False, (0, 0), 1, (True, False, False)
            of_x = torch.ops.aten.convolution_backward(gradient, x, weight.to(gradient.dtype), *settings)[0]
            of_x = of_x.to(given.dtype)
        of_weight = weight_gradient(x, gradient, kernel=weight.shape[2:], stride=ctx.stride, padding=ctx.padding)
        return of_x, of_weight.to(weight.dtype), None, None


def weight_gradient(
    x: Tensor, gradient: Tensor, *, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """The gradient of a convolution's weight: one matrix product for each place in the kernel.

    Each product takes the places of the map whose input lies within the image; the padding's zeros add nothing.

    Args:
        x: The convolution's input, (B, I, H, W).
        gradient: Of its output, (B, O, H', W'), in the same number format.
        kernel: Height and width.
        stride: Down and across.
        padding: Zeros above and below, left and right.

    Returns:
        (O, I, *kernel), float32 in channels-last order; float64 where ``x`` is.
    """
    x, gradient = x.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)
    height, width = kernel
    places = gradient.new_empty(height, width, gradient.shape[3], x.shape[3])
    for i in range(height):
        rows, of_rows = _inside(i, x.shape[1], gradient.shape[1], stride[0], padding[0])
        for j in range(width):
            columns, of_columns = _inside(j, x.shape[2], gradient.shape[2], stride[1], padding[1])
            read, came = x[:, rows, columns].flatten(0, 2), gradient[:, of_rows, of_columns].flatten(0, 2)
            torch.mm(came.T, read, out=places[i, j])
    dtype = torch.promote_types(places.dtype, torch.float32)
    result = torch.empty(gradient.shape[3], height, width, x.shape[3], dtype=dtype, device=x.device)
    return result.copy_(places.permute(2, 0, 1, 3)).permute(0, 3, 1, 2)


def _inside(place: int, size: int, out_size: int, stride: int, padding: int) -> tuple[slice, slice]:
    """Along one axis: where a place of the kernel reads the image, and the outputs that it reads it for."""
    first = max(0, -((place - padding) // stride))  # the least q with q * stride + place - padding >= 0
    last = min(out_size - 1, (size - 1 + padding - place) // stride)
    if last < first:
        return slice(0, 0), slice(0, 0)
    start = first * stride + place - padding
    return slice(start, start + (last - first) * stride + 1, stride), slice(first, last + 1)
