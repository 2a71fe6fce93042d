"""Batched augmentations on the training device (SimCLR's and CSI's), each image with its own draw.

Every layer is a function of images and its latent values, so that a test can state both. ``Augmentation`` draws the
latent values by key (see counter_random) and applies the layers in the order flip, shift, jitter, gray, crop.
Images are float, (B, 3, H, W), in [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.counter_random import uniform
from utils import InputError

FLIP_PROBABILITY = 0.5
JITTER_PROBABILITY = 0.8
GRAY_PROBABILITY = 0.2
STRENGTH = 0.4  # contrast, saturation and value are multiplied by U(1 - STRENGTH, 1 + STRENGTH)
HUE = 0.1  # the hue moves by U(-HUE, HUE) * 255 / 360
HUE_UNIT = 255 / 360
GRAY_WEIGHTS = (0.299, 0.587, 0.114)
ASPECT = (3 / 4, 4 / 3)
# Where no attempt fits, the whole image is kept. The chance of that is below 1e-13 at scale 0.08 and 0 at exactly 0.54;
# near scale 1 it grows (3 % of images of 224 pixels at 0.9), where a crop is nearly the whole image anyway.
CROP_ATTEMPTS = 16

SHIFT_COUNTS = {"none": 1, "rotation": 4, "cutperm": 4}


def horizontal_flip(images: Tensor, mask: Tensor) -> Tensor:
    """Mirrors the images whose mask (B,) is set, exactly."""
    return torch.where(mask[:, None, None, None], images.flip(-1), images)


def check_shift(kind: str, image_size: tuple[int, int]) -> None:
    """Raises InputError for quarter turns of images (height, width) that are not square: they do not fit one batch."""
    height, width = image_size
    if kind == "rotation" and height != width:
        raise InputError(f"--shift_trans_type rotation needs square images, got {height}x{width}; cutperm does not")


def shift_images(images: Tensor, kind: str, number: int) -> Tensor:
    """Applies shift ``number`` (0 .. 3) of a kind to all images.

    ``rotation`` turns by 90 degrees ``number`` times; ``cutperm`` swaps top and bottom halves if ``number`` // 2, then
    left and right halves if ``number`` % 2; ``none`` has only number 0.
    """
    assert 0 <= number < SHIFT_COUNTS[kind]
    if kind == "rotation":
        return torch.rot90(images, number, (2, 3))
    if kind == "cutperm":
        height, width = images.shape[2:]
        return images.roll((height // 2 * (number // 2), width // 2 * (number % 2)), dims=(2, 3))
    return images


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """clamp((x - mean) * factor + mean, 0, 1) with each channel's own mean; factor is (B,)."""
    mean = images.mean(dim=(2, 3), keepdim=True)
    return ((images - mean) * factor[:, None, None, None] + mean).clamp(0, 1)


def rgb_to_hsv(images: Tensor) -> Tensor:
    """H, S, V in [0, 1] with the circular hue atan2(sqrt(3)(g - b), 2r - g - b) / 2 pi; non-finite entries are 0."""
    r, g, b = images.unbind(1)
    top, bottom = images.amax(1), images.amin(1)
    hue = torch.atan2(math.sqrt(3) * (g - b), 2 * r - g - b) / (2 * math.pi) % 1
    hsv = torch.stack([hue, (top - bottom) / top, top], dim=1)
    return torch.where(hsv.isfinite(), hsv, torch.zeros_like(hsv))


def hsv_to_rgb(hsv: Tensor) -> Tensor:
    """The hexagon formula: n = 5, 3, 1; k = (n + 6H) mod 6; V - V S clamp(min(k, 4 - k), 0, 1)."""
    hue, saturation, value = hsv.unbind(1)
    n = torch.arange(5, 0, -2, device=hsv.device, dtype=hsv.dtype)[:, None, None]  # a constant would be a copy
    k = (n + 6 * hue[:, None]) % 6
    return value[:, None] - (value * saturation)[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def adjust_hsv(images: Tensor, hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Moves the hue by ``hue`` * 255 / 360 and multiplies saturation and value; each latent is (B,)."""
    h, s, v = rgb_to_hsv(images).unbind(1)
    h = (h + hue[:, None, None] * HUE_UNIT) % 1
    hsv = torch.stack([h, s * saturation[:, None, None], v * value[:, None, None]], dim=1)
    return hsv_to_rgb(hsv.clamp(0, 1))


def color_jitter(
    images: Tensor,
    *,
    mask: Tensor,
    contrast_first: Tensor,
    contrast: Tensor,
    hue: Tensor,
    saturation: Tensor,
    value: Tensor,
) -> Tensor:
    """Contrast and HSV in each image's own order, where the mask is set; every latent is (B,)."""
    first = contrast_first[:, None, None, None]
    jittered = torch.where(first, adjust_contrast(images, contrast), images)
    jittered = adjust_hsv(jittered, hue, saturation, value)
    jittered = torch.where(first, jittered, adjust_contrast(jittered, contrast))
    return torch.where(mask[:, None, None, None], jittered, images)


def to_gray(images: Tensor, mask: Tensor) -> Tensor:
    """Replaces the channels by their luma (ITU-R BT.601) where the mask (B,) is set."""
    red, green, blue = (weight * images[:, channel] for channel, weight in enumerate(GRAY_WEIGHTS))
    gray = (red + green + blue)[:, None]
    return torch.where(mask[:, None, None, None], gray, images)


def crop_and_resize(images: Tensor, box: Tensor) -> Tensor:
    """Crops and resizes to the input size by one affine warp, bilinear, reflecting at the borders.

    Args:
        images: (B, 3, H, W).
        box: (B, 4): w / W, h / H, ow / W, oh / H with the crop's size and twice its centre's offset, in pixels.
    """
    zero = torch.zeros_like(box[:, 0])
    theta = torch.stack([box[:, 0], zero, box[:, 2], zero, box[:, 1], box[:, 3]], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def draw_boxes(numbers: Tensor, *, height: int, width: int, scale: float, fixed: bool) -> Tensor:
    """Turns uniform numbers into crop boxes (random resized crop).

    area = W H U(scale, 1) (or exactly ``scale`` if ``fixed``), aspect log-uniform in 3/4 .. 4/3, drawn again unless the
    box fits; offsets are integer-uniform in -(W - w) .. W - w and -(H - h) .. H - h.

    Args:
        numbers: Uniform in [0, 1), (B, 2 * CROP_ATTEMPTS + 2).

    Returns:
        (B, 4): w / W, h / H, ow / W, oh / H.
    """
    areas, aspects = numbers[:, :CROP_ATTEMPTS], numbers[:, CROP_ATTEMPTS : 2 * CROP_ATTEMPTS]
    low, high = (math.log(bound) for bound in ASPECT)
    area = width * height * (torch.full_like(areas, scale) if fixed else scale + (1 - scale) * areas)
    aspect = torch.exp(low + (high - low) * aspects)
    w, h = torch.sqrt(area * aspect).round(), torch.sqrt(area / aspect).round()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    chosen = fits.int().argmax(1, keepdim=True)  # the first that fits
    any_fits = fits.any(1)
    w = torch.where(any_fits, w.gather(1, chosen)[:, 0], width)
    h = torch.where(any_fits, h.gather(1, chosen)[:, 0], height)
    ow = torch.floor(numbers[:, -2] * (2 * (width - w) + 1)) - (width - w)
    oh = torch.floor(numbers[:, -1] * (2 * (height - h) + 1)) - (height - h)
    return torch.stack([w / width, h / height, ow / width, oh / height], dim=1)


@dataclass(frozen=True)
class Augmentation:
    """Draws and applies the augmentations of one view.

    Attributes:
        resize_factor: Smallest share of the area that a crop keeps.
        resize_fix: Whether every crop keeps exactly that share.
    """

    resize_factor: float = 0.08
    resize_fix: bool = False

    def flip(self, images: Tensor, keys: Tensor) -> Tensor:
        """Flips each image with probability 0.5; ``keys`` is int64 (B,)."""
        return horizontal_flip(images, uniform(keys, 1)[:, 0] < FLIP_PROBABILITY)

    def after_shift(self, images: Tensor, keys: Tensor) -> Tensor:
        """Jitter, gray and crop; ``keys`` is int64 (B,) and may be the flip's: no draw is shared."""
        height, width = images.shape[2:]
        # Number 0 is the flip's.
        u = uniform(keys, 1 + 7 + 2 * CROP_ATTEMPTS + 2)[:, 1:]
        images = color_jitter(
            images,
            mask=u[:, 0] < JITTER_PROBABILITY,
            contrast_first=u[:, 1] < 0.5,
            contrast=1 + STRENGTH * (2 * u[:, 2] - 1),
            hue=HUE * (2 * u[:, 3] - 1),
            saturation=1 + STRENGTH * (2 * u[:, 4] - 1),
            value=1 + STRENGTH * (2 * u[:, 5] - 1),
        )
        images = to_gray(images, u[:, 6] < GRAY_PROBABILITY)
        boxes = draw_boxes(u[:, 7:], height=height, width=width, scale=self.resize_factor, fixed=self.resize_fix)
        return crop_and_resize(images, boxes)
