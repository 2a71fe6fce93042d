"""Image files of every kind: what their pixels become, and why some are left out."""

import hashlib
import io
import os
import struct
import threading
import warnings
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from datasets.folder import pictures
from datasets.folder.pictures import Unusable, read_picture, read_thumbnail

WHITE = "transparent, shown on white"
FIRST = "animated, its first frame is used"
IGNORED = "transparent everywhere, which is ignored"


def drawn(width, height):
    return np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def stored(image, kind="PNG", **options):
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def plain(mode, colour, kind="PNG", **options):
    return stored(Image.new(mode, (16, 16), colour), kind, **options)


def gray_16_bits(value, **options):
    return stored(Image.fromarray(np.full((16, 16), value, dtype=np.uint16)), **options)


def palette(**options):
    image = Image.new("P", (16, 16), 7)
    image.putpalette([3 * number % 256 for number in range(768)])
    return stored(image, **options)


def animation(kind):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    return stored(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)


def png(width, height, colour_type, *channels):
    """A PNG of one colour with 16 bits per channel, which Pillow does not write."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    body = zlib.compress(min(height, 16) * (b"\0" + min(width, 16) * struct.pack(f">{len(channels)}H", *channels)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def bmp(red, green, blue, alpha):
    """A BMP of one colour with an alpha channel, which Pillow does not write."""
    head = struct.pack("<IiiHHIIiiII", 108, 16, 16, 1, 32, 3, 0, 0, 0, 0, 0)
    head += struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)
    body = bytes([blue, green, red, alpha]) * 256
    return b"BM" + struct.pack("<IHHI", 122 + len(body), 0, 0, 122) + head + body


@pytest.fixture
def read(tmp_path):
    """Pixels and note of a file's bytes, at size 16."""

    def read(content):
        (tmp_path / "a.txt").write_bytes(content)  # the content counts, not the name
        found = read_picture(tmp_path / "a.txt", 16)
        assert found.sha256 == hashlib.sha256(content).hexdigest() and found.pixels.shape == (16, 16, 3)
        return found.pixels.astype(int), found.note

    return read


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
@pytest.mark.parametrize(("width", "height", "left", "top"), [(21, 16, 2, 0), (16, 19, 0, 1), (16, 16, 0, 0)])
def test_the_centre_is_cropped_exactly(read, kind, width, height, left, top):
    values = drawn(width, height)
    found, note = read(stored(Image.fromarray(values), kind, lossless=True))
    assert (found == values[top : top + 16, left : left + 16]).all() and note == ""


@pytest.mark.parametrize(("width", "height"), [(32, 64), (96, 48), (8, 12), (8, 8), (64, 64)])
def test_the_shorter_side_is_resized_and_the_centre_cropped(read, width, height):
    scale = 16 / min(width, height)
    whole = (round(width * scale), round(height * scale))
    resized = np.asarray(Image.fromarray(drawn(width, height)).resize(whole, Image.Resampling.BILINEAR))
    left, top = (whole[0] - 16) // 2, (whole[1] - 16) // 2
    found, _ = read(stored(Image.fromarray(drawn(width, height))))
    assert abs(found - resized[top : top + 16, left : left + 16]).max() <= 1  # Pillow rounds between its two passes


def test_a_large_jpeg_is_decoded_at_a_part_of_its_size_without_harm(read):
    """Decoding at an eighth averages as resizing does: a smooth image hardly changes."""
    smooth = Image.fromarray(drawn(4, 4)).resize((1024, 1024), Image.Resampling.BICUBIC)
    whole = np.asarray(smooth.resize((16, 16), Image.Resampling.BILINEAR))
    assert abs(read(stored(smooth, "JPEG", quality=95))[0] - whole).max() <= 6


@pytest.mark.parametrize(
    ("content", "colour", "note"),
    [
        (plain("L", 90), (90, 90, 90), ""),
        (plain("1", 1), (255, 255, 255), ""),
        (plain("CMYK", (0, 255, 255, 0), "JPEG", quality=100), (254, 0, 0), ""),
        (gray_16_bits(20000), (78, 78, 78), ""),  # 20000 / 257
        (gray_16_bits(1000, transparency=1000), (4, 4, 4), "nearly black: largest value 1000 of 65535"),
        (gray_16_bits(20000, transparency=1000), (78, 78, 78), ""),
        (png(16, 16, 2, 20000, 40000, 60000), (78, 156, 234), ""),
        (png(16, 16, 6, 20000, 40000, 60000, 0), (78, 156, 234), IGNORED),
        (plain("RGBA", (200, 0, 100, 128)), (227, 127, 177), WHITE),  # (200 * 128 + 255 * 127) / 255
        (plain("RGBA", (200, 0, 100, 255)), (200, 0, 100), ""),
        (plain("RGBA", (90, 0, 100, 1)), (254, 254, 254), WHITE),  # a little of it is there
        (plain("LA", (90, 0)), (90, 90, 90), IGNORED),
        (plain("RGBA", (90, 0, 100, 0), "WEBP", lossless=True, exact=True), (90, 0, 100), IGNORED),
        (bmp(90, 40, 100, 0), (90, 40, 100), IGNORED),
        (plain("L", 32), (32, 32, 32), ""),
        (plain("RGB", (1, 0, 31)), (1, 0, 31), "nearly black: largest value 31 of 255"),
        (palette(), (63, 66, 69), ""),
        (palette(transparency=7), (63, 66, 69), IGNORED),
        (palette(transparency=8), (63, 66, 69), ""),
        (animation("PNG"), (250, 0, 0), FIRST),
        (animation("WEBP"), (250, 0, 0), FIRST),
    ],
)
def test_every_kind_becomes_rgb(read, content, colour, note):
    found = read(content)
    assert abs(found[0] - colour).max() <= 1 and found[1] == note


@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, 3), (8, 1), (None, 0)])
def test_the_orientation_is_applied_unless_the_metadata_are_damaged(read, orientation, turns):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = exif.tobytes() if orientation else b"Exif\0\0II*\0damaged beyond all use"
    with warnings.catch_warnings(action="ignore"):
        found, _ = read(stored(Image.fromarray(drawn(16, 16)), exif=content))
    assert (found == np.rot90(drawn(16, 16), turns)).all()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "empty file"),
        (b"not an image", "no image"),
        (b"\x89PNG", "no image"),
        *((plain("L", 9, kind), "no image") for kind in ("GIF", "TIFF", "ICO", "PPM")),
        *((stored(Image.fromarray(drawn(64, 64)), kind)[:-200], "damaged") for kind in ("PNG", "JPEG", "BMP", "WEBP")),
        (stored(Image.fromarray(drawn(30, 7))), "too small: 30x7 pixels"),
        # Pillow warns at the first and refuses the second; both are left out, undecoded.
        (png(10_000, 10_000, 0, 9), "too large: more than 89478485 pixels"),
        (png(60_000, 60_000, 0, 9), "too large: more than 89478485 pixels"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_is_left_out(read, content, problem):
    with pytest.raises(Unusable, match=f"^{problem}"):
        read(content)


def test_files_that_are_not_read(tmp_path, monkeypatch):
    def problem(name):
        with pytest.raises(Unusable) as caught:
            read_picture(tmp_path / name, 16)
        return str(caught.value)

    os.mkfifo(tmp_path / "pipe")
    assert problem("absent").startswith("unreadable: ") and problem("pipe") == "not a regular file"
    (tmp_path / "long").write_bytes(b"12345")
    monkeypatch.setattr(pictures, "MAX_BYTES", 4)
    assert problem("long").startswith("too large: 5 bytes")
    with monkeypatch.context() as patch:  # a byte was added after this was found
        patch.setattr(os, "fstat", lambda handle: SimpleNamespace(st_mode=0o100644, st_size=4, st_mtime_ns=0))
        assert problem("long") == "changed while it was read"


def test_large_images_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "LARGE_PIXELS", 100)
    (tmp_path / "a.png").write_bytes(plain("L", 9))
    thread = threading.Thread(target=read_picture, args=(tmp_path / "a.png", 16))
    with pictures._LARGE:
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
    thread.join(30)
    assert not thread.is_alive()


def test_a_thumbnail_is_of_the_content_that_is_meant_or_none(tmp_path):
    path, content = tmp_path / "a.png", stored(Image.new("RGB", (40, 20), (10, 20, 30)))
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    whole = read_thumbnail(path, 16, digest=digest)
    assert whole.size == (16, 8) and whole.getpixel((3, 3)) == (10, 20, 30)
    path.write_bytes(content + b"more")
    assert read_thumbnail(path, 16, digest=digest) is None
    path.unlink()
    assert read_thumbnail(path, 16, digest=digest) is None
