"""Query strategies on features of all of CIFAR-10: what each finds, and the accuracy that its answers buy.

Usage: python -m benchmarks.cifar10_h200 --npz cifar10.npz --features DIR [--published FILE] --out results/cifar10_h200

DIR holds features that 4c53e41's encoders made on one H200 of CIFAR-10 as JPEG at mismatch 0.8 (benchmarks.cifar10_npz
makes such images): semantic.npy (projections, 87 epochs), distinctive.npy (55), semantic_450.npy (450) and
semantic_450_penultimate.npy (of all 60,000 images). Every query is a command of active_main.py, printed before it runs;
found targets go to queries.csv. A logistic regression on the penultimate features of the labeled images, measured on
the test images of the target classes, gives accuracy.csv. Lower mismatches leave other-class images out of the pool of
0.8, which the encoders saw. What is in the folder of runs already is not run again.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from sklearn.linear_model import LogisticRegression

from common import plots
from common.files import atomic_write, read_npz
from common.flags import Parser
from common.provenance import int64_digest
from common.session import run_command
from common.settings import option
from datasets.index_files import IndexFile
from datasets.split import make_split
from evals.summary import read_cycles

PENULTIMATE = "semantic_450_penultimate.npy"
METRICS = ("found", "precision", "recall", "auroc_semantic", "auroc_utility")
IMAGES = ("train_images", "train_labels", "test_images", "test_labels")


@dataclass(frozen=True)
class Settings:
    """What is read and written."""

    title: ClassVar[str] = "results"
    npz: str = option(help="all of CIFAR-10 as JPEG", metavar="FILE")
    features: str = option(help="folder of the features", metavar="DIR")
    out: str = option(help="folder of the tables and figures", metavar="DIR")
    published: str | None = option(None, "the authors' query lists, cycle_0 .. cycle_7", metavar="NPZ")
    runs: str | None = option(None, "folder of index files (default: a temporary one)", metavar="DIR")


@dataclass(frozen=True)
class Run:
    """One query: ``files`` are the flags of the features and their files."""

    name: str
    strategy: str
    files: dict[str, str]
    mismatch: float = 0.8
    classes: tuple[int, ...] = (0, 1)
    initial: int = 800
    cycles: int = 7
    seed: int = 0

    @property
    def restricted(self) -> bool:
        """Whether others are left out of the pool of mismatch 0.8, so that the encoders have seen all images."""
        return self.mismatch < 0.8 and self.classes == (0, 1)

    @property
    def folder(self) -> str:
        """Of its index files."""
        classes = "".join(map(str, self.classes))
        return f"{self.name.replace(' ', '_')}-{self.mismatch:g}-{classes}-{self.initial}-{self.seed}"


def all_runs() -> Iterator[Run]:
    """Everything that the tables show."""
    short = {"semantic_features": "semantic.npy"}
    both = short | {"distinctive_features": "distinctive.npy"}
    long, penultimate = {"features": "semantic_450.npy"}, {"features": PENULTIMATE}
    yield Run("random", "random", {})
    yield Run("distinctive, 55", "distinctive", {"distinctive_features": "distinctive.npy"})
    yield Run("ccal, 87 + 55", "ccal", both)
    yield Run("semantic, 87", "semantic", short)
    yield Run("semantic, 450", "semantic", long)
    for seed in range(3):
        yield Run("posterior, 87 + 55", "posterior", both, seed=seed)
        yield Run("posterior, 450 projections", "posterior", long, seed=seed)
        yield Run("posterior, 450", "posterior", penultimate, seed=seed)
        yield Run("posterior, 450", "posterior", penultimate, seed=seed, initial=100, cycles=10)
        yield Run("posterior, 450", "posterior", penultimate, seed=seed, classes=(3, 5))
    four = {"classes": (2, 3, 4, 5), "cycles": 10, "mismatch": 0.6}  # 0.61 is the largest that there is
    for hard in ({"classes": (3, 5)}, four):
        yield Run("random", "random", {}, **hard)
        yield Run("semantic, 450 penultimate", "semantic", penultimate, **hard)
    yield Run("posterior, 450", "posterior", penultimate, **four)
    for mismatch in (0.6, 0.4, 0.2):
        yield Run("random", "random", {}, mismatch=mismatch, cycles=5)
        yield Run("ccal, 87 + 55", "ccal", both, mismatch=mismatch, cycles=5)
        yield Run("semantic, 87", "semantic", short, mismatch=mismatch, cycles=5)
        yield Run("semantic, 450", "semantic", long, mismatch=mismatch, cycles=5)
        for seed in range(3):
            yield Run("posterior, 450", "posterior", penultimate, mismatch=mismatch, cycles=5, seed=seed)


def build_parser() -> Parser:
    """The command's flags."""
    return Parser(__doc__.splitlines()[0], results=Settings)


def main(argv: Sequence[str] | None = None) -> None:
    given = build_parser().parse(argv).results
    data, out = read_npz(Path(given.npz), IMAGES), Path(given.out)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(given.runs or folder)
        keep = restricted(data, Path(given.features), work)
        rows, points = [], []
        features = np.load(Path(given.features) / PENULTIMATE, allow_pickle=False).astype(np.float32)
        for run in all_runs():
            query(run, Path(given.npz), Path(given.features), work)
            found = read_cycles(work / run.folder)
            rows += query_rows(run, found)
            if run.seed == 0 and run.initial == 800:
                images = keep if run.restricted else np.arange(len(data["train_labels"]))
                points += accuracies(run, found, images, features, data)
        if given.published:
            points += published(read_npz(Path(given.published), [f"cycle_{n}" for n in range(8)]), features, data)
    write_csv(out / "queries.csv", rows)
    write_csv(out / "accuracy.csv", points)
    draw(out, rows, points)


def restricted(data: dict[str, np.ndarray], features: Path, work: Path) -> np.ndarray:
    """Writes the images of mismatch 0.8's pool and labeled set, and their features, and returns which these are."""
    split = make_split(
        data["train_labels"], data["test_labels"], target_classes=(0, 1), mismatch=0.8, initial_budget=800
    )
    keep = np.sort(split.contrast())
    (work / "pool").mkdir(parents=True, exist_ok=True)
    if not (work / "pool.npz").exists():
        with atomic_write(work / "pool.npz") as file:
            np.savez(file, **{name: data[name][keep] if "train" in name else data[name] for name in IMAGES})
    for path in features.glob("*.npy"):
        values, train = np.load(path, mmap_mode="r", allow_pickle=False), len(data["train_labels"])
        np.save(
            work / "pool" / path.name, values if len(values) == len(keep) else values[[*keep, *range(train, 60_000)]]
        )
    return keep


def query(run: Run, npz: Path, features: Path, work: Path) -> None:
    """Runs the query, unless all of its cycles are there."""
    if (work / run.folder / f"cycle_{run.cycles}.json").exists():
        return
    per_class = 1500 // len(run.classes)
    words = (
        f"active_main.py --dataset npz --data_path {shlex.quote(str(work / 'pool.npz' if run.restricted else npz))} "
    )
    words += f"--target_classes {' '.join(map(str, run.classes))} --mismatch {run.mismatch:g} "
    words += f"--initial_budget {run.initial} --strategy {run.strategy} --seed {run.seed} --overwrite "
    words += f"--queries_per_class {per_class} --cycles {run.cycles} --index_dir {shlex.quote(str(work / run.folder))} "
    for flag, file in run.files.items():
        words += f"--{flag} {shlex.quote(str((work / 'pool' if run.restricted else features) / file))} "
    print(f"$ python {words}", flush=True)
    subprocess.run([sys.executable, *shlex.split(words)], check=True)


def query_rows(run: Run, files: Sequence[IndexFile]) -> list[dict]:
    """A row per cycle."""
    rows = []
    for file in files[1:]:
        row = {"query": run.name, "seed": run.seed, "mismatch": run.mismatch}
        row |= {"classes": " ".join(map(str, run.classes)), "initial": run.initial}
        row |= {"cycle": file.cycle, "queried": len(file.queried)} | {name: file.metrics[name] for name in METRICS}
        rows.append(row | {"seconds": file.seconds, "labeled_digest": int64_digest(np.array(file.labeled))})
    return rows


def accuracies(
    run: Run, files: Sequence[IndexFile], images: np.ndarray, features: np.ndarray, data: dict[str, np.ndarray]
) -> list[dict]:
    """A linear model's accuracy after every cycle; ``images`` are those that the index files count from 0."""
    name = {"query": run.name, "mismatch": run.mismatch, "classes": " ".join(map(str, run.classes))}
    asked, points = 0, []
    for file in files:
        asked += len(file.queried)
        labeled = images[np.array(file.labeled)]
        score = linear_accuracy(labeled, run.classes, features, data)
        points.append(name | {"cycle": file.cycle, "answers": asked, "labeled": len(labeled), "accuracy": score})
    return points


def published(lists: dict[str, np.ndarray], features: np.ndarray, data: dict[str, np.ndarray]) -> list[dict]:
    """The same for the authors' lists."""
    points = []
    for cycle in range(len(lists)):
        labeled = lists[f"cycle_{cycle}"]
        point = {"query": "authors' lists, 700 + 700", "mismatch": 0.8, "classes": "0 1", "cycle": cycle}
        point |= {"answers": 1500 * cycle, "labeled": len(labeled)}
        points.append(point | {"accuracy": linear_accuracy(labeled, (0, 1), features, data)})
    return points


def linear_accuracy(
    labeled: np.ndarray, classes: Sequence[int], features: np.ndarray, data: dict[str, np.ndarray]
) -> float:
    """Of a logistic regression on standardised features, on the target classes' test images, in percent."""
    train, test = features[labeled], np.flatnonzero(np.isin(data["test_labels"], classes))
    mean, deviation = train.mean(0), train.std(0) + 1e-6
    model = LogisticRegression(C=0.01, max_iter=1000)
    model.fit((train - mean) / deviation, data["train_labels"][labeled])
    measured = (features[len(data["train_labels"]) + test] - mean) / deviation
    return 100 * model.score(measured, data["test_labels"][test])


def write_csv(path: Path, rows: Sequence[dict]) -> None:
    """Numbers with six digits, which is more than they mean."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        text = [",".join(rows[0])]
        for row in rows:
            text.append(",".join(f"{v:.6g}" if isinstance(v, float) else csv_word(v) for v in row.values()))
        file.write(("\n".join(text) + "\n").encode())


def csv_word(value: object) -> str:
    """A value as the csv module would write it."""
    text = "" if value is None else str(value)
    return f'"{text}"' if "," in text else text


def draw(out: Path, rows: Sequence[dict], points: Sequence[dict]) -> None:
    """Recall and accuracy against the images that the annotator has seen, at mismatch 0.8 and classes 0 and 1."""
    main = {"mismatch": 0.8, "classes": "0 1", "initial": 800, "seed": 0}
    recall: dict[str, list] = {}
    for row in rows:
        if all(row[name] == value for name, value in main.items()):
            recall.setdefault(row["query"], [(0, 0.0)]).append((1500 * row["cycle"], row["recall"]))
    for classes, mismatch in (("0 1", 0.8), ("3 5", 0.8), ("2 3 4 5", 0.6)):
        accuracy: dict[str, list] = {}
        for point in points:
            if (point["classes"], point["mismatch"]) == (classes, mismatch):
                accuracy.setdefault(point["query"], []).append((point["answers"], point["accuracy"]))
        path, xlabel = out / f"accuracy_{classes.replace(' ', '')}.png", "images shown to the annotator"
        plots.plot_accuracy(path, accuracy, xlabel=xlabel, ylabel="accuracy of a linear model (%)")
    plots.plot_accuracy(out / "recall.png", recall, xlabel=xlabel, ylabel="targets of the pool found (%)")


if __name__ == "__main__":
    sys.exit(run_command(main))
