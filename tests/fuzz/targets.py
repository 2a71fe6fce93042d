"""The project's file readers, each with valid files to damage and what must be true of whatever it accepts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from common import checkpoint
from common.files import write_json
from common.interruption import Interruption
from common.provenance import read_log
from datasets import load_dataset
from datasets.folder.pictures import Unusable, read_picture
from datasets.index_files import IndexFile, index_path, read_index_file, write_index_file
from datasets.results_file import Row, append_row, latest_rows, read_rows
from evals import feature_cache, summary
from evals.annotation.label_csv import read_labels
from evals.features import Extraction
from models import build_encoder
from models.transform_layers import Augmentation
from training.optim import build_optimizer
from training.run import Run
from utils import InputError

IMAGES = 30
DIGEST = "d" * 64
SETTINGS = {"mode": "semantic", "seed": 0, "model": "resnet8", "batch_size": 4, "global_batch_size": None}


@dataclass(frozen=True)
class Target:
    """One kind of file.

    Attributes:
        name: Of the kind.
        damaged: The files to damage, one at a time.
        kept: Files that are put back before each try.
        read: Reads them as the commands do, and asserts what must be true; InputError is a refusal.
    """

    name: str
    damaged: tuple[Path, ...]
    kept: tuple[Path, ...]
    read: Callable[[], None]


def make_targets(folder: Path) -> list[Target]:
    """Writes valid files of every kind into the folder."""
    makers = (
        index_files, settings, arrays, weights, resume, results, features, epochs, labels, pictures,
        image_cache,
    )  # fmt: skip
    targets = []
    for maker in makers:
        place = folder / maker.__name__
        place.mkdir(parents=True)
        targets.append(maker(place))
    return targets


def index_files(folder: Path) -> Target:
    metrics = {"queried": 4, "found": 2, "found_per_class": [1, 1], "precision": 50.0, "recall": 20.0, "labeled": 6}
    settings = {"k": 100.0, "t": 0.9, "checkpoints": {"semantic": "a/last.model"}}
    content = IndexFile("digits", 0.5, DIGEST, [0, 1], "ccal", 0, [3, 1, 4], [], [], settings, {}, 1.5)
    write_index_file(folder, content)
    later = dataclasses.replace(content, cycle=1, labeled=[3, 1, 4, 9], queried=[9, 5], set_aside=[5], metrics=metrics)
    path = write_index_file(folder, later)
    named = {
        name: [[f"{index}.png", DIGEST] for index in getattr(later, name)]
        for name in ("labeled", "queried", "set_aside")
    }
    answers = dataclasses.replace(later, class_names=["cat", "dog"], labels=[0, 1, 0, 1], files=named)
    people = write_index_file(folder, answers, name="people.json")

    def read() -> None:
        for file in (path, people):
            found = read_index_file(file, split_digest=DIGEST, n_images=IMAGES)
            for indices in (found.labeled, found.queried, found.set_aside):
                assert len(set(indices)) == len(indices) and all(0 <= index < IMAGES for index in indices)
            assert not set(found.labeled) & set(found.set_aside)
            if found.labels is not None:
                assert len([found.class_names[label] for label in found.labels]) == len(found.labeled)
        runs = summary.read_cycles(folder)
        rows = summary.cycle_rows(runs, random=runs)
        assert len(summary.table_cells(rows)) == len(rows) + 1
        summary.write_csv(folder / "summary.csv", rows)

    return Target("index file", (path, people), (index_path(folder, 0), path, people), read)


def settings(folder: Path) -> Target:
    checkpoint.write_args(folder, SETTINGS, split_digest=DIGEST, processes=1)
    path = folder / checkpoint.ARGS_FILE

    def read() -> None:
        checkpoint.check_run(folder / "last.model", split_digest=DIGEST, expected=SETTINGS)

    return Target("args.json", (path,), (path,), read)


def arrays(folder: Path) -> Target:
    draw, path, packed = np.random.default_rng(0), folder / "plain.npz", folder / "packed.npz"
    content = {}
    for part in ("train", "test"):
        content[f"{part}_images"] = draw.integers(0, 256, (8, 4, 4, 3), dtype=np.uint8)
        content[f"{part}_labels"] = np.arange(8) % 4
    np.savez(path, **content)
    np.savez_compressed(packed, **content)

    def read() -> None:
        for file in (path, packed):
            data = load_dataset("npz", file)
            assert data.train_images.dtype == np.uint8 and data.train_images.ndim == 4
            assert len(data.train_labels) == len(data.train_images) and data.train_labels.max() < data.num_classes

    return Target("npz", (path, packed), (path, packed), read)


def small_encoder() -> torch.nn.Module:
    return build_encoder("resnet8", num_classes=2, shifts=1, simclr_dim=4, seed=0)


def weights(folder: Path) -> Target:
    encoder, path, old = small_encoder(), folder / "last.model", folder / "old.model"
    checkpoint.save(path, encoder.state_dict())
    torch.save(encoder.state_dict(), old, _use_new_zipfile_serialization=False)

    def read() -> None:
        for file in (path, old):
            checkpoint.load_weights(file, encoder)
            assert all(value.isfinite().all() for value in encoder.state_dict().values())

    return Target("checkpoint", (path, old), (path, old), read)


def resume(folder: Path) -> Target:
    encoder = small_encoder()
    optimizers = (
        build_optimizer("sgd", encoder.layer1.parameters(), lr=0.1, weight_decay=0.0),
        build_optimizer("adam", encoder.linear.parameters(), lr=0.1, weight_decay=0.0),
    )
    encoder(torch.rand(2, 3, 8, 8)).projection.sum().backward()
    encoder.linear(torch.rand(2, encoder.linear.in_features)).sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    with Interruption(max_minutes=None) as interruption:
        run = Run(folder, encoder, optimizers, SETTINGS, split_digest=DIGEST, interruption=interruption)
    run.save()
    path = folder / checkpoint.RESUME_FILE

    def read() -> None:
        run.resume(strict=True, device=torch.device("cpu"))
        assert isinstance(run.epoch, int) and run.epoch >= 0
        for optimizer in optimizers:
            optimizer.step()  # states of other shapes would fail here

    return Target("resume checkpoint", (path,), (path, folder / checkpoint.MODEL_FILE), read)


def results(folder: Path) -> Target:
    path = folder / "results.csv"
    for seed in range(3):
        row = Row(
            "digits", 0.5, "ccal", "proper", 1, 32, 5e-4, 0, 20, seed, 50.0 + seed, 60.0, DIGEST, DIGEST, 1.5
        )  # fmt: skip
        append_row(path, row)

    def read() -> None:
        rows = read_rows(path)
        for row in rows:
            assert 0 <= row.accuracy <= 100 and row.seed >= 0 and math.isfinite(row.lr)
        assert sum(map(len, latest_rows(rows, "ccal").values())) <= len(rows)

    return Target("results.csv", (path,), (path,), read)


def features(folder: Path) -> Target:
    indices = np.arange(6)
    how = Extraction(Augmentation(0.54, True), views=1, shift="none", shift_numbers=(0,), seed=0, batch_size=4)
    wanted = feature_cache.describe(checkpoint=DIGEST, images=DIGEST, indices=indices, how=how, dtype="float32")
    path, note = folder / "semantic.npy", folder / "semantic.json"
    np.save(path, np.random.default_rng(0).normal(size=(6, 1, 4)).astype(np.float32))
    write_json(note, wanted)

    def read() -> None:
        bank = feature_cache.find(folder, "semantic", wanted, indices, width=4)
        if bank is not None:
            found = bank.of(indices)
            assert found.shape == (6, 1, 4) and found.isfinite().all()

    return Target("kept features", (path, note), (path, note), read)


def epochs(folder: Path) -> Target:
    path = folder / "log.jsonl"
    path.write_text("".join(f'{{"epoch": {n}, "loss": 4.5, "seconds": 1.25}}\n' for n in range(1, 5)))

    def read() -> None:
        assert sum(values.get("seconds", 0) for values in read_log(folder)[0]) >= 0

    return Target("log.jsonl", (path,), (path,), read)


def labels(folder: Path) -> Target:
    path = folder / "labels.csv"
    asked, classes = ["unlabeled/a.png", "unlabeled/b c.png", "unlabeled/=d.png"], ["cat", "dog"]
    path.write_text("path,label\nunlabeled/a.png,cat\nunlabeled/b c.png,dog\nunlabeled/=d.png,other\n")
    tabbed = folder / "tabbed.csv"
    tabbed.write_bytes('\ufefflabel\tpath\r\ncat\tunlabeled/a.png\r\ndog\t"unlabeled/b c.png"\r\n'.encode())

    def read() -> None:
        for file in (path, tabbed):
            found = read_labels(file, asked, classes, partial=True)
            assert set(found) <= set(asked) and set(found.values()) <= {*classes, None}

    return Target("labels csv", (path, tabbed), (path, tabbed), read)


def pictures(folder: Path) -> Target:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    paths = tuple(folder / f"picture.{end}" for end in ("png", "jpg", "bmp", "webp"))
    for path in paths:
        Image.fromarray(pixels).save(path)

    def read() -> None:
        refused = None
        for path in paths:
            try:
                found = read_picture(str(path), 8)
                assert found.pixels.shape == (8, 8, 3) and found.pixels.dtype == np.uint8
            except Unusable as error:
                refused = InputError(str(error))
        if refused:
            raise refused

    return Target("picture", paths, paths, read)


def image_cache(folder: Path) -> Target:
    draw = np.random.default_rng(0)
    for part in ("train", "test"):
        for number in range(6):
            path = folder / part / ("cat", "dog")[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(path)
    whole = load_dataset("folder", folder, image_size=8)
    cache = folder / ".ccal_cache" / "8"
    kept = (cache / "manifest.json", cache / "images.npy")

    def read() -> None:
        found = load_dataset("folder", folder, image_size=8)
        assert found.class_names == whole.class_names
        assert found.train_images.shape == whole.train_images.shape
        assert np.array_equal(found.train_labels, whole.train_labels)

    return Target("image cache", kept, kept, read)
