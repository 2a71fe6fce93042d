"""Scores of the pool against the plain formulation: a loop over the pool, as METHOD section 4 reads.

Usage: python -m benchmarks.query [--pool 46001] [--labeled 800 9000] [--sample 200] [--repeats 3] [--quick]

The plain loop takes minutes on a full pool, so it is timed on ``--sample`` of its images and scaled: each image costs
the same. Both are checked to agree on those images first. Memory is the process's peak, the features included.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from common.arguments import Parser, positive_int
from evals.scores import NearestLabeled, Scorer, distinctive_distance
from utils import run_cli

CLASSES, SHIFTS, WIDTH = 2, 4, 128
TOLERANCE = 1e-5


def build_parser() -> argparse.ArgumentParser:
    """The benchmark's flags."""
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--pool", type=positive_int, default=46_001, help="pool images")
    parser.add_argument(
        "--labeled", type=positive_int, nargs="+", default=[800, 9000], help="labeled images, each timed"
    )
    parser.add_argument("--sample", type=positive_int, default=200, help="pool images that the plain loop is timed on")
    parser.add_argument(
        "--repeats", type=positive_int, default=3, help="runs of each after one warm-up; medians are shown"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: checks that it runs and agrees, no figures")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    pool, counts, sample, repeats = args.pool, args.labeled, min(args.sample, args.pool), args.repeats
    if args.quick:
        pool, counts, sample, repeats = 60, [12], 20, 1
    print(f"pool {pool}, {CLASSES} classes, {SHIFTS} shifts, {WIDTH}-d, {torch.get_num_threads()} threads")
    print(f"{'labeled':>8} {'plain, scaled (s)':>18} {'ours (s)':>10} {'ratio':>8}")
    for count in counts:
        generator = torch.Generator().manual_seed(count)
        features = torch.randn(pool, SHIFTS, WIDTH, generator=generator)
        labeled = torch.randn(count, SHIFTS, WIDTH, generator=generator)
        classes = torch.arange(count) % CLASSES
        check_agreement(features[:sample], labeled, classes)
        plain = measure(partial(plain_scores, features[:sample], labeled, classes), repeats) * pool / sample
        ours = measure(partial(our_scores, features, labeled, classes), repeats)
        if not args.quick:
            print(f"{count:8} {plain:18.1f} {ours:10.2f} {plain / ours:7.1f}x")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of this process {peak:.0f} MiB; both agree to {TOLERANCE:g}")


def plain_scores(pool: Tensor, labeled: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """s(u), (N,), and d(u) per class, (N, C), image by image and shift by shift."""
    similarities, distances = [], []
    for u in pool:
        similarities.append(F.cosine_similarity(u[0][None], labeled[:, 0]).max())
        per_class = []
        for number in range(CLASSES):
            of_class = labeled[classes == number]
            per_shift = []
            for shift in range(SHIFTS):
                cosines = F.cosine_similarity(u[shift][None], of_class[:, shift])
                order = cosines.argsort(descending=True)
                a, b = order[0], order[1]
                between = F.cosine_similarity(of_class[a, shift], of_class[b, shift], dim=0)
                per_shift.append(cosines[a] - cosines[b] + between + cosines[a])
            per_class.append(torch.stack(per_shift).mean())
        distances.append(torch.stack(per_class))
    return torch.stack(similarities), torch.stack(distances)


def our_scores(pool: Tensor, labeled: Tensor, classes: Tensor) -> None:
    """All scores of one cycle, from the features on."""
    scorer = Scorer(pool[:, :1], pool, num_classes=CLASSES, k=100.0, t=0.9)
    scorer.add_labeled(labeled[:, :1], labeled, classes)
    scorer.scores(torch.arange(len(pool)))


def check_agreement(pool: Tensor, labeled: Tensor, classes: Tensor) -> None:
    """Stops where the two formulations differ."""
    similarity, distance = plain_scores(pool, labeled, classes)
    semantic = NearestLabeled(pool[:, :1], keep=1)
    semantic.add(labeled[:, :1])
    torch.testing.assert_close(semantic.similarity[:, 0, 0], similarity, atol=TOLERANCE, rtol=0)
    for number in range(CLASSES):
        nearest = NearestLabeled(pool, keep=2)
        nearest.add(labeled[classes == number])
        torch.testing.assert_close(distinctive_distance(nearest), distance[:, number], atol=TOLERANCE, rtol=0)


def measure(call: Callable[[], object], repeats: int) -> float:
    """Median seconds of a call, after one that does not count."""
    call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    sys.exit(run_cli(main))
