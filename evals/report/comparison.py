"""A benchmark of query strategies: its rows, their standings, and the page's tables and figures of them."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from sklearn.metrics import auc

from common import plots
from common.files import SMALL_JSON, check_fields, is_text, read_json
from common.plots import GREY, INK, MARKERS, PALETTE, Curve
from datasets import results_file
from evals.report.page import Cell, Figure, Marked, Section, Table
from utils import InputError

BENCHMARK = "benchmark.json"
CEILING = "ceiling"  # an oracle that queries targets only, as no strategy can
COLORED = 8  # strategies, beside ccal and random, where the palette has too few colours for all
COLUMNS = ("final accuracy", "area", "balanced accuracy", "mean precision", "recall", "seconds a query")
ACCURACY, AREA, BALANCED, PRECISION, RECALL, SECONDS = COLUMNS
PANELS = {"recall": "targets found so far", "precision": "targets among the queried", "accuracy": "test accuracy"}
PANELS["balanced_accuracy"] = "balanced test accuracy"
WORDS = (
    "Means and standard deviations over seeds, but for the time in percent. Bold: the best of a column. Underlined: "
    "within one deviation (the best's own) of it. Strategies with fewer seeds or cycles take no part in this. Area: "
    "under the accuracy curve, which is the mean accuracy over the answers bought. Precision is the mean over the "
    "cycles; accuracy and recall are those after the last cycle that all seeds have."
)


@dataclass(frozen=True)
class ComparisonRow:
    """One cycle of one query; the fields are the columns of a benchmark's results.csv."""

    strategy: str
    seed: int
    classifier: str  # linear or scratch
    cycle: int  # 0: before the first query
    asked: int  # images shown to the annotator in this cycle; 0 in cycle 0
    found: int  # targets among them
    labeled: int  # images that the classifier was trained on
    precision: float | None  # found / asked in percent; None in cycle 0
    recall: float  # share of the targets found by now, in percent, as the protocol counts it
    accuracy: float | None  # percent, on test images of the target classes; None where no classifier was trained
    balanced_accuracy: float | None
    query_seconds: float
    training_seconds: float | None

    bounds: ClassVar[dict[str, tuple[float, float]]] = {
        **dict.fromkeys(("precision", "recall", "accuracy", "balanced_accuracy"), (0, 100)),
        **dict.fromkeys(("seed", "cycle", "asked", "found", "labeled"), (0, math.inf)),
        **dict.fromkeys(("query_seconds", "training_seconds"), (0, math.inf)),
    }


class Mean(NamedTuple):
    """Over seeds, with the standard deviation (ddof = 1); None for a single seed."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Mean | None:
        """None where a seed has no value."""
        values = list(values)
        if None in values:
            return None
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if self.deviation is None else f"{self.mean:.2f} ± {self.deviation:.2f}"


@dataclass(frozen=True)
class Standing:
    """What came of a strategy, by the cycles that all of its seeds have finished."""

    strategy: str
    classifier: str
    runs: list[list[ComparisonRow]]  # by seed, then by cycle from 0 on
    measured: tuple[int, ...]  # the cycles in which every seed has an accuracy
    means: dict[str, Mean | None]  # by COLUMNS

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run[0].seed for run in self.runs)

    @property
    def progress(self) -> tuple:
        """Queries and measured cycles: strategies are compared where these are equal."""
        return len(self.runs[0]) - 1, len(self.measured), self.measured

    def points(self, name: str) -> list[tuple[float, float, float | None]]:
        """Answers bought, and a field's mean and deviation, by the cycles in which every seed has it."""
        asked = zip(*(itertools.accumulate(row.asked for row in run) for run in self.runs))
        means = (Mean.of(getattr(row, name) for row in cycle) for cycle in zip(*self.runs))
        return [(statistics.fmean(bought), *mean) for bought, mean in zip(asked, means) if mean]


def read_rows(path: Path) -> list[ComparisonRow]:
    """Reads a benchmark's results.csv, of which a missing one has no rows; InputError where it is damaged."""
    return results_file.read_rows(path, ComparisonRow)


def read_benchmark(folder: Path) -> dict[str, Any]:
    """Reads benchmark.json: ``settings``, ``about`` and ``command``; InputError where it is damaged."""
    content, remedy = read_json(folder / BENCHMARK, limit=SMALL_JSON), "restore it, or run the benchmark again"
    checks = {"format_version": lambda value: value == 1, "settings": lambda value: isinstance(value, dict)}
    check_fields(folder / BENCHMARK, content, {**checks, "about": is_text, "command": is_text}, remedy=remedy)
    return content


def seed_values(run: Sequence[ComparisonRow], measured: Sequence[int]) -> list[float | None]:
    """One seed's values by COLUMNS; the trapezoids under the accuracy curve are divided by its answers."""
    last, asked = run[max(measured, default=0)], list(itertools.accumulate(row.asked for row in run))
    x, y = [asked[n] for n in measured], [run[n].accuracy for n in measured]
    area = auc(x, y) / (x[-1] - x[0]) if len({*x}) > 1 else None
    precisions = [row.precision for row in run if row.precision is not None]
    precision = statistics.fmean(precisions) if precisions else None
    seconds = statistics.fmean(row.query_seconds for row in run[1:]) if run[1:] else None
    return [last.accuracy, area, last.balanced_accuracy, precision, run[-1].recall, seconds]


def standings(rows: Sequence[ComparisonRow]) -> list[Standing]:
    """Each strategy's with each classifier, of which one comes after the other, the highest final accuracy first.

    Of several rows of one cycle the last counts. Balanced accuracy is left out where it is the accuracy throughout.
    Raises InputError where a seed has no cycle 0.
    """
    pairs = [(row.accuracy, row.balanced_accuracy) for row in rows]
    differs = any(None not in pair and abs(pair[0] - pair[1]) > 0.005 for pair in pairs)
    groups: dict[tuple[str, str], dict[int, dict[int, ComparisonRow]]] = {}
    for row in rows if differs else [replace(row, balanced_accuracy=None) for row in rows]:
        groups.setdefault((row.strategy, row.classifier), {}).setdefault(row.seed, {})[row.cycle] = row
    found = []
    for key, seeds in groups.items():
        complete = min(next(n for n in itertools.count() if n not in cycles) for cycles in seeds.values())
        if not complete:
            raise InputError(f"a seed of {' '.join(key)} has no row of cycle 0; run the benchmark again")
        runs = [[cycles[n] for n in range(complete)] for _, cycles in sorted(seeds.items())]
        measured = tuple(n for n in range(complete) if all(run[n].accuracy is not None for run in runs))
        columns = zip(*(seed_values(run, measured) for run in runs))
        found.append(Standing(*key, runs, measured, dict(zip(COLUMNS, map(Mean.of, columns)))))

    def order(own: Standing) -> tuple:
        values = (own.means[name] for name in (ACCURACY, AREA, PRECISION))
        return own.classifier, *(-value.mean if value else math.inf for value in values), own.strategy

    return sorted(found, key=order)


def farthest(found: Sequence[Standing]) -> list[Standing]:
    """Of standings with one classifier those that have come farthest, without the ceiling."""
    own = [standing for standing in found if standing.strategy != CEILING]
    return [standing for standing in own if standing.progress == max(rival.progress for rival in own)]


def mark(own: Standing, column: str, found: Sequence[Standing]) -> str:
    """``best``, ``close`` to it or nothing, among the strategies, with one classifier, that have most seeds and cycles.

    Seconds get none: they depend on what else the machine does.
    """
    rivals = [rival for rival in found if rival.strategy != CEILING]
    for key in (lambda rival: rival.seeds, lambda rival: rival.progress):
        most = max(map(key, rivals), key=lambda value: (len(value), value), default=())
        rivals = [rival for rival in rivals if key(rival) == most]
    values = [rival.means[column] for rival in rivals if rival.means[column]]
    if own not in rivals or not own.means[column] or column == SECONDS:
        return ""
    best = max(values, key=lambda value: value.mean)
    distance = abs(own.means[column].mean - best.mean)
    return "best" if not distance else "close" if distance <= (best.deviation or 0) else ""


def seeds_text(own: Standing, found: Sequence[Standing]) -> str:
    """The number of seeds, and in what the strategy falls behind others with one classifier."""
    seeds, (cycles, _, measured) = max(len(rival.runs) for rival in found), max(rival.progress for rival in found)
    asked, most = own.points("recall")[-1][0], max(rival.points("recall")[-1][0] for rival in found)
    words = [f"{len(own.runs)} of {seeds} seeds" if len(own.runs) < seeds else str(seeds)]
    if own.progress[0] < cycles:
        words.append(f"{own.progress[0]} of {cycles} cycles")
    elif asked < most:
        words.append(f"{asked:,.0f} of {most:,.0f} answers")
    if own.measured != tuple(cycle for cycle in measured if cycle < len(own.runs[0])):
        words.append(f"accuracy of cycles {', '.join(map(str, own.measured)) or 'none'}")
    return "; ".join(words)


def table(found: Sequence[Standing], shape: Callable[[str, str], Cell]) -> Table:
    """Standings with one classifier, without columns that say nothing; ``shape`` makes cells of a text and its mark."""
    shown = [name for name in COLUMNS if any(own.means[name] for own in found)]
    rows: list[list[Cell]] = []
    for own in found:
        values = [shape(str(own.means[name] or "-"), mark(own, name, found)) for name in shown]
        rows.append([own.strategy, *values, seeds_text(own, found)])
    return Table(["strategy", *shown, "seeds"], rows)


def markdown_table(found: Sequence[Standing]) -> str:
    """Standings with one classifier, for GitHub."""
    looks = {"best": "**{}**", "close": "<u>{}</u>", "": "{}"}
    made = table(found, lambda text, kind: looks[kind].format(text))
    return "".join(f"| {' | '.join(line)} |\n" for line in (made.heading, ["---"] * len(made.heading), *made.rows))


def text_table(found: Sequence[Standing]) -> str:
    """The same for a terminal: * is the best of a column, ~ within one deviation of it."""
    made = table(found, lambda text, kind: f"{text} { {'best': '*', 'close': '~'}.get(kind, ' ') }")
    return results_file.plain_table([made.heading, *made.rows])


def in_colour(found: Sequence[Standing]) -> list[str]:
    """The strategies that figures show in colour: all, or the best by accuracy and by precision, ccal and random."""
    own = [standing for standing in found if standing.strategy != CEILING]
    if len(own) > len(PALETTE):
        purest = sorted(own, key=lambda standing: -standing.means[PRECISION].mean if standing.means[PRECISION] else 0)
        wanted = dict.fromkeys(standing.strategy for pair in zip(own, purest) for standing in pair)
        wanted = {*[*wanted][:COLORED], "ccal", "random"}
        own = [standing for standing in own if standing.strategy in wanted]
    return [standing.strategy for standing in own]


def figures(found: Sequence[Standing], suffix: str) -> list[Figure]:
    """Recall, precision and accuracy by answers bought, and accuracy by precision, of standings with one classifier."""
    looks = dict(zip(in_colour(found), zip(PALETTE, MARKERS)))
    by_name, grey = {own.strategy: own for own in found}, [own.strategy for own in found if own.strategy not in looks]
    ceiling, grey = by_name.get(CEILING), [name for name in grey if name != CEILING]
    note = f"; in grey {len(grey)} further strategies, which the table names" if grey else ""

    def curve(name: str, points: Sequence[tuple[float, ...]]) -> Curve:
        color, marker = looks.get(name, (GREY, "o"))
        return Curve(name, points, color, marker=marker, faint=name in grey)

    made = []
    for field, words in PANELS.items():
        curves = [curve(name, points) for name in (*looks, *grey) if (points := by_name[name].points(field))]
        rows = [[own.name, *point] for own in curves for point in own.points]
        if not rows:
            continue
        if field != "precision" and ceiling and (top := ceiling.points(field)):
            ends = [(x, top[-1][1]) for x in (0, top[-1][0])]
            curves.append(Curve("all-target pool", ends, INK, dashed=True, marker=""))
        labels = {"xlabel": "answers bought", "ylabel": f"{words} (%)", "percent": "accuracy" not in field}
        panel = plots.draw_panel(field + suffix, partial(plots.draw_curves, curves=curves, bands=True, **labels))
        ends = [f"{own.name} from {own.points[0][1]:.4g} to {own.points[-1][1]:.4g} %" for own in curves]
        title, values = f"{words.capitalize()}, by answers", Table(["strategy", "answers", words, "deviation"], rows)
        made.append(Figure(panel, title + note, f"{title}: {'; '.join(ends)}", values))
    equal = [by_name[name] for name in (*looks, *grey) if by_name[name] in farthest(found)]
    pairs = {own.strategy: (own.means[PRECISION], own.means[ACCURACY]) for own in equal}
    rows = [[name, x.mean, y.mean, x.deviation, y.deviation] for name, (x, y) in pairs.items() if x and y]
    if rows:
        labels = {"xlabel": f"{PRECISION} (%)", "ylabel": f"{ACCURACY} (%)"}
        draw = partial(plots.draw_dots, dots=[curve(name, [point]) for name, *point in rows], **labels)
        title = "Final accuracy by mean precision, of strategies with all cycles: the top right is best"
        ends = [f"{name} {x:.4g} and {y:.4g} %" for name, x, y, *_ in rows]
        values = Table(["strategy", PRECISION, ACCURACY, "deviation of precision", "of accuracy"], rows)
        panel = plots.draw_panel(f"precision_accuracy{suffix}", draw, height=5)
        made.append(Figure(panel, title, f"{title}: precision and accuracy of {'; '.join(ends)}", values))
    return made


def make_sections(found: Sequence[Standing], command: str) -> list[Section]:
    """The page's parts: a table and figures by classifier, and how to see more."""
    sections = []
    for classifier, own in by_classifier(found).items():
        sections.append(section := Section(f"Strategies with the classifier {classifier}"))
        section.table(table(own, lambda text, kind: Marked(text, {"best": "b", "close": "u"}.get(kind, ""))))
        section.say(WORDS)
        section.say(
            "Lines are means over seeds, bands and error bars one standard deviation either way. Of more than "
            f"{len(PALETTE)} strategies the best {COLORED}, in turn by final accuracy and by precision, are in colour, "
            "and so are ccal and random. All-target pool: an oracle's last value."
        )
        section.figures(figures(own, f"_{len(sections)}" if len(sections) > 1 else ""))
    sections.append(section := Section("More"))
    section.say(f"Made with: {command}")
    section.say("python -m evals.report RUN/queries/STRATEGY/seed_N shows one query: its scores, images and cycles.")
    return sections


def by_classifier(found: Sequence[Standing]) -> dict[str, list[Standing]]:
    return {name: [*group] for name, group in itertools.groupby(found, key=lambda own: own.classifier)}
