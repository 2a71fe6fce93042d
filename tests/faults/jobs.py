"""The commands that the campaign disturbs, and what each of them leaves as its result."""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.files import read_json, read_npz

DATA = "--dataset digits --mismatch 0.2 --device cpu"  # 366 images
NET = f"{DATA} --model resnet8 --precision fp32"
TRAIN = f"{NET} --optimizer adam --lr_init 3e-4 --warmup 1 --save_step 1 --error_step 2 --epochs 3 --resume auto"
CLOCK = {"seconds", "images_per_second"}  # values that differ from run to run


@dataclass(frozen=True)
class Job:
    """A command; given again after a fault, it must end with the result of a run without one.

    Attributes:
        name: In the table.
        script: The command.
        flags: Its flags, in which {out} is the folder of the run and {reference} that of the undisturbed runs.
        result: What the folder holds in the end, by name, to the bit.
        processes: How many.
        needs: Jobs whose undisturbed runs it reads.
        torn: The end of the name of a file that may end up torn, and at which renaming.
    """

    name: str
    script: str
    flags: str
    result: Callable[[Path], dict[str, Any]]
    processes: int = 1
    needs: tuple[str, ...] = ()
    torn: tuple[str, int] | None = None


def training_result(folder: Path) -> dict[str, Any]:
    """The bytes of the weights, and the log's values."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    log = [{name: value for name, value in line.items() if name not in CLOCK} for line in lines]
    state = torch.load(folder / "last.model", weights_only=True)
    return {"log.jsonl": log, **{name: value.numpy().tobytes() for name, value in state.items()}}


def query_result(folder: Path) -> dict[str, Any]:
    """The index files without the time that a cycle took, and the bytes of the scores."""
    found = {path.name: {**read_json(path), "seconds": 0} for path in folder.glob("cycle_*.json")}
    for path in folder.glob("scores/cycle_*.npz"):
        arrays = read_npz(path, ["queried", "query_score"])
        found |= {f"{path.name} {name}": array.tobytes() for name, array in arrays.items()}
    return found


def classifier_result(folder: Path) -> dict[str, Any]:
    """The rows of results.csv, in their order, without the time that a training took."""
    with open(folder / "results.csv", newline="") as file:
        return {"rows": [{**row, "seconds": ""} for row in csv.DictReader(file)]}


def training(name: str, flags: str, *, processes: int = 1) -> Job:
    """A run of contrast_main.py; a torn first checkpoint would have none before it to fall back on."""
    words = f"{TRAIN} {flags} --logdir {{out}}"
    return Job(name, "contrast_main.py", words, training_result, processes=processes, torn=("last.ckpt", 2))


def query(name: str, flags: str, *, needs: tuple[str, ...] = ()) -> Job:
    """A run of active_main.py; with --overwrite an interrupted one starts again."""
    words = f"{flags} --queries_per_class 20 --cycles 5 --index_dir {{out}} --overwrite"
    return Job(name, "active_main.py", words, query_result, needs=needs, torn=("cycle_2.json", 1))


CLASSIFY = f"{DATA} --cycles 2 --runs 2 --epochs 2 --index_dir {{reference}}/random-query --out_path {{out}}"
QUERY = f"{NET} --shift_trans_type rotation --load_path {{reference}} --views 2"
ALL = (
    training("semantic", "--mode semantic --batch_size 64"),
    training("distinctive", "--mode distinctive --shift_trans_type rotation --batch_size 64"),
    training("two-ranks", "--mode semantic --batch_size 32", processes=2),
    query("query", QUERY, needs=("semantic", "distinctive")),
    query("random-query", f"{DATA} --strategy random"),
    Job("classifier", "train_classifier/main.py", CLASSIFY, classifier_result, needs=("random-query",)),
)
JOBS = {job.name: job for job in ALL}
