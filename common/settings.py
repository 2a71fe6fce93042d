"""Every setting of the project, declared once: its default, its help, and whether it is part of a run's identity.

The flags are made of these classes (common/flags.py). args.json, checkpoints, index files and results.csv record them,
and ``require_same`` compares what one stage recorded with what the next one was given.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from common.flags import class_name, mode, natural, number, positive, positive_int, setting, share, threshold
from utils import InputError

DATASETS = ("cifar10", "cifar100", "svhn", "mnist", "fashion_mnist", "digits", "npz", "folder")
MODELS = ("resnet18", "resnet18_imagenet", "resnet20", "resnet8")
IMAGENET_STEM_FROM = 128  # pixels; from there on its last stage sees 4x4 positions, as the CIFAR stem's does at 32
SHIFTS = ("none", "rotation", "cutperm")
STRATEGIES = ("ccal", "semantic", "distinctive", "posterior", "random", "entropy", "margin", "confidence", "certainty")
STRATEGIES += ("coreset", "coreset_others", "badge", "typiclust", "neat", "mahalanobis", "lfosa", "eoal", "eaoa")
STRATEGIES += ("e2oal", "mqnet")
RECIPES = ("proper", "original", "lfosa", "mqnet")


def strategy(text: str) -> str:
    """A flag's kind: the name of a strategy, or FILE.py:NAME for one's own; whether that is there is seen later."""
    file, _, name = text.rpartition(":")
    if file and name in STRATEGIES:
        raise argparse.ArgumentTypeError(f"{text}: {name} is a built-in strategy; give yours another name")
    # The name is that of a folder, too, and index files take no longer ones.
    if text not in STRATEGIES and not (file.endswith(".py") and name.isidentifier() and len(name) <= 100):
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(STRATEGIES)}, or FILE.py:NAME, got {text!r}")
    return text


strategy.metavar = f"{{{','.join(STRATEGIES)},FILE.py:NAME}}"


def strategy_name(text: str) -> str:
    """The name on record of what ``strategy`` gives: that in the file."""
    return text.rpartition(":")[2]


def strategy_file(text: str) -> Path | None:
    """The file of FILE.py:NAME; None for a built-in strategy."""
    file = text.rpartition(":")[0]
    return Path(file).expanduser() if file else None


option = functools.partial(setting, identity=False)  # a setting that changes no result
seed_number = number(int, 0, 2**63 - 1)


@dataclass(frozen=True)
class DataSettings:
    """The data set and the split. The split's digest, not these flags, tells whether two stages have the same."""

    title: ClassVar[str] = "data and split"
    dataset: str = option("cifar10", "data set", choices=DATASETS)
    data_path: str = option("~/data", "folder of CIFAR and the like, npz file, or folder of images", metavar="PATH")
    mismatch: float | str | None = option(
        None, "share of other classes in the unlabeled pool, or all of their images (default: 0.8)", kind=share
    )
    target_classes: tuple[int | str, ...] | None = option(
        None,
        "classes that matter, by name or number (default: protocol)",
        kind=class_name,
        several=True,
        metavar="CLASS",
    )
    initial_budget: int | None = option(None, "images labeled first (default: 800; digits: 20)", kind=positive_int)
    initial_others: int | None = option(None, "images of other classes known at first (default: 0)", kind=natural)
    split_seed: int = option(0, "seed of the split's draws", kind=seed_number)
    image_size: int | None = option(
        None, "pixels to which a folder's images are resized and cropped (default: 32)", kind=number(int, 32, 224)
    )
    cache_dir: str | None = option(None, "where these are kept (default: .ccal_cache in that folder)", metavar="DIR")
    others: tuple[str, ...] | None = option(
        None, "take other classes from these data sets, npz files or folders instead", several=True, metavar="DATA"
    )
    others_path: str | None = option(
        None, "folder of the data sets among --others (default: --data_path if it is one, else ~/data)", metavar="DIR"
    )


@dataclass(frozen=True)
class EncoderSettings:
    """The encoders' network and number format."""

    title: ClassVar[str] = "encoder"
    model: str | None = setting(
        None, f"backbone (default: resnet18; resnet18_imagenet from {IMAGENET_STEM_FROM} pixels)", choices=MODELS
    )
    simclr_dim: int = setting(128, "dimensions of the projection", kind=positive_int)
    shift_trans_type: str = setting("none", "shifts of the distinctive encoder (4 each)", choices=SHIFTS)
    precision: str = setting(
        "auto", "format of products; auto: bf16 in hardware, else fp32", choices=("auto", "fp32", "tf32", "bf16")
    )

    def resolved(self, *, image_size: int | None, precision: str) -> EncoderSettings:
        """These settings with the backbone for images of --image_size pixels and the number format in use."""
        large = image_size is not None and image_size >= IMAGENET_STEM_FROM
        model = self.model or ("resnet18_imagenet" if large else "resnet18")
        return dataclasses.replace(self, model=model, precision=precision)


@dataclass(frozen=True)
class CropSettings:
    """The random resized crop; the other augmentations are fixed by the method."""

    title: ClassVar[str] = "augmentation"
    resize_factor: float = setting(0.08, "smallest relative area of a crop", kind=number(float, 0, 1, open_low=True))
    resize_fix: bool = setting(False, "every crop keeps exactly --resize_factor of the area")


@dataclass(frozen=True)
class TrainingSettings:
    """Contrastive training of one encoder."""

    title: ClassVar[str] = "contrastive training"
    mode: str = setting(help="semantic (SimCLR) or distinctive (CSI)", kind=mode, metavar="{semantic,distinctive}")
    temperature: float = setting(0.5, "temperature of NT-Xent", kind=positive)
    sim_lambda: float = setting(1.0, "weight of NT-Xent beside the shift loss", kind=number(float, 0))
    epochs: int = setting(1500, "passes over the training images", kind=positive_int)
    batch_size: int = option(128, "images per process and step", kind=positive_int, exclusive="batch")
    global_batch_size: int | None = option(
        None, "images per step of all processes together, whatever their number", kind=positive_int, exclusive="batch"
    )
    optimizer: str = setting("sgd", "optimizer of the encoder", choices=("sgd", "adam", "lars"))
    lr_scheduler: str = setting("cosine", "schedule after the warm-up", choices=("cosine", "step_decay"))
    lr_init: float = setting(0.1, "learning rate; the warm-up raises it tenfold", kind=positive, metavar="RATE")
    warmup: int = setting(10, "epochs of warm-up; 0 starts at the peak", kind=natural, metavar="EPOCHS")
    weight_decay: float = setting(1e-6, "weight decay of every parameter", kind=number(float, 0))
    init: str | None = option(
        None, "start from weights: torchvision's ResNet-18, or an encoder's last.model", metavar="FILE"
    )
    compile: str = option("auto", "torch.compile; auto: for one process on a GPU", choices=("auto", "on", "off"))
    logdir: str | None = option(None, "folder of the run (default: logs/ and a name of the settings)", metavar="DIR")
    suffix: str = option("", "appended to the folder's name")
    resume: str = option("never", "auto: continue the run in the folder, or start one", choices=("never", "auto"))
    resume_path: str | None = option(None, "folder of an unfinished run to continue; it must be there", metavar="DIR")
    save_step: int = option(10, "epochs between checkpoints", kind=positive_int, metavar="EPOCHS")
    error_step: int = option(5, "epochs between linear probes on test images", kind=positive_int, metavar="EPOCHS")
    no_strict: bool = option(False, "resume with strict=False: keys that do not match are left as they are")
    parallel: str = option("torch", "several processes: torch's DDP or an apex.parallel", choices=("torch", "apex"))


@dataclass(frozen=True)
class QuerySettings:
    """Checkpoints, features, scores and the query."""

    title: ClassVar[str] = "query"
    strategy: str = setting("ccal", "query strategy, built in or your own (docs/extending.md)", kind=strategy)
    k: float = setting(100.0, "steepness of the semantic score", kind=positive)
    t: float | str = setting(
        0.9, "normalised similarity at which the semantic score is 0; auto: of image 1.25 x the query", kind=threshold
    )
    queries_per_class: int | None = setting(
        None, "images queried per target class and cycle (default: 1500; of people, 50 in all)", kind=positive_int
    )
    cycles: int = option(5, "query cycles", kind=positive_int)
    views: int = setting(1, "augmented views per image and shift, whose features are averaged", kind=positive_int)
    feature_dtype: str = setting("float16", "number format of the features", choices=("float16", "float32"))
    load_path: str = option("./model", "folder with {semantic,distinctive}/last.model", metavar="DIR")
    load_semantic_path: str | None = option(None, "semantic checkpoint (default: in --load_path)", metavar="FILE")
    load_distinctive_path: str | None = option(None, "distinctive checkpoint (default: in --load_path)", metavar="FILE")
    features: str | None = option(
        None,
        "features of the images as they are, (N, D), from elsewhere, in place of the semantic encoder",
        metavar="NPY",
    )
    semantic_features: str | None = option(None, "semantic features from elsewhere, (N, D) or (N, 1, D)", metavar="NPY")
    distinctive_features: str | None = option(
        None, "distinctive features from elsewhere, (N, K, D), one for each of K shifts", metavar="NPY"
    )
    feature_indices: str | None = option(
        None, "the images that the rows of these files are of (default: all, or pool and labeled)", metavar="NPY"
    )
    no_strict: bool = option(False, "load with strict=False: keys that do not match are left as they are")
    test_batch_size: int | None = option(
        None, "images per batch, with all their shifts (default: 100 on a CPU, up to 1000 on a GPU)", kind=positive_int
    )
    feature_cache: str | None = option(
        None, "where features are kept (default: features/ beside the index files)", metavar="DIR", exclusive="cache"
    )
    no_feature_cache: bool = option(False, "keep the features in memory only", exclusive="cache")
    index_dir: str | None = option(
        None, "where cycle_N.json is written (default: train_classifier/get_index_<mismatch>/<dataset>)", metavar="DIR"
    )
    overwrite: bool = option(False, "replace an earlier query; with --annotate, only the one that waits for its labels")
    print_score: bool = option(False, "print mean, deviation and quantiles of each score")
    save_score: bool = option(False, "also keep every score of every pool image, and draw a histogram of each cycle")
    mode: str = option("eval", "the original's spelling; there is one mode", choices=("eval",))


@dataclass(frozen=True)
class AnnotationSettings:
    """The query of images that people label."""

    title: ClassVar[str] = "annotation by people (--dataset folder)"
    annotate: bool = option(False, "make one query for people to label in cycle_N/label.html or to_label.csv")
    labels: str | None = option(None, "first take the last query's labels from this file", metavar="CSV")
    partial: bool = option(False, "take --labels though some are missing, and return those images to the pool")
    new_settings: bool = option(False, "go on with other settings or encoders than the cycles before")
    export: str | None = option(
        None, "write all answers so far into this new folder: a csv, links by class, Label Studio's json", metavar="DIR"
    )


@dataclass(frozen=True)
class ClassifierSettings:
    """The classifier."""

    title: ClassVar[str] = "classifier"
    recipe: str = setting("proper", "original: with the published slips; lfosa, mqnet: as these train", choices=RECIPES)
    epochs: int | None = setting(
        None, "passes over the labeled images; of mqnet, 100 steps each (default: the recipe's)", kind=positive_int
    )
    batch_size: int | None = setting(None, "images per step (default: the recipe's)", kind=number(int, 2))
    lr: float | None = setting(None, "first learning rate (default: the recipe's)", kind=positive, metavar="RATE")
    # results.csv records what these three came to in columns of its own.
    other: str | None = option(
        None,
        "queried images of other classes: an output of their own, or left out (default: class where people label, or "
        "for a single target class)",
        choices=("class", "drop"),
    )
    init: str | None = option(
        None,
        "contrastive checkpoint to start from, or none (default: the query's semantic one where people label)",
        metavar="FILE",
    )
    tune: str = option(
        "auto", "what is trained of --init; auto: the head alone while labels are few", choices=("auto", "head", "all")
    )
    cycles: int = option(5, "last cycle to train on", kind=natural)
    number: int | None = option(None, "train on this cycle only (0: the initial set)", kind=natural, metavar="CYCLE")
    strategy: str = option("ccal", "whose index files are read where --index_dir is not given", kind=strategy)
    index_dir: str | None = option(None, "where cycle_N.json is read (default: where the query writes)", metavar="DIR")
    out_path: str | None = option(
        None, "folder of results.csv (default: train_classifier/results/ and the index folder's name)", metavar="DIR"
    )
    runs: int = option(5, "seeds per cycle: --seed and those that follow it", kind=positive_int)
    seeds_together: int | None = option(
        None, "seeds trained in step, with equal results (default: all on a GPU, 1 on a CPU)", kind=positive_int
    )
    cuda: bool = option(False, "train on a GPU, and stop where there is none")


@dataclass(frozen=True)
class OutputSettings:
    """What a command prints."""

    title: ClassVar[str] = "output"
    quiet: bool = option(False, "print warnings, errors and the files written, no more")
    debug: bool = option(False, "show the traceback of an error")


@dataclass(frozen=True)
class ProcessSettings(OutputSettings):
    """Device, randomness, limits, and what launchers pass."""

    title: ClassVar[str] = "process"
    device: str = option("auto", "auto: a GPU if there is one", choices=("auto", "cpu", "cuda"))
    seed: int = setting(0, "seed of everything but the split", kind=seed_number)
    deterministic: bool = option(False, "two runs give the same bits on a GPU, too, with slower steps")
    max_minutes: float | None = option(
        None, "save and stop within this time, with exit status 0; signals: at once", kind=positive, metavar="MINUTES"
    )
    timeout_minutes: float = option(
        30.0, "how long a process waits for another", kind=number(float, 0, 1e6, open_low=True), metavar="MINUTES"
    )
    local_rank: int = option(0, "passed by launchers; the environment decides", kind=natural)


# What a digest that differs stands for, and what gives the same one.
DIGESTS = {
    "split_digest": (
        "another split",
        "that run's --dataset, --mismatch, --target_classes, --initial_budget and --split_seed",
    ),
    "images_digest": ("other images", "that run's --data_path and --others_path"),
    "feature_rows_digest": (
        "other images than the rows of the features are of",
        "features of the images as they are now",
    ),
    "data_digest": ("other images or labels", "that run's --data_path"),
    "strategy_digest": ("another version of the strategy's file", "the file as it was"),
    "init_digest": ("other weights to start from", "that run's --init"),
    "checkpoint_digests": ("other encoders", "that query's checkpoints"),
    "feature_digests": ("other features from files", "that query's files"),
}


def as_record(*groups: Any) -> dict[str, Any]:
    """All settings by name, as plain values for JSON."""
    return {field.name: _plain(getattr(group, field.name)) for group in groups for field in dataclasses.fields(group)}


def identity(*groups: Any) -> dict[str, Any]:
    """The settings that are part of a run's identity, by name, as plain values."""
    return {name: _plain(getattr(group, name)) for group in groups for name in identity_names(type(group))}


def identity_names(*groups: type) -> list[str]:
    """The names of the settings in some classes that are part of a run's identity."""
    return [field.name for group in groups for field in dataclasses.fields(group) if field.metadata["identity"]]


def differences(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What differs between two identities, in words: "--epochs was 4, is 6", "another split"."""
    found = []
    for name in dict.fromkeys([*wanted, *recorded]):
        before, now = (_plain(values.get(name)) for values in (recorded, wanted))
        if before != now:
            found.append(DIGESTS[name][0] if name in DIGESTS else f"--{name} was {_short(before)}, is {_short(now)}")
    return found


def require_same(recorded: Mapping[str, Any], wanted: Mapping[str, Any], *, what: str | Path, remedy: str) -> None:
    """Compares the identity that an earlier stage recorded with that of this one: settings and digests, by name.

    Args:
        recorded: What the earlier stage was made with.
        wanted: What this stage is given.
        what: The file or folder of the earlier stage.
        remedy: What to do instead of giving the same settings, such as "give another --logdir".

    Raises:
        InputError: They differ; the message says in what, and how to give the same.
    """
    found = differences(recorded, wanted)
    if not found:
        return
    hints = [hint for name, (text, hint) in DIGESTS.items() if text in found]
    same = f"give {' and '.join(hints)}" if len(hints) == len(found) else "give the same settings"
    raise InputError(f"{what} was made with other settings ({'; '.join(found)}): {same}, or {remedy}")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _short(value: Any) -> str:
    text = "not given" if value is None else " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
