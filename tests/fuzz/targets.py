"""The project's file readers, each with valid files to damage and what must be true of whatever it accepts."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from common import checkpoint
from common.files import write_json
from datasets import load_dataset
from datasets.folder.pictures import Unusable, read_picture
from datasets.index_files import IndexFile, read_index_file, write_index_file
from datasets.results_file import Row, append_row, read_rows
from evals import feature_cache, kept
from models import build_encoder
from training.optim import build_optimizer, load_optimizer
from utils import InputError

IMAGES, DIGEST = 30, "d" * 64
RNG = np.random.default_rng(0)


class Target(NamedTuple):
    """A kind of file: files to damage, and a reader of one that asserts what must be true, or refuses."""

    name: str
    files: tuple[Path, ...]
    read: Callable[[Path], None]


def make_targets(folder: Path) -> list[Target]:
    """Writes valid files of every kind into the folder."""
    for maker in MAKERS:
        (folder / maker.__name__).mkdir(parents=True)
    return [Target(maker.__name__.replace("_", " "), *maker(folder / maker.__name__)) for maker in MAKERS]


def index_file(folder: Path):
    metrics = {"queried": 4, "found": 2, "found_per_class": [1, 1], "precision": 50.0, "recall": 20.0, "labeled": 6}
    content = IndexFile("digits", 0.5, DIGEST, [0, 1], "ccal", 1, [3, 1, 9], [9, 5], [5], {"k": 1.0}, metrics, 1.5)
    parts = ("labeled", "queried", "set_aside")
    named = {part: [[f"{n}.png", DIGEST] for n in getattr(content, part)] for part in parts}
    answers = dataclasses.replace(content, class_names=["cat", "dog"], labels=[0, 1, 0], files=named)

    def read(path: Path) -> None:
        found = read_index_file(path, split_digest=DIGEST, n_images=IMAGES)
        for indices in (getattr(found, part) for part in parts):
            assert len(set(indices)) == len(indices) and all(0 <= index < IMAGES for index in indices)
        assert not set(found.labeled) & set(found.set_aside)
        if found.labels is not None:
            assert len([found.class_names[label] for label in found.labels]) == len(found.labeled)

    return (write_index_file(folder, content), write_index_file(folder, answers, name="people.json")), read


def npz(folder: Path):
    content = {f"{part}_images": RNG.integers(0, 256, (8, 4, 4, 3), dtype=np.uint8) for part in ("train", "test")}
    content |= {f"{part}_labels": np.arange(8) % 4 for part in ("train", "test")}
    np.savez(folder / "plain.npz", **content)
    np.savez_compressed(folder / "packed.npz", **content)

    def read(path: Path) -> None:
        data = load_dataset("npz", path)
        assert data.train_images.dtype == np.uint8 and data.train_images.ndim == 4
        assert len(data.train_labels) == len(data.train_images) and data.train_labels.max() < data.num_classes

    return (folder / "plain.npz", folder / "packed.npz"), read


def weights(folder: Path):
    encoder = build_encoder("resnet8", num_classes=2, shifts=1, simclr_dim=4, seed=0)
    checkpoint.save(folder / "last.model", encoder.state_dict())
    torch.save(encoder.state_dict(), folder / "old.model", _use_new_zipfile_serialization=False)

    def read(path: Path) -> None:
        checkpoint.load_weights(path, encoder)
        assert all(value.isfinite().all() for value in encoder.state_dict().values())

    return (folder / "last.model", folder / "old.model"), read


def resume_checkpoint(folder: Path):
    layer = torch.nn.Linear(3, 2)
    optimizer = build_optimizer("adam", layer.parameters(), lr=0.1, weight_decay=0.0)
    layer(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    checkpoint.save(folder / checkpoint.RESUME_FILE, {"epoch": 1, "optimizers": [optimizer.state_dict()]})

    def read(path: Path) -> None:
        content = checkpoint.load_last(path.parent)[1]
        try:
            load_optimizer(optimizer, content["optimizers"][0])
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"refused as by TrainingRun.resume ({error})") from None
        optimizer.step()  # states of other shapes would fail here

    return (folder / checkpoint.RESUME_FILE,), read


def results(folder: Path):
    settings = ("digits", 0.5, "ccal", "proper", 1, 32, 5e-4, 0, 20)
    for seed in range(3):
        append_row(folder / "results.csv", Row(*settings, seed, 50.0 + seed, 60.0, DIGEST, DIGEST, 1.5))

    def read(path: Path) -> None:
        for row in read_rows(path):
            assert 0 <= row.accuracy <= 100 and row.seed >= 0 and math.isfinite(row.lr)

    return (folder / "results.csv",), read


def features(folder: Path):
    record = {"dtype": "float32", "shift_numbers": [0], "width": 4, "images": DIGEST}
    np.save(folder / "semantic.npy", RNG.normal(size=(6, 1, 4)).astype(np.float32))
    write_json(folder / "semantic.json", record)

    def read(path: Path) -> None:
        bank = feature_cache.read_features(path.parent, "semantic", record, np.arange(6))
        if bank is None:
            raise InputError("they would be extracted again")
        assert bank.of(np.arange(6)).shape == (6, 1, 4) and bank.of(np.arange(6)).isfinite().all()

    return (folder / "semantic.npy", folder / "semantic.json"), read


def scores(folder: Path):
    files = kept.cycle_path(folder, 1), kept.sample_path(folder)
    files[0].parent.mkdir()
    cycle = {"pool": [2, 3, 5], "pool_size": 3, "query_score": [0.5, 1.0, 1.5], "pseudo_class": [0, 1, 0]}
    cycle |= {"semantic": [0.1, 0.2, 0.3], "distinctive": [0.4, 0.5, 0.6], "is_target": [True, False, True]}
    cycle |= {"queried": [5, 3], "paths": [], "names": ["cat", "dog"], "pictured": [0, 1]}
    np.savez(files[0], **cycle, thumbnails=np.zeros((2, 4, 4, 3), np.uint8))
    points = RNG.normal(size=(2, 4, 3)).astype(np.float16)
    sample = {"images": [2, 3], "labels": [0, -1], "class_names": ["cat", "dog"], "paths": []}
    np.savez(files[1], **sample, semantic=points[:, :1], distinctive=points)

    def read(path: Path) -> None:
        if path == files[0]:
            found = kept.read_cycle(path)
            assert (found.pool[found.rows] == found.queried).all()
            return
        found = kept.read_sample(path)
        assert all(len(array) == len(found.images) for array in (found.labels, *found.features.values()))

    return files, read


def picture(folder: Path):
    files = tuple(folder / f"picture.{end}" for end in ("png", "jpg", "bmp", "webp"))
    for file in files:
        Image.fromarray(RNG.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(file)

    def read(path: Path) -> None:
        try:
            assert read_picture(path, 8).pixels.shape == (8, 8, 3)
        except Unusable as error:
            raise InputError(str(error)) from None

    return files, read


def image_cache(folder: Path):
    for number in range(12):
        path = folder / ("train", "test")[number // 6] / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(path)
    whole = load_dataset("folder", folder, image_size=32)

    def read(path: Path) -> None:
        found = load_dataset("folder", folder, image_size=32)
        assert found.train_images.shape == whole.train_images.shape
        assert np.array_equal(found.train_labels, whole.train_labels)

    return tuple(folder / ".ccal_cache" / "32" / name for name in ("manifest.json", "images.npy")), read


MAKERS = (index_file, npz, weights, resume_checkpoint, results, features, scores, picture, image_cache)
