"""common/arguments.py: bounds, spellings, defaults and one-line errors."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from common import arguments
from common.arguments import (
    add_augmentation_args,
    add_classifier_args,
    add_contrast_args,
    add_data_args,
    add_encoder_args,
    add_launcher_args,
    add_process_args,
    add_query_args,
    add_summary_args,
    resolved,
)
from common.parsing import Parser, number
from evals.banks import CPU_BATCH

GROUPS = {
    "contrast": (
        add_data_args,
        add_encoder_args,
        add_augmentation_args,
        add_contrast_args,
        add_process_args,
        add_launcher_args,
    ),
    "query": (
        add_data_args,
        add_encoder_args,
        add_augmentation_args,
        add_query_args,
        add_process_args,
        add_launcher_args,
    ),
    "classifier": (add_data_args, add_classifier_args, add_process_args, add_launcher_args),
    "summary": (add_summary_args,),
}


def make_parser(command):
    parser = Parser(f"The {command} command.")
    for add in GROUPS[command]:
        add(parser)
    return parser


def parsed(command, *words):
    required = ["--mode", "semantic"] if command == "contrast" and "--mode" not in words else []
    return make_parser(command).parse_args([*required, *words])


def refusal(capsys, command, *words):
    """Parses bad words and returns the one line that the user gets."""
    with pytest.raises(SystemExit) as caught:
        parsed(command, *words)
    assert caught.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.endswith(" (see --help)\n")
    assert shown.err.count("\n") == 1
    return shown.err


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)


NO_NUMBER = ["", "x", "1e", "0x10"]
NOT_WHOLE = [*NO_NUMBER, "1.5", "1e3", "nan", "inf", "-inf"]
NOT_FINITE = [*NO_NUMBER, "nan", "-nan", "inf", "-inf", "1e999"]

POSITIVE_INT = ({"1": 1, "1000000": 1_000_000}, ["0", "-1", *NOT_WHOLE])
NATURAL = ({"0": 0, "7": 7}, ["-1", *NOT_WHOLE])
SEED = ({"0": 0, str(2**63 - 1): 2**63 - 1}, ["-1", str(2**63), *NOT_WHOLE])
POSITIVE = ({"1e-9": 1e-9, "0.5": 0.5, "3": 3.0}, ["0", "-0.0", "-1", *NOT_FINITE])
NOT_NEGATIVE = ({"0": 0.0, "1e-6": 1e-6, "2": 2.0}, ["-1e-9", "-1", *NOT_FINITE])

# (command, flag): ({accepted text: its value}, [refused texts]); the accepted ones include the closed bounds.
BOUNDS = {
    ("contrast", "--mismatch"): (
        {"0": 0.0, "0.8": 0.8, "0.999999": 0.999999},
        ["-0.1", "-1e-9", "1", "1.0", "1.5", *NOT_FINITE],
    ),
    ("contrast", "--initial_budget"): POSITIVE_INT,
    ("contrast", "--split_seed"): SEED,
    ("contrast", "--image_size"): ({"32": 32, "224": 224}, ["31", "225", "-1", *NOT_WHOLE]),
    **dict.fromkeys(
        [(command, "--timeout_minutes") for command in ("contrast", "query", "classifier")],
        ({"0.05": 0.05, "30": 30.0, "1e6": 1e6}, ["0", "-1", "1000001", *NOT_FINITE]),
    ),
    ("contrast", "--global_batch_size"): POSITIVE_INT,
    ("contrast", "--seed"): SEED,
    ("contrast", "--simclr_dim"): POSITIVE_INT,
    ("contrast", "--resize_factor"): (
        {"1e-6": 1e-6, "0.08": 0.08, "1": 1.0},
        ["0", "-0.1", "1.000001", "2", *NOT_FINITE],
    ),
    ("contrast", "--temperature"): POSITIVE,
    ("contrast", "--sim_lambda"): NOT_NEGATIVE,
    ("contrast", "--epochs"): POSITIVE_INT,
    ("contrast", "--batch_size"): POSITIVE_INT,
    ("contrast", "--lr_init"): POSITIVE,
    ("contrast", "--warmup"): NATURAL,
    ("contrast", "--weight_decay"): NOT_NEGATIVE,
    ("contrast", "--save_step"): POSITIVE_INT,
    ("contrast", "--error_step"): POSITIVE_INT,
    ("query", "--ood_samples"): POSITIVE_INT,
    ("query", "--test_batch_size"): POSITIVE_INT,
    ("query", "--k"): POSITIVE,
    ("query", "--t"): ({"0": 0.0, "0.9": 0.9, "1": 1.0}, ["-0.1", "1.1", *NOT_FINITE]),
    ("query", "--target"): POSITIVE_INT,
    ("query", "--split"): POSITIVE_INT,
    ("classifier", "--split"): NATURAL,
    ("classifier", "--number"): NATURAL,
    ("classifier", "--runs"): POSITIVE_INT,
    ("classifier", "--seeds_together"): POSITIVE_INT,
    ("classifier", "--epochs"): POSITIVE_INT,
    ("classifier", "--batch_size"): ({"2": 2, "32": 32}, ["1", "0", "-2", *NOT_WHOLE]),
    ("classifier", "--lr"): POSITIVE,
}


@pytest.mark.parametrize(("command", "flag"), BOUNDS)
def test_numbers_within_the_bounds(command, flag):
    for text, value in BOUNDS[command, flag][0].items():
        got = getattr(parsed(command, f"{flag}={text}"), flag.strip("-"))
        assert got == value
        assert type(got) is type(value)


@pytest.mark.parametrize(("command", "flag"), BOUNDS)
def test_numbers_out_of_bounds_get_one_line(capsys, command, flag):
    for text in BOUNDS[command, flag][1]:
        line = refusal(capsys, command, f"{flag}={text}")
        assert re.search(rf"error: argument {flag}\b.*: must be a (whole )?number (above|at least) .*, got ", line), (
            text
        )
        assert text in line


def test_every_flag_with_a_number_stands_in_the_table():
    """A new numeric flag without its bounds tested fails here."""
    declared = {}
    for command in GROUPS:
        for action in make_parser(command)._actions:
            if action.type is not None and getattr(action.type, "__qualname__", "").startswith("number."):
                declared.setdefault(action.option_strings[0], set()).add(command)
    tested = {}
    for command, flag in BOUNDS:
        tested.setdefault(flag, set()).add(command)
    assert set(declared) == set(tested)
    for flag in ("--split", "--epochs", "--batch_size"):
        assert declared[flag] == tested[flag]  # declared twice, with bounds of their own


@pytest.mark.parametrize("text", ["9" * 400, "-" + "9" * 400, "9" * 5000])
@pytest.mark.parametrize("flag", ["--epochs", "--warmup", "--seed"])
def test_whole_numbers_beyond_a_floats_range_get_one_line(capsys, flag, text):
    line = refusal(capsys, "contrast", f"{flag}={text}")
    assert re.search(rf"error: argument {flag}\b.*: must be a whole number at least ", line)


def test_a_message_shows_bounds_that_are_the_real_ones(capsys):
    assert "must be a number at least 0 and below 1, got 1" in refusal(capsys, "query", "--mismatch=1")
    assert "must be a number above 0 and at most 1, got 0" in refusal(capsys, "query", "--resize_factor=0")
    assert "must be a whole number at least 2, got 1" in refusal(capsys, "classifier", "--batch_size=1")
    assert "must be a whole number at least 1, got 'two'" in refusal(capsys, "query", "--split=two")
    assert "at most 9223372036854775807, got 9223372036854775808" in refusal(capsys, "query", f"--seed={2**63}")


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.5", None), ("0.500001", 0.500001), ("0.999999", 0.999999), ("1", None), ("nan", None), ("-inf", None)],
)
def test_number_with_both_bounds_open(text, value):
    kind = number(float, 0.5, 1, open_low=True, open_high=True)
    if value is None:
        with pytest.raises(argparse.ArgumentTypeError, match=f"must be a number above 0.5 and below 1, got {text}"):
            kind(text)
    else:
        assert kind(text) == value


def test_target_classes_keep_their_order(capsys):
    assert parsed("query", "--target_classes", "3", "0", "42").target_classes == [3, 0, 42]
    assert parsed("query").target_classes is None
    assert parsed("query", "--target_classes", "cat", "1.5", "007", "7").target_classes == ["cat", "1.5", "007", 7]
    for bad in ("-1", "9" * 5000, ""):
        assert "--target_classes" in refusal(capsys, "query", "--target_classes", "0", bad)
    assert "expected at least one argument" in refusal(capsys, "query", "--target_classes")


# Spellings


@pytest.mark.parametrize(
    ("command", "words", "name", "value"),
    [
        ("contrast", "--mode semantic", "mode", "semantic"),
        ("contrast", "--mode senmatic", "mode", "semantic"),
        ("contrast", "--mode distinctive", "mode", "distinctive"),
        ("contrast", "--mode feature", "mode", "distinctive"),
        ("contrast", "--epoch 700", "epochs", 700),
        ("contrast", "--epochs 700", "epochs", 700),
        ("classifier", "--epoch 7", "epochs", 7),
        ("classifier", "--epochs 7", "epochs", 7),
        ("contrast", "--local_rank 3", "local_rank", 3),
        ("contrast", "--local-rank 3", "local_rank", 3),
        ("query", "--local-rank=2", "local_rank", 2),
        ("classifier", "--local_rank=1", "local_rank", 1),
        ("query", "--load_senmatic_path a/last.model", "load_semantic_path", "a/last.model"),
        ("query", "--load_semantic_path a/last.model", "load_semantic_path", "a/last.model"),
        ("query", "--load_feature_path b/last.model", "load_feature_path", "b/last.model"),
        ("query", "--load_distinctive_path b/last.model", "load_feature_path", "b/last.model"),
        ("query", "--mode eval", "mode", "eval"),
    ],
)
def test_spellings(command, words, name, value):
    args = vars(parsed(command, *words.split()))
    assert args[name] == value
    assert not {"epoch", "load_senmatic_path", "load_distinctive_path", "local-rank"} & set(args)


def test_the_originals_commands_parse_as_written():
    """METHOD.md, section 8; the words after the script's name, with what each must mean."""
    semantic = parsed(
        "contrast",
        *shlex.split(
            "--mismatch 0.8 --dataset cifar10 --model resnet18 --mode senmatic --shift_trans_type none "
            "--batch_size 32 --epoch 700 --logdir './model/semantic'"
        ),
    )
    assert (semantic.mode, semantic.shift_trans_type, semantic.epochs) == ("semantic", "none", 700)
    assert (semantic.batch_size, semantic.logdir) == (32, "./model/semantic")
    distinctive = parsed(
        "contrast",
        *shlex.split(
            "--local-rank=1 --mismatch 0.8 --dataset cifar10 --model resnet18 --mode feature "
            "--shift_trans_type rotation --batch_size 32 --epoch 700 --logdir './model/distinctive'"
        ),
    )
    assert (distinctive.mode, distinctive.shift_trans_type, distinctive.local_rank) == ("distinctive", "rotation", 1)
    query = parsed(
        "query",
        *shlex.split(
            "--mode eval --k 100.0 --t 0.9 --dataset cifar10 --model resnet18 --mismatch 0.8 --target 750 "
            "--shift_trans_type rotation --print_score --ood_samples 10 --resize_factor 0.54 --resize_fix "
            "--load_feature_path './model/distinctive/last.model' "
            "--load_senmatic_path './model/semantic/last.model' --load_path './model'"
        ),
    )
    assert (query.k, query.t, query.target, query.ood_samples, query.resize_factor) == (100.0, 0.9, 750, 10, 0.54)
    assert (query.resize_fix, query.print_score, query.save_score) == (True, True, False)
    assert (query.load_path, query.load_semantic_path) == ("./model", "./model/semantic/last.model")
    assert query.load_feature_path == "./model/distinctive/last.model"
    classifier = parsed(
        "classifier", *shlex.split("--cuda --split 5 --dataset cifar10 --mismatch 0.8 --number 1 --epoch 100")
    )
    assert (classifier.cuda, classifier.split, classifier.number, classifier.epochs) == (True, 5, 1, 100)


DEFAULTS = {
    "contrast": {
        "dataset": "cifar10",
        "mismatch": 0.8,
        "simclr_dim": 128,
        "save_step": 10,
        "epochs": 1500,
        "error_step": 5,
        "optimizer": "sgd",
        "lr_scheduler": "cosine",
        "warmup": 10,
        "lr_init": 0.1,
        "weight_decay": 1e-6,
        "batch_size": 128,
        "sim_lambda": 1.0,
        "temperature": 0.5,
        "resize_factor": 0.08,
        "resize_fix": False,
        "split_seed": 0,
        "no_strict": False,
        "resume_path": None,
    },
    "query": {"target": 1500, "ood_samples": 1, "split": 5, "print_score": False, "t": 0.9},
    "classifier": {"batch_size": 32, "lr": 5e-4, "epochs": 100, "runs": 5, "split": 5, "number": None, "cuda": False},
}


@pytest.mark.parametrize("command", DEFAULTS)
def test_defaults_are_the_originals(command):
    args = vars(parsed(command))
    assert {name: args[name] for name in DEFAULTS[command]} == DEFAULTS[command]


def test_the_querys_batch_is_the_originals_on_a_cpu():
    assert parsed("query").test_batch_size is None and CPU_BATCH == 100


# Refusals


@pytest.mark.parametrize(
    ("command", "words", "part"),
    [
        ("contrast", ["--mode", "both"], "argument --mode: must be semantic or distinctive, got 'both'"),
        ("contrast", ["--dataset", "imagenet"], "argument --dataset: invalid choice: 'imagenet'"),
        ("contrast", ["--model", "vgg"], "argument --model: invalid choice: 'vgg'"),
        ("contrast", ["--shift_trans_type", "flip"], "argument --shift_trans_type: invalid choice: 'flip'"),
        ("contrast", ["--optimizer", "lamb"], "argument --optimizer: invalid choice: 'lamb'"),
        ("contrast", ["--lr_scheduler", "linear"], "argument --lr_scheduler: invalid choice: 'linear'"),
        ("contrast", ["--parallel", "horovod"], "argument --parallel: invalid choice: 'horovod'"),
        ("contrast", ["--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
        ("query", ["--mode", "train"], "argument --mode: invalid choice: 'train'"),
        ("query", ["--strategy", "entropy"], "argument --strategy: invalid choice: 'entropy'"),
        ("classifier", ["--recipe", "better"], "argument --recipe: invalid choice: 'better'"),
        ("query", ["--mism", "0.8"], "unrecognized arguments: --mism 0.8"),  # no abbreviations
        ("query", ["--unknown"], "unrecognized arguments: --unknown"),
        ("query", ["two\nlines"], "unrecognized arguments: two lines"),
        ("query", ["--k"], "argument --k: expected one argument"),
        ("query", ["--resize_fix=yes"], "argument --resize_fix: ignored explicit argument 'yes'"),
    ],
)
def test_refusals_are_one_line(capsys, command, words, part):
    assert part in refusal(capsys, command, *words)


@pytest.mark.parametrize(("command", "flag"), [("contrast", "--mode"), ("summary", "--index_dir")])
def test_required_flags(capsys, command, flag):
    with pytest.raises(SystemExit) as caught:
        make_parser(command).parse_args([])
    assert caught.value.code == 2
    shown = capsys.readouterr().err
    assert shown.endswith(f"error: the following arguments are required: {flag} (see --help)\n")
    assert shown.count("\n") == 1


def test_only_one_process_of_a_machine_prints_the_error(capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(SystemExit) as caught:
        parsed("query", "--k=0")
    assert caught.value.code == 2
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert "--k" in refusal(capsys, "query", "--k=0")


# Help


@pytest.mark.parametrize("command", GROUPS)
def test_every_flag_has_a_group_and_a_help_sentence(command):
    parser = make_parser(command)
    titled = [action for group in parser._action_groups[2:] for action in group._group_actions]
    flags = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    assert set(flags) == set(titled)
    assert [action.option_strings for action in flags if not action.help] == []


@pytest.mark.parametrize("command", GROUPS)
def test_help_names_real_defaults_only(command):
    text = " ".join(make_parser(command).format_help().split())
    assert ("(default: 0.8)" in text) == (command != "summary")
    assert "default: None" not in text


def test_resolved_is_plain_and_sorted():
    args = argparse.Namespace(b=Path("x/y"), a=1, c=None, d=[0, 1])
    assert list(resolved(args).items()) == [("a", 1), ("b", "x/y"), ("c", None), ("d", [0, 1])]


def test_datasets_and_strategies_on_offer():
    assert arguments.DATASETS == ("cifar10", "cifar100", "svhn", "mnist", "fashion_mnist", "digits", "npz", "folder")
    assert arguments.STRATEGIES == ("ccal", "semantic", "distinctive", "random")
