"""What a command tells its user to run next, word for word."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from common.checkpoint import MODEL_FILE

OTHER = {"semantic": "distinctive", "distinctive": "semantic"}
VIEWS = ("--ood_samples", "10", "--resize_factor", "0.54", "--resize_fix")  # the paper's, in the query
DATA_GROUPS = ("data and split",)
TRAINING_GROUPS = (*DATA_GROUPS, "encoder", "augmentation", "contrastive training", "speed")
QUERY_GROUPS = (*DATA_GROUPS, "encoder", "speed")
OWN_FLAGS = ("mode", "shift_trans_type", "compile")  # of one command or encoder, in groups that are shared


def after_training(
    mode: str, folder: Path, *, training: Sequence[str], query: Sequence[str], shift: str, target: int, annotate: bool
) -> str:
    """The command that follows an encoder's training: the other encoder's, or the query where both are there.

    Args:
        mode: ``semantic`` or ``distinctive``, what was trained.
        folder: Of the run. The other encoder's is looked for beside it, under the same name with the mode changed.
        training: Flags of this training that the other one shares.
        query: Flags that the query shares.
        shift: The distinctive encoder's kind of shifts; ``none`` where it is not known yet.
        target: Images to query per target class and cycle.
        annotate: Whether a person labels.
    """
    other = OTHER[mode]
    beside = folder.with_name(folder.name.replace(mode, other)) if mode in folder.name else folder.with_name(other)
    kind = "rotation" if shift == "none" else shift
    shifts = ["--shift_trans_type", kind]
    if not (beside / MODEL_FILE).is_file():
        words = ["--mode", other, *(shifts if other == "distinctive" else []), *training]
        return command("contrast_main.py", [*words, "--logdir", str(beside)])
    folders = {mode: folder, other: beside}
    if folder.name in OTHER and beside.name in OTHER:
        where = ["--load_path", str(folder.parent)]
    else:
        where = ["--load_semantic_path", str(folders["semantic"] / MODEL_FILE)]
        where += ["--load_feature_path", str(folders["distinctive"] / MODEL_FILE)]
    way = ["--annotate"] if annotate else ["--target", str(target)]
    return command("active_main.py", [*query, *shifts, *VIEWS, *where, *way])


def after_query(folder: Path, *, data: Sequence[str], cycles: int) -> str:
    """The classifier's command for the index files of a folder."""
    return command("-m", ["train_classifier.main", *data, "--split", str(cycles), "--index_dir", str(folder)])


def after_labeling(words: Sequence[str], labels: str) -> str:
    """The query's command again, with the labels of the query that it made.

    Args:
        words: Its arguments.
        labels: The csv with the labels.
    """
    kept, rest = [], iter(words)
    for word in rest:
        if word == "--labels":
            next(rest, None)
        elif word not in ("--partial", "--overwrite") and not word.startswith("--labels="):
            kept.append(word)
    return command("active_main.py", [*kept, "--labels", labels])


def after_classifier(index_folder: Path, results: Path) -> str:
    """The command that puts query and accuracies into a table and a figure."""
    return command("-m", ["evals.summary", "--index_dir", str(index_folder), "--results", str(results)])


def command(script: str, words: Sequence[str]) -> str:
    """A command as the shell takes it."""
    return shlex.join(["python", script, *words])
