"""Every flag, declared once, in groups that the commands put together.

The original code's spellings (``--mode senmatic``, ``--epoch``, ``--load_senmatic_path``, ``--local-rank``) are
accepted here and nowhere else: past the parser there is one name for each thing.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.parsing import Parser as Parser  # the commands take it from here
from common.parsing import natural, number, positive, positive_int, seed_number

DATASETS = ("cifar10", "cifar100", "svhn", "mnist", "fashion_mnist", "digits", "npz", "folder")
IMAGENET_STEM_FROM = 128  # pixels; from there on its last stage sees 4x4 positions, as the CIFAR stem's does at 32
MODELS = ("resnet18", "resnet18_imagenet", "resnet20", "resnet8")
MODEL_HELP = f"{{}} (default: resnet18; with --image_size of {IMAGENET_STEM_FROM} or more resnet18_imagenet)"
SHIFTS = ("none", "rotation", "cutperm")
STRATEGIES = ("ccal", "semantic", "distinctive", "random")
MODE_SPELLINGS = {
    "semantic": "semantic",
    "senmatic": "semantic",
    "distinctive": "distinctive",
    "feature": "distinctive",
}


def _mode(text: str) -> str:
    if text not in MODE_SPELLINGS:
        raise argparse.ArgumentTypeError(f"must be semantic or distinctive, got {text!r}")
    return MODE_SPELLINGS[text]


def _class(text: str) -> int | str:
    """A class by its number, or by its name."""
    if re.fullmatch("-?(0|[1-9][0-9]*)", text):
        return natural(text)
    if not text:
        raise argparse.ArgumentTypeError("must be a class's name or number, got ''")
    return text


def add_data_args(parser: argparse.ArgumentParser) -> None:
    """The data set and the split; the same flags give the same split at every stage."""
    group = parser.add_argument_group("data and split")
    group.add_argument("--dataset", choices=DATASETS, default="cifar10", help="data set")
    group.add_argument(
        "--data_path",
        default="~/data",
        help="folder of CIFAR, the file of --dataset npz, or the folder of --dataset folder",
    )
    group.add_argument(
        "--mismatch",
        type=number(float, 0, 1, open_high=True),
        default=0.8,
        help="share of other-class images in the unlabeled pool",
    )
    group.add_argument(
        "--target_classes",
        type=_class,
        nargs="+",
        metavar="CLASS",
        help="classes that matter, by name or number, in the classifier's order (default: the data set's protocol)",
    )
    group.add_argument(
        "--initial_budget",
        type=positive_int,
        metavar="N",
        help="target images labeled at the start (default: 800; digits: 20)",
    )
    group.add_argument("--split_seed", type=seed_number, default=0, help="seed of the split's draws")
    group.add_argument(
        "--image_size",
        type=number(int, 32, 224),
        metavar="PIXELS",
        help="of --dataset folder: shorter sides are resized to this and the centre cropped (default: 32)",
    )
    group.add_argument(
        "--cache_dir",
        metavar="DIR",
        help="where the images of a folder are kept at that size (default: .ccal_cache in the folder itself)",
    )
    group.add_argument(
        "--others",
        nargs="+",
        metavar="DATA",
        help="other-class images of the pool come from these instead: further data sets by name, npz files or folders "
        "of images, resized to the data set's own shape",
    )
    group.add_argument(
        "--others_path",
        metavar="DIR",
        help="folder of the data sets that --others names (default: --data_path if that is such a folder, else ~/data)",
    )


def add_process_args(parser: argparse.ArgumentParser) -> None:
    """Device, randomness and what launchers pass."""
    group = parser.add_argument_group("process")
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    group.add_argument("--seed", type=seed_number, default=0, help="seed of everything but the split")
    group.add_argument(
        "--deterministic",
        action="store_true",
        help="on one GPU, too, two runs give the same bits, with slower steps; on a CPU they do without it",
    )
    add_output_args(group)
    group.add_argument(
        "--local_rank", "--local-rank", type=int, default=0, help="passed by launchers; the environment decides"
    )


def add_launcher_args(parser: argparse.ArgumentParser) -> None:
    """What matters where a launcher starts several processes."""
    group = parser.add_argument_group("several processes")
    group.add_argument(
        "--timeout_minutes",
        type=number(float, 0, 1e6, open_low=True),
        default=30.0,
        metavar="M",
        help="how long a process waits for another one, in minutes, before all stop",
    )


def add_resume_args(parser: argparse.ArgumentParser) -> None:
    """Going on where an earlier process stopped."""
    group = parser.add_argument_group("resume")
    group.add_argument(
        "--resume",
        choices=("never", "auto"),
        default="never",
        help="auto: continue what the folder holds, with the result of a run without a stop, or start where it holds "
        "nothing",
    )


def add_output_args(group: argparse._ArgumentGroup) -> None:
    """What a command says."""
    group.add_argument("--quiet", action="store_true", help="print warnings, errors and the files written, no more")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")


def add_limit_args(parser: argparse.ArgumentParser) -> None:
    """When to stop before the end."""
    group = parser.add_argument_group("limit")
    group.add_argument(
        "--max_minutes",
        type=positive,
        metavar="M",
        help="save and stop, with exit status 0, within M minutes from when the command has loaded its libraries (some "
        "seconds after its start; default: no limit); SIGTERM, SIGINT and SIGUSR1 do so at once",
    )


def add_precision_args(parser: argparse.ArgumentParser) -> None:
    """The number format of the encoders."""
    group = parser.add_argument_group("speed")
    group.add_argument(
        "--precision",
        choices=("auto", "fp32", "tf32", "bf16"),
        default="auto",
        help="number format of the encoder's products; auto: bf16 where the hardware computes it natively, else fp32",
    )


def add_encoder_args(parser: argparse.ArgumentParser) -> None:
    """What the two encoders look like."""
    group = parser.add_argument_group("encoder")
    group.add_argument("--model", choices=MODELS, help=MODEL_HELP.format("backbone"))
    group.add_argument("--simclr_dim", type=positive_int, default=128, help="dimensions of the projection")
    group.add_argument(
        "--shift_trans_type", choices=SHIFTS, default="none", help="shifts of the distinctive encoder (4 each)"
    )


def add_augmentation_args(parser: argparse.ArgumentParser) -> None:
    """The random resized crop; the other augmentations are fixed by the method."""
    group = parser.add_argument_group("augmentation")
    group.add_argument(
        "--resize_factor",
        type=number(float, 0, 1, open_low=True),
        default=0.08,
        help="smallest share of the image's area that a crop keeps",
    )
    group.add_argument("--resize_fix", action="store_true", help="every crop keeps exactly --resize_factor of the area")


def add_contrast_args(parser: argparse.ArgumentParser) -> None:
    """Contrastive training: contrast_main.py."""
    group = parser.add_argument_group("contrastive training")
    group.add_argument(
        "--mode", type=_mode, required=True, help="semantic (SimCLR) or distinctive (CSI); also: senmatic, feature"
    )
    group.add_argument("--temperature", type=positive, default=0.5, help="of NT-Xent")
    group.add_argument(
        "--sim_lambda", type=number(float, 0), default=1.0, help="weight of NT-Xent beside the shift loss"
    )
    group.add_argument("--epochs", "--epoch", type=positive_int, default=1500, help="passes over the training images")
    sizes = group.add_mutually_exclusive_group()
    sizes.add_argument("--batch_size", type=positive_int, default=128, help="images per process and step")
    sizes.add_argument(
        "--global_batch_size",
        type=positive_int,
        metavar="N",
        help="images per step, all processes together, of which each takes an equal share: the steps of an epoch, "
        "their images and learning rates are then the same with any number of processes",
    )
    group.add_argument("--optimizer", choices=("sgd", "adam", "lars"), default="sgd", help="of the encoder")
    group.add_argument("--lr_scheduler", choices=("cosine", "step_decay"), default="cosine", help="after the warm-up")
    group.add_argument(
        "--lr_init",
        type=positive,
        default=0.1,
        help="learning rate before the warm-up, which takes it to ten times this",
    )
    group.add_argument(
        "--warmup", type=natural, default=10, metavar="EPOCHS", help="epochs of warm-up; 0 starts at the peak"
    )
    group.add_argument("--weight_decay", type=number(float, 0), default=1e-6, help="on every parameter")
    group.add_argument(
        "--compile",
        choices=("auto", "on", "off"),
        default="auto",
        help="torch.compile, with CUDA graphs on a GPU; auto: on for one process on a GPU, else off",
    )
    group = parser.add_argument_group("run")
    group.add_argument("--logdir", help="folder of the run (default: logs/ and a name made of the settings)")
    group.add_argument("--suffix", default="", help="appended to the folder's name")
    group.add_argument(
        "--resume_path", metavar="DIR", help="folder of an unfinished run to continue exactly; it must be there"
    )
    group.add_argument(
        "--save_step", type=positive_int, default=10, metavar="EPOCHS", help="epochs between checkpoints"
    )
    group.add_argument(
        "--error_step",
        type=positive_int,
        default=5,
        metavar="EPOCHS",
        help="epochs between evaluations of the linear probe on the test images",
    )
    group.add_argument(
        "--no_strict", action="store_true", help="resume with strict=False: keys that do not match are left as they are"
    )
    group.add_argument(
        "--parallel",
        choices=("torch", "apex"),
        default="torch",
        help="several processes: torch's DistributedDataParallel, or an apex that still has apex.parallel",
    )


def add_query_args(parser: argparse.ArgumentParser) -> None:
    """Features, scores and query: active_main.py."""
    group = parser.add_argument_group("checkpoints")
    group.add_argument(
        "--load_path",
        metavar="DIR",
        default="./model",
        help="folder in which semantic/last.model and distinctive/last.model are looked for",
    )
    group.add_argument(
        "--load_semantic_path",
        "--load_senmatic_path",
        metavar="FILE",
        help="semantic checkpoint (default: in --load_path)",
    )
    group.add_argument(
        "--load_feature_path",
        "--load_distinctive_path",
        metavar="FILE",
        help="distinctive checkpoint (default: in --load_path)",
    )
    group.add_argument(
        "--no_strict", action="store_true", help="load with strict=False: keys that do not match are left as they are"
    )
    group = parser.add_argument_group("features")
    group.add_argument(
        "--ood_samples", type=positive_int, default=1, metavar="V", help="augmented views per image and shift, averaged"
    )
    group.add_argument(
        "--test_batch_size",
        type=positive_int,
        metavar="IMAGES",
        help="images per batch; a forward pass has all their shifts (default: 100 on a CPU, 1000 on a GPU)",
    )
    group.add_argument(
        "--feature_cache",
        metavar="DIR",
        help="keep the features there, memory-mapped, and use them again where checkpoint, images and settings are the "
        "same; refused where they are not",
    )
    group.add_argument(
        "--feature_dtype",
        choices=("float32", "float16"),
        default="float32",
        help="in which features are kept; float16 takes half the memory or disk",
    )
    group = parser.add_argument_group("query")
    group.add_argument("--mode", choices=("eval",), default="eval", help="the original's spelling; there is one mode")
    group.add_argument("--strategy", choices=STRATEGIES, default="ccal", help="query strategy")
    group.add_argument("--k", type=positive, default=100.0, help="steepness of the semantic score")
    group.add_argument(
        "--t", type=number(float, 0, 1), default=0.9, help="normalised similarity at which the semantic score is 0"
    )
    group.add_argument("--target", type=positive_int, default=1500, help="images queried per target class and cycle")
    group.add_argument("--split", type=positive_int, default=5, metavar="CYCLES", help="query cycles")
    group.add_argument("--print_score", action="store_true", help="print mean, deviation and quantiles of each score")
    group.add_argument(
        "--save_score",
        action="store_true",
        help="write each cycle's scores (npz) and a histogram (png) into scores/ beside the index files",
    )
    group.add_argument(
        "--index_dir",
        metavar="DIR",
        help="where cycle_N.json is written (default: train_classifier/get_index_<mismatch>/<dataset>)",
    )
    group.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the index files of an earlier query; with --annotate, keep them and make the query that waits "
        "for its labels anew",
    )


def add_annotation_args(parser: argparse.ArgumentParser) -> None:
    """The query of images that people label: active_main.py --annotate."""
    group = parser.add_argument_group("annotation by people (--dataset folder)")
    group.add_argument(
        "--annotate",
        action="store_true",
        help="make one query and write it to cycle_N/ beside the index files: label.html to label it in a browser, "
        "to_label.csv and contact_sheet.png",
    )
    group.add_argument(
        "--labels",
        metavar="CSV",
        help="first take the labels of the query before from this file, which label.html saved or somebody filled in",
    )
    group.add_argument(
        "--partial",
        action="store_true",
        help="take --labels though some are missing, and return those images to the pool",
    )


def add_classifier_args(parser: argparse.ArgumentParser) -> None:
    """The classifier: train_classifier/main.py."""
    group = parser.add_argument_group("classifier")
    group.add_argument("--split", type=natural, default=5, metavar="CYCLES", help="last cycle to train on")
    group.add_argument("--number", type=natural, metavar="CYCLE", help="train on this cycle only (0: the initial set)")
    group.add_argument(
        "--strategy",
        choices=STRATEGIES,
        default="ccal",
        help="whose index files are read where --index_dir is not given",
    )
    group.add_argument(
        "--index_dir", metavar="DIR", help="where cycle_N.json is read (default: where the query writes)"
    )
    group.add_argument(
        "--out_path",
        metavar="DIR",
        help="where results.csv and the curve go (default: train_classifier/results/ and the index folder's name)",
    )
    group.add_argument("--runs", type=positive_int, default=5, help="seeds per cycle: --seed and those that follow it")
    group.add_argument(
        "--seeds_together",
        type=positive_int,
        metavar="N",
        help="seeds trained in step, which fills a GPU and changes no result; an interruption loses what they have "
        "done in the current cycle (default: all of --runs on a GPU, 1 on a CPU)",
    )
    group.add_argument(
        "--recipe",
        choices=("proper", "original"),
        default="proper",
        help="original: as published, BatchNorm statistics frozen after epoch 1, every epoch in one order with one "
        "set of flips",
    )
    group.add_argument("--epochs", "--epoch", type=positive_int, default=100, help="passes over the labeled images")
    group.add_argument("--batch_size", type=number(int, 2), default=32, help="images per step")
    group.add_argument("--lr", type=positive, default=5e-4, help="Adam's learning rate")
    group.add_argument("--cuda", action="store_true", help="train on a GPU, and stop where there is none")


def add_summary_args(parser: argparse.ArgumentParser) -> None:
    """The table and figure of a finished run: evals/summary.py."""
    group = parser.add_argument_group("summary")
    group.add_argument("--index_dir", metavar="DIR", required=True, help="index files of the query")
    group.add_argument("--random_dir", metavar="DIR", help="index files of --strategy random, to compare with")
    group.add_argument("--results", metavar="FILE", help="the classifier's results.csv")
    group.add_argument("--out_path", metavar="DIR", help="where summary.csv and summary.png go (default: --index_dir)")
    add_output_args(group)


def add_report_args(parser: argparse.ArgumentParser) -> None:
    """The page on finished runs: evals/report.py."""
    group = parser.add_argument_group("report")
    group.add_argument(
        "runs",
        metavar="RUN_DIR",
        nargs="+",
        help="folder with a run's encoders, index files and results, however they are laid out in it; several are "
        "compared",
    )
    group.add_argument(
        "--out",
        metavar="FILE.html",
        help="the page; its figures also go into FILE_figures/ beside it (default: report.html in RUN_DIR; for several "
        "runs, here)",
    )
    group.add_argument(
        "--data_path",
        metavar="PATH",
        help="where the images are, if not where the runs had them",
    )
    group.add_argument(
        "--features",
        choices=("auto", "kept", "extract"),
        default="auto",
        help="where features for scores and maps come from, if the query's --feature_cache is not in RUN_DIR; auto: "
        "extracted again where that takes about a minute at most, kept: left out, extract: extracted",
    )
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")


def add_reproduce_args(parser: argparse.ArgumentParser) -> None:
    """The whole experiment: reproduce.py. A flag without a default takes the value of the data set's recipe."""
    group = parser.add_argument_group("run")
    group.add_argument(
        "--out", metavar="RUN", required=True, help="folder of the run, new or one to continue with the same flags"
    )
    group = group.add_mutually_exclusive_group()
    group.add_argument(
        "--scale",
        type=number(float, 0, 1, open_low=True),
        default=1.0,
        help="shortens every schedule (encoders, warm-up, classifier) by this factor, to no less than an epoch",
    )
    group.add_argument(
        "--budget_minutes",
        type=positive,
        metavar="M",
        help="measures a few steps of everything and takes the largest --scale with which all of it ends in M minutes",
    )
    group = parser.add_argument_group("recipe (the defaults are the paper's)")
    group.add_argument("--model", choices=MODELS, help=MODEL_HELP.format("backbone of both encoders"))
    group.add_argument(
        "--target",
        type=positive_int,
        help="images queried per target class and cycle (default: cifar10 750, cifar100 75, others the same share of "
        "the pool)",
    )
    group.add_argument("--split", type=positive_int, default=5, metavar="CYCLES", help="query cycles")
    group.add_argument("--runs", type=positive_int, default=5, help="classifiers per cycle, one seed each")
    group.add_argument(
        "--batch_size",
        type=positive_int,
        default=128,
        help="images per step of the encoders, all GPUs together (the other commands' is per process)",
    )
    group.add_argument("--optimizer", choices=("sgd", "adam", "lars"), default="sgd", help="of the encoders")
    group.add_argument(
        "--lr_init",
        type=positive,
        default=0.1,
        help="the encoders' learning rate before the warm-up, ten times that after",
    )
    group.add_argument(
        "--ood_samples", type=positive_int, default=10, metavar="V", help="augmented views per image in the query"
    )
    group.add_argument("--k", type=positive, default=100.0, help="steepness of the semantic score")
    group.add_argument(
        "--t", type=number(float, 0, 1), default=0.9, help="normalised similarity at which the semantic score is 0"
    )


def backbone(model: str | None, image_size: int | None) -> str:
    """The backbone of --model, or the one for images of --image_size pixels."""
    if model is not None:
        return model
    return "resnet18_imagenet" if image_size is not None and image_size >= IMAGENET_STEM_FROM else "resnet18"


def resolved(args: argparse.Namespace) -> dict[str, Any]:
    """The namespace as a plain dictionary, for args.json."""
    values = {name: str(value) if isinstance(value, Path) else value for name, value in sorted(vars(args).items())}
    if "model" in values:
        values["model"] = backbone(args.model, args.image_size)
    return values


def changed_flags(
    parser: argparse.ArgumentParser, args: argparse.Namespace, groups: Sequence[str], *, but: Sequence[str] = ()
) -> list[str]:
    """The flags of some groups, by title, whose values are not the defaults: words that another command takes.

    Flags named in ``but`` stay out.
    """
    words = []
    for action in [
        action for group in parser._action_groups if group.title in groups for action in group._group_actions
    ]:
        value = getattr(args, action.dest)
        if value == action.default or action.dest in but:
            continue
        words.append(action.option_strings[0])
        if action.nargs != 0:
            words += [str(item) for item in (value if isinstance(value, list) else [value])]
    return words


def split_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What add_data_args declares of images and split, as keywords of datasets.load_data_and_split."""
    names = ("mismatch", "target_classes", "initial_budget", "split_seed", "image_size", "cache_dir")
    names += ("others", "others_path")
    return {name: getattr(args, name) for name in names}
