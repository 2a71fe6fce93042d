"""Figures, drawn without a display and written in one piece."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from common.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_accuracy(path: str | os.PathLike, series: Mapping[str, Sequence[tuple[int, float, float | None]]]) -> None:
    """Draws test accuracy against the number of labeled images, one curve with error bars per series.

    Args:
        path: The png file.
        series: Per name its points (labeled images, mean accuracy in percent, standard deviation in percentage
            points, or None for a single run, which gets no bar).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, points in series.items():
        if not points:
            continue
        labeled, means, deviations = zip(*points, strict=True)
        bars = [float("nan") if deviation is None else deviation for deviation in deviations]
        axes.errorbar(labeled, means, yerr=bars, marker="o", capsize=3, label=name)
    axes.set_xlabel("labeled images")
    axes.set_ylabel("test accuracy (%), last epoch")
    axes.grid(alpha=0.3)
    if any(series.values()):
        axes.legend()
    _save(figure, path)


def plot_histogram(path: str | os.PathLike, groups: Mapping[str, np.ndarray], *, label: str) -> None:
    """Draws the density of one score for several groups of images; values that are not finite are left out.

    Args:
        path: The png file.
        groups: Values by group name, (n,) each.
        label: Of the horizontal axis.
    """
    from matplotlib.figure import Figure

    # In double precision: the widths below vanish, and the widest ranges overflow, in single.
    finite = {name: values[np.isfinite(values)].astype(np.float64) for name, values in groups.items()}
    everything = np.concatenate([np.empty(0), *finite.values()])
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    if len(everything):
        low, high = everything.min(), everything.max()
        bins = np.linspace(low, max(high, low + 1e-6 * max(1, abs(low))), 61)
        for name, values in finite.items():
            if len(values):
                axes.hist(
                    values, bins=bins, density=True, histtype="step", linewidth=1.5, label=f"{name} ({len(values)})"
                )
        axes.legend()
    axes.set_xlabel(label)
    axes.set_ylabel("density")
    _save(figure, path)


def plot_summary(
    path: str | os.PathLike,
    *,
    precision: Mapping[str, Sequence[tuple[int, float]]],
    accuracy: Sequence[tuple[int, float, float | None]],
    published: Sequence[tuple[int, float]] = (),
    title: str = "",
) -> None:
    """Draws query precision by cycle beside, where there is any, accuracy by number of labeled images.

    Args:
        path: The png file.
        precision: Per strategy its points (cycle, precision in percent).
        accuracy: Points (labeled images, mean accuracy in percent, standard deviation or None).
        published: Points (cycle, precision in percent) to compare with, drawn dashed.
        title: Above both.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10 if accuracy else 5.5, 4), layout="constrained")
    if title:
        figure.suptitle(title, fontsize="small")
    axes = figure.add_subplot(1, 2 if accuracy else 1, 1)
    if published:
        axes.plot(*zip(*published, strict=True), linestyle="--", marker="x", color="black", label="published")
    for name, points in precision.items():
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xlabel="query cycle", ylabel="target images among the queried (%)", ylim=(0, 105))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if published or any(precision.values()):
        axes.legend()
    if accuracy:
        labeled, means, deviations = zip(*accuracy, strict=True)
        bars = [float("nan") if deviation is None else deviation for deviation in deviations]
        axes = figure.add_subplot(1, 2, 2)
        axes.errorbar(labeled, means, yerr=bars, marker="o", capsize=3, color="C2")
        axes.set(xlabel="labeled target images", ylabel="test accuracy (%), last epoch")
        axes.grid(alpha=0.3)
    _save(figure, path)


def _save(figure: Figure, path: str | os.PathLike) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with atomic_write(path) as file:
        FigureCanvasAgg(figure).print_png(file)
