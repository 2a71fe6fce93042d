"""The plain formulation: METHOD's sections 2 and 3 as they read, in eager float32 and PyTorch's default layout.

Nothing here is used outside the benchmarks and their tests. The random numbers are handed in, so that both formulations
compute the same thing and can be compared; all that is made of them is written here anew.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

CONTRAST_FIRST, CONTRAST, HUE, SATURATION, VALUE, GRAY, BOX = 1, 2, 3, 4, 5, 6, 7  # columns behind the jitter's


def rgb_to_hsv(x: Tensor) -> Tensor:
    """Hexcone HSV with the circular hue, (B, 3, H, W)."""
    r, g, b = x[:, 0], x[:, 1], x[:, 2]
    high, low = x.max(1).values, x.min(1).values
    hue = torch.atan2(math.sqrt(3) * (g - b), 2 * r - g - b) / (2 * math.pi) % 1
    hsv = torch.stack([hue, (high - low) / high, high], 1)
    hsv[~torch.isfinite(hsv)] = 0
    return hsv


def hsv_to_rgb(hsv: Tensor) -> Tensor:
    """Back by the hexagon formula."""
    hue, saturation, value = hsv[:, 0], hsv[:, 1], hsv[:, 2]
    channels = []
    for n in (5, 3, 1):
        k = (n + 6 * hue) % 6
        channels.append(value - value * saturation * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, 1)


def jitter(x: Tensor, u: Tensor) -> Tensor:
    """Contrast and HSV, in the order that the draw says; (B, 3, H, W) and the draws (B, 42)."""

    def contrast(x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        return ((x - mean) * (0.6 + 0.8 * u[:, CONTRAST]).view(-1, 1, 1, 1) + mean).clamp(0, 1)

    def hsv(x: Tensor) -> Tensor:
        h, s, v = rgb_to_hsv(x).unbind(1)
        h = (h + ((0.2 * u[:, HUE] - 0.1) * 255 / 360).view(-1, 1, 1)) % 1
        s = s * (0.6 + 0.8 * u[:, SATURATION]).view(-1, 1, 1)
        v = v * (0.6 + 0.8 * u[:, VALUE]).view(-1, 1, 1)
        return hsv_to_rgb(torch.stack([h, s, v], 1).clamp(0, 1))

    first = (u[:, CONTRAST_FIRST] < 0.5).view(-1, 1, 1, 1)
    jittered = torch.where(first, hsv(contrast(x)), contrast(hsv(x)))
    return torch.where((u[:, 0] < 0.8).view(-1, 1, 1, 1), jittered, x)


def gray(x: Tensor, u: Tensor) -> Tensor:
    """Luma in all channels, with probability 0.2."""
    luma = 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]
    return torch.where((u[:, GRAY] < 0.2).view(-1, 1, 1, 1), luma[:, None], x)


def crop(x: Tensor, u: Tensor, scale: float, fixed: bool) -> Tensor:
    """Random resized crop by an affine warp; each image's box is drawn again until it fits."""
    height, width = x.shape[2:]
    attempts = (u.shape[1] - BOX - 2) // 2
    theta = torch.zeros(len(x), 2, 3)
    for row, numbers in enumerate(u[:, BOX:].tolist()):
        w, h = width, height
        for attempt in range(attempts):
            area = width * height * (scale if fixed else scale + (1 - scale) * numbers[attempt])
            aspect = math.exp(math.log(3 / 4) + math.log(16 / 9) * numbers[attempts + attempt])
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                break
        else:
            w, h = width, height
        ow = math.floor(numbers[-2] * (2 * (width - w) + 1)) - (width - w)
        oh = math.floor(numbers[-1] * (2 * (height - h) + 1)) - (height - h)
        theta[row] = torch.tensor([[w / width, 0, ow / width], [0, h / height, oh / height]])
    grid = F.affine_grid(theta.to(x.device), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def augment(x: Tensor, u: Tensor, *, scale: float = 0.08, fixed: bool = False) -> Tensor:
    """Jitter, gray and crop of images in [0, 1], (B, 3, H, W), by the draws (B, 42)."""
    return crop(gray(jitter(x, u), u), u, scale, fixed)


def two_views(x: Tensor, draws: Tensor) -> Tensor:
    """Two views of each image and each view's K rotations, (2 K B, 3, H, W); draws (2, K, B, 43), the flip's first."""
    views = []
    for view in draws:
        flipped = torch.where((view[0, :, 0] < 0.5).view(-1, 1, 1, 1), x.flip(3), x)
        views += [augment(torch.rot90(flipped, k, (2, 3)), u[:, 1:]) for k, u in enumerate(view)]
    return torch.cat(views)


def nt_xent(projection: Tensor, temperature: float) -> Tensor:
    """NT-Xent over (2N, D) as the formula reads: exponentials, without the diagonal."""
    z = F.normalize(projection, dim=1)
    n = len(z) // 2
    similarity = torch.exp(z @ z.T / temperature)
    similarity = similarity * (1 - torch.eye(2 * n, device=z.device))
    positive = torch.cat([torch.diag(similarity, n), torch.diag(similarity, -n)])
    return -torch.log(positive / similarity.sum(1)).mean()


def loss(encoder: nn.Module, x: Tensor, labels: Tensor, draws: Tensor, *, temperature: float = 0.5) -> Tensor:
    """SimCLR's loss where K is 1, CSI's where it is 4, and the probe's beside it."""
    shifts = draws.shape[1]
    output = encoder(two_views(x, draws))
    total = nt_xent(output.projection, temperature)
    if shifts > 1:
        targets = torch.cat([torch.full((len(x),), k, device=x.device) for k in range(shifts)] * 2)
        total = total + F.cross_entropy(output.shift_logits, targets)
    unshifted = output.class_logits.view(2, shifts, len(x), -1)[:, 0].flatten(0, 1)
    return total + F.cross_entropy(unshifted, labels.repeat(2))


def step(encoder: nn.Module, optimizers: tuple[Optimizer, ...], images: Tensor, labels: Tensor, draws: Tensor) -> float:
    """One training step on a batch, uint8 (B, 3, H, W), which comes from the host; returns the loss."""
    device = next(encoder.parameters()).device
    value = loss(encoder, images.to(device).float() / 255, labels.to(device), draws.to(device))
    for optimizer in optimizers:
        optimizer.zero_grad()
    value.backward()
    for optimizer in optimizers:
        optimizer.step()
    return value.item()


@torch.no_grad()
def features(
    encoder: nn.Module, images: Tensor, draws: Tensor, *, batch_size: int = 100, scale: float = 0.54
) -> Tensor:
    """Projections of every view and rotation, (N, K, V, D), all kept; draws (V, K, N, 43)."""
    encoder.eval()
    device, parts = next(encoder.parameters()).device, []
    for start in range(0, len(images), batch_size):
        x = images[start : start + batch_size].to(device).float() / 255
        copies = []
        for view in draws:
            for k, u in enumerate(view[:, start : start + batch_size].to(device)):
                flipped = torch.where((u[:, 0] < 0.5).view(-1, 1, 1, 1), x.flip(3), x)
                views = augment(torch.rot90(flipped, k, (2, 3)), u[:, 1:], scale=scale, fixed=True)
                copies.append(encoder(views).projection.cpu())
        width = copies[0].shape[1]
        parts.append(torch.stack(copies).view(len(draws), -1, len(x), width).permute(2, 1, 0, 3))
    return torch.cat(parts)
