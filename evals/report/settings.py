"""The report's sections on what runs were made with: settings, their differences, versions, commits and time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from common.provenance import git_commit, versions
from common.record import duration
from evals.report.page import Cell, Section, Table
from evals.report.runs import Run, number

# Where things lie, and what changes no result: no part of a recipe.
PLACES = {
    "cache_dir", "checkpoints", "data", "data_path", "debug", "device", "feature_cache", "index_dir", "local_rank",
    "log_format", "logdir", "max_minutes", "out", "quiet", "resume", "resume_path", "save_step", "suffix",
}  # fmt: skip
SPLITTING = {"mismatch", "target_classes", "initial_budget", "split_seed"}  # what a split's digest stands for
LONGEST = 120  # characters of a value that the table shows


def settings_of(run: Run) -> dict[tuple[str, str], Any]:
    """Every setting on record, by stage and name."""
    settings: dict[tuple[str, str], Any] = {}
    modes, strategies = [e.mode for e in run.encoders], [q.strategy for q in run.queries]
    for encoder in run.encoders:
        stage = f"{encoder.mode} encoder" + ("" if modes.count(encoder.mode) == 1 else f" in {encoder.name}")
        settings |= {(stage, name): value for name, value in encoder.arguments.items()}
        settings[stage, "processes"] = encoder.record.get("processes")
    for query in run.queries:
        stage, first = f"query ({query.strategy})", query.files[0]
        stage += "" if strategies.count(query.strategy) == 1 else f" in {query.name}"
        settings |= {
            (stage, "strategy"): query.strategy,
            (stage, "dataset"): first.dataset,
            (stage, "mismatch"): first.mismatch,
            (stage, "target_classes"): first.target_classes,
            (stage, "initial labeled images"): len(first.labeled),
            (stage, "split digest"): first.split_digest[:12],
            **{(stage, name): value for name, value in first.settings.items()},
        }
        settings |= {(f"classifier of {stage}", name): value for name, value in query.classifier.items()}
    if run.record:
        settings |= {("reproduce.py", name): value for name, value in run.record["settings"].items()}
    return settings


def text_of(value: Any) -> str:
    """A setting as one line, not too long."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def commit_text(value: Any) -> str:
    """A commit, as short as it can be told by; -dirty stays."""
    name, dash, rest = text_of(value).partition("-")
    return name[:12] + dash + rest


def difference_section(runs: Sequence[Run]) -> Section:
    """The settings in which runs differ."""
    section = Section("Settings that differ")
    tables = [settings_of(run) for run in runs]
    digests = {content.split_digest for run in runs for query in run.queries for content in query.files}
    left_out = PLACES | (SPLITTING if len(digests) == 1 else set())  # a default may be named or not
    stages = [{stage for stage, _ in table} for table in tables]
    everywhere = set.intersection(*stages)
    rows: list[list[Cell]] = [
        [stage, "(whole stage)", *("on record" if stage in own else None for own in stages)]
        for stage in dict.fromkeys(stage for table in tables for stage, _ in table)
        if stage not in everywhere
    ]
    for key in dict.fromkeys(key for table in tables for key in table if key[0] in everywhere):
        values = [text_of(table[key]) if key in table else None for table in tables]
        if key[1] not in left_out and len(set(values)) > 1:
            rows.append([*key, *values])
    if rows:
        section.say("A dash: this run has no such stage or setting on record. Places of files are left out.")
        section.table(Table(["stage", "setting", *(run.name for run in runs)], rows))
    else:
        section.say("All settings on record are the same.")
    return section


def record_section(runs: Sequence[Run]) -> Section:
    """Time by stage, versions, commits, and all settings."""
    section = Section("Settings, versions and time")
    for run in runs:
        if len(runs) > 1:
            section.head(run.name)
        section.table(Table(["stage", "time", "what is counted", "on", "commit"], stage_rows(run)))
        own = {encoder.mode: encoder.record.get("versions") for encoder in run.encoders}
        own |= {"reproduce.py": run.record.get("versions")} if run.record else {}
        packages = [
            [stage, str(name), text_of(version)]
            for stage, found in own.items()
            if isinstance(found, dict)
            for name, version in found.items()
        ]
        if packages:
            section.fold("Versions", Table(["stage", "package", "version"], packages))
        rows = [[*key, text_of(value)] for key, value in settings_of(run).items()]
        section.fold(f"All {len(rows)} settings", Table(["stage", "setting", "value"], rows))
        for note in run.notes:
            section.miss(note)
    made = ", ".join(f"{name} {version}" for name, version in versions().items())
    section.say(f"This page was made at commit {commit_text(git_commit())} with {made}.")
    return section


def stage_rows(run: Run) -> list[list[Cell]]:
    """What each stage took, from reproduce.py's record or from the files of the stages."""
    if run.record:
        rows: list[list[Cell]] = []
        for name, stage in run.record["stages"].items():
            stage = stage if isinstance(stage, dict) else {}
            seconds = number(stage.get("seconds"))
            took = None if seconds is None else duration(seconds)
            device, commit = text_of(stage.get("device")), commit_text(stage.get("git_commit"))
            rows.append([name, took, "all of the stage", device, commit])
        return rows
    rows = []
    for encoder in run.encoders:
        seconds = sum(values.get("seconds", 0) for values in encoder.epochs)
        device = f"--device {text_of(encoder.arguments.get('device'))}"
        commit = commit_text(encoder.record.get("git_commit"))
        rows.append([encoder.name, duration(seconds), f"{len(encoder.epochs)} epochs of training", device, commit])
    for query in run.queries:
        seconds = sum(content.seconds for content in query.files)
        rows.append([query.name, duration(seconds), "scoring and selection, without features", None, None])
    if run.classifier_seconds is not None:
        rows.append(["classifier", duration(run.classifier_seconds), "training of all seeds and cycles", None, None])
    return rows
