"""Figures in one style: png files, and panels of a page, which are SVG in the colours of the page around them."""

from __future__ import annotations

import contextlib
import io
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from common.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 5.2, 3.4  # inches; small enough for their text to stay readable on a screen of 400 pixels
LEGEND_ROW = 0.27  # inches
LEGEND_MARK = 30  # square points
BINS = 40
SVG_DPI = 160  # of the points of a scatter plot, which are pixels within the drawing
INK = "#010203"  # of text and axes: black on paper; on the page it becomes the colour of the text there
# Each has a contrast of at least 3 with white and with the page's dark ground.
BLUE, ORANGE, GREEN, PURPLE, RED, TEAL = "#3b82c4", "#d9722e", "#2f9464", "#9a6fd0", "#d64562", "#1591a3"
GREY = "#808a94"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, RED, TEAL, "#a3811f", "#c05fa8", "#6f8f2f", "#4f6fe0")
INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
STYLE: dict[str, Any] = {
    **dict.fromkeys(INKED, INK),
    **{"axes.facecolor": "none", "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True},
    **{"axes.grid": True, "grid.alpha": 0.15, "legend.frameon": False, "lines.markersize": 5},
    **{"font.size": 11, "legend.fontsize": 10, "svg.hashsalt": "ccal", "svg.fonttype": "path"},
    "text.parse_math": False,  # names come from files, and $ is nothing special there
}


@dataclass(frozen=True)
class Curve:
    """A line with markers; points are (x, y) or (x, y, deviation or None). Without a name it is not in the legend."""

    name: str
    points: Sequence[tuple[float, ...]]
    color: str | None = None
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """One figure, twice."""

    name: str  # of its file, and the prefix of the ids in its svg
    svg: str  # an <svg> element without outside references; text and axes have the colour ``currentColor``
    png: bytes  # the same on white


def draw_panel(name: str, draw: Callable[[Axes], None], *, height: float = HEIGHT) -> Panel:
    """Draws one figure for a page; its name has letters, digits, - and _, its height (inches) is without the legend."""
    png, svg = io.BytesIO(), io.StringIO()
    with _styled_figure([draw], height=height) as figure:
        figure.savefig(png, format="png", metadata={"Software": None})
        figure.savefig(svg, format="svg", metadata={"Date": None}, transparent=True, dpi=SVG_DPI)
    return Panel(name, inline_svg(svg.getvalue(), prefix=name), png.getvalue())


@contextlib.contextmanager
def _styled_figure(
    draws: Sequence[Callable[[Axes], None]], *, height: float = HEIGHT, title: str = ""
) -> Iterator[Figure]:
    """Axes side by side; what has a label gets a legend below them, where it covers nothing."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in another script
        figure = Figure(figsize=(WIDTH * len(draws), height), layout="constrained")
        figure.suptitle(title, fontsize="small") if title else None
        every = [figure.add_subplot(1, len(draws), place) for place in range(1, len(draws) + 1)]
        for axes, draw in zip(every, draws):
            draw(axes)
        entries = [pair for axes in every for pair in zip(*axes.get_legend_handles_labels())]
        if entries:
            handles, labels = zip(*entries)
            columns = legend_columns(labels)
            figure.set_figheight(height + LEGEND_ROW * -(-len(labels) // columns))
            legend = figure.legend(handles, labels, loc="outside lower left", ncols=columns)
            for mark in legend.legend_handles:
                if hasattr(mark, "set_sizes"):  # of a scatter plot, whose points may be tiny
                    mark.set_sizes([LEGEND_MARK])
        yield figure


def _save(path: str | os.PathLike, *draws: Callable[[Axes], None], title: str = "") -> None:
    with _styled_figure(draws, title=title) as figure, atomic_write(path) as file:
        figure.savefig(file, format="png", metadata={"Software": None})


def legend_columns(labels: Sequence[str]) -> int:
    """As many as fit beside each other below the axes."""
    longest = max(map(len, labels))
    return 1 if longest > 24 else 2 if longest > 13 else 3


def series_label(text: str, limit: int = 44) -> str:
    """A name as a legend's entry: not too long, and with a space before an underscore, which would hide it."""
    text = text if len(text) <= limit else f"{text[: limit - 1]}…"
    return f" {text}" if text.startswith("_") else text


def inline_svg(text: str, *, prefix: str) -> str:
    """The element of matplotlib's svg file for a page: without metadata and namespaces, each id behind ``prefix``."""
    view = re.search(r'viewBox="[^"]*"', text)[0]
    text = text[text.index(">", text.index("<svg")) + 1 :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = text.replace("xlink:href=", "href=").replace('href="#', f'href="#{prefix}-')
    text = text.replace("url(#", f"url(#{prefix}-")
    return f"<svg {view}>{text.replace(INK, 'currentColor').strip()}"


def draw_curves(
    axes: Axes, curves: Sequence[Curve], *, xlabel: str, ylabel: str, percent: bool = False, whole: bool = False
) -> None:
    """Draws lines with markers, and error bars where there are deviations; a curve without points is left out.

    With ``percent`` the vertical axis runs from 0 to 100 %; with ``whole`` horizontal ticks are whole numbers.
    """
    from matplotlib.ticker import MaxNLocator

    curves = [curve for curve in curves if curve.points]
    for number, curve in enumerate(curves):
        x, y, *deviations = zip(*curve.points, strict=True)
        yerr = [np.nan if value is None else value for value in deviations[0]] if deviations else None
        marker = "" if max(len(curve.points) for curve in curves) > 30 else "s" if curve.dashed else "o"
        look = {"marker": marker, "linestyle": "--" if curve.dashed else "-", "capsize": 3}
        color = curve.color or PALETTE[number % len(PALETTE)]
        axes.errorbar(x, y, yerr, color=color, label=series_label(curve.name) or None, **look)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if percent:
        axes.set_ylim(0, 104)
    if whole:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def draw_histogram(axes: Axes, groups: Mapping[str, np.ndarray], *, xlabel: str, colors: Sequence[str]) -> None:
    """Draws how many images of each group have which value, (n,); values that are not finite are left out."""
    # In double precision: the widths below vanish, and the widest ranges overflow, in single.
    finite = {name: values[np.isfinite(values)].astype(np.float64) for name, values in groups.items()}
    everything = np.concatenate([np.empty(0), *finite.values()])
    low, high = (everything.min(), everything.max()) if len(everything) else (0.0, 1.0)
    bins = np.linspace(low, max(high, low + 1e-6 * max(1, abs(low))), BINS + 1)
    for (name, values), color in zip(finite.items(), colors):
        if len(values):
            label = series_label(f"{name} ({len(values)})")
            axes.hist(values, bins=bins, histtype="stepfilled", color=color, alpha=0.25)
            axes.hist(values, bins=bins, histtype="step", linewidth=1.6, color=color, label=label)
    axes.set(xlabel=xlabel, ylabel="images (logarithmic)", yscale="log")
    axes.set_ylim(bottom=0.7)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")  # its own would write formulas


def plot_accuracy(path: str | os.PathLike, series: Mapping[str, Sequence[tuple[int, float, float | None]]]) -> None:
    """Draws test accuracy into a png file: by name, points (labeled images, mean in percent, deviation or None)."""
    curves = [Curve(name, points) for name, points in series.items()]
    labels = {"xlabel": "labeled images", "ylabel": "test accuracy (%), last epoch"}
    _save(path, lambda axes: draw_curves(axes, curves, **labels))


def plot_histogram(path: str | os.PathLike, groups: Mapping[str, np.ndarray], *, label: str) -> None:
    """Draws one score of several groups of images, (n,) each, into a png file; ``label`` is the score's name."""
    _save(path, lambda axes: draw_histogram(axes, groups, xlabel=label, colors=PALETTE))


def plot_summary(
    path: str | os.PathLike,
    *,
    precision: Mapping[str, Sequence[tuple[int, float]]],
    accuracy: Sequence[tuple[int, float, float | None]],
    published: Sequence[tuple[int, float]] = (),
    title: str = "",
) -> None:
    """Draws query precision by cycle and, where there is any, accuracy by labeled images into a png file.

    Points of ``precision``, by strategy, and ``published`` are (cycle, percent); those of ``accuracy`` (labeled images,
    mean in percent, standard deviation or None).
    """
    curves = [Curve(name, points) for name, points in precision.items()]
    curves.append(Curve("published", published, INK, dashed=True))
    left = {"xlabel": "query cycle", "ylabel": "targets among the queried (%)", "percent": True, "whole": True}
    right = {"xlabel": "labeled target images", "ylabel": "test accuracy (%), last epoch"}
    draws = [lambda axes: draw_curves(axes, curves, **left)]
    if accuracy:
        draws.append(lambda axes: draw_curves(axes, [Curve("", accuracy, GREEN)], **right))
    _save(path, *draws, title=title)
