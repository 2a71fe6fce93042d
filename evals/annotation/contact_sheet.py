"""contact_sheet.png: a query at a glance, grouped by suggested class."""

from __future__ import annotations

import functools
import itertools
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from common.files import atomic_write
from evals.annotation.label_csv import Asked

SIDES = (128, 96, 64, 32)  # pixels of a thumbnail: the largest with which the sheet stays below MAX_PIXELS
MAX_PIXELS = 40e6
WIDTH = 1280  # of the sheet, without its margin
MARGIN, HEADING, LINE = 8, 30, 15  # pixels
GROUND, INK, QUIET = "#ffffff", "#1c1d1f", "#5b5f66"
LEAST_FOR_TEXT = 96  # a smaller thumbnail has no room for its scores below it


def write_contact_sheet(
    path: Path, items: Sequence[Asked], picture: Callable[[str], Image.Image], *, title: str
) -> None:
    """Draws the thumbnails, each with its scores, in the order of the query.

    Args:
        path: The png file.
        items: The query; images with the same suggestion stand together.
        picture: By path, the thumbnail.
        title: Above it all.
    """
    groups = [(name, list(run)) for name, run in itertools.groupby(items, key=lambda item: item.suggestion)]
    counts = [len(group) for _, group in groups]
    side = next((side for side in SIDES if _height(counts, side) * (WIDTH + 2 * MARGIN) <= MAX_PIXELS), SIDES[-1])
    sheet = Image.new("RGB", (WIDTH + 2 * MARGIN, _height(counts, side)), GROUND)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (MARGIN, MARGIN), title, size=18, room=WIDTH)
    top = MARGIN + HEADING
    for name, group in groups:
        heading = "no suggestion" if name is None else f"suggested: {name}"
        _write(draw, (MARGIN, top), f"{heading} ({len(group)})", size=15, room=WIDTH)
        top += HEADING
        for place, item in enumerate(group):
            row, column = divmod(place, _columns(side))
            corner = MARGIN + column * (side + MARGIN), top + row * _row(side)
            _paste(sheet, picture(item.path), corner, side)
            if side >= LEAST_FOR_TEXT:
                _caption(draw, (corner[0], corner[1] + side), item, room=side)
        top += _rows(len(group), side) * _row(side)
    with atomic_write(path) as file:
        sheet.save(file, format="PNG")


def _columns(side: int) -> int:
    return (WIDTH + MARGIN) // (side + MARGIN)


def _rows(count: int, side: int) -> int:
    return -(-count // _columns(side))


def _row(side: int) -> int:
    return side + MARGIN + (2 * LINE if side >= LEAST_FOR_TEXT else 0)


def _height(counts: Sequence[int], side: int) -> int:
    return 2 * MARGIN + HEADING + sum(HEADING + _rows(count, side) * _row(side) for count in counts)


def _paste(sheet: Image.Image, image: Image.Image, corner: tuple[int, int], side: int) -> None:
    """The image within a square, as large as fits; small ones keep their pixels."""
    scale = side / max(image.size)
    size = tuple(max(1, round(length * scale)) for length in image.size)
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    left, top = ((side - length) // 2 for length in size)
    sheet.paste(image.convert("RGB").resize(size, how), (corner[0] + left, corner[1] + top))


def _caption(draw: ImageDraw.ImageDraw, corner: tuple[int, int], item: Asked, *, room: int) -> None:
    scores = [("", item.joint), (" S ", item.semantic), (" D ", item.distinctive)]
    text = [f"{name}{value:.2f}" for name, value in scores if value is not None]
    _write(draw, (corner[0], corner[1] + 1), item.path.rsplit("/", 1)[-1], size=11, room=room)
    _write(draw, (corner[0], corner[1] + LINE), "".join(text), size=10, room=room, fill=QUIET)


def _write(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, *, size: int, room: int, fill: str = INK
) -> None:
    """One line of text, cut where it would leave its room; line ends and other controls are dots."""
    font = _font(size)
    text = "".join("·" if unicodedata.category(letter) in ("Cc", "Cf", "Cs") else letter for letter in text)[:300]
    if draw.textlength(text, font=font) > room:
        while text and draw.textlength(text + "…", font=font) > room:
            text = text[:-1]
        text += "…"
    draw.text(corner, text, font=font, fill=fill)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # The font that comes with matplotlib: the same on every machine, with Latin, Greek, Cyrillic and more.
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)
