"""Panels of the report: one small figure each, as SVG that takes the colours of the page around it, and as PNG."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 5.2, 3.4  # inches; small enough for their text to stay readable on a screen of 400 pixels
LEGEND_ROW = 0.27  # inches
LEGEND_MARK = 30  # square points
INK = "#010203"  # of text and axes: black on paper; on the page it becomes the colour of the text there
# Each has a contrast of at least 3 with white and with the page's dark ground.
BLUE, ORANGE, GREEN, PURPLE, RED, TEAL, GREY = (
    "#3b82c4", "#d9722e", "#2f9464", "#9a6fd0", "#d64562", "#1591a3", "#808a94",
)  # fmt: skip
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, RED, TEAL, "#a3811f", "#c05fa8", "#6f8f2f", "#4f6fe0")
STYLE: dict[str, Any] = {
    "font.size": 11,
    "text.color": INK,
    "text.parse_math": False,  # names come from files, and $ is nothing special there
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.markersize": 5,
    "svg.hashsalt": "ccal",
    "svg.fonttype": "path",
}


@dataclass(frozen=True)
class Panel:
    """One figure, twice.

    Attributes:
        name: Of its file, and the prefix of the ids in its svg.
        svg: An <svg> element without outside references; text and axes have the colour ``currentColor``.
        png: The same on white.
    """

    name: str
    svg: str
    png: bytes


def draw_panel(name: str, draw: Callable[[Axes], None], *, height: float = HEIGHT) -> Panel:
    """Draws one figure; what has a label gets a legend below the axes, where it covers nothing.

    Args:
        name: See Panel; letters, digits, - and _.
        draw: Draws into the axes.
        height: In inches, without the legend.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in another script; tables have it
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        handles, labels = axes.get_legend_handles_labels()
        if handles:
            columns = legend_columns(labels)
            figure.set_size_inches(WIDTH, height + LEGEND_ROW * -(-len(handles) // columns))
            legend = figure.legend(handles, labels, loc="outside lower left", ncols=columns)
            for mark in legend.legend_handles:
                if hasattr(mark, "set_sizes"):  # of a scatter plot, whose points may be tiny
                    mark.set_sizes([LEGEND_MARK])
        png, svg = io.BytesIO(), io.StringIO()
        FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})
        figure.patch.set_alpha(0)
        FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None})
    return Panel(name, inline_svg(svg.getvalue(), prefix=name), png.getvalue())


def legend_columns(labels: list[str]) -> int:
    """As many as fit beside each other below the axes."""
    longest = max(map(len, labels))
    return 1 if longest > 24 else 2 if longest > 13 else 3


def series_label(text: str, limit: int = 44) -> str:
    """A name as a legend's entry: not too long, and with a space before an underscore, which would hide it."""
    text = text if len(text) <= limit else f"{text[: limit - 1]}…"
    return f" {text}" if text.startswith("_") else text


def inline_svg(text: str, *, prefix: str) -> str:
    """What of an svg file belongs into a page: the element with ids of its own, without metadata and namespaces.

    Args:
        text: Of the file, as matplotlib writes it.
        prefix: Of every id, so that the figures of one page do not meet.
    """
    view = re.search(r'viewBox="[^"]*"', text)[0]
    text = text[text.index(">", text.index("<svg")) + 1 :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = text.replace("xlink:href=", "href=").replace('href="#', f'href="#{prefix}-')
    text = text.replace("url(#", f"url(#{prefix}-")
    return f"<svg {view}>{text.replace(INK, 'currentColor').strip()}"


def draw_curves(
    axes: Axes,
    curves: list[dict[str, Any]],
    *,
    xlabel: str,
    ylabel: str,
    percent: bool = False,
    whole: bool = False,
) -> None:
    """Lines with markers, and error bars where there are deviations.

    Args:
        axes: To draw into.
        curves: Of each ``name``, ``points`` (x, y) or (x, y, deviation or None), and optionally ``color`` and
            ``dashed``; one without points is left out.
        xlabel: Of the horizontal axis.
        ylabel: Of the vertical one.
        percent: Whether the vertical axis is 0 to 100 %.
        whole: Whether the horizontal ticks are whole numbers.
    """
    from matplotlib.ticker import MaxNLocator

    longest = max((len(curve["points"]) for curve in curves), default=0)
    for number, curve in enumerate(curve for curve in curves if curve["points"]):
        x, y, *deviations = zip(*curve["points"], strict=True)
        bars = [np.nan if value is None else value for value in deviations[0]] if deviations else None
        axes.errorbar(
            x,
            y,
            yerr=bars,
            marker="" if longest > 30 else "s" if curve.get("dashed") else "o",
            linestyle="--" if curve.get("dashed") else "-",
            color=curve.get("color") or PALETTE[number % len(PALETTE)],
            capsize=3,
            label=series_label(curve["name"]),
        )
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if percent:
        axes.set_ylim(0, 104)
    if whole:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
