"""The sections of the report: what runs found, the pool as the query saw it, training, settings and time."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common import settings
from common.console import duration
from common.files import is_number
from common.paper import PUBLISHED_FOUND, PUBLISHED_POOL_TARGETS, PUBLISHED_QUERIED
from common.plots import INK, PALETTE, Curve
from common.provenance import git_commit, versions
from datasets.results_file import mean_text
from evals.kept import rows_of_pictures
from evals.report import figures
from evals.report.page import Cell, Section, Table, Thumbnail
from evals.report.runs import OTHER, EncoderRun, Pool, Query, Run
from evals.summary import accuracy_points, headline, published_found

SHOWN_CYCLES = 6  # histograms and image rows: as many, evenly chosen, the first and the last among them
EPOCH_ROWS = 60
LONGEST = 120  # characters of a setting that the table shows
SETTINGS = (
    settings.DataSettings, settings.EncoderSettings, settings.CropSettings, settings.TrainingSettings,
    settings.QuerySettings, settings.ClassifierSettings, settings.ProcessSettings,
)  # fmt: skip
Named = tuple[str, Query, str]  # a query with its name and colour


def make_sections(runs: Sequence[Run], pools: Sequence[Pool], *, commands: Mapping[str, str]) -> list[Section]:
    """The page's parts, in order; ``commands`` make an ``encoder``, a ``query`` and a ``classifier`` that runs lack."""
    queries = named_queries(runs)
    sections = [overview_section(queries, commands), *([difference_section(runs)] if len(runs) > 1 else [])]
    sections += [found_section(queries, commands), accuracy_section(queries, commands)]
    sections += pool_sections(pools, commands) if pools else []
    return [*sections, training_section(runs, commands), record_section(runs)]


def named_queries(runs: Sequence[Run]) -> list[Named]:
    """The queries of all runs, told from each other."""
    named = []
    for run in runs:
        strategies = [query.strategy for query in run.queries]
        for query in run.queries:
            label = query.strategy if strategies.count(query.strategy) == 1 else f"{query.name} ({query.strategy})"
            label = f"{run.name}: {label}" if len(runs) > 1 else label
            named.append((label, query, PALETTE[len(named) % len(PALETTE)]))
    return named


def headlines(runs: Sequence[Run]) -> list[str]:
    """What each run's queries found, in a sentence."""
    found = [(run.name, headline({label: query.rows for label, query, _ in named_queries([run])})) for run in runs]
    return [f"{name}: {words}" if len(runs) > 1 else words for name, words in found if words]


def overview_section(queries: Sequence[Named], commands: Mapping[str, str]) -> Section:
    """The data in a sentence, and a row per query: what all its cycles found."""
    section = Section("Overview")
    if not queries:
        section.miss(f"No index files are in what was given: {commands['query']} queries the pool and writes them.")
        return section
    rows, data = [], {}
    for name, query, _ in queries:
        first, last, found = query.files[0], query.rows[-1], sum(row.found for row in query.rows)
        share = "an unknown share" if first.mismatch is None else f"{100 * first.mismatch:.4g} %"
        words = f"Data set {first.dataset}, target classes {', '.join(query.targets)}; {share} of the pool are others"
        data.setdefault(words, []).append(name)
        row: list[Cell] = [name, last.cycle, last.annotated, found]
        row += [100 * found / last.annotated if last.annotated else None, last.recall, last.labeled]
        rows.append([*row, mean_text(last.accuracy, last.deviation) if last.seeds else None])
    for words, names in data.items():
        section.say(f"{words} ({', '.join(names)})." if len(data) > 1 else f"{words}.")
    heading = ["query", "cycles", "queried", "target found", "precision (%)", "recall (%)", "labeled", "accuracy"]
    section.table(Table(heading, rows))
    return section


def found_section(queries: Sequence[Named], commands: Mapping[str, str]) -> Section:
    """Precision and recall by cycle, and of a mixed pool what was queried from where."""
    section = Section("What the queries found")
    if all(len(query.files) == 1 for _, query, _ in queries):
        section.miss(f"No query cycle is in what was given: {commands['query']} makes them.")
        return section
    section.say(
        "Precision: how many of a cycle's queried images are of a target class. Recall: how many of the pool's target "
        "images all cycles up to this one have found. A random query's precision is the pool's share of target images."
    )
    rows: list[list[Cell]] = []
    for name, row in [(name, row) for name, query, _ in queries for row in query.rows[1:]]:
        scores = row.precision, row.recall, row.auroc_semantic, row.auroc_joint
        rows.append([name, row.cycle, row.queried, row.found, *scores, row.labeled, row.pool])
    if any(published_found(query.files) for _, query, _ in queries):
        section.say("Published lists: what CCAL's authors queried from this very split, with encoders of 700 epochs.")
        for cycle, found in enumerate(PUBLISHED_FOUND, start=1):
            total = sum(PUBLISHED_FOUND[:cycle])
            shares = 100 * found / PUBLISHED_QUERIED, 100 * total / PUBLISHED_POOL_TARGETS
            rows.append(["published lists", cycle, PUBLISHED_QUERIED, found, *shares, None, None, 800 + total, None])
    heading = ["query", "cycle", "queried", "target found", "precision (%)", "recall (%)", "AUROC of s"]
    table, panels = Table([*heading, "AUROC of the score", "labeled", "left in the pool"], rows), []
    looks = {name: (color, query.strategy == "random") for name, query, color in queries}
    looks["published lists"] = INK, True
    for metric, column, label in (("precision", 4, "targets among the queried"), ("recall", 5, "targets found so far")):
        known = [(row[0], (row[1], row[column])) for row in rows if row[column] is not None]
        curves = [Curve(name, [point for own, point in known if own == name], *look) for name, look in looks.items()]
        labels = {"xlabel": "cycle", "ylabel": f"{label} (%)", "percent": True}
        panels += figures.curve_figures(metric, f"{metric.capitalize()} by cycle", curves, table, **labels)
    section.figures(panels)
    add_sources(section, queries)
    return section


def add_sources(section: Section, queries: Sequence[Named]) -> None:
    """The pool and each cycle's query of mixed pools, counted by the data set that images come from."""
    rows: list[list[Cell]] = []
    for name, query, _ in queries:
        for content in query.files:
            counts = content.metrics.get("queried_by_source" if content.cycle else "pool_by_source")
            images = f"queried in cycle {content.cycle}" if content.cycle else "pool at the start"
            for source, count in counts.items() if isinstance(counts, dict) else ():
                rows.append([name, images, source, count if is_number(count) else None])
    if rows:
        section.head("By source")
        section.say("Of a mixed pool: how many images each data set has in it, and how many of them were queried.")
        section.table(Table(["query", "images", "source", "count"], rows))


def accuracy_section(queries: Sequence[Named], commands: Mapping[str, str]) -> Section:
    """Accuracy of the classifier by what it cost, which is images annotated, and by labeled images."""
    section = Section("Accuracy of the classifier")
    measured = [(name, row) for name, query, _ in queries for row in query.rows if row.seeds]
    rows = [[name, row.annotated, row.labeled, row.accuracy, row.deviation, row.seeds] for name, row in measured]
    if not rows:
        command = f"{commands['classifier']} trains the classifiers (with the flags of data and split)"
        section.miss(f"No results.csv belongs to these index files: {command}.")
        return section
    section.say(
        "On test images of the target classes, after the last epoch: mean and standard deviation over seeds. Annotated "
        "is all that was queried, others included. Labeled are the targets among it and the initial images."
    )
    table, panels = Table(["query", "annotated", "labeled", "accuracy (%)", "deviation", "seeds"], rows), []
    for key, label in (("annotated", "images annotated, others included"), ("labeled", "labeled target images")):
        curves = [Curve(name, accuracy_points(query.rows, key), color) for name, query, color in queries]
        labels = {"xlabel": label, "ylabel": "test accuracy (%)"}
        panels += figures.curve_figures(f"accuracy_{key}", f"Accuracy by {label}", curves, table, **labels)
    section.figures(panels)
    return section


def pool_sections(pools: Sequence[Pool], commands: Mapping[str, str]) -> list[Section]:
    """What each run's first query kept: scores, features and images."""
    scores, pairs = Section("Scores of the pool"), Section("Semantic against distinctive score")
    maps, images = Section("Maps of the feature spaces"), Section("Queried images")
    scores.say(
        "The score by which images were queried, over each cycle's pool, all groups in the same bins and on one axis; "
        "where the queried would hardly be seen, all is drawn again, enlarged. Border: a class's "
        "smallest queried value. Where the queried stand over the targets and clear of the others, the query is right."
    )
    pairs.say(
        "Each candidate of a target class: to the right, how much it looks like the class; upwards, how unlike it is "
        "to what is labeled already. The query takes what lies beyond the dashed line, on which the sum is constant. "
        "Colour and shape say what an image is; the queried are outlined."
    )
    maps.say(
        "t-SNE of a random sample of the images, by the angles between features; distances between far groups mean "
        "little. Semantic features should part classes; distinctive ones tell single images apart. Of images by fate, "
        "those that were queried or labeled are outlined."
    )
    images.say(
        "Of each cycle: the queried images with the highest scores, those with the lowest, and the highest-scored ones "
        "of other classes, on which the budget was wasted (framed). Below each, its class and its score."
    )
    for pool in pools:
        for section in (scores, pairs, maps, images) if len(pools) > 1 else ():
            section.head(pool.title)
        for note in pool.notes:
            scores.miss(f"{note}; its part is left out")
        keeps = f"{commands['query']} keeps scores, images and features in scores/ beside its index files"
        reason = "the strategy random needs none" if pool.query.strategy == "random" else keeps
        if pool.cycles and pool.query.strategy != "random":
            add_scores(scores, pairs, pool)
        else:
            scores.miss(f"No scores: {reason}.")
            pairs.miss(f"No scores: {reason}.")
        if pool.sample and len(pool.sample.images) >= 4:
            maps.figures([figure for name in pool.sample.features for figure in figures.map_figures(pool, name)])
        else:
            maps.miss(f"No features of four images or more: {reason}.")
        add_images(images, pool)
        if not pool.cycles:
            images.miss(f"No images: {keeps}.")
    return [scores, pairs, maps, images]


def evenly(values: Sequence, count: int) -> list:
    """At most ``count`` of some values, the first and the last among them."""
    return [values[round(place)] for place in np.linspace(0, len(values) - 1, min(count, len(values)))]


def add_scores(scores: Section, pairs: Section, pool: Pool) -> None:
    """The distribution of the query score in some cycles, and both scores of the first and the last cycle."""
    table = figures.quantile_table(pool)
    scores.figures([figures.histogram_figure(pool, *cycle, table) for cycle in evenly(pool.cycles, SHOWN_CYCLES)])
    both = [cycle for cycle in pool.cycles if cycle[1].semantic is not None and cycle[1].distinctive is not None]
    if not both:
        pairs.miss(f"The strategy {pool.query.strategy} does not have both scores.")
    elif (count := len(pool.query.targets)) > figures.SHOWN_CLASSES:
        pairs.say(f"The first {figures.SHOWN_CLASSES} of {count} target classes; the tables have all.")
    pairs.figures([figure for cycle in evenly(both, 2) for figure in figures.scatter_figures(pool, *cycle)])


def add_images(section: Section, pool: Pool) -> None:
    """The best, borderline and wrong queries of some cycles."""
    for number, cycle in evenly(pool.cycles, SHOWN_CYCLES):
        section.head(f"Cycle {number}", 4)
        values, pictures = cycle.query_score[cycle.rows], dict(zip(cycle.pictured.tolist(), cycle.thumbnails))
        truth, words = pool.known(cycle.queried, cycle.paths)
        words, wrong = words if cycle.names is None else cycle.names.tolist(), truth == OTHER
        is_shown = np.isin(np.arange(len(values)), cycle.pictured)
        for kind, places in rows_of_pictures(values, wrong & is_shown).items():
            places = places[is_shown[places]].tolist()
            row = [Thumbnail(pictures[p], f"{words[p]}, {values[p]:.3f}", bool(wrong[p])) for p in places]
            section.say(f"{kind.capitalize()}: {len(row) or 'none'}")
            if row:
                section.thumbnails(f"images_{pool.key}_cycle_{number}_{kind}", row)


def training_section(runs: Sequence[Run], commands: Mapping[str, str]) -> Section:
    """Losses and probe accuracies of the encoders."""
    section = Section("Training of the encoders")
    several = len(runs) > 1
    encoders = [(f"{run.name}: {e.name}" if several else e.name, e) for run in runs for e in run.encoders]
    section.say(
        "The loss is NT-Xent, and for the distinctive encoder also that of telling rotations apart. The probe is a "
        "linear classifier of all classes on the features, for monitoring only: no score sees a label of the pool."
    )
    panels = []
    for mode in ("semantic", "distinctive"):
        own = [(name, encoder) for name, encoder in encoders if encoder.mode == mode and encoder.epochs]
        if not own:
            section.miss(f"No log of a {mode} encoder: {commands['encoder']} --mode {mode} trains it.")
        for key, label in (("loss", "training loss"), ("test_probe_accuracy", "test accuracy of the probe (%)")):
            curves = [Curve(name, [(v["epoch"], v[key]) for v in run.epochs if key in v]) for name, run in own]
            title, labels = f"{mode.capitalize()} encoder: {label}", {"xlabel": "epoch", "ylabel": label}
            panels += figures.curve_figures(f"{mode}_{key}", title, curves, log_table(own), **labels)
    section.figures(panels)
    return section


def log_table(encoders: Sequence[tuple[str, EncoderRun]]) -> Table:
    """The epochs of some encoders; of long trainings evenly chosen ones, the last among them."""
    columns = list(dict.fromkeys(key for _, encoder in encoders for values in encoder.epochs for key in values))
    rows: list[list[Cell]] = []
    for name, encoder in encoders:
        step = -(-len(encoder.epochs) // EPOCH_ROWS)
        rows += [[name, *map(values.get, columns)] for values in encoder.epochs[::-1][::step][::-1]]
    return Table(["encoder", *columns], rows)


def settings_of(run: Run) -> dict[tuple[str, str], Any]:
    """Every setting on record, by stage and name."""
    stages: dict[str, dict[str, Any]] = {}
    modes, strategies = [e.mode for e in run.encoders], [q.strategy for q in run.queries]
    for encoder in run.encoders:
        stage = f"{encoder.mode} encoder" + ("" if modes.count(encoder.mode) == 1 else f" in {encoder.name}")
        stages[stage] = {**encoder.record["arguments"], "split": str(encoder.record.get("split_digest"))[:12]}
        stages[stage]["processes"] = encoder.record.get("processes")
    for query in run.queries:
        first = query.files[0]
        stage = f"query ({query.strategy})" + ("" if strategies.count(query.strategy) == 1 else f" in {query.name}")
        stages[stage] = {"data set": first.dataset, "share of other classes": first.mismatch, **first.settings}
        stages[stage] |= {"classes": ", ".join(query.targets), "initial images": len(first.labeled)}
        stages[stage] |= {"strategy": query.strategy, "split": first.split_digest[:12]}
        if query.classifier:
            names = settings.identity_names(settings.ClassifierSettings)
            stages[f"classifier of {stage}"] = {name: getattr(query.classifier, name) for name in names}
    return {(stage, name): value for stage, own in stages.items() for name, value in own.items()}


def text_of(value: Any) -> str:
    """A setting as one line, not too long."""
    if isinstance(value, dict):
        value = ", ".join(f"{name} {item}" for name, item in value.items())
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def difference_section(runs: Sequence[Run]) -> Section:
    """The settings in which runs differ."""
    section, tables, rows = Section("Settings that differ"), [settings_of(run) for run in runs], []
    free = {field.name for group in SETTINGS for field in dataclasses.fields(group)}
    free -= {*settings.identity_names(*SETTINGS)}
    stages = [{stage for stage, _ in table} for table in tables]
    for stage in dict.fromkeys(stage for table in tables for stage, _ in table):
        if not all(stage in own for own in stages):
            rows.append([stage, "(whole stage)", *("on record" if stage in own else None for own in stages)])
    for stage, name in dict.fromkeys(key for table in tables for key in table):
        values = [text_of(table[stage, name]) if (stage, name) in table else None for table in tables]
        if name not in free and len({*values}) > 1 and all(stage in own for own in stages):
            rows.append([stage, name, *values])
    if rows:
        section.say("A dash: this run has no such stage or setting on record. What changes no result is left out.")
        section.table(Table(["stage", "setting", *(run.name for run in runs)], rows))
    else:
        section.say("All settings on record that change results are the same.")
    return section


def record_section(runs: Sequence[Run]) -> Section:
    """Time by stage, versions, commits, and all settings."""
    section = Section("Settings, versions and time")
    for run in runs:
        if len(runs) > 1:
            section.head(run.name)
        section.table(Table(["stage", "time", "what is counted"], stage_rows(run)))
        made = [[e.name, text_of(e.record.get("git_commit")), text_of(e.record.get("versions"))] for e in run.encoders]
        if made:
            section.table(Table(["stage", "commit", "versions"], made), summary="Commits and versions")
        rows = [[*key, text_of(value)] for key, value in settings_of(run).items()]
        section.table(Table(["stage", "setting", "value"], rows), summary=f"All {len(rows)} settings")
        for note in run.notes:
            section.miss(note)
    section.say(f"This page was made at commit {git_commit()} with {text_of(versions())}.")
    return section


def stage_rows(run: Run) -> list[list[Cell]]:
    """What each stage took, as its files say."""
    rows: list[list[Cell]] = []
    for encoder in run.encoders:
        seconds = sum(values.get("seconds", 0) for values in encoder.epochs)
        rows.append([encoder.name, duration(seconds), f"{len(encoder.epochs)} epochs of training"])
    for query in run.queries:
        seconds, words = sum(content.seconds for content in query.files), "scoring and selection, without features"
        used = query.files[-1].settings.get("checkpoint_digests")
        spent = [run.feature_seconds.get(str(digest)) for digest in used.values()] if isinstance(used, dict) else []
        if spent and None not in spent:
            words = f"features {duration(sum(spent))}, scoring and selection {duration(seconds)}"
            seconds += sum(spent)
        rows.append([query.name, duration(seconds), words])
    if run.classifier_seconds:
        rows.append(["classifier", duration(run.classifier_seconds), "training of all seeds and cycles"])
    return rows
