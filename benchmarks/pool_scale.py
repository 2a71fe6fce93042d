"""How the query grows with the pool: features streamed from a memory-mapped float16 file, block by block.

Usage: python -m benchmarks.pool_scale [--pool 100000 300000 1000000 3000000 10000000] [--labeled 1000] [--quick]

For each size a file of random float16 features, (N, 4, 128), is written and one whole cycle is timed: scores against
the labeled images, query and metrics. Every size runs in a process of its own, whose peak memory is that size's. First,
on a small pool, the selection is compared with that of the same float16 values in memory, and the scores of a few
images with the plain loop.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks import harness
from benchmarks.query import CLASSES, SHIFTS, WIDTH, check_agreement
from common.distributed import choose_device
from common.files import atomic_write, write_json
from common.flags import Parser, positive_int
from common.session import run_command
from datasets.split import Split
from evals.cycles import Cycle, QueryLoop, simulate
from evals.features import FeatureBank, MappedFeatures
from evals.strategies import STRATEGIES
from utils import InputError

SIZES = [100_000, 300_000, 1_000_000, 3_000_000, 10_000_000]
WRITE_BLOCK = 65536


def build_parser() -> argparse.ArgumentParser:
    """The benchmark's flags."""
    parser = Parser(__doc__.splitlines()[0])
    harness.add_common_args(parser, repeats=1)
    group = parser.add_argument_group("pool")
    group.add_argument("--pool", type=positive_int, nargs="+", default=SIZES, help="pool images, each timed")
    group.add_argument("--labeled", type=positive_int, default=1000, help="labeled images")
    group.add_argument("--queries_per_class", type=positive_int, default=750, help="images queried per class")
    group.add_argument(
        "--folder",
        metavar="DIR",
        help="where the features lie meanwhile, 1.3 GB per million images (default: the system's temporary folder)",
    )
    group.add_argument("--strategy", choices=("ccal", "posterior"), default="ccal", help="what queries")
    group.add_argument("--one", action="store_true", help="run the first size in this process and print it as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    device = choose_device(args.device)
    if args.folder and not Path(args.folder).is_dir():
        raise InputError(f"--folder {args.folder} is not a folder; make it, or leave the flag out")
    sizes, labeled, queries = ([200], 12, 5) if args.quick else (args.pool, args.labeled, args.queries_per_class)
    if args.one:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            work = (sizes[0], labeled, queries, Path(folder), args.repeats, args.strategy)
            print(json.dumps(one(*work, device=device)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        check(min(*sizes, 20_000), labeled, queries, Path(folder), args.strategy, device=device)
    print("the same selection from the file as from memory")
    if args.quick:
        return
    rows = []
    for size in sizes:
        rows.append(in_a_process_of_its_own(size, args))
        print(line(rows[-1], rows[0]), flush=True)
    about = harness.machine(device)
    print(f"{about['device']}, {about['threads']} threads, torch {about['torch']}, commit {about['git_commit'][:12]}")
    if args.out_path:
        content = {
            "benchmark": "pool_scale",
            "strategy": args.strategy,
            "labeled": labeled,
            "queries_per_class": queries,
        }
        content |= {"machine": about, "rows": rows}
        write_json(Path(args.out_path) / "pool_scale.json", content)
        draw(Path(args.out_path) / "pool_scale.png", rows, labeled=labeled)
        print(f"wrote {Path(args.out_path) / 'pool_scale'}.json and .png")


def in_a_process_of_its_own(size: int, args: argparse.Namespace) -> dict[str, float]:
    """One size's figures, measured by a new process of this module."""
    words = ["--one", "--pool", size, "--labeled", args.labeled, "--repeats", args.repeats]
    words += ["--queries_per_class", args.queries_per_class, "--device", args.device, "--strategy", args.strategy]
    words += ["--folder", args.folder] if args.folder else []
    command = [sys.executable, "-m", "benchmarks.pool_scale", *map(str, words)]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(answer.stdout.splitlines()[-1])


def one(
    size: int, labeled: int, queries: int, folder: Path, repeats: int, strategy: str, *, device: torch.device
) -> dict[str, float]:
    """Seconds of the query's parts for one size, and the peak memory of the process."""
    start = time.perf_counter()
    banks, split, labels = problem(size, labeled, folder)
    written, before = time.perf_counter() - start, harness.resident_memory()
    runs = []
    for _ in range(repeats):
        start = time.perf_counter()
        cycle = first_cycle(banks, split, labels, queries, strategy, device=device)
        runs.append({"query": cycle.seconds, "whole": time.perf_counter() - start})
    best = sorted(runs, key=lambda run: run["whole"])[len(runs) // 2]
    peak = harness.peak_memory(torch.device("cpu"))
    return {"pool": size, **best, "write": written, "memory": peak, "memory_before": before}


def problem(size: int, labeled: int, folder: Path) -> tuple[dict[str, FeatureBank], Split, np.ndarray]:
    """Random features of ``size`` pool images and the labeled ones behind them, in float16 files."""
    count = size + labeled
    rng = np.random.default_rng(0)
    banks = {}
    for name, shifts in (("semantic", 1), ("distinctive", SHIFTS)):
        path = folder / f"{name}.npy"
        out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(count, shifts, WIDTH))
        del out
        with open(path, "r+b") as file:
            file.seek(path.stat().st_size - count * shifts * WIDTH * 2)
            for start in range(0, count, WRITE_BLOCK):
                rows = min(WRITE_BLOCK, count - start)
                file.write(rng.standard_normal((rows, shifts, WIDTH), dtype=np.float32).astype(np.float16).tobytes())
        banks[name] = FeatureBank(np.arange(count), MappedFeatures(path))
    labels = (np.arange(count) % (CLASSES * 5)).astype(np.int64)  # a fifth of the pool are targets
    labels[size:] = np.arange(labeled) % CLASSES
    split = Split(
        labeled=np.arange(size, count),
        unlabeled=np.arange(size),
        set_aside=np.empty(0, dtype=np.int64),
        test=np.empty(0, dtype=np.int64),
        target_classes=tuple(range(CLASSES)),
        mismatch=0.8,
        seed=0,
        digest="",
    )
    return banks, split, labels


def first_cycle(
    banks: dict[str, FeatureBank],
    split: Split,
    labels: np.ndarray,
    queries: int,
    strategy: str,
    *,
    device: torch.device,
) -> Cycle:
    """Scores, query, annotation and metrics, as active_main.py runs them."""
    loop = QueryLoop(banks, split, labels, STRATEGIES[strategy], device=device)
    return next(simulate(loop, cycles=1, queries_per_class=queries))


def check(size: int, labeled: int, queries: int, folder: Path, strategy: str, *, device: torch.device) -> None:
    """Stops where the file's selection is not that of memory, or the scores not those of the plain loop."""
    banks, split, labels = problem(size, labeled, folder)
    memory = {name: FeatureBank(bank.indices, bank.features[:].to(device)) for name, bank in banks.items()}
    streamed = first_cycle(banks, split, labels, queries, strategy, device=device)
    held = first_cycle(memory, split, labels, queries, strategy, device=device)
    np.testing.assert_array_equal(streamed.result.indices, held.result.indices)
    features = memory["distinctive"].features.float().cpu()
    check_agreement(features[:20], features[split.labeled], torch.from_numpy(labels[split.labeled]))


def line(row: dict[str, float], first: dict[str, float]) -> str:
    """One size in words."""
    each = 1e6 * row["whole"] / row["pool"]
    growth = row["whole"] / row["pool"] / (first["whole"] / first["pool"])
    return (
        f"pool {row['pool']:>10}: {row['whole']:8.1f} s, {each:6.1f} us an image ({growth:.2f} of the first size's), "
        f"peak memory {row['memory']:6.0f} MiB ({row['memory_before']:.0f} before the query)"
    )


def draw(path: Path, rows: Sequence[dict[str, float]], *, labeled: int) -> None:
    """Seconds and peak memory against the pool, both logarithmic, beside a straight line through the first size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    sizes = [row["pool"] for row in rows]
    time_axes, memory_axes = figure.subplots(1, 2)
    time_axes.loglog(sizes, [row["whole"] for row in rows], marker="o", label="one cycle")
    time_axes.loglog(
        sizes, [rows[0]["whole"] * size / sizes[0] for size in sizes], "--", color="gray", label="linear in the pool"
    )
    time_axes.set(xlabel=f"pool images, against {labeled} labeled", ylabel="seconds")
    time_axes.legend()
    memory_axes.semilogx(sizes, [row["memory"] / 1024 for row in rows], marker="o", color="C1")
    memory_axes.set(xlabel="pool images", ylabel="peak memory of the process (GiB)", ylim=(0, None))
    for axes in (time_axes, memory_axes):
        axes.grid(alpha=0.3)
    with atomic_write(path) as file:
        FigureCanvasAgg(figure).print_png(file)


if __name__ == "__main__":
    sys.exit(run_command(main))
