"""The report as HTML: one file with all that it shows, without scripts, and without a reference to anything outside.

All text is escaped here; the sections hand in plain text.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from evals.report.panels import Panel

STYLE = Path(__file__).parent / "templates" / "report.css"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
THUMBNAIL = 64  # pixels of a side, at most
LONG = 40  # characters of a table's cell, beyond which its lines are broken
Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Rows below a heading; numbers are aligned to the right, None is a dash."""

    heading: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass
class Section:
    """One part of the page.

    Attributes:
        title: Its heading.
        parts: Its HTML.
        pictures: Files for the folder beside the page, by name.
    """

    title: str
    parts: list[str] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)

    def say(self, text: str) -> None:
        """A paragraph."""
        self.parts.append(f"<p>{escape(text)}</p>")

    def miss(self, text: str) -> None:
        """A paragraph on something that is not there."""
        self.parts.append(f'<p class="missing">{escape(text)}</p>')

    def head(self, text: str, level: int = 3) -> None:
        """A heading within the section."""
        self.parts.append(f"<h{level}>{escape(text)}</h{level}>")

    def table(self, table: Table) -> None:
        """A table that is always shown."""
        self.parts.append(table_html(table))

    def fold(self, summary: str, table: Table) -> None:
        """A table that opens with a click."""
        self.parts.append(_folded(summary, table))

    def figures(self, figures: Sequence[Figure]) -> None:
        """Figures side by side where there is room."""
        self.parts.append(f'<div class="panels">{"".join(map(figure_html, figures))}</div>')
        self.pictures |= {f"{figure.panel.name}.png": figure.panel.png for figure in figures}

    def thumbnails(self, name: str, pictures: Sequence[Thumbnail]) -> None:
        """Small images in rows, and the same as one png."""
        self.parts.append(f'<ul class="thumbs">{"".join(map(_thumbnail_html, pictures))}</ul>')
        self.pictures[f"{name}.png"] = mosaic([picture.image for picture in pictures])


@dataclass(frozen=True)
class Figure:
    """A panel on the page.

    Attributes:
        panel: The drawing.
        caption: Above it.
        alt: What one sees, for those who do not.
        table: The values behind it.
    """

    panel: Panel
    caption: str
    alt: str
    table: Table


@dataclass(frozen=True)
class Thumbnail:
    """A small image: uint8 (H, W, 3), the words below it, and whether it is to stand out as wrong."""

    image: np.ndarray
    words: str
    wrong: bool = False


def escape(text: object) -> str:
    """Text as HTML; what has no place in a page (control characters, lone surrogates) is replaced."""
    plain = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in str(text))
    return html.escape(plain, quote=True)


def shown(value: Cell) -> str:
    """A cell's text: a number with four places that say something, or all those of its whole part."""
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, float):
        size = abs(value)
        return f"{value:.2f}" if 1 <= size < 1000 else f"{value:.1f}" if 1000 <= size < 1e9 else f"{value:.4g}"
    return str(value)


def table_html(table: Table) -> str:
    """A table that scrolls within itself where the page is narrow."""
    numeric = [any(isinstance(row[place], (int, float)) for row in table.rows) for place in range(len(table.heading))]
    marks = [' class="number"' if flag else "" for flag in numeric]
    head = "".join(f"<th{mark}>{escape(text)}</th>" for mark, text in zip(marks, table.heading, strict=True))
    rows = (
        f"<tr>{''.join(_cell(cell, mark) for cell, mark in zip(row, marks, strict=True))}</tr>" for row in table.rows
    )
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="scroll" tabindex="0"><table>{body}</table></div>'


def _cell(value: Cell, mark: str) -> str:
    text = shown(value)
    kind = ' class="long"' if len(text) > LONG else mark
    return f"<td{kind}>{escape(text)}</td>"


def _folded(summary: str, table: Table) -> str:
    return f"<details><summary>{escape(summary)}</summary>{table_html(table)}</details>"


def figure_html(figure: Figure) -> str:
    """A drawing, its caption, and its values."""
    svg = figure.panel.svg.replace("<svg", f'<svg role="img" aria-label="{escape(figure.alt)}"', 1)
    caption = f"<figcaption>{escape(figure.caption)}</figcaption>"
    return f"<figure>{caption}{svg}{_folded('The values', figure.table)}</figure>"


def _thumbnail_html(picture: Thumbnail) -> str:
    mark = ' class="wrong"' if picture.wrong else ""
    words = escape(picture.words)
    return f'<li{mark}><img alt="{words}" src="{data_uri(thumbnail(picture.image))}">{words}</li>'


def thumbnail(image: np.ndarray) -> Image.Image:
    """An image, uint8 (H, W, 3), at THUMBNAIL pixels if it is larger."""
    small = Image.fromarray(image)
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return small


def data_uri(image: Image.Image) -> str:
    """An image within the page."""
    return f"data:image/png;base64,{base64.b64encode(png_bytes(image)).decode()}"


def png_bytes(image: Image.Image) -> bytes:
    """An image as a png file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def mosaic(images: Sequence[np.ndarray]) -> bytes:
    """Images of one size side by side, as a png file."""
    small = [thumbnail(image).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.NEAREST) for image in images]
    sheet = Image.new("RGB", (len(small) * (THUMBNAIL + 2) - 2, THUMBNAIL), "white")
    for place, image in enumerate(small):
        sheet.paste(image, (place * (THUMBNAIL + 2), 0))
    return png_bytes(sheet)


def page_html(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The whole page."""
    links = "".join(
        f'<li><a href="#part-{number}">{escape(section.title)}</a></li>' for number, section in enumerate(sections)
    )
    body = "".join(
        f'<section aria-labelledby="part-{number}"><h2 id="part-{number}">{escape(section.title)}</h2>'
        f"{''.join(section.parts)}</section>\n"
        for number, section in enumerate(sections)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE.read_text()}</style>\n</head>\n<body>\n"
        f'<header><h1>{escape(title)}</h1><p class="quiet">{escape(lead)}</p></header>\n'
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n<main>\n{body}</main>\n</body>\n</html>\n'
    )
