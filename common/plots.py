"""Figures in one style: png files, and panels of a page, which are SVG in the colours of the page around them."""

from __future__ import annotations

import contextlib
import io
import itertools
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

    Draw = Callable[[Axes], None]

WIDTH, HEIGHT = 5.2, 3.4  # inches; small enough for their text to stay readable on a screen of 400 pixels
LEGEND_ROW = 0.27  # inches
LEGEND_MARK = 30  # square points
BINS = 40
SVG_DPI = 160  # of the points of a scatter plot, which are pixels within the drawing
INK = "#010203"  # of text and axes: black on paper; on the page it becomes the colour of the text there
# Each has a contrast of at least 3 with white and with the page's dark ground.
BLUE, ORANGE, GREEN, PURPLE, RED, TEAL = "#3b82c4", "#d9722e", "#2f9464", "#9a6fd0", "#d64562", "#1591a3"
GREY, TAN = "#808a94", "#9b8a63"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, RED, TEAL, "#a3811f", "#c05fa8", "#6f8f2f", "#4f6fe0")
MARKERS = "osD^vPX<>p"  # one per colour of the palette: classes are told apart without colours, too
DASHES = ("--", ":", "-.", (0, (1, 3)))  # of the borders of a histogram, as many as are drawn
GROUP_COLORS = {"target": BLUE, "other": ORANGE, "queried": INK}  # of what nobody knows: grey
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
    marker: str | None = None  # by default a circle, and a square where it is dashed
    faint: bool = False  # thin, behind the others


@dataclass(frozen=True)
class Panel:
    """One figure, twice."""

    name: str  # of its file, and the prefix of the ids in its svg
    svg: str  # an <svg> element without outside references; text and axes have the colour ``currentColor``
    png: bytes  # the same on white


def draw_panel(name: str, *draws: Draw, height: float = HEIGHT) -> Panel:
    """Draws a page's figure, axes one below the other; the name is of letters, digits, - and _, the height inches."""
    png, svg = io.BytesIO(), io.StringIO()
    with _styled_figure(draws, height=height, columns=1) as figure:
        figure.savefig(png, format="png", metadata={"Software": None})
        figure.savefig(svg, format="svg", metadata={"Date": None}, transparent=True, dpi=SVG_DPI)
    return Panel(name, inline_svg(svg.getvalue(), prefix=name), png.getvalue())


@contextlib.contextmanager
def _styled_figure(draws: Sequence[Draw], *, columns: int, height: float = HEIGHT, title: str = "") -> Iterator[Figure]:
    """Axes in so many columns; what has a label gets an entry in a legend below them, where it covers nothing."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in another script
        figure = Figure(figsize=(WIDTH * columns, height), layout="constrained")
        figure.suptitle(title, fontsize="small") if title else None
        entries: dict[str, Any] = {}
        for place, draw in enumerate(draws, start=1):
            draw(axes := figure.add_subplot(-(-len(draws) // columns), columns, place))
            entries |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels())}
        if entries:
            labels, handles = zip(*entries.items())
            columns = legend_columns(labels)
            figure.set_figheight(height + LEGEND_ROW * -(-len(labels) // columns))
            legend = figure.legend(handles, labels, loc="outside lower left", ncols=columns)
            for mark in legend.legend_handles:
                if hasattr(mark, "set_sizes"):  # of a scatter plot, whose points may be tiny
                    mark.set_sizes([LEGEND_MARK])
        yield figure


def _save(path: str | os.PathLike, *draws: Draw, title: str = "") -> None:
    with _styled_figure(draws, columns=len(draws), title=title) as figure, atomic_write(path) as file:
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
    axes: Axes,
    curves: Sequence[Curve],
    *,
    xlabel: str,
    ylabel: str,
    percent: bool = False,
    whole: bool = False,
    bands: bool = False,
) -> None:
    """Draws lines with markers, and error bars or bands where there are deviations; no curve without points.

    With ``percent`` the vertical axis runs from 0 to 100 %; with ``whole`` horizontal ticks are whole numbers.
    """
    from matplotlib.ticker import MaxNLocator

    curves = [curve for curve in curves if curve.points]
    for number, curve in enumerate(curves):
        x, y, *deviations = zip(*curve.points, strict=True)
        yerr = [np.nan if value is None else value for value in deviations[0]] if deviations else None
        marker = curve.marker if curve.marker is not None else "s" if curve.dashed else "o"
        marker = "" if curve.faint or max(len(curve.points) for curve in curves) > 30 else marker
        look = {"marker": marker, "linestyle": "--" if curve.dashed else "-", "capsize": 3}
        look |= {"linewidth": 0.7, "zorder": 1} if curve.faint else {}
        color = curve.color or PALETTE[number % len(PALETTE)]
        if bands and yerr:
            spread = np.nan_to_num(yerr) * (not curve.faint)
            axes.fill_between(x, y - spread, y + spread, color=color, alpha=0.15, linewidth=0)
            yerr = None
        axes.errorbar(x, y, yerr, color=color, label=None if curve.faint else series_label(curve.name) or None, **look)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if percent:
        axes.set_ylim(0, 104)
    if whole:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def draw_dots(axes: Axes, dots: Sequence[Curve], *, xlabel: str, ylabel: str) -> None:
    """Draws curves of one point (x, y, its deviations or None), with error bars both ways and a name beside each.

    Names stand as near as they can without covering dots, other names and, if possible, error bars; the first come
    first.
    """
    from matplotlib.transforms import Bbox

    for dot in dots:
        [(x, y, xerr, yerr)] = dot.points
        look = {"color": dot.color, "marker": dot.marker or "o", "elinewidth": 0.6 if dot.faint else 1, "capsize": 2}
        axes.errorbar(x, y, xerr=xerr, yerr=yerr, **look, zorder=2 if dot.faint else 3)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.margins(0.15, 0.1)
    axes.figure.draw_without_rendering()  # from here on it is known where the points are
    spots = np.array([dot.points[0][:2] for dot in dots])
    reach = np.array([[error or 0 for error in dot.points[0][2:]] for dot in dots])
    ends = [axes.transData.transform(ends) * 72 / axes.figure.dpi for ends in (spots - reach, spots, spots + reach)]
    taken, bars = [], []  # boxes in points
    for low, middle, high in zip(*ends):
        taken.append(Bbox([middle - 5, middle + 5]))
        bars += [Bbox([(low[0], middle[1]), (high[0], middle[1])]), Bbox([(middle[0], low[1]), (middle[0], high[1])])]
    frame = axes.bbox.get_points() * 72 / axes.figure.dpi
    for dot, spot in zip(dots, ends[1]):
        points, name, found = 7 if dot.faint else 9, series_label(dot.name), []
        size = np.array([0.3 * len(name), 0.6]) * points  # half of what it takes, about
        for distance, angle in itertools.product((9, 13, 20, 30, 42, 56, 72), np.arange(16) * np.pi / 8):
            shift = (size + distance - 2) * [np.cos(angle), np.sin(angle)]
            own = Bbox([spot + shift - size, spot + shift + size])
            hidden = own.count_overlaps(taken) + (own.min < frame[0]).any() + (own.max > frame[1]).any()
            found.append((100 * hidden + 8 * own.count_overlaps(bars) + distance, len(found), shift, own))
        *_, shift, own = min(found)
        taken.append(own)
        line = {"arrowstyle": "-", "color": dot.color, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3}
        look = {"color": dot.color, "fontsize": points, "ha": "center", "va": "center", "arrowprops": line}
        text = axes.annotate(name, dot.points[0][:2], shift, textcoords="offset points", **look)
        text.set_in_layout(False)


def histogram_draws(groups: Mapping[str, np.ndarray], *, xlabel: str, borders: Mapping | None = None) -> list[Draw]:
    """What draws how many images of each group have which value, (n,), finite ones only, and a line at each border.

    All groups are counted in the same bins on one axis that starts at 0, so that a rare group looks rare. Where the
    group "queried" would hardly be seen, the same is drawn again, cut off above its bars.
    """
    # In double precision: the widths below vanish, and the widest ranges overflow, in single.
    finite = {name: values[np.isfinite(values)].astype(np.float64) for name, values in groups.items()}
    everything = np.concatenate([np.empty(0), *finite.values()])
    low, high = (everything.min(), everything.max()) if len(everything) else (0.0, 1.0)
    bins = np.linspace(low, max(high, low + 1e-6 * max(1, abs(low))), BINS + 1)
    counts = {name: np.histogram(values, bins)[0] for name, values in finite.items() if len(values)}
    tallest, queried = max((count.max() for count in counts.values()), default=0), counts.get("queried", bins[:0])

    def draw(axes: Axes, top: float | None = None) -> None:
        for name, count in counts.items():
            look = {"color": GROUP_COLORS.get(name, GREY), "label": series_label(f"{name} ({count.sum()})")}
            axes.stairs(count, bins, fill=name != "queried", alpha=0.3, color=look["color"])
            axes.stairs(count, bins, linewidth=1.6, **look)
        for dashes, (name, border) in zip(DASHES, (borders or {}).items()):
            axes.axvline(border, color=INK, linestyle=dashes, linewidth=1, label=series_label(f"border: {name}"))
        axes.set(xlabel=xlabel, ylabel="images")
        axes.set_ylim(0, top)
        axes.yaxis.set_major_formatter("{x:,.0f}")

    return [draw, lambda axes: draw(axes, 1.1 * queried.max())] if 0 < 2 * max(queried, default=0) < tallest else [draw]


def plot_accuracy(
    path: str | os.PathLike,
    series: Mapping[str, Sequence[tuple[int, float, float | None]]],
    *,
    xlabel: str = "labeled images",
    ylabel: str = "test accuracy (%), last epoch",
) -> None:
    """Draws test accuracy into a png file: by name, points (labeled images, mean in percent, deviation or None)."""
    curves = [Curve(name, points) for name, points in series.items()]
    _save(path, lambda axes: draw_curves(axes, curves, xlabel=xlabel, ylabel=ylabel))


def plot_histogram(path: str | os.PathLike, groups: Mapping[str, np.ndarray], *, label: str) -> None:
    """Draws one score of several groups of images, (n,) each, into a png file; ``label`` is the score's name."""
    _save(path, *histogram_draws(groups, xlabel=label))


def plot_summary(
    path: str | os.PathLike,
    *,
    precision: Mapping[str, Sequence[tuple[int, float]]],
    accuracy: Mapping[str, Sequence[tuple[int, float, float | None]]],
    published: Sequence[tuple[int, float]] = (),
    title: str = "",
) -> None:
    """Draws query precision by cycle and, where there is any, accuracy by images annotated into a png file.

    Points of ``precision``, by strategy, and ``published`` are (cycle, percent); those of ``accuracy`` (images shown to
    the annotator, mean in percent, standard deviation or None).
    """
    curves = [Curve(name, points) for name, points in precision.items()]
    curves.append(Curve("published", published, INK, dashed=True))
    left = {"xlabel": "query cycle", "ylabel": "targets among the queried (%)", "percent": True, "whole": True}
    right = {"xlabel": "images annotated, others included", "ylabel": "test accuracy (%), last epoch"}
    measured = [Curve(name, points, color) for (name, points), color in zip(accuracy.items(), PALETTE)]
    draws = [lambda axes: draw_curves(axes, curves, **left)]
    if any(accuracy.values()):
        draws.append(lambda axes: draw_curves(axes, measured, **right))
    _save(path, *draws, title=title)
