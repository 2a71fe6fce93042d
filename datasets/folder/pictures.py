"""One image file to pixels: what is read, how it is turned into RGB and brought to size, and why a file is left out."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
CHANGED = "changed while it was read"
MIN_SIDE = 8  # pixels; below that there is nothing to crop from
MAX_BYTES = 256 * 2**20
# Files or images above these are read one at a time, so that many threads need no more memory than one.
LARGE_BYTES, LARGE_PIXELS = 16 * 2**20, 16 * 2**20
_LARGE = threading.RLock()


class Unusable(Exception):
    """A file is left out.

    Attributes:
        problem: Of what kind, in a word or two, by which files are counted.
        detail: What exactly.
        digest: SHA-256 of the file where it could be read, else None.
    """

    def __init__(self, problem: str, detail: str = "", digest: str | None = None) -> None:
        super().__init__(problem, detail)
        self.problem = problem
        self.detail = detail
        self.digest = digest


@dataclass(frozen=True)
class Picture:
    """A file that was read.

    Attributes:
        pixels: uint8, (size, size, 3).
        digest: SHA-256 of the file.
        size: Of the file in bytes.
        mtime_ns, ctime_ns: When it was last changed, see folder_walk.Found.
        note: What was done to it that one would not expect, or nothing.
    """

    pixels: np.ndarray
    digest: str
    size: int
    mtime_ns: int
    ctime_ns: int
    note: str


def read_picture(path: str | bytes, size: int) -> Picture:
    """Reads and decodes a jpeg, png, webp or bmp file (by its content, not its name).

    Raises:
        Unusable: The file cannot be read, changed meanwhile, or holds no usable image.
    """
    content, status = _read(path)
    with content:
        raw = content.getbuffer()
        digest = hashlib.sha256(raw).hexdigest()
        del raw
        try:
            pixels, note = decode(content, size)
        except Unusable as error:
            raise Unusable(error.problem, error.detail, digest) from None
    return Picture(pixels, digest, status.st_size, status.st_mtime_ns, status.st_ctime_ns, note)


def _read(path: str | bytes) -> tuple[io.BytesIO, os.stat_result]:
    """The file's content, and its status, which is the same before and after the reading."""
    try:
        # Without O_NONBLOCK a named pipe would wait for a writer.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(handle, "rb") as file:
            before = os.fstat(handle)
            if not stat.S_ISREG(before.st_mode):
                raise Unusable("no regular file")
            if not before.st_size:
                raise Unusable("empty file", "0 bytes")
            if before.st_size > MAX_BYTES:
                raise Unusable("too large", f"{before.st_size} bytes, at most {MAX_BYTES} are read")
            with _one_at_a_time(before.st_size > LARGE_BYTES):
                content = io.BytesIO(file.read(before.st_size + 1))
            after = os.fstat(handle)
    except OSError as error:
        raise Unusable("unreadable", error.strerror or str(error)) from None
    same = [(now.st_size, now.st_mtime_ns, now.st_ctime_ns) for now in (before, after)]
    if same[0] != same[1] or content.getbuffer().nbytes != before.st_size:
        raise Unusable(CHANGED)
    return content, after


def decode(content: io.BytesIO, size: int) -> tuple[np.ndarray, str]:
    """An image file's content as uint8 (size, size, 3), and a note.

    The shorter side is resized to ``size`` and the centre cropped. Of an animation the first frame is used;
    transparent parts show white; 16 bits per channel are scaled to 8; the orientation that a camera noted is applied.

    Raises:
        Unusable: It is no image of the four formats, damaged, too small, or too large.
    """
    try:
        image = Image.open(content, formats=FORMATS)
    except Image.UnidentifiedImageError:
        raise Unusable("no image", "not jpeg, png, webp or bmp") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels() from None
    except Exception as error:  # damaged headers raise nearly anything
        raise _damaged(error) from None
    with image:
        width, height = image.size
        if min(width, height) < MIN_SIDE:
            raise Unusable("too small", f"{width}x{height} pixels, at least {MIN_SIDE}x{MIN_SIDE} are needed")
        if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
            raise _too_many_pixels()
        with _one_at_a_time(width * height > LARGE_PIXELS):
            try:
                return _convert(image, size)
            except Exception as error:
                raise _damaged(error) from None


def read_thumbnail(path: str | os.PathLike, side: int, *, digest: str) -> Image.Image | None:
    """The whole image of a file, uncropped, brought to at most ``side`` pixels.

    None if it cannot be read any more, or its SHA-256 is another by now: then it may show something else.
    """
    try:
        content, _ = _read(os.fspath(path))
        if hashlib.sha256(content.getbuffer()).hexdigest() != digest:
            return None
        with strict_and_quiet(), content, Image.open(content, formats=FORMATS) as image:
            if image.format == "JPEG":
                image.draft(image.mode, (2 * side, 2 * side))
            image.load()
            thumbnail = to_rgb(_upright(image))[0]
            thumbnail.thumbnail((side, side))
            return thumbnail
    except Exception:  # whatever is wrong with the file, the pixels that were read before do as well
        return None


def _too_many_pixels() -> Unusable:
    return Unusable("too large", f"more than {Image.MAX_IMAGE_PIXELS} pixels")


def _damaged(error: Exception) -> Unusable:
    return Unusable("unreadable", f"damaged ({' '.join(str(error).split())[:200] or type(error).__name__})")


def _one_at_a_time(large: bool) -> contextlib.AbstractContextManager:
    return _LARGE if large else contextlib.nullcontext()


def _convert(image: Image.Image, size: int) -> tuple[np.ndarray, str]:
    notes = []
    if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
        notes.append("animated, its first frame is used")
    if image.format == "JPEG":
        image.draft(image.mode, (2 * size, 2 * size))  # decodes at half, a quarter or an eighth, never below that
    image.load()
    image = _upright(image)
    rgb, transparent = to_rgb(image)
    if transparent:
        notes.append("transparent, shown on white")
    return to_square(rgb, size), "; ".join(notes)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # the image is there, only what the camera noted beside it is damaged
        return image


def to_rgb(image: Image.Image) -> tuple[Image.Image, bool]:
    """The image in RGB, 8 bits per channel, and whether some of it is transparent, which then shows white."""
    if image.mode.startswith("I"):  # 16-bit grayscale; Pillow reads 16-bit colour at 8 bits already
        return _from_16_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getextrema()[3][0] < 255:
            return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"), True
    return image.convert("RGB"), False


def _from_16_bits(image: Image.Image) -> tuple[Image.Image, bool]:
    values = np.asarray(image).astype(np.int32).clip(0, 65535)
    gray = ((values + 128) // 257).astype(np.uint8)  # 65535 = 255 * 257
    clear = values == image.info.get("transparency", -1)
    gray[clear] = 255
    return Image.fromarray(gray).convert("RGB"), bool(clear.any())


def to_square(image: Image.Image, size: int) -> np.ndarray:
    """Resizes the shorter side to ``size`` and crops the centre, uint8 (size, size, 3)."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    if side == size:
        return np.asarray(image.crop((left, top, left + side, top + side)))
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


@contextlib.contextmanager
def strict_and_quiet() -> Iterator[None]:
    """Within the block Pillow's warning of huge images is an error, and it says nothing of odd metadata."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield
