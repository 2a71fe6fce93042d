"""label.html: one file in which a query is labeled by keyboard in a browser, without a server and without a network.

The page holds the thumbnails and, ready-made, every line of the csv up to its label, so that only this package knows
how a cell is written. Names of files and classes come from strangers: they reach the page as JSON in a data block and
are shown as text; a Content-Security-Policy lets nothing run or load but the page's own script, style and pictures.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import itertools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from common.files import atomic_write
from evals.annotation.label_csv import COLUMNS, OTHER, Asked, format_row, row_without_label

TEMPLATES = Path(__file__).resolve().parent / "templates"
OTHER_KEY = "o"
COMMAND_KEYS = "ufs"  # undo, filter, save; see label.js
KEYS = "123456789" + "".join(
    letter for letter in "abcdefghijklmnopqrstuvwxyz" if letter not in OTHER_KEY + COMMAND_KEYS
)
SCORES = ("score", "semantic", "distinctive")
SMALL = 64  # pixels up to which an image is shown with its pixels as squares


def label_keys(classes: Sequence[str]) -> list[str]:
    """The key of each class: a name of one free letter or digit is its own, the others get 1, 2, .. 9, a, b, ..

    Where the keys run out the rest get "": their buttons can be clicked.
    """
    own = [name.casefold() if name.casefold() in (*KEYS, "0") else "" for name in classes]
    own = [key if key and own.index(key) == number else "" for number, key in enumerate(own)]
    free = iter([key for key in KEYS if key not in own])
    return [key or next(free, "") for key in own]


def labels_file(cycle: int) -> str:
    """Under which name the page saves a cycle's labels."""
    return f"labels_cycle_{cycle}.csv"


def write_page(
    path: Path,
    items: Sequence[Asked],
    classes: Sequence[str],
    picture: Callable[[str], Image.Image],
    *,
    cycle: int,
    key: str,
) -> None:
    """Writes the page.

    Args:
        path: The html file.
        items: The query; images with the same suggestion stand together.
        classes: Class names.
        picture: By path, the thumbnail.
        cycle: Its number.
        key: What tells this query's labels from those of all others in the browser's storage.
    """
    title = f"Cycle {cycle}: {len(items)} images to label"
    style, script = ((TEMPLATES / name).read_text() for name in ("label.css", "label.js"))
    parts = {
        "policy": html.escape(_policy(style, script)),
        "title": html.escape(title),
        "style": style,
        "script": script,
        "query": as_json(_query(items, classes, picture, cycle=cycle, key=key)),
    }
    # In one pass: what is put in is never searched for further places.
    page = re.sub(r"{{(\w+)}}", lambda place: parts[place[1]], (TEMPLATES / "label.html").read_text())
    with atomic_write(path) as file:
        file.write(page.encode())


def as_json(value: Any) -> str:
    """JSON that may stand within a script element: nothing in it can end the element or begin a comment."""
    text = json.dumps(value, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(style: str, script: str) -> str:
    """Nothing but this style, this script, and pictures that stand in the page itself."""
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digests[0]}'; script-src 'sha256-{digests[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _query(
    items: Sequence[Asked], classes: Sequence[str], picture: Callable[[str], Image.Image], *, cycle: int, key: str
) -> dict[str, Any]:
    """What label.js reads."""
    number = {name: place for place, name in enumerate(classes)}
    keys = label_keys(classes)
    return {
        "key": key,
        "file": labels_file(cycle),
        "heading": format_row(COLUMNS),
        "scores": SCORES,
        "classes": [{"name": name, "key": keys[place], "cell": format_row([name])} for name, place in number.items()],
        "other": {"name": OTHER, "key": OTHER_KEY, "cell": format_row([OTHER])},
        "groups": _groups(items),
        "items": [
            {
                "path": item.path,
                "suggestion": None if item.suggestion is None else number[item.suggestion],
                "scores": [
                    "" if value is None else f"{value:.3f}" for value in (item.joint, item.semantic, item.distinctive)
                ],
                "row": row_without_label(item),
                **_inline(picture(item.path)),
            }
            for item in items
        ],
    }


def _groups(items: Sequence[Asked]) -> list[dict[str, Any]]:
    """Runs of images with the same suggestion, in order."""
    groups, start = [], 0
    for name, run in itertools.groupby(items, key=lambda item: item.suggestion):
        count = len(list(run))
        title = "No suggestion" if name is None else f"Suggested: {name}"
        groups.append({"title": title, "start": start, "count": count})
        start += count
    return groups


def _inline(image: Image.Image) -> dict[str, Any]:
    """The picture as a data URI: small ones exactly, larger ones as JPEG."""
    small = max(image.size) <= SMALL
    file = io.BytesIO()
    image.save(file, **({"format": "PNG"} if small else {"format": "JPEG", "quality": 82}))
    kind = "png" if small else "jpeg"
    return {"image": f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}", "small": small}
