"""evals/contact_sheet.py: what the sheet shows where, at a few images and at thousands."""

from __future__ import annotations

import numpy as np
from PIL import Image

from evals.annotation.contact_sheet import HEADING, MARGIN, WIDTH, write_contact_sheet
from evals.annotation.label_csv import Asked

COLOURS = {"cat": (200, 30, 30), "dog": (30, 30, 200)}


def asked(number: int, suggestion: str | None) -> Asked:
    return Asked(f"unlabeled/{number}.png", "0" * 64, suggestion, 1.5, 0.25, None)


def picture(path: str) -> Image.Image:
    return Image.new("RGB", (40, 20), COLOURS["cat" if int(path.split("/")[1][:-4]) < 10 else "dog"])


def sheet(folder, items) -> np.ndarray:
    write_contact_sheet(folder / "sheet.png", items, picture, title="cycle 1")
    return np.asarray(Image.open(folder / "sheet.png").convert("RGB"))


def rows_of(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.flatnonzero((pixels == colour).all(2).any(1))


def test_thumbnails_stand_in_groups_one_below_the_other(tmp_path):
    pixels = sheet(tmp_path, [asked(number, "cat" if number < 10 else "dog") for number in range(12)])
    assert pixels.shape[1] == WIDTH + 2 * MARGIN
    cats, dogs = rows_of(pixels, COLOURS["cat"]), rows_of(pixels, COLOURS["dog"])
    # 9 images of 128 pixels fit beside each other, so the ten cats take two rows of 64 pixels each, the dogs one.
    assert (len(cats), len(dogs)) == (128, 64)
    assert cats[0] == MARGIN + 2 * HEADING + 32 and cats.max() < dogs.min()
    across = np.flatnonzero((pixels[cats[0]] == COLOURS["cat"]).all(1))
    assert len(across) == 9 * 128 and across[0] == MARGIN


def test_scores_are_written_below(tmp_path):
    pixels = sheet(tmp_path, [asked(0, "cat")])
    below = pixels[MARGIN + 2 * HEADING + 128 :, :128]
    assert (below < 100).all(2).any()


def test_thousands_of_images_make_a_sheet_of_bounded_size(tmp_path):
    pixels = sheet(tmp_path, [asked(number % 20, None) for number in range(6000)])
    assert pixels.shape[0] * pixels.shape[1] <= 40e6
    assert len(rows_of(pixels, COLOURS["cat"])) > 1000


def test_names_without_glyphs_or_too_long_do_no_harm(tmp_path):
    name = "\n\u202e🐈\udcff" + "x" * 5000
    write_contact_sheet(
        tmp_path / "sheet.png",
        [Asked("unlabeled/" + name, "", name, None, None, None)],
        lambda _: picture("/1.png"),
        title=name,
    )
    assert Image.open(tmp_path / "sheet.png").width == WIDTH + 2 * MARGIN
