"""A run as its files say it, without training anything: encoders, queries with what they kept, classifiers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch

from common.provenance import int64_digest
from datasets.index_files import IndexFile, write_index_file
from datasets.results_file import COLUMNS
from evals import kept
from evals.features import FeatureBank
from evals.query import QueryResult
from evals.scores import PoolScores

HOSTILE = "<script>alert('x')</script> & \"$q$\" _é\u2028"
DIGEST = "d" * 64
CLASSES = ("cat", HOSTILE, "frog", "ship")
IMAGES = np.random.default_rng(0).integers(0, 256, (120, 12, 8, 3), dtype=np.uint8)


def write_encoder(folder: Path, mode: str, **arguments: object) -> None:
    folder.mkdir(parents=True)
    settings = {"mode": mode, "epochs": 3, "lr_init": 0.1, "logdir": str(folder), "device": "cpu", **arguments}
    record = {"arguments": settings, "split_digest": DIGEST, "processes": 1, "versions": {"torch": "2.99"}}
    (folder / "args.json").write_text(json.dumps({**record, "git_commit": "0123456789abcdef0123-dirty"}))
    lines = [{"epoch": n, "loss": 5.5 - n, "seconds": 60.0, "test_probe_accuracy": 20.0 + n} for n in (1, 2, 3)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_query(folder: Path, strategy: str, *, found: tuple[int, ...] = (7, 4), dataset: str = "npz") -> None:
    """Cycles of ten queries each, of which the first ``found`` are targets; a pool of images 20 to 119."""
    labeled, aside = list(range(20)), []
    first = IndexFile(dataset, 0.8, DIGEST, [0, 1], strategy, 0, labeled, [], [], settings={"k": 100.0, "t": 0.9})
    write_index_file(folder, first)
    for cycle, count in enumerate(found, start=1):
        queried = list(range(10 + 10 * cycle, 20 + 10 * cycle))
        labeled, aside = labeled + queried[:count], aside + queried[count:]
        metrics = {"queried": 10, "found": count, "precision": 10.0 * count, "recall": 2.5 * (len(labeled) - 20)}
        metrics |= {"auroc_semantic": 0.75, "auroc_utility": 0.625, "labeled": len(labeled), "pool": 100 - 10 * cycle}
        changes = {"cycle": cycle, "labeled": labeled, "queried": queried, "set_aside": [*aside], "metrics": metrics}
        write_index_file(folder, dataclasses.replace(first, **changes, seconds=30))


def result_of(queried: np.ndarray, utility: np.ndarray) -> QueryResult:
    nothing = np.zeros(len(queried))
    return QueryResult(queried, nothing.astype(int), utility, nothing, nothing, {})


def save_cycle(folder: Path, cycle: int, **more: object) -> None:
    """Even images are candidates of class 0; S, D and their sum fall with the number; every third is a target."""
    pool = np.arange(10 + 10 * cycle, 120)
    height = torch.from_numpy((200 - pool) / 200).float()
    scores = PoolScores(semantic=height, pseudo_class=torch.from_numpy(pool % 2))
    scores = dataclasses.replace(scores, distinctive=torch.stack([height / 2, height / 2], dim=1))
    utilities = torch.full((len(pool), 2), -torch.inf).scatter(1, scores.pseudo_class[:, None], 1.5 * height[:, None])
    result = result_of(pool[:10], utilities.amax(1).numpy()[:10])
    given = {"pool": pool, "utilities": utilities, "result": result, "scores": scores, "is_target": pool % 3 == 0}
    given |= {"images": IMAGES, "names": [CLASSES[number % 4] for number in pool[:10]]}
    kept.save_cycle(folder, cycle, **given | more)


def save_sample(folder: Path, **more: object) -> None:
    """Four classes, which the features of both encoders part."""
    indices, labels = np.arange(120), np.arange(120) % 4
    banks = {}
    for name, shifts in (("semantic", 1), ("distinctive", 4)):
        features = np.random.default_rng(0).normal(size=(120, shifts, 8)) * 0.1
        features[indices, :, labels] += 5
        banks[name] = FeatureBank(indices, torch.from_numpy(features).float())
    kept.save_sample(folder, banks, labels, **{"class_names": CLASSES, **more})


def write_results(
    path: Path, folder: Path, *, accuracies: dict[int, tuple[float, ...]], strategy: str = "ccal"
) -> None:
    lines = [",".join(COLUMNS)]
    for cycle, values in accuracies.items():
        digest = int64_digest(json.loads((folder / f"cycle_{cycle}.json").read_text())["labeled"])
        for seed, value in enumerate(values):
            row = dict.fromkeys(COLUMNS, "1") | {"strategy": strategy, "cycle": cycle, "seed": seed, "seconds": 1.5}
            row |= {"accuracy": value, "index_digest": digest, "split_digest": DIGEST}
            lines.append(",".join(str(row[column]) for column in COLUMNS))
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(lines) + "\n")


def build_run(place: Path) -> Path:
    """A run as a person might lay it out, with names that are no fun."""
    folder = place / "a & <b>"
    write_encoder(folder / "enc" / "semantic", "semantic", suffix=HOSTILE)
    write_encoder(folder / "distinctive", "distinctive")
    write_query(folder / "query", "ccal")
    for cycle in (1, 2):
        save_cycle(folder / "query", cycle)
    save_sample(folder / "query")
    write_query(folder / "deep" / "er" / HOSTILE[:20].replace("/", ""), "random", found=(2, 1))
    write_results(folder / "classifier" / "results.csv", folder / "query", accuracies={0: (60.0, 64.0), 2: (80.0,)})
    return folder
