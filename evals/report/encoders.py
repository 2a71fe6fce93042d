"""Which encoders a query was made with, and where its images are by their record."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.checkpoint import ARGS_FILE, MODEL_FILE
from common.paper import DEFAULT_MISMATCH
from common.provenance import file_digest
from datasets.index_files import IndexFile
from evals.report.located import names_images
from evals.report.runs import EncoderRun, Query, Run, read_encoder
from utils import InputError


def data_settings(run: Run, query: Query, data_path: str | None) -> dict[str, Any]:
    """Settings that load the query's data: of an encoder of its split, or that it was made with.

    Raises:
        InputError: The run has none.
    """
    encoders = [*run.encoders, *encoders_outside(query)]
    named = names_images(query.files)
    digests = {content.split_digest for content in (query.files if named else query.files[-1:])}
    records = [encoder.arguments for encoder in encoders if encoder.record.get("split_digest") in digests]
    if named and not records:
        records = [encoder.arguments for encoder in made_with(encoders, query.files)]
    if named and not records and data_path:
        records = [{"dataset": "folder", "mismatch": DEFAULT_MISMATCH}]
    if not records:
        remedy = f": python -m evals.report {run.folder} --data_path DIR shows them" if named else ""
        raise InputError(
            f"{run.folder} has no args.json of an encoder of this split, so where its images are is unknown{remedy}"
        )
    return records[0]


def encoders_outside(query: Query) -> list[EncoderRun]:
    """The encoders whose checkpoints a query's settings name, as far as they are still there."""
    named = query.files[0].settings.get("checkpoints")
    paths = [Path(path) for path in named.values() if isinstance(path, str)] if isinstance(named, dict) else []
    found = []
    for path in paths:
        if path.name == MODEL_FILE and path.is_file() and (path.parent / ARGS_FILE).is_file():
            with contextlib.suppress(InputError):
                found.append(read_encoder(path.parent, str(path.parent), []))
    return found


def encoder_of(run: Run, query: Query, mode: str) -> EncoderRun:
    """The encoder that a query used: the one that it names, or the run's only one.

    Raises:
        InputError: The run has none, or several; or the checkpoint was not kept.
    """
    made = [*run.encoders, *encoders_outside(query)]
    if names_images(query.files) and (found := made_with(made, query.files, mode)):
        return found[0]
    digest = query.files[-1].split_digest
    own = [encoder for encoder in run.encoders if encoder.mode == mode and encoder.record.get("split_digest") == digest]
    own = [encoder for encoder in own if (encoder.folder / MODEL_FILE).is_file()]
    outside = [encoder for encoder in encoders_outside(query) if encoder.mode == mode]
    same = [encoder for encoder in own for named in outside if encoder.folder.samefile(named.folder)]
    if same or len(own) == 1:
        return (same or own)[0]
    if not own and outside:
        return outside[0]
    many = "several checkpoints" if own else "no checkpoint"
    raise InputError(f"{run.folder} holds {many} ({MODEL_FILE}) of the {mode} encoder of {query.name}")


def made_with(encoders: Sequence[EncoderRun], files: Sequence[IndexFile], mode: str | None = None) -> list[EncoderRun]:
    """Those encoders whose checkpoints have the content that every cycle of the query puts on record.

    Args:
        encoders: To choose from.
        files: Of the query.
        mode: That they must have; None for any.

    Raises:
        InputError: The cycles were made with several.
    """
    records = [content.settings.get("checkpoint_digests") for content in files]
    if any(record != records[0] for record in records):
        raise InputError("the cycles were queried with different checkpoints, so no pair of encoders scores them all")
    digests = records[0] if isinstance(records[0], dict) else {}
    return [
        encoder
        for encoder in encoders
        if encoder.mode in digests and mode in (None, encoder.mode) and _digest(encoder.folder) == digests[encoder.mode]
    ]


def _digest(folder: Path) -> str | None:
    return file_digest(folder / MODEL_FILE) if (folder / MODEL_FILE).is_file() else None
