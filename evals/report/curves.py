"""The report's sections on whole runs, side by side: what queries found, accuracy, training, settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common.paper import PUBLISHED_FOUND, PUBLISHED_LABELED, PUBLISHED_POOL_TARGETS, PUBLISHED_QUERIED
from common.provenance import int64_digest
from evals.report.page import Cell, Figure, Section, Table
from evals.report.panels import GREY, INK, PALETTE, draw_curves, draw_panel
from evals.report.runs import EncoderRun, Query, Run, number

CURVES = 10  # of one figure; the table has all
EPOCH_ROWS = 60
Named = tuple[str, Run, Query]


def named_queries(runs: Sequence[Run]) -> list[Named]:
    """Every query with the name that it has in legends and tables."""
    named = []
    for run in runs:
        strategies = [query.strategy for query in run.queries]
        for query in run.queries:
            label = query.strategy if strategies.count(query.strategy) == 1 else f"{query.name} ({query.strategy})"
            named.append((f"{run.name}: {label}" if len(runs) > 1 else label, run, query))
    return named


def colors_of(queries: Sequence[Named]) -> list[str]:
    """A colour per query; a random one has that of its run's main query, and grey where there is one run."""
    several = len({run.name for _, run, _ in queries}) > 1
    colors: dict[int, str] = {}
    for place, (_, _, query) in enumerate(queries):
        if query.strategy != "random":
            colors[place] = PALETTE[len(colors) % len(PALETTE)]
    for place, (_, run, _) in enumerate(queries):
        main = next((c for p, c in colors.items() if queries[p][1] is run), None)
        colors.setdefault(place, main if several and main else GREY)
    return [colors[place] for place in range(len(queries))]


def overview(queries: Sequence[Named]) -> Table:
    """A row per query: the data, and what all its cycles found."""
    heading = ["query", "data set", "mismatch", "target classes", "cycles", "queried", "target found", "precision (%)"]
    heading += ["recall (%)", "labeled", "accuracy (%)"]
    rows = []
    for name, _, query in queries:
        last, totals = query.files[-1], [(len(c.queried), number(c.metrics.get("found"))) for c in query.cycles]
        queried, found = sum(count for count, _ in totals), sum(value or 0 for _, value in totals)
        end = query.accuracies[-1] if query.accuracies and query.accuracies[-1][0] == len(last.labeled) else None
        row: list[Cell] = [name, last.dataset, last.mismatch, " ".join(map(str, last.target_classes))]
        row += [last.cycle, queried, found, 100 * found / queried if queried else None]
        row += [number(last.metrics.get("recall")), len(last.labeled), end and accuracy_text(*end[1:3])]
        rows.append(row)
    return Table(heading, rows)


def accuracy_text(mean: float, deviation: float | None) -> str:
    """In percent, with the deviation over seeds where there are several."""
    return f"{mean:.2f}" + ("" if deviation is None else f" ± {deviation:.2f}")


def is_published_setting(query: Query) -> bool:
    """Whether the authors published their lists for its setting: CIFAR-10, mismatch 0.8, classes 0 and 1."""
    first = query.files[0]
    return first.dataset == "cifar10" and first.mismatch == 0.8 and first.target_classes == [0, 1]


def found_section(queries: Sequence[Named]) -> Section:
    """Precision and recall by cycle."""
    section = Section("What the queries found")
    if not any(query.cycles for *_, query in queries):
        section.miss("No query cycle is in what was given: active_main.py makes them.")
        return section
    section.say(
        "Precision: how many of a cycle's queried images are of a target class. Recall: how many of the pool's target "
        "images all cycles up to this one have found. A random query's precision is the pool's share of target images."
    )
    curves: dict[str, list[dict[str, Any]]] = {"precision": [], "recall": []}
    for (name, _, query), color in zip(queries, colors_of(queries), strict=True):
        for metric, drawn in curves.items():
            values = [(content.cycle, number(content.metrics.get(metric))) for content in query.cycles]
            points = [(cycle, value) for cycle, value in values if value is not None]
            drawn.append({"name": name, "points": points, "color": color, "dashed": query.strategy == "random"})
    published = [query for *_, query in queries if is_published_setting(query)]
    if published:
        add_published(section, curves, published)
    table = found_table(queries, published=bool(published))
    figures = []
    for metric, drawn in curves.items():
        if any(curve["points"] for curve in drawn):
            figures.append(curve_figure(metric, drawn, table))
    section.figures(figures)
    sources = source_table(queries)
    if sources.rows:
        section.head("By source")
        section.say("Of a mixed pool: how many images each data set has in it, and how many of them were queried.")
        section.table(sources)
    return section


def source_table(queries: Sequence[Named]) -> Table:
    """The pool and each cycle's query of mixed pools, counted by the data set that images come from."""
    rows: list[list[Cell]] = []
    for name, _, query in queries:
        for content in query.files:
            counts = content.metrics.get("queried_by_source" if content.cycle else "pool_by_source")
            for source, count in counts.items() if isinstance(counts, dict) else ():
                what = f"queried in cycle {content.cycle}" if content.cycle else "pool at the start"
                rows.append([name, what, source, number(count)])
    return Table(["query", "images", "source", "count"], rows)


def add_published(section: Section, curves: dict[str, list[dict[str, Any]]], queries: Sequence[Query]) -> None:
    """Adds the authors' own lists to the curves, and says how far they compare."""
    found = [sum(PUBLISHED_FOUND[: cycle + 1]) for cycle in range(len(PUBLISHED_FOUND))]
    precision = [100 * count / PUBLISHED_QUERIED for count in PUBLISHED_FOUND]
    recall = [100 * count / PUBLISHED_POOL_TARGETS for count in found]
    for metric, values in (("precision", precision), ("recall", recall)):
        points = list(enumerate(values, start=1))
        curves[metric].append({"name": "published lists", "points": points, "color": INK, "dashed": True})
    same = [
        int64_digest(query.files[0].labeled) == PUBLISHED_LABELED
        and {len(content.queried) for content in query.cycles} <= {PUBLISHED_QUERIED}
        for query in queries
    ]
    text = (
        "Published lists: the query lists that the authors of CCAL published with their code for CIFAR-10 at mismatch "
        f"0.8, {PUBLISHED_QUERIED} queried a cycle, counted against the data set's labels; their encoders were trained "
        "for 700 epochs."
    )
    if not all(same):
        text += " Not every query here has their initial images and their number of queries: compare with care."
    section.say(text)


def found_table(queries: Sequence[Named], *, published: bool) -> Table:
    """What index files say of each cycle."""
    heading = ["query", "cycle", "queried", "target found", "precision (%)", "recall (%)", "AUROC of s"]
    heading += ["AUROC of the score", "labeled", "left in the pool"]
    names = ("found", "precision", "recall", "auroc_semantic", "auroc_utility")
    rows: list[list[Cell]] = []
    for name, _, query in queries:
        for content in query.cycles:
            row = [name, content.cycle, len(content.queried), *(number(content.metrics.get(key)) for key in names)]
            rows.append([*row, len(content.labeled), number(content.metrics.get("pool"))])
    if published:
        total = 0
        for cycle, found in enumerate(PUBLISHED_FOUND, start=1):
            total += found
            precision, recall = 100 * found / PUBLISHED_QUERIED, 100 * total / PUBLISHED_POOL_TARGETS
            rows.append(
                ["published lists", cycle, PUBLISHED_QUERIED, found, precision, recall, None, None, 800 + total, None]
            )
    return Table(heading, rows)


def curve_figure(metric: str, curves: list[dict[str, Any]], table: Table) -> Figure:
    """Precision or recall by cycle."""
    drawn = fewer(curves)
    label = {"precision": "targets among the queried (%)", "recall": "targets found so far (%)"}[metric]
    panel = draw_panel(
        metric, lambda axes: draw_curves(axes, drawn, xlabel="cycle", ylabel=label, percent=True, whole=True)
    )
    caption = f"{metric.capitalize()} by cycle" + dropped(curves, drawn)
    return Figure(panel, caption, f"{caption}: {spoken(drawn, '%')}", table)


def fewer(curves: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As many curves as one figure bears, those with points."""
    return [curve for curve in curves if curve["points"]][:CURVES]


def dropped(curves: list[dict[str, Any]], drawn: list[dict[str, Any]]) -> str:
    """What a caption adds where curves were left out."""
    count = sum(bool(curve["points"]) for curve in curves)
    return f" (the first {len(drawn)} of {count} curves; the table has all)" if count > len(drawn) else ""


def spoken(curves: list[dict[str, Any]], unit: str) -> str:
    """Curves in words: where each starts and ends."""
    ends = [f"{c['name']} from {c['points'][0][1]:.4g} to {c['points'][-1][1]:.4g} {unit}" for c in curves]
    return "; ".join(ends)


def accuracy_section(queries: Sequence[Named]) -> Section:
    """Accuracy of the classifier by labeled images."""
    section = Section("Accuracy by labeled images")
    measured = [(name, query) for name, _, query in queries if query.accuracies]
    if not measured:
        section.miss(
            "No results.csv belongs to these index files: python -m train_classifier.main --index_dir DIR --out_path "
            "DIR trains the classifiers (with the flags of data and split)."
        )
        return section
    section.say(
        "Test accuracy of the classifier after its last epoch, on test images of the target classes: mean and standard "
        "deviation over its seeds."
    )
    colors = dict(zip((name for name, *_ in queries), colors_of(queries), strict=True))
    curves = [
        {"name": name, "points": [point[:3] for point in query.accuracies], "color": colors[name]}
        for name, query in measured
    ]
    heading = ["query", "labeled", "accuracy (%)", "deviation", "seeds"]
    table = Table(heading, [[name, *point] for name, query in measured for point in query.accuracies])
    drawn = fewer(curves)
    panel = draw_panel(
        "accuracy",
        lambda axes: draw_curves(axes, drawn, xlabel="labeled target images", ylabel="test accuracy (%)"),
    )
    caption = "Accuracy of the classifier" + dropped(curves, drawn)
    section.figures([Figure(panel, caption, f"{caption}: {spoken(drawn, '%')}", table)])
    return section


def training_section(runs: Sequence[Run]) -> Section:
    """Losses and probe accuracies of the encoders."""
    section = Section("Training of the encoders")
    encoders = [
        (f"{run.name}: {encoder.name}" if len(runs) > 1 else encoder.name, encoder)
        for run in runs
        for encoder in run.encoders
        if encoder.epochs
    ]
    if not encoders:
        section.miss("No log.jsonl of an encoder is in what was given: contrast_main.py trains both encoders.")
        return section
    section.say(
        "The loss is what is minimised: NT-Xent, and for the distinctive encoder also that of telling rotations apart. "
        "The probe is a linear classifier of all classes on the features, for monitoring only: no score sees a label "
        "of the pool."
    )
    figures = []
    for mode in ("semantic", "distinctive"):
        own = [(name, encoder) for name, encoder in encoders if encoder.mode == mode]
        for key, label in (("loss", "training loss"), ("test_probe_accuracy", "test accuracy of the probe (%)")):
            curves = [
                {"name": name, "points": [(v["epoch"], v[key]) for v in encoder.epochs if key in v]}
                for name, encoder in own
            ]
            drawn = fewer(curves)
            if drawn:
                figures.append(training_figure(mode, key, label, drawn, dropped(curves, drawn), own))
    section.figures(figures)
    missing = [mode for mode in ("semantic", "distinctive") if mode not in {e.mode for _, e in encoders}]
    if missing:
        section.miss(f"No log of a {missing[0]} encoder: contrast_main.py --mode {missing[0]} trains it.")
    return section


def training_figure(
    mode: str, key: str, label: str, drawn: list[dict[str, Any]], more: str, encoders: list[tuple[str, EncoderRun]]
) -> Figure:
    """One value of the logs by epoch, with the whole log behind it."""
    panel = draw_panel(f"{mode}_{key}", lambda axes: draw_curves(axes, drawn, xlabel="epoch", ylabel=label, whole=True))
    caption = f"{mode.capitalize()} encoder: {label}{more}"
    unit = "%" if key.endswith("accuracy") else ""
    return Figure(panel, caption, f"{caption}: {spoken(drawn, unit)}", log_table(encoders))


def log_table(encoders: list[tuple[str, EncoderRun]]) -> Table:
    """The epochs of some encoders; of long trainings evenly chosen ones, the last among them."""
    columns = list(dict.fromkeys(key for _, encoder in encoders for values in encoder.epochs for key in values))
    rows: list[list[Cell]] = []
    for name, encoder in encoders:
        step = -(-len(encoder.epochs) // EPOCH_ROWS)
        chosen = encoder.epochs[::-1][::step][::-1]
        rows += [[name, *(values.get(key) for key in columns)] for values in chosen]
    return Table(["encoder", *columns], rows)
