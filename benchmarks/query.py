"""The query against the plain formulation: features once instead of in each cycle, scores as blocked products.

Usage: python -m benchmarks.query [--part scores features memory] [--pool 46001] [--labeled 800] [--quick]

Scores: from nothing at the first cycle's and the last cycle's sizes, and the seventh cycle as it comes, where only the
newly labeled images' columns are new. The plain loop goes over the pool image by image, as METHOD section 4 reads; it
would take minutes, so it is timed on ``--sample`` pool images and scaled, since each image costs the same.

Features: of all cycles. The plain formulation extracts 10 views of 4 shifts by both encoders in each cycle; ours takes
shift 0 of the semantic encoder and does it once. Both are timed on ``--images`` images, the plain one for one cycle.

Memory: a whole query of ``--pool`` and ``--labeled`` images, features included, against its images' own bytes.
"""

from __future__ import annotations

import argparse
import copy
import gc
import sys
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import harness, plain
from common.acceleration import FP32, Precision
from common.distributed import choose_device
from common.flags import Parser, positive_int
from common.session import run_command
from common.settings import MODELS
from datasets.split import make_split
from evals.cycles import QueryLoop, simulate
from evals.features import Extraction, FeatureBank, default_batch, extract_features
from evals.scores import Scorer
from evals.strategies import STRATEGIES
from models import build_encoder
from models.counter_random import Purpose, make_keys, uniform
from models.transform_layers import CROP_ATTEMPTS, Augmentation

CLASSES, SHIFTS, WIDTH, VIEWS, CYCLES = 2, 4, 128, 10, 5
ENCODERS = (("semantic", 1), ("distinctive", SHIFTS))
DRAWS = 1 + 7 + 2 * CROP_ATTEMPTS + 2
TOLERANCE = 1e-5
SEVENTH = (37_001, 8_994, 439)  # the published run's pool, labeled images before the cycle, and those just joined


def build_parser() -> argparse.ArgumentParser:
    """The benchmark's flags."""
    parser = Parser(__doc__.splitlines()[0])
    harness.add_common_args(parser, repeats=3)
    group = parser.add_argument_group("query")
    parts = ("scores", "features", "memory")
    group.add_argument("--part", choices=parts, nargs="+", default=list(parts), help="what to measure")
    group.add_argument("--pool", type=positive_int, default=46_001, help="pool images")
    group.add_argument("--labeled", type=positive_int, nargs="+", default=[800, 9000], help="labeled images, timed")
    group.add_argument("--sample", type=positive_int, default=200, help="pool images that the plain loop is timed on")
    group.add_argument("--images", type=positive_int, default=100, help="images whose features are timed")
    group.add_argument("--model", choices=MODELS, default="resnet18", help="backbone of both encoders")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    device = choose_device(args.device)
    rows: list[harness.Comparison] = []
    if "scores" in args.part:
        rows += scores(args.pool, args.labeled, args.sample, args.repeats, device=device, quick=args.quick)
    if "features" in args.part:
        rows += features(args.model, args.images, args.repeats, device=device, quick=args.quick)
    if "memory" in args.part:
        memory(args.pool, args.labeled[0], args.model, device=device, quick=args.quick)
    if rows:
        harness.report("query", rows, device=device, out_path=args.out_path)


def scores(
    pool: int, labeled: Sequence[int], sample: int, repeats: int, *, device: torch.device, quick: bool
) -> list[harness.Comparison]:
    """Scores from nothing for each number of labeled images, then the seventh cycle."""
    if quick:
        check_agreement(*drawn(20, 12))
        print("scores: both agree")
        return []
    rows = []
    for count in labeled:
        features, known, classes = drawn(pool, count)
        part = features[:sample]
        check_agreement(part, known, classes)
        rows.append(
            harness.compare(
                f"scores {pool} x {count}",
                partial(plain_scores, part, known, classes),
                partial(our_scores, features.to(device), known.to(device), classes.to(device)),
                device=device,
                repeats=repeats,
                scale=pool / len(part),
                note=f"plain scaled from {len(part)} images",
            )
        )
    return [*rows, seventh_cycle(sample, repeats, device=device)]


def seventh_cycle(sample: int, repeats: int, *, device: torch.device) -> harness.Comparison:
    """The published run's seventh cycle as it comes: the sixth's new images are the only new columns."""
    pool, count, new = SEVENTH
    features, labeled, classes = (part.to(device) for part in drawn(pool, count))
    scorer = Scorer(features[:, :1], features, num_classes=CLASSES, k=100.0, t=0.9, device=device)
    old = slice(0, count - new)
    scorer.add_labeled(labeled[old, :1], labeled[old], classes[old])
    remaining = torch.arange(pool, device=device)

    def ours() -> None:
        again = copy.copy(scorer)
        # The tables are changed in place; the copies are part of the measured time.
        again._semantic, again._distinctive = copy.deepcopy((scorer._semantic, scorer._distinctive))
        again.add_labeled(labeled[old.stop :, :1], labeled[old.stop :], classes[old.stop :])
        again.scores(remaining)

    part = features[:sample].cpu()
    return harness.compare(
        f"scores, seventh cycle {pool} x {count}",
        partial(plain_scores, part, labeled.cpu(), classes.cpu()),
        ours,
        device=device,
        repeats=repeats,
        scale=pool / len(part),
        note=f"{new} new columns; plain scaled from {len(part)} images",
    )


def drawn(pool: int, labeled: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random features of a pool and of labeled images, (N, K, D) and (L, K, D), and classes in turn, (L,)."""
    generator = torch.Generator().manual_seed(labeled)
    features = torch.randn(pool, SHIFTS, WIDTH, generator=generator)
    return features, torch.randn(labeled, SHIFTS, WIDTH, generator=generator), torch.arange(labeled) % CLASSES


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


def our_scores(pool: Tensor, labeled: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """All scores of one cycle, from the features on; s(u) and d(u) are returned."""
    scorer = Scorer(pool[:, :1], pool, num_classes=CLASSES, k=100.0, t=0.9, device=pool.device)
    scorer.add_labeled(labeled[:, :1], labeled, classes)
    scores = scorer.scores(torch.arange(len(pool)))
    return scores.similarity, scores.distance


def check_agreement(pool: Tensor, labeled: Tensor, classes: Tensor) -> None:
    """Stops where the two formulations of the scores differ."""
    for ours, expected in zip(our_scores(pool, labeled, classes), plain_scores(pool, labeled, classes), strict=True):
        torch.testing.assert_close(ours, expected, atol=TOLERANCE, rtol=0)


def features(model: str, count: int, repeats: int, *, device: torch.device, quick: bool) -> list[harness.Comparison]:
    """Features by both encoders for all cycles."""
    size, views = (8, 2) if quick else (32, VIEWS)
    model, count = ("resnet8", 6) if quick else (model, count)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    encoders = {name: build_encoder(model, num_classes=10, shifts=k, seed=k) for name, k in ENCODERS}
    plain_encoders = [encoder.to(device) for encoder in encoders.values()]
    fast = {name: copy.deepcopy(encoder).to(memory_format=torch.channels_last) for name, encoder in encoders.items()}
    check_features(plain_encoders, fast, images, views=views)
    if quick:
        print("features: both agree")
        return []
    precision = Precision.resolve("auto", device)
    # Drawn beforehand: how the plain formulation comes to its random numbers is not what is compared.
    draws = feature_draws(count, views)
    on_device = images.to(device)
    return [
        harness.compare(
            f"features, {CYCLES} cycles, {precision.name}",
            lambda: [plain.features(encoder, images, draws) for encoder in plain_encoders],
            lambda: [ours_of(fast[name], on_device, name, views=views, precision=precision) for name in fast],
            device=device,
            repeats=repeats,
            scale=CYCLES,
            note=f"{model}, {count} images; plain: one cycle times {CYCLES}",
        )
    ]


def feature_draws(count: int, views: int) -> Tensor:
    """The query's draws for images 0 .. count - 1, (V, K, N, DRAWS)."""
    view, shift = torch.arange(views)[:, None, None], torch.arange(SHIFTS)[:, None]
    return uniform(make_keys(0, Purpose.QUERY, torch.arange(count), view, shift), DRAWS)


def ours_of(encoder: torch.nn.Module, images: Tensor, name: str, *, views: int, precision: Precision) -> Tensor:
    """One encoder's averaged features, (N, K, D), as active_main.py extracts them."""
    shift, numbers = ("none", (0,)) if name == "semantic" else ("rotation", tuple(range(SHIFTS)))
    batch = default_batch(images.device, images.shape[2:])
    crop = Augmentation(0.54, True)
    extraction = Extraction(crop, views, shift, numbers, seed=0, batch_size=batch, precision=precision)
    return extract_features(encoder, images, np.arange(len(images)), extraction).features


def check_features(
    plain_encoders: Sequence[torch.nn.Module], fast: dict[str, torch.nn.Module], images: Tensor, *, views: int
) -> None:
    """Stops where the averages of the plain features and ours, in float32, differ on a few images."""
    few = images[:4]
    for encoder, (name, ours) in zip(plain_encoders, fast.items()):
        device = next(ours.parameters()).device
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # by default GPUs convolve in TF32
            expected = plain.features(encoder, few, feature_draws(len(few), views)).mean(2)
            found = ours_of(ours, few.to(device), name, views=views, precision=FP32).cpu()
        scale = expected.abs().max()
        torch.testing.assert_close(found / scale, expected[:, : found.shape[1]] / scale, atol=TOLERANCE, rtol=0)


def memory(pool: int, labeled: int, model: str, *, device: torch.device, quick: bool) -> None:
    """Peak memory of a whole query beyond its images and what the process held before.

    The features are random but of full size; extraction runs for real on a few batches, whose memory does not depend
    on how many follow.
    """
    pool, labeled, batch = (60, 12, 4) if quick else (pool, labeled, 100)
    labels = np.arange(pool + labeled) % CLASSES  # all are targets: the labeled set grows as fast as it can
    split = make_split(labels, labels, target_classes=range(CLASSES), mismatch=0.0, initial_budget=labeled)
    images = torch.zeros(2 * batch, 3, 32, 32, dtype=torch.uint8, device=device)
    gc.collect()
    harness.reset_peak_memory(device)
    before = harness.peak_memory(device)
    precision = Precision.resolve("auto", device)
    for name, shifts in ENCODERS:
        encoder = build_encoder("resnet8" if quick else model, num_classes=10, shifts=shifts, seed=0).to(device)
        ours_of(encoder.to(memory_format=torch.channels_last), images, name, views=1, precision=precision)
    chosen = np.sort(np.concatenate([split.unlabeled, split.labeled]))
    banks = {
        name: FeatureBank(chosen, torch.randn(len(chosen), shifts, WIDTH, device=device)) for name, shifts in ENCODERS
    }
    loop = QueryLoop(banks, split, labels, STRATEGIES["ccal"], device=device)
    for _ in simulate(loop, cycles=CYCLES, queries_per_class=max(1, pool // 60)):
        pass
    if not quick:
        peak = harness.peak_memory(device) - before
        print(
            f"memory: {pool} pool and {labeled} labeled images, {CYCLES} cycles, {model}: peak {peak:.0f} MiB beyond "
            f"the {before:.0f} MiB that the process held before (interpreter and libraries)"
        )


if __name__ == "__main__":
    sys.exit(run_command(main))
