"""Sorts images with a trained classifier: a csv of probabilities, and a page of thumbnails by class and confidence."""

from __future__ import annotations

import base64
import contextlib
import csv
import html
import io
import sys
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from string import Template
from typing import ClassVar

from common.flags import Parser, setting
from common.settings import ProcessSettings, option


@dataclass(frozen=True)
class PredictSettings:
    """What is sorted, and by which classifier."""

    title: ClassVar[str] = "prediction"
    model: str = setting(help="cycle_N_seed_S.model of the classifier", positional=True, metavar="MODEL")
    images: tuple[str, ...] = setting(
        help="folders, image files, and npz files of uint8 images", positional=True, several=True, metavar="IMAGES"
    )
    out_path: str | None = option(None, "folder of what is written (default: predictions/ beside MODEL)", metavar="DIR")


def build_parser() -> Parser:
    """The command's flags."""
    return Parser(__doc__, prediction=PredictSettings, process=ProcessSettings)


if __name__ == "__main__":
    build_parser().parse()  # --help and a mistyped flag end here, before torch is imported, which takes seconds

import numpy as np
import torch
from PIL import Image

from common.console import finish, log, progress, shown
from common.files import atomic_write, read_npz, require_writable
from common.session import run_command, session
from datasets.base import check_images
from datasets.folder.pictures import Unusable, read_picture
from datasets.folder.walk import walk
from train_classifier.engine import EVALUATION_BATCH, LabeledImages, probabilities
from train_classifier.model_file import Model, load_model
from utils import InputError

GUARDED = tuple("=+-@\t\r'")  # first characters of cells that a spreadsheet reads as a formula, or as our guard
THUMBNAIL, SHOWN = 96, 200  # pixels; images of a class on the page, half of them the most confident ones
PAGE = Path(__file__).parent / "predictions.html"
Pixels = np.ndarray | str | None  # uint8 (H, W, 3) from an npz file; why a file is left out; None: it is to be read
Images = list[tuple[str, Pixels]]  # with their names: a path, or archive.npz:array[number]


def main(argv: Sequence[str] | None = None) -> None:
    settings = build_parser().parse(argv)
    given = settings.prediction
    with session(settings.process, on_stop="raise", alone=True) as run:
        run.stop.kept = "nothing was written"
        model = load_model(Path(given.model))
        folder = Path(given.out_path or Path(given.model).parent / "predictions")
        require_writable(folder, "--out_path")
        images = [image for path in given.images for image in find_images(Path(path), model.image_size)]
        images, values = predict(model, images, run.device)
    left_out = [(name, pixels) for name, pixels in images if isinstance(pixels, str)]
    images = [(name, pixels) for name, pixels in images if not isinstance(pixels, str)]
    kinds = Counter(reason.split(":")[0] for _, reason in left_out).most_common()
    reasons = ", ".join(f"{count} {kind}" for kind, count in kinds)
    if not images:
        raise InputError(f"{' '.join(given.images)}: no usable image ({reasons or 'nothing is there'})")
    chosen = values.argmax(1)
    lead = f"{len(images)} images by {given.model}" + (f"; {len(left_out)} left out ({reasons})" if left_out else "")
    log(f"{lead}: {', '.join(f'{(chosen == n).sum()} {shown(name)}' for n, name in enumerate(model.outputs))}")
    table, page = folder / "predictions.csv", folder / "predictions.html"
    rows = [("path", "class", *model.outputs, "left out")]
    for (name, _), number, row in zip(images, chosen, values, strict=True):
        rows.append((name, model.outputs[number], *(f"{value:.6f}" for value in row), ""))
    rows += [(name, "", *[""] * len(model.outputs), reason) for name, reason in left_out]
    for path, text in ((table, csv_text(rows)), (page, page_html(lead, model.outputs, images, values))):
        with atomic_write(path) as file:
            file.write(text.encode("utf-8", "backslashreplace"))
    finish([table, page])


def find_images(path: Path, size: tuple[int, int]) -> Images:
    """The images of a folder, a file, or an npz file, whose arrays named ...images must have the model's size.

    Raises:
        InputError: There is no such file, or the model cannot take its images.
    """
    wanted = f"{size[0]}x{size[1]}"
    if not path.exists():
        raise InputError(f"{path} does not exist; give folders, image files or npz files")
    if path.is_dir() or path.suffix != ".npz":
        if size[0] != size[1]:
            raise InputError(
                f"{path}: the model takes {wanted} pixels, and files are read as squares; give an npz file"
            )
        files = (
            [(path / file.path, file.problem) for file in walk(path, ["."], None)] if path.is_dir() else [(path, "")]
        )
        return [(str(file), problem or None) for file, problem in files]
    names = []
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith("images.npy")]
    found: Images = []
    for name, array in read_npz(path, names or ["images"]).items():
        array = check_images(array, f"{name} in {path}")
        if array.shape[1:3] != size:
            raise InputError(
                f"{name} in {path} have {array.shape[1]}x{array.shape[2]} pixels; the model takes {wanted}"
            )
        found += [(f"{path}:{name}[{number}]", image) for number, image in enumerate(array)]
    return found


def predict(model: Model, images: Images, device: torch.device) -> tuple[Images, np.ndarray]:
    """The images, with the reason beside those that cannot be read, and the outputs of the others, (N, C)."""
    network, checked, values = model.network.to(device), [], [np.empty((0, len(model.outputs)))]
    with ThreadPool() as pool:
        for start in progress(range(0, len(images), EVALUATION_BATCH), description="images", unit="batch"):
            batch = images[start : start + EVALUATION_BATCH]
            found = pool.map(lambda image: pixels_of(*image, size=model.image_size[0]), batch)
            usable = [pixels for pixels in found if not isinstance(pixels, str)]
            checked += [(name, new if isinstance(new, str) else old) for (name, old), new in zip(batch, found)]
            if usable:
                data = LabeledImages.from_numpy(np.stack(usable), np.zeros(len(usable)), device)
                values.append(probabilities(network, data.images))
    return checked, np.concatenate(values)


def pixels_of(name: str, pixels: Pixels, *, size: int) -> np.ndarray | str:
    """The pixels of an image, uint8 (H, W, 3), a file's resized as a folder data set's; or why there are none."""
    try:
        return read_picture(name, size).pixels if pixels is None else pixels
    except Unusable as error:
        return str(error)


def csv_text(rows: Sequence[Sequence[str]]) -> str:
    """The lines of a table, whose cells no spreadsheet takes for formulas, as in to_label.csv."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([f"'{cell}" if cell.startswith(GUARDED) else cell for cell in row] for row in rows)
    return text.getvalue()


def page_html(lead: str, outputs: Sequence[str], images: Images, values: np.ndarray) -> str:
    """The page: per class its images, the most confident first; it has no scripts and no outside references."""
    links = body = ""
    for number, output in enumerate(outputs):
        rows = np.flatnonzero(values.argmax(1) == number)
        rows = rows[np.argsort(-values[rows, number], kind="stable")]
        title, items, few = escape(f"{output}: {len(rows)}"), "", SHOWN // 2
        note = f"<p>The {few} most and the {few} least confident ones.</p>" if len(rows) > SHOWN else ""
        for row in rows if len(rows) <= SHOWN else [*rows[:few], *rows[-few:]]:
            pixels, buffer, name = pixels_of(*images[row], size=THUMBNAIL), io.BytesIO(), escape(images[row][0])
            if not isinstance(pixels, str):  # gone since
                Image.fromarray(pixels).save(buffer, format="JPEG", quality=85)
                data = base64.b64encode(buffer.getvalue()).decode()
                image = f'<img alt="{name}" loading="lazy" src="data:image/jpeg;base64,{data}">'
                items += f'<li title="{name}">{image}{100 * values[row, number]:.1f} %</li>\n'
        links += f'<li><a href="#part-{number}">{title}</a></li>'
        body += f'<section><h2 id="part-{number}">{title}</h2>{note}<ul class="thumbs">{items}</ul></section>\n'
    return Template(PAGE.read_text()).substitute(lead=escape(lead), links=links, body=body)


def escape(text: str) -> str:
    """Text as HTML; what has no place in a page (control characters, lone surrogates) is replaced."""
    return html.escape("".join(c if c.isprintable() else "\ufffd" for c in text), quote=True)


if __name__ == "__main__":
    sys.exit(run_command(main))
