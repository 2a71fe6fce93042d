"""The query of a cycle that waits for labels: the folder cycle_N/ among the index files.

It holds label.html and to_label.csv, two ways to label, and query.json, the record of what was asked.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.console import log
from common.files import atomic_write, check_fields, is_number, is_text, read_json, write_json
from datasets.index_files import index_path
from evals.annotation.label_csv import QueriedImage, format_table

FORMAT_VERSION = 1
RECORD = "query.json"
IMAGE_FIELDS = {field.name for field in dataclasses.fields(QueriedImage)}


@dataclass(frozen=True)
class AnnotationQuery:
    """The images that people are asked to label in one cycle.

    Attributes:
        folder: cycle_N/ beside cycle_N.json, the index file to come.
        cycle: Its number, from 1.
        after: SHA-256 of the previous cycle's index file: with other labels in it, the query would be another.
        class_names: Of the target classes.
        strategy: The query strategy's name.
        settings: As in index files.
        seconds: What scoring and selection took.
        images: In the order of the query.
    """

    folder: Path
    cycle: int
    after: str
    class_names: list[str]
    strategy: str
    settings: dict[str, Any]
    seconds: float
    images: list[QueriedImage]

    @property
    def page(self) -> Path:
        return self.folder / "label.html"

    @property
    def table(self) -> Path:
        return self.folder / "to_label.csv"

    @property
    def labels_file(self) -> str:
        """Name under which the page saves the labels."""
        return f"labels_cycle_{self.cycle}.csv"

    @property
    def paths(self) -> list[str]:
        return [image.path for image in self.images]

    @property
    def storage_key(self) -> str:
        """Name under which the browser keeps the labels: the same if the same images are asked for again.

        The browser keeps labels by position in the query and number of the class, so the order counts; how the images
        were chosen does not. The index folder's path tells apart two runs that ask for the same images.
        """
        images = [(image.path, image.digest) for image in self.images]
        identity = json.dumps([str(self.folder.parent.resolve()), self.cycle, self.class_names, images])
        return f"ccal-{hashlib.sha256(identity.encode()).hexdigest()[:32]}"

    def is_filled(self) -> bool:
        """Whether the table differs from the one that was written: somebody has put labels into it."""
        return self.table.is_file() and self.table.read_bytes() != format_table(self.images).encode()


def write_query(query: AnnotationQuery, page: str) -> None:
    """Writes a query's files; a table of this cycle that may hold labels is kept under another name.

    The record is written last: a folder without it is left from a command that did not finish.
    """
    earlier = read_query(query.folder.parent, query.cycle)
    if earlier.is_filled() if earlier else query.table.is_file():
        names = (query.folder / f"to_label.replaced{number or ''}.csv" for number in itertools.count())
        kept = next(path for path in names if not path.exists())
        query.table.rename(kept)
        log(f"the table of an earlier query of cycle {query.cycle} is kept as {kept}")
    record = query.folder / RECORD
    record.unlink(missing_ok=True)
    for path, text in ((query.page, page), (query.table, format_table(query.images))):
        with atomic_write(path) as file:
            file.write(text.encode())
    fields = dataclasses.asdict(query)
    del fields["folder"]
    write_json(record, {"format_version": FORMAT_VERSION, **fields})


def read_query(index_folder: Path, cycle: int) -> AnnotationQuery | None:
    """The query of a cycle; None if there is no record of one.

    Raises:
        InputError: The record is damaged.
    """
    folder = index_path(index_folder, cycle).with_suffix("")
    path = folder / RECORD
    if not path.is_file():
        return None
    content = read_json(path)
    checks = {
        "format_version": lambda value: value == FORMAT_VERSION,
        "cycle": lambda value: value == cycle,
        "after": is_text,
        "class_names": lambda value: isinstance(value, list) and all(map(is_text, value)),
        "strategy": is_text,
        "settings": lambda value: isinstance(value, dict),
        "seconds": is_number,
        "images": lambda value: isinstance(value, list) and all(_is_image(v, content["class_names"]) for v in value),
    }
    check_fields(path, content, checks, remedy=f"restore it, or move the folder {folder} away to query anew")
    fields = {name: content[name] for name in checks if name != "format_version"}
    return AnnotationQuery(folder, **fields | {"images": [QueriedImage(**image) for image in content["images"]]})


def _is_image(value: Any, class_names: list[str]) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == IMAGE_FIELDS
        and is_text(value["path"])
        and is_text(value["digest"])
        and value["suggestion"] in (None, *class_names)
        and all(value[name] is None or is_number(value[name]) for name in ("joint", "semantic", "distinctive"))
    )
