"""What was left out of a folder of images, or is used otherwise than one would expect: in the log and as a list."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from common.console import log
from common.files import atomic_write
from datasets.folder.cache import Index

REPORT = "report.csv"


def announce(index: Index, *, size: int, folder: Path) -> None:
    """Says where the images are and what was left out, by reason, and lists all of it in report.csv."""
    log(f"images of {size}x{size} pixels in {folder}")
    rows = [(item.path, f"left out, {_joined(item.problem, item.detail)}") for item in index.left_out]
    rows += [(entry.path, f"used, {entry.detail}") for entry in index.entries if entry.detail]
    if index.left_out:
        log(f"left out: {_counted(item.problem for item in index.left_out)}; listed in {folder / REPORT}")
    if len(rows) > len(index.left_out):
        log(f"used: {_counted(entry.detail for entry in index.entries if entry.detail)}; listed in {folder / REPORT}")
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([("path", "reason"), *rows])
    content = text.getvalue().encode("utf-8", "backslashreplace")
    if os.access(folder, os.W_OK) and not ((folder / REPORT).is_file() and (folder / REPORT).read_bytes() == content):
        with atomic_write(folder / REPORT) as file:
            file.write(content)


def _joined(problem: str, detail: str) -> str:
    return f"{problem}: {detail}" if detail else problem


def _counted(reasons: Iterable[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in Counter(reasons).most_common())
