"""The report's sections on single images of a run: scores, feature maps, and the queried images themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.panels import BLUE, GREY, ORANGE
from evals.metrics import describe
from evals.report_data import Query, Run
from evals.report_figures import Points, class_points, fate_points, histogram_panel, scatter_panel
from evals.report_maps import FeatureMap, feature_map, neighbour_share
from evals.report_page import Cell, Figure, Section, Table, Thumbnail
from evals.report_pool import Material
from evals.report_scores import OTHER, TARGET, UNKNOWN, PoolCycle

SHOWN_CYCLES = 6  # histograms and image rows: as many, evenly chosen, the first and the last among them
SHOWN_CLASSES = 4  # scatter plots of a cycle
SHOWN_POINTS = 3000  # of a scatter plot's background
ROW = 12  # thumbnails
GROUPS = {"target": (TARGET, BLUE), "other": (OTHER, GREY), "not annotated": (UNKNOWN, GREY)}


@dataclass(frozen=True)
class Pool:
    """One run's main query, and all that is known of its pool.

    Attributes:
        key: Short and safe for the names of files.
        run: The run.
        query: Its main query.
        material: What was loaded or computed.
    """

    key: str
    run: Run
    query: Query
    material: Material

    @property
    def title(self) -> str:
        """For a heading."""
        return f"{self.run.name}: {self.query.strategy}"

    def class_name(self, label: int) -> str:
        """Of a class of the data set."""
        data, names = self.material.data, getattr(self.query.files[-1], "class_names", None)
        if data is not None:
            return data.class_names[label]
        return names[label] if names and label < len(names) else str(label)

    @property
    def targets(self) -> list[int]:
        """Target classes."""
        return self.query.files[0].target_classes

    def truth(self, images: np.ndarray) -> np.ndarray:
        """UNKNOWN, OTHER or TARGET of each image, (n,)."""
        return self.material.truth.of(images)

    def label_text(self, image: int) -> str:
        """What is known of an image's class, in words."""
        data = self.material.data
        if data is not None and data.train_labels[image] >= 0:
            return self.class_name(int(data.train_labels[image]))
        return {TARGET: "target", OTHER: "other", UNKNOWN: "not annotated"}[int(self.truth(np.asarray([image]))[0])]


def evenly(values: Sequence, count: int) -> list:
    """At most ``count`` of some values, the first and the last among them."""
    if len(values) <= count:
        return list(values)
    return [values[round(place)] for place in np.linspace(0, len(values) - 1, count)]


def histogram_section(pools: Sequence[Pool]) -> Section:
    """The distribution of the query score."""
    section = Section("Scores of the pool")
    section.say(
        "The score by which images were queried, over each cycle's pool: that of target images, of others, and of the "
        "queried ones. Dashed: the smallest queried value of each target class. Where the queried stand over the "
        "targets and clear of the others, the query is right."
    )
    for pool in pools:
        _heading(section, pool, pools)
        cycles = pool.material.cycles
        if not cycles:
            section.miss(f"No scores: {pool.material.why['scores']}.")
            continue
        if pool.material.source:
            section.say(f"Scores {pool.material.source}.")
        for note in pool.material.notes:
            section.miss(note)
        table = quantile_table(pool)
        section.figures([histogram_figure(pool, cycle, table) for cycle in evenly(cycles, SHOWN_CYCLES)])
    return section


def _heading(section: Section, pool: Pool, pools: Sequence[Pool]) -> None:
    if len(pools) > 1:
        section.head(pool.title)


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
        _heading(section, pool, pools)
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


def map_section(pools: Sequence[Pool]) -> Section:
    """t-SNE of both feature spaces."""
    section = Section("Maps of the feature spaces")
    section.say(
        "t-SNE of a random sample of the pool and the initial images, by the angles between features. Near is alike to "
        "the encoder; distances between far groups mean little. Semantic features should part classes; distinctive "
        "ones tell single images apart."
    )
    for pool in pools:
        _heading(section, pool, pools)
        maps = {name: feature_map(bank) for name, bank in pool.material.banks.items()}
        figures = [figure for name, found in maps.items() if found for figure in map_figures(pool, name, found)]
        if figures:
            section.figures(figures)
        else:
            section.miss(f"No features: {pool.material.why.get('features', 'the sample is too small')}.")
    return section


def map_figures(pool: Pool, encoder: str, found: FeatureMap) -> list[Figure]:
    """One map twice: by class, and by what became of the images."""
    data = pool.material.data
    labels, fates = data.train_labels[found.indices], fates_of(pool, found.indices)
    kinds = {
        "class": (class_points(found.positions, labels, data.class_names, pool.targets), labels),
        "query": (fate_points(found.positions, fates), pool.truth(found.indices)),
    }
    figures = []
    for kind, (groups, numbers) in kinds.items():
        share = neighbour_share(found.positions, numbers)
        what = "of the same class" if kind == "class" else "of the same kind (target or other)"
        near = "" if share is None else f": {share:.0f} % of nearest neighbours on the map are {what}"
        caption = f"{encoder.capitalize()} features by {'class' if kind == 'class' else 'fate in the query'}{near}"
        panel = scatter_panel(f"map_{pool.key}_{encoder}_{kind}", groups, xlabel="", ylabel="", bare=True, height=4.2)
        rows = [[group.name, len(group.x)] for group in groups if len(group.x)]
        alt = f"t-SNE map of {len(found.indices)} images. {caption}"
        figures.append(Figure(panel, caption, alt, Table(["group", "images shown"], rows)))
    return figures


def fates_of(pool: Pool, images: np.ndarray) -> dict[str, np.ndarray]:
    """What became of each image in all cycles, as masks by name, (n,)."""
    truth, files = pool.truth(images), pool.query.files
    start = np.isin(images, files[0].labeled)
    queried = np.isin(images, [image for content in files for image in content.queried])
    fates = {"not queried": ~start & ~queried}
    for name, value in (("other", OTHER), ("target", TARGET), ("not annotated", UNKNOWN)):
        fates[f"queried, {name}"] = queried & (truth == value)
    return fates | {"labeled at the start": start}


def image_section(pools: Sequence[Pool]) -> Section:
    """The queried images."""
    section = Section("Queried images")
    section.say(
        "Of each cycle: the images with the highest scores, those that were only just queried, and the highest-scored "
        "ones of other classes, on which the budget was wasted (framed). Below each, its class and its score."
    )
    for pool in pools:
        _heading(section, pool, pools)
        if pool.material.data is None:
            section.miss(f"No images: {pool.material.why['data']}.")
            continue
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
