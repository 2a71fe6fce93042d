"""The report as one HTML file without scripts and outside references; the sections' plain text is escaped here."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image

from common.plots import Panel

TEMPLATES = Path(__file__).parent / "templates"
LONG = 40  # characters of a table's cell, beyond which its lines are broken
MOSAIC = 64  # pixels of an image in a row of images, about


@dataclass(frozen=True)
class Marked:
    """A number as text, in an element of HTML: b, u, or "" where it is nothing special."""

    text: str
    element: str

    def __str__(self) -> str:
        return self.text


Cell = str | int | float | Marked | None


@dataclass(frozen=True)
class Table:
    """Rows below a heading; numbers are aligned to the right, None is a dash."""

    heading: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Figure:
    """A panel on the page."""

    panel: Panel
    caption: str  # above it
    alt: str  # what one sees, for those who do not
    table: Table  # the values behind it


@dataclass(frozen=True)
class Thumbnail:
    """A small image."""

    image: np.ndarray  # uint8 (H, W, 3)
    words: str  # below it
    wrong: bool = False  # whether it is to stand out


@dataclass
class Section:
    """One part of the page."""

    title: str
    parts: list[str] = field(default_factory=list)  # HTML
    pictures: dict[str, bytes] = field(default_factory=dict)  # files for the folder beside the page, by name

    def say(self, text: str) -> None:
        self.parts.append(f"<p>{escape(text)}</p>")

    def miss(self, text: str) -> None:
        """Adds a paragraph on something that is not there."""
        self.parts.append(f'<p class="missing">{escape(text)}</p>')

    def head(self, text: str, level: int = 3) -> None:
        self.parts.append(f"<h{level}>{escape(text)}</h{level}>")

    def table(self, table: Table, *, summary: str = "") -> None:
        """Adds a table; one with a summary opens with a click."""
        self.parts.append(table_html(table, summary=summary))

    def figures(self, figures: Sequence[Figure]) -> None:
        """Adds figures side by side where there is room, each with its values, and as png files."""
        self.parts.append('<div class="panels">')
        for figure in figures:
            svg = figure.panel.svg.replace("<svg", f'<svg role="img" aria-label="{escape(figure.alt)}"', 1)
            drawing = f"<figcaption>{escape(figure.caption)}</figcaption>{svg}"
            self.parts.append(f"<figure>{drawing}{table_html(figure.table, summary='The values')}</figure>")
            self.pictures[f"{figure.panel.name}.png"] = figure.panel.png
        self.parts.append("</div>")

    def thumbnails(self, name: str, thumbnails: Sequence[Thumbnail]) -> None:
        """Adds small images of one size in rows, and the same as one png."""
        self.parts.append('<ul class="thumbs">')
        for thumbnail in thumbnails:
            mark, words = ' class="wrong"' if thumbnail.wrong else "", escape(thumbnail.words)
            data = base64.b64encode(png_bytes(thumbnail.image)).decode()
            self.parts.append(f'<li{mark}><img alt="{words}" src="data:image/png;base64,{data}">{words}</li>')
        self.parts.append("</ul>")
        self.pictures[f"{name}.png"] = mosaic([thumbnail.image for thumbnail in thumbnails])


def escape(text: object) -> str:
    """Text as HTML; what has no place in a page (control characters, lone surrogates) is replaced."""
    return html.escape("".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in str(text)), quote=True)


def shown(value: Cell) -> str:
    """A cell's text: a number with four places that say something, or all those of its whole part."""
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, float):
        size = abs(value)
        return f"{value:.2f}" if 1 <= size < 1000 else f"{value:.1f}" if 1000 <= size < 1e9 else f"{value:.4g}"
    return str(value)


def table_html(table: Table, *, summary: str = "") -> str:
    """A table that scrolls within itself where the page is narrow; one with a summary opens with a click."""
    columns = [[row[place] for row in table.rows] for place in range(len(table.heading))]
    marks = [
        ' class="number"' if any(isinstance(v, (int, float, Marked)) for v in column) else "" for column in columns
    ]
    head = "".join(f"<th{mark}>{escape(text)}</th>" for mark, text in zip(marks, table.heading, strict=True))
    body = ""
    for row in table.rows:
        cells = [(shown(cell), mark) for cell, mark in zip(row, marks, strict=True)]
        cells = [(escape(text), ' class="long"' if len(text) > LONG else mark) for text, mark in cells]
        tags = [cell.element if isinstance(cell, Marked) else "" for cell in row]
        cells = [(f"<{tag}>{text}</{tag}>" if tag else text, mark) for tag, (text, mark) in zip(tags, cells)]
        body += f"<tr>{''.join(f'<td{mark}>{text}</td>' for text, mark in cells)}</tr>"
    content = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    content = f'<div class="scroll" tabindex="0">{content}</div>'
    return f"<details><summary>{escape(summary)}</summary>{content}</details>" if summary else content


def png_bytes(image: np.ndarray) -> bytes:
    """An image, uint8 (H, W, 3), as a png file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def mosaic(images: Sequence[np.ndarray]) -> bytes:
    """Images of one size, uint8 (H, W, 3), side by side as a png file, small ones enlarged."""
    scale = max(1, MOSAIC // max(images[0].shape[:2]))
    images = [image.repeat(scale, axis=0).repeat(scale, axis=1) for image in images]
    gap = np.full((len(images[0]), 2, 3), 255, dtype=np.uint8)
    return png_bytes(np.hstack([part for image in images for part in (gap, image)][1:]))


def page_html(title: str, lead: str, sections: Sequence[Section], *, first: Sequence[str] = ()) -> str:
    """The whole page; the sentences that one is to read ``first`` stand below its title."""
    links = body = ""
    for number, section in enumerate(sections):
        heading, content = escape(section.title), "".join(section.parts)
        links += f'<li><a href="#part-{number}">{heading}</a></li>'
        body += f'<section aria-labelledby="part-{number}"><h2 id="part-{number}">{heading}</h2>{content}</section>\n'
    lines = "".join(f'<p class="first">{escape(text)}</p>' for text in first) + f'<p class="quiet">{escape(lead)}</p>'
    template = Template((TEMPLATES / "report.html").read_text())
    style = (TEMPLATES / "report.css").read_text()
    return template.substitute(title=escape(title), lead=lines, style=style, links=links, body=body)
