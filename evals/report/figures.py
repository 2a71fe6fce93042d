"""The drawings of the report that show single images: histograms, scatter plots and maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evals.report.panels import BLUE, GREY, INK, ORANGE, PALETTE, RED, Panel, draw_panel, series_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 40
DPI = 160  # of the points of a scatter plot, which are pixels within the drawing


@dataclass(frozen=True)
class Points:
    """A group of images in a plane.

    Attributes:
        name: In the legend.
        x: (n,).
        y: (n,).
        color: Of its marks.
        ring: Whether the marks are rings, which other marks show through.
        small: Whether they are small: the background.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    color: str
    ring: bool = False
    small: bool = False


def histogram_panel(
    name: str, groups: Mapping[str, tuple[np.ndarray, str]], *, xlabel: str, borders: Sequence[float] = ()
) -> Panel:
    """How many images of several groups have which score, and a line at each border.

    Args:
        name: See draw_panel.
        groups: By name, finite values and a colour.
        xlabel: The score's name.
        borders: The smallest queried value of each class.
    """
    values = np.concatenate([part for part, _ in groups.values()]).astype(np.float64)
    low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
    bins = np.linspace(low, max(high, low + 1e-6 * max(1, abs(low))), BINS + 1)

    def draw(axes: Axes) -> None:
        for label, (part, color) in groups.items():
            if len(part):
                entry = series_label(f"{label} ({len(part)})")
                axes.hist(part, bins=bins, histtype="stepfilled", color=color, alpha=0.25)
                axes.hist(part, bins=bins, histtype="step", linewidth=1.6, color=color, label=entry)
        for border in borders:
            axes.axvline(border, color=INK, linestyle="--", linewidth=1)
        axes.set(xlabel=xlabel, ylabel="images (logarithmic)", yscale="log")
        axes.set_ylim(bottom=0.7)
        axes.yaxis.set_major_formatter("{x:g}")

    return draw_panel(name, draw)


def scatter_panel(
    name: str,
    groups: Sequence[Points],
    *,
    xlabel: str,
    ylabel: str,
    border: float | None = None,
    bare: bool = False,
    height: float = 3.8,
) -> Panel:
    """Groups of images in a plane, and the line on which x + y is the border.

    Args:
        name: See draw_panel.
        groups: Drawn one over the other; empty ones are left out.
        xlabel: Of the horizontal axis.
        ylabel: Of the vertical one.
        border: None for no line.
        bare: Whether the axes mean nothing and get no ticks.
        height: In inches.
    """

    def draw(axes: Axes) -> None:
        for group in groups:
            if not len(group.x):
                continue
            marks = {"facecolors": "none", "edgecolors": group.color, "linewidths": 1.0, "s": 26}
            if not group.ring:
                size = 9 if group.small else 14
                marks = {"color": group.color, "linewidths": 0, "s": size, "alpha": 0.8}
            label = series_label(f"{group.name} ({len(group.x)})")
            axes.scatter(group.x, group.y, label=label, rasterized=True, **marks)
        if border is not None:
            limits = axes.get_xlim(), axes.get_ylim()
            ends = np.asarray(limits[0])
            axes.plot(ends, border - ends, color=INK, linestyle="--", linewidth=1.2, label="smallest queried value")
            axes.set(xlim=limits[0], ylim=limits[1])
        axes.set(xlabel=xlabel, ylabel=ylabel)
        if bare:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)

    return draw_panel(name, draw, height=height)


def class_points(
    positions: np.ndarray, labels: np.ndarray, names: Sequence[str], targets: Sequence[int]
) -> list[Points]:
    """Images coloured by class: target classes first in the palette, then others while colours last; the rest is grey.

    Args:
        positions: (n, 2).
        labels: Data set classes, below 0 where unknown, (n,).
        names: Of all classes.
        targets: Target classes.
    """
    order = [*targets, *(label for label in np.unique(labels[labels >= 0]).tolist() if label not in targets)]
    own = order[: len(PALETTE)]
    rest = np.isin(labels, order[len(PALETTE) :])
    groups = [("further classes", rest), ("not annotated", labels < 0)]
    background = [Points(name, *positions[mask].T, GREY, small=True) for name, mask in groups]
    colored = [
        Points(
            f"{names[label]}, target" if label in targets else names[label],
            *positions[labels == label].T,
            color,
            small=label not in targets,
        )
        for label, color in zip(own, PALETTE, strict=False)
    ]
    return background + colored[len(targets) :] + colored[: len(targets)]


def fate_points(positions: np.ndarray, fates: Mapping[str, np.ndarray]) -> list[Points]:
    """Images coloured by what became of them; (n, 2) and by name (n,) masks, drawn in that order."""
    colors = {"not queried": GREY, "labeled at the start": INK, "queried, target": BLUE, "queried, other": RED}
    return [
        Points(name, *positions[mask].T, colors.get(name, ORANGE), small=name == "not queried")
        for name, mask in fates.items()
    ]
