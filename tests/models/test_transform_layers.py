"""models/transform_layers.py: the original's layers value for value, hand-worked numbers, and the draws."""

import math

import numpy as np
import pytest
import torch

from models.counter_random import make_keys, uniform
from models.transform_layers import (
    CROP_ATTEMPTS,
    Augmentation,
    check_shift,
    color_jitter,
    crop_and_resize,
    draw_boxes,
    horizontal_flip,
    hsv_to_rgb,
    rgb_to_hsv,
    shift_images,
    to_gray,
)
from utils import InputError


@pytest.fixture(scope="module")
def golden(shared):
    with np.load(shared / "golden" / "augmentations.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def assert_close(actual, expected, tolerance=1e-6):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance


def image(rows):
    """One image (1, 3, H, W) of three equal channels."""
    return torch.tensor(rows, dtype=torch.float32).expand(1, 3, -1, -1)


def pixel(*rgb):
    return torch.tensor(rgb, dtype=torch.float32).view(1, 3, 1, 1)


def latents(n=1, *, mask=True, contrast_first=True, contrast=1.0, hue=0.0, saturation=1.0, value=1.0):
    flags = {"mask": mask, "contrast_first": contrast_first}
    numbers = {"contrast": contrast, "hue": hue, "saturation": saturation, "value": value}
    return {key: torch.full((n,), item) for key, item in {**flags, **numbers}.items()}


# The original's layers


def test_flip_equals_the_originals(golden):
    assert torch.equal(horizontal_flip(golden["x"], golden["hflip_sign"] < 0), golden["hflip_out"])


def test_crop_equals_the_originals(golden):
    box = golden["crop_explicit_whbias"].float()
    assert_close(crop_and_resize(golden["x"][:4], box), golden["crop_explicit_out"])


@pytest.mark.parametrize("name", ["jitter_seed0", "jitter_seed1"])  # contrast first, and HSV first
def test_jitter_equals_the_originals(golden, name):
    jittered = color_jitter(
        golden["x"],
        mask=golden[f"{name}_mask"].flatten() > 0,
        contrast_first=golden[f"{name}_contrast_first"].expand(8),
        contrast=golden[f"{name}_contrast_factor"].flatten(),
        hue=golden[f"{name}_f_h"].flatten(),
        saturation=golden[f"{name}_f_s"].flatten(),
        value=golden[f"{name}_f_v"].flatten(),
    )
    assert_close(jittered, golden[f"{name}_out"], 2e-6)


def test_gray_equals_the_originals(golden):
    assert_close(to_gray(golden["x"], golden["gray_mask"] > 0), golden["gray_out"])


@pytest.mark.parametrize(("kind", "name"), [("rotation", "rot"), ("cutperm", "cutperm")])
@pytest.mark.parametrize("number", range(4))
def test_shifts_equal_the_originals(golden, kind, name, number):
    assert torch.equal(shift_images(golden["x"], kind, number), golden[f"{name}{number}"])


def test_hsv_equals_the_originals_both_ways(golden):
    assert_close(rgb_to_hsv(golden["x"]), golden["rgb2hsv"])
    assert_close(hsv_to_rgb(golden["rgb2hsv"]), golden["hsv2rgb_of_rgb2hsv"])


@pytest.mark.parametrize(("name", "scale", "fixed"), [("train", 0.08, False), ("query", 0.54, True)])
def test_the_originals_boxes_are_among_ours(golden, name, scale, fixed):
    theirs = {tuple(box) for box in (golden[f"crop_{name}_whbias_seed1"][:, :2] * 32).round().int().tolist()}
    ours = draw_boxes(draws(200_000), height=32, width=32, scale=scale, fixed=fixed)[:, :2]
    assert theirs <= {tuple(box) for box in (ours * 32).round().int().tolist()}


# Hand-worked numbers


def test_flip_mirrors_left_and_right_where_the_mask_is_set():
    images = torch.cat([image([[1, 2]]), image([[1, 2]])])
    flipped = horizontal_flip(images, torch.tensor([True, False]))
    assert flipped[:, 0].tolist() == [[[2, 1]], [[1, 2]]]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("rotation", [[[1, 2], [3, 4]], [[2, 4], [1, 3]], [[4, 3], [2, 1]], [[3, 1], [4, 2]]]),  # counter-clockwise
        (
            "cutperm",
            [[[1, 2], [3, 4]], [[2, 1], [4, 3]], [[3, 4], [1, 2]], [[4, 3], [2, 1]]],
        ),  # halves: sides, levels
        ("none", [[[1, 2], [3, 4]]]),
    ],
)
def test_shifts_of_a_square(kind, expected):
    square = image([[1, 2], [3, 4]])
    assert [shift_images(square, kind, number)[0, 1].tolist() for number in range(len(expected))] == expected


@pytest.mark.parametrize(
    ("rgb", "hsv"),
    [
        ((1, 0, 0), (0, 1, 1)),
        ((0, 1, 0), (1 / 3, 1, 1)),
        ((0, 0, 1), (2 / 3, 1, 1)),
        ((1, 1, 0), (1 / 6, 1, 1)),
        ((0.5, 0.25, 0.25), (0, 0.5, 0.5)),
        ((0.4, 0.4, 0.4), (0, 0, 0.4)),
        ((0, 0, 0), (0, 0, 0)),  # saturation 0 / 0 counts as 0
    ],
)
def test_hsv_of_known_colours_and_back(rgb, hsv):
    assert_close(rgb_to_hsv(pixel(*rgb)), pixel(*hsv))
    assert_close(hsv_to_rgb(pixel(*hsv)), pixel(*rgb))


def test_the_round_trip_is_as_inexact_as_documented():
    colours = torch.rand(1, 3, 400, 400, generator=torch.Generator().manual_seed(0))
    worst = (hsv_to_rgb(rgb_to_hsv(colours)) - colours).abs().max().item()
    assert 0.018 < worst < 0.019


def test_jitter_applies_both_steps_in_each_images_own_order():
    images = image([[0.2, 0.8]]).repeat(3, 1, 1, 1)
    arguments = latents(3, contrast=2.0, value=0.5)
    arguments["contrast_first"] = torch.tensor([True, False, True])
    arguments["mask"] = torch.tensor([True, True, False])
    jittered = color_jitter(images, **arguments)
    assert_close(jittered[0], image([[0.0, 0.5]])[0])  # contrast: -0.1, 1.1, cut to 0, 1; then halved
    assert_close(jittered[1], image([[0.0, 0.55]])[0])  # halved: 0.1, 0.4; then contrast: -0.05, 0.55
    assert torch.equal(jittered[2], images[2])


@pytest.mark.parametrize(
    ("rgb", "luma"), [((1, 0, 0), 0.299), ((0, 1, 0), 0.587), ((0, 0, 1), 0.114), ((0.5, 0.2, 0.4), 0.3125)]
)
def test_gray_is_the_luma(rgb, luma):
    both = to_gray(pixel(*rgb).repeat(2, 1, 1, 1), torch.tensor([True, False]))
    assert_close(both[0], pixel(luma, luma, luma)[0])
    assert torch.equal(both[1], pixel(*rgb)[0])


def slow_crop(picture, box):
    """Bilinear sampling, one output pixel at a time; (3, H, W)."""
    _, height, width = picture.shape

    def source(number, size, share, offset):
        at = ((2 * number + 1) / size - 1) * share + offset
        at = ((at + 1) * size - 1) / 2
        if at < -0.5:  # reflection about the borders
            at = -1 - at
        if at > size - 0.5:
            at = 2 * size - 1 - at
        at = min(max(at, 0), size - 1)
        low = min(int(at), size - 2)
        return low, at - low

    out = torch.zeros_like(picture)
    w, h, ow, oh = box
    for i in range(height):
        for j in range(width):
            top, down = source(i, height, h, oh)
            left, right = source(j, width, w, ow)
            out[:, i, j] = (
                (1 - down) * (1 - right) * picture[:, top, left]
                + (1 - down) * right * picture[:, top, left + 1]
                + down * (1 - right) * picture[:, top + 1, left]
                + down * right * picture[:, top + 1, left + 1]
            )
    return out


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((8, 8), (1.0, 1.0, 0.0, 0.0)),  # the image itself
        ((8, 8), (0.5, 0.5, 0.5, -0.5)),
        ((8, 8), (0.25, 0.75, -0.5, 0.125)),
        ((8, 8), (0.125, 1.0, -0.875, 0.0)),
        ((8, 8), (0.75, 0.75, 1.0, -1.0)),  # beyond the image: reflected
        ((4, 6), (0.5, 0.75, 1 / 3, -0.25)),
        ((4, 6), (1 / 6, 0.5, -0.5, 0.5)),
    ],
)
def test_crop_equals_a_slow_loop(size, box):
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[1.0, 1.0, 0.0, 0.0], box])  # each image has its own
    assert_close(crop_and_resize(images, boxes), torch.stack([images[0], slow_crop(images[1], box)]))


# Boxes


def draws(n, seed=0):
    return uniform(make_keys(seed, torch.arange(n)), 2 * CROP_ATTEMPTS + 2)


def numbers(attempts, u_w=0.5, u_h=0.5):
    """Uniform numbers of one box from (area, aspect) pairs; the last pair fills up the attempts."""
    attempts = attempts + attempts[-1:] * (CROP_ATTEMPTS - len(attempts))
    areas, aspects = zip(*attempts)
    return torch.tensor([[*areas, *aspects, u_w, u_h]])


def in_pixels(boxes, height=32, width=32):
    return boxes * torch.tensor([width, height, width, height])


@pytest.mark.parametrize(
    ("drawn", "expected"),
    [
        # area (0.08 + 0.92 / 2) 1024 = 552.96, aspect 1: 23.5 pixels each way
        (numbers([(0.5, 0.5)]), (24, 24, 0, 0)),
        # aspect 3/4: sqrt(414.72) by sqrt(737.28)
        (numbers([(0.5, 0.0)], u_w=0.0, u_h=0.0), (20, 27, -12, -5)),
        (numbers([(0.5, 0.0)], u_w=0.9999, u_h=0.9999), (20, 27, 12, 5)),
        # area 81.92, aspect 3/4: sqrt(61.44) by sqrt(109.23); 49 offsets, of which 0.26 takes the 13th
        (numbers([(0.0, 0.0)], u_w=0.26), (8, 10, -36 + 12 + 12, 0)),
        # nearly everything at aspect 3/4 is 37 pixels high and does not fit: the second attempt counts
        (numbers([(0.999, 0.0), (0.5, 0.5)]), (24, 24, 0, 0)),
        # no attempt fits: the whole image
        (numbers([(0.999, 0.0)], u_w=0.9, u_h=0.1), (32, 32, 0, 0)),
    ],
)
def test_boxes_by_hand(drawn, expected):
    box = in_pixels(draw_boxes(drawn, height=32, width=32, scale=0.08, fixed=False))
    assert box[0].tolist() == list(expected)


@pytest.mark.parametrize(
    ("height", "width", "scale", "fixed"), [(32, 32, 0.08, False), (16, 32, 0.54, True), (8, 8, 0.9, False)]
)
def test_every_box_is_of_whole_pixels_and_fits(height, width, scale, fixed):
    boxes = in_pixels(draw_boxes(draws(5000), height=height, width=width, scale=scale, fixed=fixed), height, width)
    assert_close(boxes, boxes.round(), 1e-4)
    w, h, ow, oh = boxes.round().unbind(1)
    assert ((w >= 1) & (w <= width) & (h >= 1) & (h <= height)).all()
    assert ((ow.abs() <= width - w) & (oh.abs() <= height - h)).all()
    assert 0 in ow - (width - w) and 0 in ow + (width - w)  # both ends are reached
    assert 0 in oh - (height - h) and 0 in oh + (height - h)


# Draws of the whole augmentation


@pytest.fixture(scope="module")
def colours():
    return torch.rand(8000, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def rate(mask):
    return mask.double().mean().item()


def test_flip_jitter_and_gray_rates(colours):
    keys = make_keys(0, 1, 1, torch.arange(len(colours)))
    augmentation = Augmentation(resize_factor=1.0, resize_fix=True)  # only the whole image has its full area
    flipped = (augmentation.flip(colours, keys) != colours).flatten(1).any(1)
    out = augmentation.after_shift(colours, keys)
    gray = (out - out.mean(1, keepdim=True)).abs().flatten(1).amax(1) < 1e-5
    every = torch.ones(len(colours), dtype=torch.bool)
    plain = torch.where(gray[:, None, None, None], to_gray(colours, every), colours)
    jittered = (out - plain).abs().flatten(1).amax(1) > 1e-4
    # Four deviations of the sampling error; the original's long-run rates are 79.9 and 20.3 %.
    assert rate(flipped) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(8000))
    assert rate(jittered) == pytest.approx(0.8, abs=4 * 0.4 / math.sqrt(8000))
    assert rate(gray) == pytest.approx(0.2, abs=4 * 0.4 / math.sqrt(8000))
    # Independent of each other, although one key gives all three.
    assert rate(jittered[flipped]) == pytest.approx(0.8, abs=4 * 0.4 / math.sqrt(4000))
    assert rate(gray[flipped]) == pytest.approx(0.2, abs=4 * 0.4 / math.sqrt(4000))
    assert rate(gray[~jittered]) == pytest.approx(0.2, abs=4 * 0.4 / math.sqrt(1600))


def test_jitter_latents_have_the_methods_ranges(colours, monkeypatch):
    seen = {}

    def record(images, **arguments):
        seen.update(arguments)
        return images

    monkeypatch.setattr("models.transform_layers.color_jitter", record)
    Augmentation().after_shift(colours, make_keys(0, torch.arange(len(colours))))
    for name, low, high in [
        ("contrast", 0.6, 1.4), ("saturation", 0.6, 1.4), ("value", 0.6, 1.4), ("hue", -0.1, 0.1),
    ]:  # fmt: skip
        values, span = seen[name], high - low
        assert low <= values.min() < low + 0.01 * span and high - 0.01 * span < values.max() <= high
        assert values.mean().item() == pytest.approx((low + high) / 2, abs=4 * span / math.sqrt(12 * 8000))
    assert rate(seen["contrast_first"]) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(8000))


def test_the_layers_come_in_the_methods_order(monkeypatch):
    order = []
    for name in ("color_jitter", "to_gray", "crop_and_resize"):
        monkeypatch.setattr(
            f"models.transform_layers.{name}", lambda images, *_, name=name, **__: order.append(name) or images
        )
    Augmentation().after_shift(torch.rand(2, 3, 4, 4), make_keys(0, torch.arange(2)))
    assert order == ["color_jitter", "to_gray", "crop_and_resize"]


@pytest.mark.parametrize(
    ("augmentation", "low", "high"),
    [(Augmentation(0.54, True), 0.5, 0.58), (Augmentation(0.54, False), 0.54, 1), (Augmentation(), 0.08, 1)],
)
def test_the_crop_follows_the_settings(augmentation, low, high, monkeypatch):
    boxes = []
    monkeypatch.setattr("models.transform_layers.crop_and_resize", lambda images, box: boxes.append(box) or images)
    augmentation.after_shift(torch.rand(2000, 3, 32, 32), make_keys(0, torch.arange(2000)))
    areas = boxes[0][:, 0] * boxes[0][:, 1]
    slack = 0.04  # sides are whole pixels
    assert low - slack <= areas.min() <= low + slack and high - slack <= areas.max() <= high + slack


@pytest.mark.parametrize(
    ("kind", "size", "fits"), [("rotation", (4, 6), False), ("rotation", (4, 4), True), ("cutperm", (4, 6), True)]
)
def test_quarter_turns_need_square_images(kind, size, fits):
    if fits:
        check_shift(kind, size)
        shapes = {shift_images(torch.zeros(1, 3, *size), kind, number).shape for number in range(4)}
        assert len(shapes) == 1
    else:
        with pytest.raises(InputError, match="needs square images, got 4x6"):
            check_shift(kind, size)
