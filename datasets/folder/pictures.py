"""One image file to pixels: what is read, how it becomes RGB of the wanted size, and why a file is left out."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
import threading
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from datasets.base import NEARLY_BLACK

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MIN_SIDE = 8  # pixels; below that there is nothing to crop from
MAX_BYTES = 256 * 2**20
LARGE_PIXELS = 16 * 2**20  # images above are decoded one at a time, so that many threads need no more memory than one
_LARGE = threading.Lock()


class Unusable(Exception):
    """A file is left out; the message says why: a kind by which files are counted, then perhaps details."""


class Picture(NamedTuple):
    """A file that was read."""

    pixels: np.ndarray  # uint8, (size, size, 3)
    sha256: str  # of the file's content
    note: str  # what was done to the image that one would not expect, or nothing


def read_picture(path: str | os.PathLike, size: int) -> Picture:
    """Reads and decodes a jpeg, png, webp or bmp file (by its content, not its name).

    The shorter side is resized to ``size`` and the centre cropped. Of an animation the first frame is used;
    transparent parts show white, unless all is transparent; 16 bits per channel are scaled to 8; the orientation that a
    camera noted is applied.

    Raises:
        Unusable: The file cannot be read, changes meanwhile, or holds no image, or one that is damaged, too small or
            too large.
    """
    content = _read(path)
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if min(width, height) < MIN_SIDE:
                raise Unusable(f"too small: {width}x{height} pixels, at least {MIN_SIDE}x{MIN_SIDE} are needed")
            if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError
            animated = image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False)
            with _LARGE if width * height > LARGE_PIXELS else contextlib.nullcontext():
                rgb, notes = _to_rgb(image, size)
            side = min(rgb.size)
            left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
            box = (left, top, left + side, top + side)
            pixels = np.asarray(rgb.resize((size, size), Image.Resampling.BILINEAR, box=box))
    except Unusable:
        raise
    except Image.UnidentifiedImageError:
        raise Unusable("no image: not jpeg, png, webp or bmp") from None
    except Image.DecompressionBombError:
        raise Unusable(f"too large: more than {Image.MAX_IMAGE_PIXELS} pixels") from None
    except Exception as error:  # damaged files raise nearly anything
        raise Unusable(f"damaged: {' '.join(str(error).split())[:200] or type(error).__name__}") from None
    notes = ["animated, its first frame is used"] * animated + notes
    return Picture(pixels, hashlib.sha256(content).hexdigest(), "; ".join(notes))


def read_thumbnail(path: str | os.PathLike, side: int, *, digest: str) -> Image.Image | None:
    """The whole image of a file, uncropped, with at most ``side`` pixels a side.

    None if it cannot be read any more, or its SHA-256 is another by now: then it may show something else.
    """
    try:
        content = _read(path)
        if hashlib.sha256(content).hexdigest() != digest:
            return None
        with warnings.catch_warnings(), Image.open(io.BytesIO(content), formats=FORMATS) as image:
            warnings.simplefilter("ignore")
            thumbnail, _ = _to_rgb(image, side)
            thumbnail.thumbnail((side, side))
            return thumbnail
    except Exception:  # whatever is wrong with the file, the pixels that were read before serve as well
        return None


def _read(path: str | os.PathLike) -> bytes:
    try:
        # Without O_NONBLOCK a named pipe would wait for a writer.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode):
                raise Unusable("not a regular file")
            if not before.st_size:
                raise Unusable("empty file")
            if before.st_size > MAX_BYTES:
                raise Unusable(f"too large: {before.st_size} bytes, at most {MAX_BYTES} are read")
            content = file.read(before.st_size + 1)
            after = os.fstat(file.fileno())
    except OSError as error:
        raise Unusable(f"unreadable: {error.strerror or error}") from None
    if (len(content), before.st_mtime_ns) != (before.st_size, after.st_mtime_ns):
        raise Unusable("changed while it was read")
    return content


def _to_rgb(image: Image.Image, size: int) -> tuple[Image.Image, list[str]]:
    """Decodes an image, upright, 8 bits per channel; also what was done to it, or is odd, that one would not expect.

    A JPEG may come at half, a quarter or an eighth of its size, with twice ``size`` pixels a side or more.
    """
    if image.format == "JPEG":
        image.draft(image.mode, (2 * size, 2 * size))
    image.load()
    with contextlib.suppress(Exception):  # damaged metadata do not spoil the image
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grayscale; Pillow reads 16-bit colour at 8 bits already
        values = np.asarray(image).astype(np.int32).clip(0, 65535)
        gray = ((values + 128) // 257).astype(np.uint8)  # 65535 = 255 * 257
        clear, notes = values == image.info.get("transparency", -1), _if_dark(int(values.max()), 65535)
        if clear.any() and not clear.all():
            gray[clear], notes = 255, ["transparent, shown on white"]
        return Image.fromarray(gray).convert("RGB"), notes
    notes = []
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        least, most = image.getextrema()[3]
        if not most:  # programs that know no alpha leave it at 0
            notes = ["transparent everywhere, which is ignored"]
        elif least < 255:
            white = Image.new("RGBA", image.size, "white")
            return Image.alpha_composite(white, image).convert("RGB"), ["transparent, shown on white"]
    image = image.convert("RGB")
    return image, notes + _if_dark(max(most for _, most in image.getextrema()), 255)


def _if_dark(largest: int, white: int) -> list[str]:
    """A note for an image whose values do not use their range, such as 12 bits in a file of 16."""
    return [f"nearly black: largest value {largest} of {white}"] if largest * 255 < NEARLY_BLACK * white else []
