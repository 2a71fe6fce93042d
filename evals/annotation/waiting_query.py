"""The query of a cycle that waits for its labels: cycle_N/ in the index folder.

query.json says what was asked and is written last: without it a cycle_N/ is of a command that did not end. Beside it
lie what people label with: label.html and to_label.csv.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from common.console import log
from common.files import is_number, is_text, read_json, write_json
from evals.annotation.label_csv import Asked, format_table, write_table
from evals.annotation.page import write_page
from utils import InputError

FORMAT_VERSION = 1
QUERY, TABLE, PAGE = "query.json", "to_label.csv", "label.html"


@dataclass(frozen=True)
class WaitingQuery:
    """What was asked in a cycle.

    Attributes:
        cycle: Its number, from 1.
        after: SHA-256 of the index file that it followed: with other labels in that, it would be another query.
        class_names: Of the target classes.
        strategy: The query strategy's name.
        settings: As in index files.
        seconds: That scoring and query took.
        images: In the order of the query.
    """

    cycle: int
    after: str
    class_names: list[str]
    strategy: str
    settings: dict[str, Any]
    seconds: float
    images: list[Asked]

    @property
    def paths(self) -> list[str]:
        """Of the images."""
        return [image.path for image in self.images]


def cycle_folder(folder: Path, cycle: int) -> Path:
    """Where a cycle's query lies."""
    return folder / f"cycle_{cycle}"


def write_query(folder: Path, query: WaitingQuery, picture: Callable[[str], Image.Image]) -> None:
    """Writes all files of a query.

    Args:
        folder: The index folder.
        query: What is asked.
        picture: By path, the thumbnail.
    """
    place = cycle_folder(folder, query.cycle)
    keep_filled_table(folder, query.cycle)
    (place / QUERY).unlink(missing_ok=True)
    key = storage_key(folder, query)
    write_page(place / PAGE, query.images, query.class_names, picture, cycle=query.cycle, key=key)
    write_table(place / TABLE, query.images)
    write_json(place / QUERY, {"format_version": FORMAT_VERSION, **dataclasses.asdict(query)})


def storage_key(folder: Path, query: WaitingQuery) -> str:
    """Under which name the browser keeps a query's labels: the same where the same images are asked for again.

    The browser keeps labels by the place of their image in the query and the number of their class, so the order
    counts. How the images were chosen does not. Where the folder lies tells two runs apart that ask the same.
    """
    images = [(image.path, image.digest) for image in query.images]
    asked = json.dumps([str(folder.resolve()), query.cycle, query.class_names, images])
    return f"ccal-{hashlib.sha256(asked.encode()).hexdigest()[:32]}"


def read_query(folder: Path, cycle: int) -> WaitingQuery | None:
    """What was asked in a cycle; None if nothing was, or its command did not end.

    Raises:
        InputError: The file is damaged.
    """
    path = cycle_folder(folder, cycle) / QUERY
    if not path.is_file():
        return None
    raw = read_json(path)
    try:
        if raw.pop("format_version") != FORMAT_VERSION or raw["cycle"] != cycle:
            raise ValueError("another version or cycle")
        query = WaitingQuery(**{**raw, "images": [Asked(**image) for image in raw["images"]]})
        if not _has_right_types(query):
            raise ValueError("a field has a wrong type or value")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is damaged ({error}): restore it, or remove the folder {path.parent} to query anew"
        ) from None
    return query


def _has_right_types(query: WaitingQuery) -> bool:
    texts = [query.after, query.strategy, *query.class_names]
    texts += [text for image in query.images for text in (image.path, image.digest)]
    scores = [score for image in query.images for score in (image.joint, image.semantic, image.distinctive)]
    return (
        all(map(is_text, texts))
        and all(score is None or is_number(score) for score in scores)
        and all(image.suggestion in (None, *query.class_names) for image in query.images)
        and isinstance(query.settings, dict)
        and is_number(query.seconds)
    )


def keep_filled_table(folder: Path, cycle: int) -> None:
    """Renames the to_label.csv of a query that is about to be replaced, if somebody has put labels into it."""
    earlier = read_query(folder, cycle)
    if earlier and is_filled(folder, earlier):
        table = cycle_folder(folder, cycle) / TABLE
        names = (table.with_name(f"to_label.replaced{number or ''}.csv") for number in itertools.count())
        kept = next(path for path in names if not path.exists())
        table.rename(kept)
        log(f"what was filled in of an earlier query of cycle {cycle} is kept in {kept}")


def is_filled(folder: Path, query: WaitingQuery) -> bool:
    """Whether the query's to_label.csv is another than was written: somebody has put labels into it."""
    path = cycle_folder(folder, query.cycle) / TABLE
    return path.is_file() and path.read_bytes() != format_table(query.images).encode()
