"""The table of bad input: what is done to a finished run's folder, the command line, and what the one line must say."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common import checkpoint
from common.files import read_json, write_json
from datasets import load_data_and_split

DATA = "--dataset digits --mismatch 0.5 --device cpu"
NET = "--model resnet8 --simclr_dim 16 --precision fp32"
SHORT = "--epochs 1 --warmup 0 --batch_size 64"
# Each succeeds on the files of the fixture, if nothing is wrong with them; a later flag overrides an earlier one.
WORDS = {
    "contrast": f"{DATA} {NET} {SHORT} --mode semantic --logdir new",
    "active": f"{DATA} {NET} --shift_trans_type rotation --load_path model --target 20 --split 2 --index_dir new",
    "classifier": f"{DATA} --split 2 --runs 1 --epochs 1 --index_dir query --out_path new",
    "reproduce": f"{DATA} --model resnet8 --precision fp32 --scale 0.002 --runs 1 --split 1 --target 20 --out whole",
    "summary": "--index_dir query --random_dir random --results classifier/results.csv --out_path new",
}


@dataclass(frozen=True)
class Case:
    """One way to go wrong.

    Attributes:
        command: Of COMMANDS.
        pattern: What the line must hold.
        words: Added to the command's; in ``whole``, instead of them.
        damage: Done to the folder of a finished run.
        status: 2, or 3 where the environment fails.
        whole: Whether ``words`` are all of them.
    """

    command: str
    pattern: str
    words: str = ""
    damage: Callable[[], object] | None = None
    status: int = 2
    whole: bool = False


# Damages; all of them run in the copied folder.


def cut(path: str, share: float = 0.5) -> Callable[[], object]:
    return lambda: Path(path).write_bytes(Path(path).read_bytes()[: int(share * Path(path).stat().st_size)])


def garbage(path: str) -> Callable[[], object]:
    return lambda: Path(path).write_bytes(np.random.default_rng(0).bytes(5000))


def text(path: str, content: str) -> Callable[[], object]:
    return lambda: Path(path).write_text(content)


def copied(source: str, path: str) -> Callable[[], object]:
    return lambda: shutil.copy(source, path)


def removed(path: str) -> Callable[[], object]:
    return lambda: shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()


def file_in_place_of(folder: str) -> Callable[[], object]:
    def damage() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        Path(folder).write_text("mine")

    return damage


def folder_in_place_of(path: str) -> Callable[[], object]:
    def damage() -> None:
        Path(path).unlink(missing_ok=True)
        Path(path).mkdir(parents=True)

    return damage


def fields(path: str, **changes: object) -> Callable[[], object]:
    return lambda: write_json(path, {**read_json(path), **changes})


def without(path: str, name: str) -> Callable[[], object]:
    return lambda: write_json(path, {key: value for key, value in read_json(path).items() if key != name})


def appended(path: str, name: str, *values: int) -> Callable[[], object]:
    return lambda: write_json(path, {**read_json(path), name: [*read_json(path)[name], *values]})


def raw_json(path: str, name: str, value: str) -> Callable[[], object]:
    """A field in words that write_json would not write, such as NaN."""

    def damage() -> None:
        content = read_json(path)
        content[name] = "HERE"
        Path(path).write_text(json.dumps(content).replace('"HERE"', value))

    return damage


def weights(path: str, value: float) -> Callable[[], object]:
    def damage() -> None:
        state = torch.load(path, weights_only=True)
        state["layer1.0.conv1.weight"][0, 0, 0, 0] = value
        torch.save(state, path)

    return damage


def arrays(**changes: object) -> Callable[[], object]:
    """An npz data set with changes; what is None is left out."""

    def damage() -> None:
        content = npz_arrays() | changes
        np.savez("data.npz", **{name: array for name, array in content.items() if array is not None})

    return damage


def npz_arrays() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {
        "train_images": draw.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8),
        "train_labels": np.arange(40) % 4,
        "test_images": draw.integers(0, 256, (8, 8, 8, 3), dtype=np.uint8),
        "test_labels": np.arange(8) % 4,
    }


def kept(path: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[], object]:
    return lambda: np.save(path, change(np.load(path, allow_pickle=False)))


def csv_cell(name: str, value: str) -> Callable[[], object]:
    """Another value in the first row of results.csv."""

    def damage() -> None:
        lines = Path("classifier/results.csv").read_text().splitlines()
        cells = lines[1].split(",")
        cells[lines[0].split(",").index(name)] = value
        Path("classifier/results.csv").write_text("\n".join([lines[0], ",".join(cells), *lines[2:]]) + "\n")

    return damage


def swapped(one: str, other: str) -> Callable[[], object]:
    def damage() -> None:
        Path(one).rename("between")
        Path(other).rename(one)
        Path("between").rename(other)

    return damage


def resumable(path: str = "model/semantic/last.ckpt", **changes: object) -> Callable[[], object]:
    """A checkpoint of other content, whose checksum fits; a change may be a function of what was there."""

    def damage() -> None:
        content = checkpoint.load(Path(path))
        for name, value in changes.items():
            content[name] = value(content[name]) if callable(value) else value
        checkpoint.save_sealed(Path(path), {name: value for name, value in content.items() if value is not None})

    return damage


def first_momentum(states: list[dict]) -> list[dict]:
    """Optimizer states of which one tensor has another shape than its weight."""
    states[0]["state"][0]["momentum_buffer"] = torch.zeros(2, 3)
    return states


def random_position(states: list[dict]) -> list[dict]:
    """NumPy's random state at a place beyond its numbers."""
    states[0]["numpy"][2] = 10**6
    return states


def without_settings() -> None:
    for mode in ("semantic", "distinctive"):
        Path(f"model/{mode}/args.json").unlink()


def other_image() -> int:
    """An image of no target class."""
    data, _ = load_data_and_split("digits", ".", mismatch=0.5)
    return int(np.flatnonzero(data.train_labels > 1)[0])


def resume(pattern: str, damage: Callable[[], object] | None = None, more: str = "") -> Case:
    """A run that is to be continued."""
    words = f"{DATA} {NET} {SHORT} --mode semantic --resume_path model/semantic {more}"
    return Case("contrast", pattern, words, damage, whole=True)


PREVIOUS = "model/semantic/last.prev.ckpt"
CKPT, MODEL, ARGS = "model/semantic/last.ckpt", "model/semantic/last.model", "model/semantic/args.json"
NPZ = "--dataset npz --data_path data.npz --target_classes 0 1 --initial_budget 6 --mismatch 0.2 --batch_size 8"
NPZ_QUERY = "--dataset npz --data_path data.npz --target_classes 0 1 --initial_budget 6 --mismatch 0.2 --target 2"
FIRST, SECOND = "query/cycle_0.json", "query/cycle_1.json"
CACHE = "--feature_cache cache"
RECORD = "whole/reproduce.json"
BIG = np.zeros((40, 8, 8, 3), np.uint8)

CASES = {
    # contrast_main.py: flags
    "no mode": Case("contrast", "arguments are required: --mode", f"{DATA} {NET}", whole=True),
    "unknown mode": Case("contrast", "--mode: must be semantic or distinctive, got 'margin'", "--mode margin"),
    "temperature 0": Case("contrast", "--temperature: must be a number above 0, got 0", "--temperature 0"),
    "temperature nan": Case("contrast", "--temperature: must be a number above 0, got nan", "--temperature nan"),
    "negative weight": Case("contrast", "--sim_lambda: must be a number at least 0, got -1", "--sim_lambda=-1"),
    "no epoch": Case("contrast", "--epoch: must be a whole number at least 1, got 0", "--epochs 0"),
    "half an epoch": Case("contrast", "--epoch: must be a whole number at least 1, got '0.5'", "--epochs 0.5"),
    "no batch": Case("contrast", "--batch_size: must be a whole number at least 1", "--batch_size 0"),
    "rate infinite": Case("contrast", "--lr_init: must be a number above 0, got inf", "--lr_init inf"),
    "rate in words": Case("contrast", "--lr_init: must be a number above 0, got 'fast'", "--lr_init fast"),
    "negative warm-up": Case("contrast", "--warmup: must be a whole number at least 0", "--warmup=-1"),
    "negative decay": Case("contrast", "--weight_decay: must be a number at least 0", "--weight_decay=-1e-6"),
    "no checkpoint step": Case("contrast", "--save_step: must be a whole number at least 1", "--save_step 0"),
    "no projection": Case("contrast", "--simclr_dim: must be a whole number at least 1", "--simclr_dim 0"),
    "negative seed": Case("contrast", "--seed: must be a whole number at least 0", "--seed=-1"),
    "seed of 70 bits": Case("contrast", "--seed: must be a whole number at least 0 and at most", f"--seed {2**70}"),
    "crop beyond the image": Case("contrast", "--resize_factor: must be a number above 0", "--resize_factor 1.5"),
    "unknown optimizer": Case("contrast", "--optimizer: invalid choice: 'rmsprop'", "--optimizer rmsprop"),
    "unknown device": Case("contrast", "--device: invalid choice: 'tpu'", "--device tpu"),
    "unknown format": Case("contrast", "--precision: invalid choice: 'fp64'", "--precision fp64"),
    "suffix that is a path": Case("contrast", r"--suffix \.\./b must be part of a folder's name", "--suffix ../b"),
    "negative class": Case("contrast", "--target_classes", "--target_classes 0 -1"),
    "class twice": Case("contrast", "--target_classes names a class twice: 3 3", "--target_classes 3 3"),
    "class that is not there": Case("contrast", "class 12 has no images; .* classes 0 to 9", "--target_classes 0 12"),
    "budget beyond the targets": Case("contrast", r"--initial_budget must be from 1 to \d+", "--initial_budget 9999"),
    "class without a labeled image": Case(
        "contrast", "leaves class . without a labeled image; raise it", "--initial_budget 1"
    ),
    "mismatch beyond the data": Case("contrast", r"the largest possible here is 0\.\d+", "--mismatch 0.99"),
    # contrast_main.py: folders and files
    "logdir is a file": Case("contrast", "new cannot be written.*name another --logdir", damage=text("new", "mine")),
    "logdir of another's run": Case(
        "contrast", "already holds a run: .*give another --logdir", "--logdir model/semantic"
    ),
    "nothing to resume": Case(
        "contrast", r"holds no last\.ckpt", f"{DATA} {NET} --mode semantic {SHORT} --resume_path new", whole=True
    ),
    "data missing": Case("contrast", r"needs --data_path FILE\.npz, and data\.npz is not a file", NPZ),
    "data truncated": Case("contrast", "cannot be read as an npz file", NPZ, lambda: (arrays()(), cut("data.npz")())),
    "data garbage": Case("contrast", "cannot be read as an npz file", NPZ, garbage("data.npz")),
    "data a checkpoint": Case(
        "contrast", r"data\.npz lacks train_images, .*it must hold", NPZ, copied(MODEL, "data.npz")
    ),
    "data an index file": Case("contrast", "cannot be read as an npz file", NPZ, copied(FIRST, "data.npz")),
    "data a folder": Case(
        "contrast", r"needs --data_path FILE\.npz, and data\.npz is not a file", NPZ, lambda: Path("data.npz").mkdir()
    ),
    "images that are NaN": Case(
        "contrast", r"must be uint8 \(0 to 255\), got float64", NPZ, arrays(train_images=np.full((40, 8, 8, 3), np.nan))
    ),
    "images all the same": Case(
        "contrast", "all 40 training images are the same.*check how", NPZ, arrays(train_images=BIG)
    ),
    "images not square": Case(
        "contrast",
        "square",
        f"{NPZ} --mode distinctive --shift_trans_type rotation",
        arrays(train_images=npz_arrays()["train_images"][:, :6], test_images=npz_arrays()["test_images"][:, :6]),
    ),
    "labels that are NaN": Case(
        "contrast", "must be a list of whole numbers", NPZ, arrays(train_labels=np.full(40, np.nan))
    ),
    "no test image of a class": Case(
        "contrast", "the test set has no image of a target class", NPZ, arrays(test_labels=np.full(8, 3))
    ),
    # contrast_main.py: a checkpoint to go on from
    "resume in another folder": Case("contrast", "leave --logdir and --suffix out", "--resume_path model/semantic"),
    "resume of garbage": resume("damaged or no checkpoint", lambda: [garbage(CKPT)(), garbage(PREVIOUS)()]),
    "resume of a cut file": resume("damaged or no checkpoint", cut(CKPT)),
    "resume of weights": resume("no resume checkpoint of format version", copied(MODEL, CKPT)),
    "resume of settings": resume("damaged or no checkpoint", copied(ARGS, CKPT)),
    "resume of the other mode": resume(
        "--mode was distinctive, is semantic", copied("model/distinctive/last.ckpt", CKPT)
    ),
    "resume of another seed": resume("--seed was 0, is 3.*give the same", more="--seed 3"),
    "resume of another network": resume("--model was resnet8, is resnet20", more="--model resnet20"),
    "resume of another split": resume("belongs to another split; give the data and split flags", more="--split_seed 1"),
    "resume of tomorrow": resume("no resume checkpoint of format version", resumable(format_version=99)),
    "resume of NaN": resume(
        "weights that are not finite", resumable(model=lambda m: {k: v * torch.nan for k, v in m.items()})
    ),
    "resume without weights": resume("lacks model; start a new run", resumable(model=None)),
    "resume of weights in a list": resume(
        "model has a wrong type or value", resumable(model=lambda m: list(m.values()))
    ),
    "resume of other weights": resume(
        "does not fit this encoder", resumable(model=lambda m: {k: v[:1] for k, v in m.items() if v.dim()})
    ),
    "resume of an epoch in words": resume("epoch has a wrong type or value", resumable(epoch="one")),
    "resume of epoch -1": resume("epoch has a wrong type or value", resumable(epoch=-1)),
    "resume without optimizers": resume("lacks optimizers", resumable(optimizers=None)),
    "resume of too few optimizers": resume("no states of such a run", resumable(optimizers=lambda o: o[:1])),
    "resume of empty optimizers": resume("no states of such a run", resumable(optimizers=[{}, {}])),
    "resume of another shape of momentum": resume(
        "momentum_buffer of shape .2, 3.", resumable(optimizers=first_momentum)
    ),
    "resume of no random state": resume("no states of such a run", resumable(rng=[{}])),
    "resume of a random state beyond its end": resume(
        "a random state at 1000000 of 624", resumable(rng=random_position)
    ),
    "resume of settings without a batch": resume(
        "no states of such a run .KeyError: 'batch_size'",
        resumable(arguments=lambda a: {k: v for k, v in a.items() if k != "batch_size"}),
    ),
    "resume of settings in a list": resume("arguments has a wrong type or value", resumable(arguments=[])),
    "resume of steps in words": resume("no states of such a run", resumable(gathered=[{"rows": "x"}])),
    # active_main.py: files of every kind in another's place
    "resume file as weights": Case("active", "give the file last.model", f"--load_semantic_path {CKPT}"),
    "settings as weights": Case(
        "active", "damaged or no checkpoint .*train or copy it again", f"--load_semantic_path {ARGS}"
    ),
    "index file as weights": Case("active", "damaged or no checkpoint", f"--load_feature_path {FIRST}"),
    "data as weights": Case("active", "damaged or no checkpoint", "--load_feature_path data.npz", arrays()),
    "results as weights": Case("active", "damaged or no checkpoint", "--load_feature_path classifier/results.csv"),
    "a folder as weights": Case(
        "active", "does not exist; train it with contrast_main.py", "--load_semantic_path model"
    ),
    "index file as settings": Case("active", r"args\.json is no settings file.*restore it", damage=copied(FIRST, ARGS)),
    "weights as settings": Case("active", r"args\.json is not valid JSON", damage=copied(MODEL, ARGS)),
    "settings of tomorrow": Case(
        "active", "is of format version 9 and this code reads 1", damage=fields(ARGS, format_version=9)
    ),
    "settings without a split": Case("active", "lacks split_digest; restore it", damage=without(ARGS, "split_digest")),
    "split of a wrong type": Case("active", "split_digest has a wrong type", damage=fields(ARGS, split_digest=[1])),
    "settings of megabytes": Case(
        "active",
        r"args\.json has \d+ bytes and such a file has \d+ at most",
        damage=lambda: os.truncate(ARGS, 2**24 + 1),
    ),
    "weights NaN": Case(
        "active", r"not finite \(layer1.0.conv1.weight\).*train it again", damage=weights(MODEL, float("nan"))
    ),
    "weights infinite": Case("active", "weights that are not finite", damage=weights(MODEL, float("-inf"))),
    "no folder of models": Case("active", "the semantic checkpoint .*does not exist", "--load_path nowhere"),
    "another data set": Case(
        "active", "was trained on another split.*give its training's --dataset", NPZ_QUERY, arrays()
    ),
    "another architecture": Case("active", "trained with --model resnet8, not resnet20", "--model resnet20"),
    "another architecture, settings gone": Case("active", r"lacks .*--model", "--model resnet20", without_settings),
    "no shifts where there were": Case(
        "active", "--shift_trans_type cutperm|rotation, not cutperm", "--shift_trans_type cutperm"
    ),
    "one labeled image in each class": Case(
        "active",
        "has 1 labeled image and the distinctive score needs two",
        "--initial_budget 2 --mismatch 0.5 --split_seed 2",
    ),
    "k NaN": Case("active", "--k: must be a number above 0, got nan", "--k nan"),
    "views of a word": Case(
        "active", "--ood_samples: must be a whole number at least 1, got 'ten'", "--ood_samples ten"
    ),
    "index folder is a checkpoint": Case("active", "name another --index_dir", f"--index_dir {MODEL}"),
    "overwrite with a cut checkpoint": Case(
        "active", "damaged or no checkpoint", "--index_dir query --overwrite", cut(MODEL, 0.7)
    ),
    # active_main.py: kept features
    "cache is a file": Case("active", "name another --feature_cache", "--feature_cache data.npz", arrays()),
    "features truncated": Case("active", r"semantic\.npy", CACHE, cut("cache/semantic.npy", 0.9)),
    "features garbage": Case("active", r"semantic\.npy is damaged", CACHE, garbage("cache/semantic.npy")),
    "features gone": Case("active", r"semantic\.npy does not exist", CACHE, removed("cache/semantic.npy")),
    "features of fewer images": Case("active", "remove both", CACHE, kept("cache/semantic.npy", lambda a: a[:-1])),
    "features in doubles": Case("active", "not features|remove", CACHE, kept("cache/semantic.npy", np.float64)),
    "features NaN": Case("active", "not finite|NaN", CACHE, kept("cache/semantic.npy", lambda a: a * np.nan)),
    "features swapped": Case("active", "remove", CACHE, swapped("cache/semantic.npy", "cache/distinctive.npy")),
    "record of features truncated": Case(
        "active", r"semantic\.json is not valid JSON", CACHE, cut("cache/semantic.json")
    ),
    "records of features swapped": Case(
        "active", "made with another .*give the flags", CACHE, swapped("cache/semantic.json", "cache/distinctive.json")
    ),
    "record of features a list": Case(
        "active", "no record of features; remove it", CACHE, text("cache/semantic.json", "[]")
    ),
    # train_classifier/main.py
    "no runs": Case("classifier", "--runs: must be a whole number at least 1", "--runs 0"),
    "batch of one": Case("classifier", "--batch_size: must be a whole number at least 2, got 1", "--batch_size 1"),
    "rate 0": Case("classifier", "--lr: must be a number above 0, got 0", "--lr 0"),
    "no seeds together": Case(
        "classifier", "--seeds_together: must be a whole number at least 1", "--seeds_together 0"
    ),
    "a GPU and none": Case("classifier", "--cuda and --device cpu contradict each other", "--cuda"),
    "one class": Case("classifier", "a classifier needs at least two classes", "--target_classes 3"),
    "unknown recipe": Case("classifier", "--recipe: invalid choice: 'best'", "--recipe best"),
    "cycles that were not queried": Case(
        "classifier", r"cycle_3\.json does not exist; run active_main\.py", "--split 7"
    ),
    "one cycle that was not queried": Case("classifier", r"cycle_9\.json does not exist", "--number 9"),
    "no index folder": Case("classifier", r"nowhere/cycle_0\.json does not exist", "--index_dir nowhere"),
    "index file truncated": Case("classifier", r"cycle_1\.json is not valid JSON .*restore it", damage=cut(SECOND)),
    "index file garbage": Case("classifier", r"cycle_1\.json is not valid JSON", damage=garbage(SECOND)),
    "index file empty": Case("classifier", r"cycle_1\.json is not valid JSON", damage=text(SECOND, "")),
    "index file a checkpoint": Case("classifier", r"cycle_1\.json is not valid JSON", damage=copied(CKPT, SECOND)),
    "index file settings": Case(
        "classifier", "wrong fields .*write it with active_main.py", damage=copied(ARGS, SECOND)
    ),
    "index file results": Case(
        "classifier", r"cycle_1\.json is not valid JSON", damage=copied("classifier/results.csv", SECOND)
    ),
    "index file a folder": Case("classifier", "no regular file", damage=folder_in_place_of(SECOND)),
    "index file of tomorrow": Case(
        "classifier", "format version 1 or 2; write it with", damage=fields(SECOND, format_version=99)
    ),
    "index files swapped": Case("classifier", "cycle 1; expected digits, cycle 0", damage=swapped(FIRST, SECOND)),
    "index twice": Case(
        "classifier",
        "labeled holds an index twice",
        damage=lambda: appended(SECOND, "labeled", read_json(SECOND)["labeled"][0])(),
    ),
    "index out of range": Case(
        "classifier", "but the data set has 1437 images", damage=appended(SECOND, "labeled", 1437)
    ),
    "index negative": Case("classifier", "labeled has a wrong type or value", damage=appended(SECOND, "labeled", -1)),
    "index NaN": Case("classifier", "labeled has a wrong type or value", damage=raw_json(SECOND, "labeled", "[NaN]")),
    "index of 5000 digits": Case("classifier", "not valid JSON", damage=raw_json(SECOND, "labeled", f"[{'1' * 5000}]")),
    "lists longer than the data": Case(
        "classifier", "lists 1438 images, but the data set has 1437", damage=fields(SECOND, queried=list(range(1438)))
    ),
    "labeled and set aside": Case(
        "classifier",
        "is both labeled and set aside",
        damage=lambda: fields(SECOND, set_aside=read_json(SECOND)["labeled"][:1])(),
    ),
    "labeled image of another class": Case(
        "classifier",
        "is of class ., which is no target class",
        damage=lambda: appended(SECOND, "labeled", other_image())(),
    ),
    "one labeled image": Case(
        "classifier",
        "has 1 labeled image; training needs at least 2",
        damage=lambda: fields(SECOND, labeled=read_json(SECOND)["labeled"][:1])(),
    ),
    "nothing labeled": Case("classifier", "no labeled image, nothing to train on", damage=fields(SECOND, labeled=[])),
    "a field too many": Case("classifier", r"wrong fields \['extra'\]", damage=fields(SECOND, extra=1)),
    "strategies mixed": Case(
        "classifier", "mixes the index files of ccal and random", damage=fields(SECOND, strategy="random")
    ),
    "a strategy that is a path": Case(
        "classifier", "strategy has a wrong type or value", damage=fields(SECOND, strategy="../../x")
    ),
    "index files of another split": Case("classifier", "belongs to another split .*--split_seed", "--split_seed 5"),
    "index files of other data": Case(
        "classifier",
        "but the data set has 40 images",
        "--dataset npz --data_path data.npz --target_classes 0 1 --initial_budget 6 --mismatch 0.2",
        arrays(),
    ),
    "results an index file": Case(
        "classifier", r"results\.csv is damaged", "--out_path classifier", copied(FIRST, "classifier/results.csv")
    ),
    "results of another accuracy": Case(
        "classifier", r"results\.csv is damaged", "--out_path classifier", csv_cell("accuracy", "101")
    ),
    "results below 0": Case(
        "classifier", r"results\.csv is damaged", "--out_path classifier", csv_cell("labeled", "-1")
    ),
    "results a folder": Case(
        "classifier", r"results\.csv", "--out_path classifier", folder_in_place_of("classifier/results.csv")
    ),
    "results' folder is a file": Case("classifier", "name another --out_path", "--out_path data.npz", arrays()),
    # reproduce.py
    "no folder": Case("reproduce", "arguments are required: --out", DATA, whole=True),
    "scale 0": Case("reproduce", "--scale: must be a number above 0 and at most 1, got 0", "--scale 0"),
    "scale above 1": Case("reproduce", "--scale: must be a number above 0 and at most 1, got 2", "--scale 2"),
    "scale and budget": Case("reproduce", "not allowed with", "--budget_minutes 5"),
    "budget 0": Case(
        "reproduce", "--budget_minutes: must be a number above 0", f"{DATA} --out new --budget_minutes 0", whole=True
    ),
    "one target class": Case("reproduce", "a classifier needs at least two classes", "--target_classes 3 --out new"),
    "query beyond the pool": Case("reproduce", "the largest --target here is", "--target 9999 --out new"),
    "one image per batch": Case("reproduce", "batch", "--batch_size 1 --out new"),
    "batch beyond the data": Case("reproduce", "batch", "--batch_size 99999 --out new"),
    "folder of something else": Case("reproduce", r"holds files but no reproduce\.json", "--out model"),
    "folder is a file": Case("reproduce", "name another --out", f"--out {MODEL}"),
    "other settings": Case("reproduce", "was started with other settings .seed was 0, is 4", "--seed 4"),
    "record truncated": Case("reproduce", r"reproduce\.json is not valid JSON", damage=cut(RECORD)),
    "record garbage": Case("reproduce", r"reproduce\.json is not valid JSON", damage=garbage(RECORD)),
    "record a settings file": Case("reproduce", "lacks|is no record", damage=copied(ARGS, RECORD)),
    "record an index file": Case("reproduce", "lacks scale; restore it", damage=copied(FIRST, RECORD)),
    "record without settings": Case(
        "reproduce", "lacks settings; restore it, or give another --out", damage=without(RECORD, "settings")
    ),
    "record without stages": Case("reproduce", "lacks stages", damage=without(RECORD, "stages")),
    "stages of a wrong type": Case(
        "reproduce", "stages has a wrong type", damage=fields(RECORD, stages={"semantic": {"seconds": "3"}})
    ),
    "scale of a wrong type": Case("reproduce", "scale has a wrong type", damage=fields(RECORD, scale="1")),
    "scale beyond its bounds": Case("reproduce", "scale has a wrong type or value", damage=fields(RECORD, scale=1e9)),
    "budget of a wrong type": Case("reproduce", "budget has a wrong type", damage=fields(RECORD, budget={"spent": 1})),
    "record of megabytes": Case(
        "reproduce", "such a file has .* at most", damage=lambda: os.truncate(RECORD, 2**24 + 1)
    ),
    "encoder's checkpoint truncated": Case(
        "reproduce", "damaged or no checkpoint", damage=cut("whole/semantic/last.ckpt")
    ),
    "encoder's checkpoint of weights alone": Case(
        "reproduce", r"last\.ckpt", damage=copied(MODEL, "whole/semantic/last.ckpt")
    ),
    "encoder's log garbage": Case("reproduce", r"log\.jsonl", damage=garbage("whole/semantic/log.jsonl")),
    "encoder's log without seconds": Case(
        "reproduce", r"log\.jsonl", damage=text("whole/semantic/log.jsonl", '{"epoch": 1}\n')
    ),
    # evals.summary
    "no folder of index files": Case(
        "summary", "holds no cycle_0.json; name a folder that active_main.py wrote", "--index_dir model"
    ),
    "summary of a cut index file": Case("summary", r"cycle_1\.json is not valid JSON", damage=cut(SECOND)),
    "random folder missing": Case("summary", "nowhere holds no cycle_0.json", "--random_dir nowhere"),
    "random folder of another split": Case(
        "summary",
        "are of different splits",
        damage=lambda: [fields(f"random/cycle_{n}.json", split_digest="0" * 64)() for n in (0, 1)],
    ),
    "no results": Case("summary", "does not exist; it is written by train_classifier/main.py", "--results nowhere.csv"),
    "results garbage": Case("summary", r"results\.csv is no results\.csv", damage=garbage("classifier/results.csv")),
    "results of one gigantic cell": Case(
        "summary",
        r"is no results\.csv",
        damage=lambda: Path("classifier/results.csv").write_text("strategy\n" + "x" * 200_000),
    ),
    "results index file": Case("summary", r"is no results\.csv", damage=copied(FIRST, "classifier/results.csv")),
    "results without accuracy": Case("summary", r"is no results\.csv .*give the file", damage=csv_cell("accuracy", "")),
    "results NaN": Case("summary", r"is no results\.csv", damage=csv_cell("accuracy", "nan")),
    "results a checkpoint": Case("summary", r"is no results\.csv", damage=copied(MODEL, "classifier/results.csv")),
    "results folder": Case("summary", "does not exist|is no", "--results classifier"),
    "figures of a wrong type": Case(
        "summary", "metrics has a wrong type", damage=fields(SECOND, metrics={"found": ["many"]})
    ),
    "precision beyond 100 %": Case(
        "summary", "metrics has a wrong type", damage=fields(SECOND, metrics={"precision": 1e9})
    ),
    "summary into a file": Case("summary", "--out_path", f"--out_path {MODEL}"),
}
