"""The report's figures: curves, histograms and scatter plots of the scores, and maps of the feature spaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from common import plots
from common.plots import GREY, GROUP_COLORS, INK, MARKERS, PALETTE, TAN, Curve
from evals.kept import KeptCycle
from evals.metrics import describe
from evals.report.page import Figure, Table
from evals.report.runs import NOT_ANNOTATED, OTHER, TARGET, UNKNOWN, Pool

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CURVES = 10  # of one figure; the table has all
SHOWN_CLASSES = 4  # scatter plots of a cycle
CROWD = 3000  # images in one figure, which are drawn smaller
MARKS = {"target": "o", "other": "^", NOT_ANNOTATED: "s", "labeled at the start": "D"}
GROUPS = {"target": TARGET, "other": OTHER, NOT_ANNOTATED: UNKNOWN}


def curve_figures(
    name: str, title: str, curves: Sequence[Curve], table: Table, *, xlabel: str, ylabel: str, percent: bool = False
) -> list[Figure]:
    """Curves over whole numbers, and in words where each starts and ends; no figure without points."""
    curves = [curve for curve in curves if curve.points]
    drawn = curves[:MOST_CURVES]
    if len(curves) > len(drawn):
        title += f" (the first {len(drawn)} of {len(curves)} curves; the table has all)"
    labels = {"xlabel": xlabel, "ylabel": ylabel, "percent": percent}
    panel = plots.draw_panel(name, lambda axes: plots.draw_curves(axes, drawn, whole=True, **labels))
    unit = " %" if "%" in ylabel else ""
    ends = [f"{curve.name} from {curve.points[0][1]:.4g} to {curve.points[-1][1]:.4g}{unit}" for curve in drawn]
    return [Figure(panel, title, f"{title}: {'; '.join(ends)}", table)] if drawn else []


def score_groups(pool: Pool, cycle: KeptCycle) -> dict[str, np.ndarray]:
    """Finite query scores by group; queried images are in two."""
    truth, scores = pool.truth(cycle), cycle.query_score
    groups = {name: scores[truth == value] for name, value in GROUPS.items()} | {"queried": scores[cycle.rows]}
    return {name: finite for name, values in groups.items() if len(finite := values[np.isfinite(values)])}


def borders(cycle: KeptCycle) -> dict[int, float]:
    """The smallest queried value by pseudo class."""
    classes, values = cycle.pseudo_class[cycle.rows], cycle.query_score[cycle.rows]
    return {number: float(values[classes == number].min()) for number in np.unique(classes).tolist()}


def quantile_table(pool: Pool) -> Table:
    """Mean, deviation and deciles of the query score by cycle and group."""
    groups = [(number, *group) for number, cycle in pool.cycles for group in score_groups(pool, cycle).items()]
    rows = [[number, name, len(values), *describe(values).values()] for number, name, values in groups]
    return Table(["cycle", "group", "images", *describe(np.zeros(1))], rows)


def histogram_figure(pool: Pool, number: int, cycle: KeptCycle, table: Table) -> Figure:
    """One cycle's distribution of the query score, with a line at the smallest queried value of each class."""
    groups = score_groups(pool, cycle)
    lowest = borders(cycle)
    named = {name: lowest[place] for place, name in enumerate(pool.query.targets) if place in lowest}
    draws = plots.histogram_draws(groups, xlabel="query score", borders=named)
    caption = f"Cycle {number}"
    if len(cycle.pool) < cycle.pool_size:
        caption += f": {len(cycle.pool)} of the pool's {cycle.pool_size} images"
    medians = ", ".join(f"{name} {np.median(values):.3g}" for name, values in groups.items())
    alt = f"Histogram of the query score. {caption}; medians: {medians}"
    panel = plots.draw_panel(f"scores_{pool.key}_cycle_{number}", *draws, height=0.5 + 2.4 * len(draws))
    return Figure(panel, caption, alt, table)


@dataclass(frozen=True)
class Points:
    """A group of images in a plane."""

    name: str
    positions: np.ndarray  # (n, 2)
    color: str
    marker: str
    outlined: bool = False  # the queried, whose colour says what they are
    small: bool = False  # the background


def scatter_panel(
    name: str, groups: Sequence[Points], *, labels: tuple[str, str] | None = None, border: float | None = None
) -> plots.Panel:
    """Groups of images in a plane, the first on top, and the line on which x + y is the border, if any."""

    sizes = (12, 18) if sum(len(group.positions) for group in groups) < CROWD else (4, 8)  # square points

    def draw(axes: Axes) -> None:
        for place, group in enumerate(group for group in groups if len(group.positions)):
            look = {"color": group.color, "marker": group.marker, "s": sizes[not group.small], "alpha": 0.8}
            look |= {"linewidths": 0, "rasterized": True, "zorder": 3 - place / len(groups)}
            if group.outlined:  # as a drawing, in which the outline has the colour of the page's text
                look |= {"edgecolors": INK, "linewidths": 0.6, "s": 22, "alpha": 1, "rasterized": False}
            label = plots.series_label(f"{group.name} ({len(group.positions)})")
            axes.scatter(*group.positions.T, label=label, **look)
        if border is not None:
            limits = {"xlim": axes.get_xlim(), "ylim": axes.get_ylim()}
            ends = np.asarray(limits["xlim"])
            axes.plot(ends, border - ends, color=INK, linestyle="--", linewidth=1.2, label="smallest queried value")
            axes.set(**limits)
        if labels:  # else the axes mean nothing
            axes.set(xlabel=labels[0], ylabel=labels[1])
        else:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)

    return plots.draw_panel(name, draw, height=4)


def group_points(name: str, mask: np.ndarray, positions: np.ndarray, *, fate: str = "") -> Points:
    """Images of one group of GROUPS; those queried, or labeled at the start, are outlined."""
    look = GROUP_COLORS.get(name, GREY), MARKS.get(fate, MARKS.get(name, "o"))
    title = f"{fate}, {name}" if fate else name
    return Points(title, positions[mask], *look, outlined=bool(fate), small=not fate)


def scatter_figures(pool: Pool, number: int, cycle: KeptCycle) -> list[Figure]:
    """The candidates of each class in one cycle by both scores."""
    truth, scores = pool.truth(cycle), np.stack([cycle.semantic, cycle.distinctive], axis=1)
    lowest, rows, drawn = borders(cycle), [], []
    is_queried = np.isin(np.arange(len(truth)), cycle.rows)
    for place, class_name in enumerate(pool.query.targets):
        own, targets = cycle.pseudo_class == place, truth == TARGET
        counts = own.sum(), (own & targets).sum(), (own & is_queried).sum(), (own & is_queried & targets).sum()
        rows.append([number, class_name, *map(int, counts), lowest.get(place)])
        if place >= SHOWN_CLASSES or not own.any():
            continue
        groups = []
        for fate, mask in (("queried", own & is_queried), ("", own & ~is_queried)):
            groups += [group_points(n, mask & (truth == value), scores, fate=fate) for n, value in GROUPS.items()]
        border = lowest.get(place) if pool.query.strategy == "ccal" else None  # it alone ranks by the sum
        labels = "semantic score S(u)", "distinctive score D(u)"
        panel = scatter_panel(f"scatter_{pool.key}_cycle_{number}_class_{place}", groups, labels=labels, border=border)
        caption = f"Cycle {number}, class {class_name}: {counts[0]} candidates, {counts[2]} queried"
        drawn.append((panel, caption, f"Scatter plot. {caption}, of these {counts[3]} target images"))
    heading = ["cycle", "class", "candidates", "targets among them", "queried", "targets among these"]
    table = Table([*heading, "smallest queried value"], rows)
    return [Figure(*parts, table) for parts in drawn]


def tsne_map(features: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Unit-norm features of at least four images, (n, K, D), in two dimensions (van der Maaten and Hinton, 2008).

    The distance of two images' features falls as their mean cosine over the shifts, on which the scores rest, rises.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    values = features.reshape(len(features), -1).astype(np.float32)
    varied = values.shape[1] > 1 and (values != values[0]).any()  # else scikit-learn's start would be NaN, and crash
    if varied and values.shape[1] > 50:
        values = PCA(min(50, len(values)), random_state=seed, svd_solver="full").fit_transform(values)
    perplexity, start = min(30, (len(values) - 1) / 3), "pca" if varied else "random"
    return TSNE(perplexity=perplexity, init=start, random_state=seed, max_iter=500).fit_transform(values)


def class_points(positions: np.ndarray, classes: np.ndarray, targets: Sequence[str]) -> list[Points]:
    """Images (n, 2) by class name (n,): targets first in the palette, others while colours last, the rest alike."""
    others = [name for name in np.unique(classes).tolist() if name not in {*targets, NOT_ANNOTATED}]
    looks = dict(zip([*targets, *others], zip(PALETTE, MARKERS)))
    groups = []
    for name, look in looks.items():
        title = f"{name}, target" if name in targets else name
        groups.append(Points(title, positions[classes == name], *look, small=name not in targets))
    further = ~np.isin(classes, [*looks, NOT_ANNOTATED])
    groups.append(Points("further classes", positions[further], TAN, "*", small=True))
    return [*groups, Points(NOT_ANNOTATED, positions[classes == NOT_ANNOTATED], GREY, "o", small=True)]


def map_figures(pool: Pool, encoder: str) -> list[Figure]:
    """The map of one feature space twice: by class, and by what became of the images."""
    positions, figures = tsne_map(pool.sample.features[encoder]), []
    by_class = class_points(positions, pool.classes(), pool.query.targets)
    by_fate = [group_points(name, mask, positions, fate=fate) for (fate, name), mask in pool.fates().items()]
    for kind, words, groups in (("class", "class", by_class), ("query", "fate in the query", by_fate)):
        panel = scatter_panel(f"map_{pool.key}_{encoder}_{kind}", groups)
        caption = f"{encoder.capitalize()} features by {words}"
        rows = [[group.name, len(group.positions)] for group in groups if len(group.positions)]
        alt = f"t-SNE map of {len(positions)} images. {caption}"
        figures.append(Figure(panel, caption, alt, Table(["group", "images shown"], rows)))
    return figures
