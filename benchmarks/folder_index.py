"""Reading a folder of many small images, against the plain formulation: a loop over the files that decodes each, at
every start.

Usage: python -m benchmarks.folder_index [--images 20000] [--side 64] [--quick]

The images are drawn, half of them PNG and half JPEG. The plain formulation opens, converts and resizes one file after
another with Pillow, in one process. Ours also hashes each file, finds copies, and keeps pixels and manifest on disk;
its second start finds that nothing has changed. Both give the same pixels, which is checked.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks import harness
from common.flags import Parser, number, positive_int
from common.session import run_command
from datasets.folder import CACHE_FOLDER, load_folder

SIZE = 32  # pixels that both bring the images to
LABELED, FOLDERS = 40, 100


def build_parser() -> argparse.ArgumentParser:
    """The benchmark's flags."""
    parser = Parser("Reading a folder of many small images against a loop over its files.")
    harness.add_common_args(parser, repeats=3)
    group = parser.add_argument_group("folder")
    group.add_argument("--images", type=number(int, LABELED + 1), default=20_000, help="files")
    group.add_argument("--side", type=positive_int, default=64, help="their height and width in pixels")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    images = 60 if args.quick else args.images
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "images"
        write_images(root, images, side=args.side)
        check_agreement(root)
        print("both agree")
        if args.quick:
            return
        rows = [
            harness.compare(
                f"{title}, {images} files",
                lambda: plain_images(root),
                start,
                device=torch.device("cpu"),
                repeats=args.repeats,
                note=f"{args.side}x{args.side} pixels, half PNG and half JPEG, to {SIZE}x{SIZE}",
            )
            for title, start in (("first start", first_start(root)), ("second start", second_start(root)))
        ]
        harness.report("folder_index", rows, device=torch.device("cpu"), out_path=args.out_path)


def write_images(root: Path, count: int, *, side: int) -> None:
    """Smooth images with some noise: two labeled classes of 20, the others in the pool."""
    generator = np.random.default_rng(0)
    for i in range(count):
        place = f"labeled/{'cat' if i % 2 else 'dog'}" if i < LABELED else f"unlabeled/{i % FOLDERS:02}"
        (root / place).mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)).astype(int)
        noisy = smooth + generator.integers(-8, 9, smooth.shape)
        suffix = "png" if i % 4 < 2 else "jpg"
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(root / place / f"{i:06}.{suffix}")


def plain_images(root: Path) -> np.ndarray:
    """Every image decoded, one after another, uint8 (N, SIZE, SIZE, 3): labeled ones first, each part by path."""
    paths = [path for part in ("labeled", "unlabeled") for path in sorted((root / part).rglob("*.*"), key=str)]
    images = []
    for path in paths:
        with Image.open(path) as image:
            images.append(np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)))
    return np.stack(images)


def our_images(root: Path) -> np.ndarray:
    """The same through the data set, without what it says."""
    with contextlib.redirect_stdout(io.StringIO()):
        return load_folder("folder", root, image_size=SIZE).train_images


def first_start(root: Path) -> Callable[[], np.ndarray]:
    """Reads everything: what was kept is removed first, which takes part of the time, too."""

    def start() -> np.ndarray:
        shutil.rmtree(root / CACHE_FOLDER, ignore_errors=True)
        return our_images(root)

    return start


def second_start(root: Path) -> Callable[[], np.ndarray]:
    """Nothing has changed since."""
    our_images(root)
    return lambda: our_images(root)


def check_agreement(root: Path) -> None:
    """Stops where the pixels differ, at the first start or the second."""
    expected = plain_images(root)
    for start in (first_start(root), second_start(root)):
        found = start()
        assert found.shape == expected.shape, f"{found.shape} instead of {expected.shape}"
        assert (found == expected).all(), "pixels differ"


if __name__ == "__main__":
    sys.exit(run_command(main))
