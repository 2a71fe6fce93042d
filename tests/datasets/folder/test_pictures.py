"""Image files of every kind: what their pixels become, and why some are left out."""

import hashlib
import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from datasets.folder import pictures
from datasets.folder.pictures import Unusable, decode, read_picture, read_thumbnail, strict_and_quiet, to_square


def drawn(width, height, channels=3):
    generator = np.random.default_rng(width * 1000 + height)
    return generator.integers(0, 256, (height, width, channels), dtype=np.uint8)


def stored(image, kind="PNG", **options):
    content = io.BytesIO()
    image.save(content, kind, **options)
    return io.BytesIO(content.getvalue())


def pixels(image, kind="PNG", size=16, **options):
    return decode(stored(image, kind, **options), size)


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_an_image_of_the_size_stays_as_it_is(kind):
    values = drawn(16, 16)
    found, note = pixels(Image.fromarray(values), kind)
    assert (found == values).all() and note == ""


def test_webp_and_jpeg():
    values = np.full((16, 16, 3), (200, 40, 90), dtype=np.uint8)
    assert (pixels(Image.fromarray(values), "WEBP", lossless=True)[0] == values).all()
    assert abs(pixels(Image.fromarray(values), "JPEG", quality=95)[0].astype(int) - values).max() <= 3


@pytest.mark.parametrize(("width", "height", "left", "top"), [(21, 16, 2, 0), (16, 19, 0, 1), (16, 16, 0, 0)])
def test_the_centre_is_cropped(width, height, left, top):
    values = drawn(width, height)
    found, _ = pixels(Image.fromarray(values))
    assert (found == values[top : top + 16, left : left + 16]).all()


@pytest.mark.parametrize(("width", "height"), [(32, 64), (96, 48), (8, 12), (64, 64)])
def test_the_shorter_side_is_resized_and_the_centre_cropped(width, height):
    values = drawn(width, height)
    scale = 16 / min(width, height)
    whole = (round(width * scale), round(height * scale))
    resized = np.asarray(Image.fromarray(values).resize(whole, Image.Resampling.BILINEAR))
    left, top = (whole[0] - 16) // 2, (whole[1] - 16) // 2
    found = to_square(Image.fromarray(values), 16).astype(int)
    assert abs(found - resized[top : top + 16, left : left + 16]).max() <= 1  # Pillow rounds between its two passes


def test_a_large_jpeg_is_read_at_a_part_of_its_size_without_harm():
    """Decoding at an eighth averages as resizing does: a smooth image hardly changes."""
    smooth = Image.fromarray(drawn(4, 4)).resize((1024, 1024), Image.Resampling.BICUBIC)
    whole = np.asarray(smooth.resize((16, 16), Image.Resampling.BILINEAR)).astype(int)
    found, _ = pixels(smooth, "JPEG", quality=95)
    assert abs(found - whole).max() <= 6


def test_grayscale_gets_three_equal_channels():
    values = drawn(16, 16, 1)[..., 0]
    found, _ = pixels(Image.fromarray(values))
    assert (found == values[..., None]).all()
    black_and_white, _ = pixels(Image.fromarray(values > 127))
    assert (black_and_white == np.where(values > 127, 255, 0)[..., None]).all()


def test_16_bits_are_scaled_not_clipped():
    values = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    found, _ = pixels(Image.fromarray(values))
    assert found[..., 0].ravel().tolist() == list(range(256))
    assert (found == found[..., :1]).all()


def png(width, height, depth, colour, rows, extra=b""):
    """A PNG file, for the kinds that Pillow does not write."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", body) + chunk(b"IEND", b""))


def test_16_bit_colour_and_alpha():
    colours = (np.arange(16 * 16 * 3) * 85).astype(">u2").reshape(16, 16, 3)
    found, note = decode(png(16, 16, 16, 2, [row.tobytes() for row in colours]), 16)
    assert abs(found - colours / 257).max() <= 1 and note == ""
    alpha = np.zeros((16, 16, 1), dtype=">u2")
    rows = [row.tobytes() for row in np.concatenate([colours, alpha], axis=2)]
    found, note = decode(png(16, 16, 16, 6, rows), 16)
    assert (found == 255).all() and note == "transparent, shown on white"


def test_16_bit_grayscale_with_a_transparent_value():
    values = np.full((16, 16), 1000, dtype=np.uint16)
    values[0] = 20000
    found, note = pixels(Image.fromarray(values), transparency=1000)
    assert found[0, 0].tolist() == [78] * 3 and (found[1:] == 255).all()
    assert note == "transparent, shown on white"


def test_cmyk():
    found, _ = pixels(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    assert abs(found.astype(int) - (255, 0, 0)).max() <= 4


def test_transparency_shows_white():
    half = Image.new("RGBA", (16, 16), (200, 0, 100, 128))
    found, note = pixels(half)
    expected = [round((value * 128 + 255 * 127) / 255) for value in (200, 0, 100)]
    assert abs(found.astype(int) - expected).max() <= 1 and note == "transparent, shown on white"
    found, note = pixels(Image.new("LA", (16, 16), (10, 0)))
    assert (found == 255).all() and note
    opaque, note = pixels(Image.new("RGBA", (16, 16), (200, 0, 100, 255)))
    assert opaque[0, 0].tolist() == [200, 0, 100] and note == ""


def test_palettes():
    image = Image.fromarray(np.indices((16, 16))[1].astype(np.uint8), "P")
    image.putpalette([number * 3 % 256 for number in range(768)])
    found, _ = pixels(image)
    assert found[5, 7].tolist() == [63, 66, 69]
    found, note = pixels(image, transparency=7)
    assert found[5, 7].tolist() == [255] * 3 and found[5, 8].tolist() == [72, 75, 78] and note


@pytest.mark.parametrize(("orientation", "turned"), [(3, 2), (6, 3), (8, 1)])
def test_orientation_is_applied(orientation, turned):
    values = drawn(16, 16)
    exif = Image.Exif()
    exif[0x0112] = orientation
    found, _ = pixels(Image.fromarray(values), exif=exif.tobytes())
    assert (found == np.rot90(values, turned)).all()


def test_damaged_metadata_lose_no_image():
    values = drawn(16, 16)
    with strict_and_quiet():
        found, _ = pixels(Image.fromarray(values), exif=b"Exif\0\0II*\0damaged beyond all use")
    assert (found == values).all()


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_counts(kind):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    found, note = pixels(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert found[3, 3].tolist() == [250, 0, 0]
    assert note == "animated, its first frame is used"


def problem(content, size=16):
    with strict_and_quiet(), pytest.raises(Unusable) as caught:
        decode(io.BytesIO(content), size)
    return caught.value.problem, caught.value.detail


@pytest.mark.parametrize("content", [b"not an image", b"\x89PNG", b"%PDF-1.4", b"<svg/>"])
def test_no_image(content):
    assert problem(content) == ("no image", "not jpeg, png, webp or bmp")


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "ICO", "PPM"])
def test_other_formats_are_no_images(kind):
    assert problem(stored(Image.fromarray(drawn(16, 16)), kind).getvalue())[0] == "no image"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP"])
def test_cut_off(kind):
    whole = stored(Image.fromarray(drawn(64, 64)), kind).getvalue()
    kinds = {problem(whole[: len(whole) * share // 8])[0] for share in (2, 4, 7)}
    assert kinds <= {"unreadable", "no image"} and "unreadable" in kinds | {problem(whole[:-200])[0]}


def test_too_small():
    assert problem(stored(Image.fromarray(drawn(30, 7))).getvalue()) == (
        "too small",
        "30x7 pixels, at least 8x8 are needed",
    )
    assert pixels(Image.fromarray(drawn(8, 8)))[0].shape == (16, 16, 3)


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_a_few_bytes_that_claim_many_pixels(side):
    """Pillow warns at the first and refuses the second; both are left out, undecoded."""
    bomb = png(side, side, 8, 2, [b"\0"]).getvalue()
    assert problem(bomb) == ("too large", f"more than {Image.MAX_IMAGE_PIXELS} pixels")


# Files


def refused(path):
    with pytest.raises(Unusable) as caught:
        read_picture(str(path), 16)
    return caught.value


def test_file(tmp_path):
    values = drawn(16, 16)
    (tmp_path / "a.txt").write_bytes(stored(Image.fromarray(values)).getvalue())  # the content counts, not the name
    found = read_picture(str(tmp_path / "a.txt"), 16)
    status = (tmp_path / "a.txt").stat()
    assert (found.pixels == values).all()
    assert (found.size, found.mtime_ns, found.note) == (status.st_size, status.st_mtime_ns, "")


def test_files_that_are_not_to_be_read(tmp_path, monkeypatch):
    (tmp_path / "empty.png").touch()
    assert refused(tmp_path / "empty.png").problem == "empty file"
    assert refused(tmp_path / "absent.png").problem == "unreadable"
    assert refused(tmp_path).problem in ("no regular file", "unreadable")
    os.mkfifo(tmp_path / "pipe.png")
    assert refused(tmp_path / "pipe.png").problem == "no regular file"
    (tmp_path / "long.png").write_bytes(b"12345")
    monkeypatch.setattr(pictures, "MAX_BYTES", 4)
    assert refused(tmp_path / "long.png").problem == "too large"


def test_a_file_that_changes_while_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(stored(Image.fromarray(drawn(16, 16))).getvalue())
    real, calls = os.fstat, []

    def fstat(handle):
        status = real(handle)
        calls.append(handle)
        if len(calls) == 1:
            with open(path, "ab") as file:
                file.write(b"more")
        return status

    monkeypatch.setattr(pictures.os, "fstat", fstat)
    error = refused(path)
    assert (error.problem, error.digest) == ("changed while it was read", None)


def test_a_thumbnail_is_of_the_content_that_is_meant_or_none(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (40, 20), (10, 20, 30)).save(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    whole = read_thumbnail(path, 16, digest=digest)
    assert whole.size == (16, 8) and whole.getpixel((3, 3)) == (10, 20, 30)
    Image.new("RGB", (40, 20), (200, 20, 30)).save(path)
    assert read_thumbnail(path, 16, digest=digest) is None
    path.unlink()
    assert read_thumbnail(path, 16, digest=digest) is None
