"""label.html: one file in which a query is labeled by keyboard in a browser, without a server or a network.

The page holds the thumbnails and each line of the csv up to its label, so that only label_csv knows how a cell is
written. Names of files and classes come from strangers: they reach the page as JSON in a data block and are shown as
text, and a Content-Security-Policy lets nothing run or load but the page's own script, style and images.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import itertools
import json
import os
import re
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from evals.annotation.label_csv import COLUMNS, OTHER_LABEL, QueriedImage, format_row, row_without_label
from evals.annotation.queries import AnnotationQuery

TEMPLATES = Path(__file__).resolve().parent / "templates"
OTHER_KEY = "o"
COMMAND_KEYS = "ufsz"  # undo, filter, save, zoom; see label.js
CLASS_KEYS = "123456789" + "".join(sorted(set(string.ascii_lowercase) - set(OTHER_KEY + COMMAND_KEYS)))
SMALL = 64  # pixels up to which an image is stored exactly and its pixels are shown as squares


def label_keys(class_names: Sequence[str]) -> list[str]:
    """The key of each class: a name of one free letter or digit is its own; the others get 1, 2, .. 9, a, b, ..

    Where the keys run out the rest get "": their buttons can be clicked.
    """
    names = [name.casefold() for name in class_names]
    own = [key if key in (*CLASS_KEYS, "0") and names.index(key) == number else "" for number, key in enumerate(names)]
    free = iter([key for key in CLASS_KEYS if key not in own])
    return [key or next(free, "") for key in own]


def render_page(
    query: AnnotationQuery,
    thumbnail: Callable[[str], Image.Image],
    *,
    images_folder: Path,
    examples: Mapping[str, Sequence[str]],
    worth: str | None = None,
) -> str:
    """The page of a query, in which adjacent images with the same suggestion form a group.

    Args:
        query: Its images.
        thumbnail: What the page shows of an image, by path.
        images_folder: The data folder, to whose files the page has relative links.
        examples: Paths of labeled images of each class, by its name.
        worth: A line of text that says what labeling found so far.
    """
    style, script = ((TEMPLATES / name).read_text() for name in ("label.css", "label.js"))
    suggestions = itertools.groupby(image.suggestion for image in query.images)
    titles = [("No suggestion" if name is None else f"Suggested: {name}", len(list(run))) for name, run in suggestions]
    folder = os.path.relpath(images_folder, query.folder)

    def picture(path: str) -> dict[str, Any]:
        link = quote(os.fsencode(Path(folder, path).as_posix()))
        return {"path": path, "link": link, **_pixels(thumbnail(path))}

    classes = list(map(_choice, query.class_names, label_keys(query.class_names)))
    for entry in classes:
        entry["examples"] = list(map(picture, examples.get(entry["name"], ())))
    content = {
        "key": query.storage_key,
        "file": query.labels_file,
        "heading": format_row(COLUMNS),
        "scores": ["score", "semantic", "distinctive"],
        "classes": classes,
        "other": _choice(OTHER_LABEL, OTHER_KEY),
        "groups": [{"title": title, "count": count} for title, count in titles],
        "items": [picture(image.path) | _item(image, query.class_names) for image in query.images],
        "worth": worth,
    }
    parts = {
        "policy": html.escape(_content_policy(style, script)),
        "title": html.escape(f"Cycle {query.cycle}: {len(query.images)} images to label"),
        "style": style,
        "script": script,
        "query": as_json(content),
    }
    # In one pass, so that a {{name}} within what is put in stays as it is.
    return re.sub(r"{{(\w+)}}", lambda match: parts[match[1]], (TEMPLATES / "label.html").read_text())


def as_json(value: Any) -> str:
    """JSON for a script element: nothing in it can end the element or begin a comment."""
    text = json.dumps(value, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _content_policy(style: str, script: str) -> str:
    """Allows this style, this script, and images that are part of the page."""
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digests[0]}'; script-src 'sha256-{digests[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _choice(name: str, key: str) -> dict[str, Any]:
    return {"name": name, "key": key, "cell": format_row([name])}


def _item(image: QueriedImage, class_names: Sequence[str]) -> dict[str, Any]:
    """What the script knows of a queried image besides its picture."""
    return {
        "suggestion": None if image.suggestion is None else class_names.index(image.suggestion),
        "scores": image.format_scores(3),
        "row": row_without_label(image),
    }


def _pixels(picture: Image.Image) -> dict[str, Any]:
    """An image for the page, exactly if it is small, otherwise as WebP."""
    small = max(picture.size) <= SMALL
    file = io.BytesIO()
    picture.save(file, **({"format": "PNG"} if small else {"format": "WEBP", "quality": 75}))
    data = base64.b64encode(file.getvalue()).decode()
    return {"image": f"data:image/{'png' if small else 'webp'};base64,{data}", "small": small}
