"""CIFAR-10 as the npz file of the results under results/: every image once through JPEG at quality 75.

Usage: python -m benchmarks.cifar10_npz [--data_path ~/data] --out cifar10.npz

The results were made of images that had to travel as JPEG. This takes torchvision's CIFAR-10 (downloaded if missing)
through the same quality, in the same order, so that splits and index lists apply; pixels may differ in the last digits
where another version of the JPEG library rounds differently, and the digest that is printed then differs, too.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from common.console import log, progress
from common.files import atomic_write, require_writable
from common.flags import Parser, pick
from common.provenance import image_digest
from common.session import run_command
from common.settings import DataSettings, option
from datasets import load_data_and_split

QUALITY = 75
DIGEST = "02c9cf69cbb9cd76994043d1ef7b5a8c197205aec540c94f8dd5a7dcb1b59ec9"
"""Of pool and labeled set at mismatch 0.8 in the images that the H200 was given."""


@dataclass(frozen=True)
class Settings:
    """What is written."""

    title: ClassVar[str] = "output"
    out: str = option(help="the npz file", metavar="FILE")


def build_parser() -> Parser:
    """The command's flags."""
    return Parser(__doc__.splitlines()[0], data=pick(DataSettings, "data_path"), output=Settings)


def main(argv: Sequence[str] | None = None) -> None:
    given = build_parser().parse(argv)
    out = Path(given.output.out)
    require_writable(out.parent, "--out")
    data, split = load_data_and_split(DataSettings(dataset="cifar10", data_path=given.data.data_path, mismatch=0.8))
    arrays = {name: through_jpeg(getattr(data, name), name) for name in ("train_images", "test_images")}
    arrays |= {name: getattr(data, name) for name in ("train_labels", "test_labels")}
    with atomic_write(out) as file:
        np.savez(file, **arrays)
    digest = image_digest(arrays["train_images"], np.sort(split.contrast()))
    same = "the images of results/" if digest == DIGEST else f"not those of results/ to the last digit ({DIGEST})"
    log(f"wrote {out}: pool and labeled set have the digest {digest}, {same}")


def through_jpeg(images: np.ndarray, name: str) -> np.ndarray:
    """Images, uint8 (N, H, W, 3), written as JPEG and read again."""
    decoded = np.empty_like(images)
    for number in progress(range(len(images)), description=name, unit="image"):
        file = io.BytesIO()
        Image.fromarray(images[number]).save(file, format="JPEG", quality=QUALITY)
        decoded[number] = np.asarray(Image.open(file).convert("RGB"))
    return decoded


if __name__ == "__main__":
    sys.exit(run_command(main))
