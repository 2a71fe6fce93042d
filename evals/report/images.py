"""The report's sections on single images of a run: their scores, and the queried images themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evals.metrics import describe
from evals.report.figures import Points, histogram_panel, scatter_panel
from evals.report.page import Cell, Figure, Section, Table, Thumbnail
from evals.report.panels import BLUE, GREY, ORANGE
from evals.report.scores import OTHER, TARGET, UNKNOWN, PoolCycle
from evals.report.view import Pool, evenly, pool_heading

SHOWN_CYCLES = 6  # histograms and image rows: as many, evenly chosen, the first and the last among them
SHOWN_CLASSES = 4  # scatter plots of a cycle
SHOWN_POINTS = 3000  # of a scatter plot's background
ROW = 12  # thumbnails
GROUPS = {"target": (TARGET, BLUE), "other": (OTHER, GREY), "not annotated": (UNKNOWN, GREY)}


def histogram_section(pools: Sequence[Pool]) -> Section:
    """The distribution of the query score."""
    section = Section("Scores of the pool")
    section.say(
        "The score by which images were queried, over each cycle's pool: that of target images, of others, and of the "
        "queried ones. Dashed: the smallest queried value of each target class. Where the queried stand over the "
        "targets and clear of the others, the query is right."
    )
    for pool in pools:
        pool_heading(section, pool, pools)
        cycles = pool.material.cycles
        if not cycles:
            section.miss(f"No scores: {pool.material.why['scores']}.")
            continue
        if pool.material.source:
            section.say(f"Scores {pool.material.source}.")
        for note in [*pool.material.notes, *pool.material.lost]:
            section.miss(note)
        table = quantile_table(pool)
        section.figures([histogram_figure(pool, cycle, table) for cycle in evenly(cycles, SHOWN_CYCLES)])
    return section


def score_groups(pool: Pool, cycle: PoolCycle) -> dict[str, tuple[np.ndarray, str]]:
    """Finite query scores and a colour by group; queried images are in two."""
    truth = pool.truth(cycle.pool)
    finite = np.isfinite(cycle.utility)
    groups = {name: (cycle.utility[finite & (truth == value)], color) for name, (value, color) in GROUPS.items()}
    groups["queried"] = cycle.utility[finite & cycle.is_queried], ORANGE
    return {name: group for name, group in groups.items() if len(group[0])}


def borders(cycle: PoolCycle) -> dict[int, float]:
    """The smallest queried value by pseudo class."""
    if cycle.pseudo_class is None:
        return {}
    queried = cycle.is_queried & np.isfinite(cycle.utility)
    classes = np.unique(cycle.pseudo_class[queried]).tolist()
    return {number: float(cycle.utility[queried & (cycle.pseudo_class == number)].min()) for number in classes}


def quantile_table(pool: Pool) -> Table:
    """Mean, deviation and deciles of the query score by cycle and group."""
    rows: list[list[Cell]] = []
    for cycle in pool.material.cycles:
        for name, (values, _) in score_groups(pool, cycle).items():
            rows.append([cycle.number, name, len(values), *describe(values).values()])
    return Table(["cycle", "group", "images", *describe(np.zeros(1))], rows)


def histogram_figure(pool: Pool, cycle: PoolCycle, table: Table) -> Figure:
    """One cycle's distribution."""
    groups, lines = score_groups(pool, cycle), list(borders(cycle).values())[:SHOWN_CLASSES]
    caption = f"Cycle {cycle.number}"
    panel = histogram_panel(f"scores_{pool.key}_cycle_{cycle.number}", groups, xlabel="query score", borders=lines)
    medians = ", ".join(f"{name} {np.median(values):.3g}" for name, (values, _) in groups.items())
    return Figure(panel, caption, f"Histogram of the query score in cycle {cycle.number}; medians: {medians}", table)


def scatter_section(pools: Sequence[Pool]) -> Section:
    """Semantic against distinctive score."""
    section = Section("Semantic against distinctive score")
    section.say(
        "Each candidate of a target class (the class of its most similar labeled image): to the right, how much it "
        "looks like the class, S(u); upwards, how unlike it is to what is labeled already, D(u). The query takes what "
        "lies beyond the dashed line, on which their sum is the smallest that was queried."
    )
    for pool in pools:
        pool_heading(section, pool, pools)
        cycles = [c for c in pool.material.cycles if c.semantic is not None and c.distinctive is not None]
        if not cycles:
            reason = pool.material.why.get("scores", f"the strategy {pool.query.strategy} has not both scores")
            section.miss(f"No pair of scores: {reason}.")
            continue
        classes = range(len(pool.targets))
        if len(pool.targets) > SHOWN_CLASSES:
            classes = range(SHOWN_CLASSES)
            section.say(f"The first {SHOWN_CLASSES} of {len(pool.targets)} target classes; the tables have all.")
        figures = [scatter_figure(pool, cycle, number) for cycle in evenly(cycles, 2) for number in classes]
        section.figures([figure for figure in figures if figure is not None])
    return section


def scatter_figure(pool: Pool, cycle: PoolCycle, number: int) -> Figure | None:
    """One class's candidates in one cycle; None without any."""
    candidates = np.flatnonzero(cycle.pseudo_class == number)
    if not len(candidates):
        return None
    truth, queried = pool.truth(cycle.pool), cycle.is_queried
    groups, notes = [], ""
    for name, (value, color) in reversed(GROUPS.items()):
        chosen = candidates[truth[candidates] == value]
        if len(chosen) > SHOWN_POINTS:
            notes = f"; {SHOWN_POINTS} of each kind drawn"
            chosen = np.random.default_rng(0).choice(chosen, SHOWN_POINTS, replace=False)
        groups.append(Points(name, cycle.semantic[chosen], cycle.distinctive[chosen], color))
    rings = candidates[queried[candidates]]
    groups.append(Points("queried", cycle.semantic[rings], cycle.distinctive[rings], ORANGE, ring=True))
    label, border = pool.class_name(pool.targets[number]), borders(cycle).get(number)
    is_sum = pool.query.strategy == "ccal"
    panel = scatter_panel(
        f"scatter_{pool.key}_cycle_{cycle.number}_class_{number}",
        groups,
        xlabel="semantic score S(u)",
        ylabel="distinctive score D(u)",
        border=border if is_sum else None,
    )
    caption = f"Cycle {cycle.number}, class {label}: {len(candidates)} candidates, {len(rings)} queried{notes}"
    found = int((truth[rings] == TARGET).sum())
    line = f"; the smallest queried sum is {border:.3f}" if is_sum and border is not None else ""
    alt = f"Scatter plot. {caption}, of these {found} target images{line}"
    return Figure(panel, caption, alt, frontier_table(pool, cycle))


def frontier_table(pool: Pool, cycle: PoolCycle) -> Table:
    """Candidates, queried and found by class, and the frontier."""
    truth, queried, lowest = pool.truth(cycle.pool), cycle.is_queried, borders(cycle)
    rows: list[list[Cell]] = []
    for number, label in enumerate(pool.targets):
        own = cycle.pseudo_class == number
        row: list[Cell] = [cycle.number, pool.class_name(label), int(own.sum()), int((own & (truth == TARGET)).sum())]
        row += [int((own & queried).sum()), int((own & queried & (truth == TARGET)).sum()), lowest.get(number)]
        for score in (cycle.semantic, cycle.distinctive):
            row.append(float(score[own & queried].mean()) if (own & queried).any() else None)
        rows.append(row)
    heading = ["cycle", "class", "candidates", "targets among them", "queried", "targets among these"]
    return Table([*heading, "smallest queried value", "mean S of the queried", "mean D of the queried"], rows)


def image_section(pools: Sequence[Pool]) -> Section:
    """The queried images."""
    section = Section("Queried images")
    section.say(
        "Of each cycle: the images with the highest scores, those that were only just queried, and the highest-scored "
        "ones of other classes, on which the budget was wasted (framed). Below each, its class and its score."
    )
    for pool in pools:
        pool_heading(section, pool, pools)
        if pool.material.data is None:
            section.miss(f"No images: {pool.material.why['data']}.")
            continue
        for note in pool.material.lost:
            section.miss(note)
        for content in evenly(pool.query.cycles, SHOWN_CYCLES):
            section.head(f"Cycle {content.cycle}", 4)
            for name, pictures in image_rows(pool, content.cycle).items():
                section.say(f"{name.capitalize()} ({len(pictures)})" if pictures else f"{name.capitalize()}: none")
                if pictures:
                    file = f"images_{pool.key}_cycle_{content.cycle}_{name.split()[0]}"
                    section.thumbnails(file, pictures)
    return section


def image_rows(pool: Pool, number: int) -> dict[str, list[Thumbnail]]:
    """Best, borderline and wrong queries of a cycle; without scores, the first in the order of selection."""
    queried = np.asarray(pool.query.files[number].queried, dtype=np.int64)
    values = score_of_queried(pool, number, queried)
    if values is not None:
        order = np.lexsort((queried, -values))
        queried, values = queried[order], values[order]
    places = np.arange(len(queried))
    wrong = pool.truth(queried) == OTHER
    rows = (
        {"best": places[:ROW], "borderline": places[ROW:][-ROW:]} if values is not None else {"found": places[~wrong]}
    )
    rows["wrong"] = places[wrong]
    return {
        name: [_picture(pool, queried[place], values[place] if values is not None else None) for place in chosen[:ROW]]
        for name, chosen in rows.items()
    }


def score_of_queried(pool: Pool, number: int, queried: np.ndarray) -> np.ndarray | None:
    """The query scores of some images in a cycle, (Q,); None without scores."""
    for cycle in pool.material.cycles:
        if cycle.number == number:
            order = np.argsort(cycle.pool)
            return cycle.utility[order[np.searchsorted(cycle.pool, queried, sorter=order)]]
    return None


def _picture(pool: Pool, image: int, value: float | None) -> Thumbnail:
    wrong = bool(pool.truth(np.asarray([image]))[0] == OTHER)
    words = [pool.label_text(image)] if value is None else [pool.label_text(image), f"{value:.3f}"]
    return Thumbnail(np.asarray(pool.material.data.train_images[image]), ", ".join(words), wrong)
