"""The commands that the campaign disturbs, and what each of them leaves as its result."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
DATA = "--dataset digits --mismatch 0.8 --device cpu"
NET = f"{DATA} --model resnet8 --precision fp32"
RECIPE = "--optimizer adam --lr_init 3e-4 --warmup 1 --save_step 1 --error_step 2 --epochs 3 --resume auto"
QUERY = (
    f"{NET} --shift_trans_type rotation --load_semantic_path {{reference}}/semantic/last.model "
    "--load_feature_path {reference}/distinctive/last.model --ood_samples 2 --target 20 --split 5 "
    "--index_dir {out}/indices --resume auto"
)
VARYING = {"seconds", "images_per_second"}  # values of log.jsonl that differ from run to run


@dataclass(frozen=True)
class Job:
    """A command.

    Attributes:
        name: In the table.
        script: Which one.
        flags: Its flags, in which {out} is the folder of the run and {reference} that of the undisturbed runs.
        result: What the folder holds in the end, as values that can be compared.
        processes: Under torchrun, if more than one.
        needs: Jobs whose undisturbed runs it reads.
        torn: Ends of the names of files that may end up torn, and from which renaming in a launch on: those that the
            command writes again by itself.
    """

    name: str
    script: str
    flags: str
    result: Callable[[Path], dict[str, Any]]
    processes: int = 1
    needs: tuple[str, ...] = ()
    torn: tuple[tuple[str, int], ...] = ()

    def words(self, out: Path, reference: Path) -> list[str]:
        """The flags for a run in a folder."""
        return [word.format(out=out, reference=reference) for word in self.flags.split()]


def training_result(folder: Path) -> dict[str, Any]:
    """Weights and the log's values."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    log = [{name: value for name, value in line.items() if name not in VARYING} for line in lines]
    return {"log.jsonl": log, **torch.load(folder / "last.model", weights_only=True)}


def query_result(folder: Path) -> dict[str, Any]:
    """The index files without the time that a cycle took."""
    found = {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("indices/cycle_*.json"))}
    return {name: {**content, "seconds": 0} for name, content in found.items()}


def classifier_result(folder: Path) -> dict[str, Any]:
    """The rows of results.csv, in their order, without the time that a training took."""
    with open(folder / "results.csv", newline="") as file:
        return {"rows": [{**row, "seconds": ""} for row in csv.DictReader(file)]}


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Names of the values that are not the same, to the bit."""
    return [name for name in sorted({*found, *expected}) if not _same(found.get(name), expected.get(name))]


def _same(found: Any, expected: Any) -> bool:
    if isinstance(found, torch.Tensor) and isinstance(expected, torch.Tensor):
        return torch.equal(found, expected)
    return type(found) is type(expected) and found == expected


CHECKPOINT = (("last.ckpt", 2),)  # the first one has none before it to fall back on
JOBS = {
    job.name: job
    for job in (
        Job(
            "semantic",
            "contrast_main.py",
            f"{NET} {RECIPE} --mode semantic --batch_size 64 --logdir {{out}}",
            training_result,
            torn=CHECKPOINT,
        ),
        Job(
            "distinctive",
            "contrast_main.py",
            f"{NET} {RECIPE} --mode distinctive --shift_trans_type rotation --batch_size 64 --logdir {{out}}",
            training_result,
            torn=CHECKPOINT,
        ),
        Job(
            "query",
            "active_main.py",
            f"{QUERY} --feature_cache {{out}}/features",
            query_result,
            needs=("semantic", "distinctive"),
            torn=(("cycle_1.json", 1), ("cycle_3.json", 1)),
        ),
        Job(
            "random-query",
            "active_main.py",
            f"{DATA} --strategy random --target 20 --split 5 --index_dir {{out}}/indices --resume auto",
            query_result,
            torn=(("cycle_0.json", 1), ("cycle_2.json", 1)),
        ),
        Job(
            "classifier",
            "train_classifier/main.py",
            f"{DATA} --split 2 --runs 2 --epochs 2 --index_dir {{reference}}/random-query/indices --out_path {{out}}",
            classifier_result,
            needs=("random-query",),
        ),
        Job(
            "two-ranks",
            "contrast_main.py",
            f"{NET} {RECIPE} --mode semantic --batch_size 32 --logdir {{out}}",
            training_result,
            processes=2,
            torn=CHECKPOINT,
        ),
        Job(
            "two-ranks-query",
            "active_main.py",
            QUERY,
            query_result,
            processes=2,
            needs=("semantic", "distinctive"),
            torn=(("cycle_2.json", 1),),
        ),
    )
}
