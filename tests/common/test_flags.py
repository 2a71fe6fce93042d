"""common/flags.py: flags made of settings, bounds of numbers, spellings, and one line for what is wrong."""

import dataclasses
import os
import subprocess
import sys
from argparse import ArgumentTypeError
from typing import ClassVar

import pytest

from common.flags import SPELLINGS, Parser, as_flags, class_name, mode, number, pick, setting, threshold
from common.settings import DataSettings, EncoderSettings, ProcessSettings, QuerySettings, TrainingSettings


@dataclasses.dataclass(frozen=True)
class Toy:
    title: ClassVar[str] = "toy"
    files: tuple = setting(help="files to read", several=True, positional=True, metavar="FILE")
    name: str = setting(help="a name")
    size: int = setting(3, "how large, in pixels", kind=number(int, 1, 9), exclusive="size")
    scale: float | None = setting(None, "instead of --size", kind=number(float, 0, open_low=True), exclusive="size")
    kinds: tuple = setting(("a",), "kinds", several=True, choices=("a", "b"))
    loud: bool = setting(False, "print more", identity=False)


def parse(*words):
    return Parser("Plays.", toy=Toy).parse(words).toy


def test_every_field_is_a_flag_with_its_default():
    assert parse("x", "y", "--name", "n") == Toy(files=("x", "y"), name="n")
    given = parse("x", "--name", "n", "--size", "9", "--kinds", "b", "a", "--loud")
    assert given == Toy(files=("x",), name="n", size=9, kinds=("b", "a"), loud=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("x", "required: --name"),
        ("--name n", "required: FILE"),
        ("x --name n --size 10", "--size: must be a whole number at least 1 and at most 9, got 10"),
        ("x --name n --size 2 --scale 2", "not allowed with argument"),
        ("x --name n --kinds c", "invalid choice: 'c'"),
        ("x --name n --lou", "unrecognized arguments: --lou"),  # no abbreviations: a new flag would change meanings
        ("x --name n --a\nb", "unrecognized arguments: --a b"),
    ],
)
def test_what_is_wrong_is_one_line_and_status_2(words, message, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(*words.split(" "))
    assert caught.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line and line.endswith("(see --help)")


def test_the_help_names_what_is_needed_and_each_default(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "FILE --name NAME [flags] Plays." in shown
    assert "how large, in pixels (default: 3)" in shown and "print more" in shown and "(default: False)" not in shown


def test_flags_give_the_settings_again():
    settings = parse("x", "--name", "n", "--kinds", "b", "a", "--size", "4", "--loud")
    assert as_flags(settings, but=("files",)) == ["--name", "n", "--size", "4", "--kinds", "b", "a", "--loud"]
    data = DataSettings(dataset="npz", target_classes=(2, "cat"), mismatch=0.25)
    words = as_flags(data, QuerySettings())
    assert words == ["--dataset", "npz", "--mismatch", "0.25", "--target_classes", "2", "cat"]
    assert Parser("Works.", data=DataSettings).parse(words).data == data


def test_some_fields_of_a_group_with_other_defaults():
    group = pick(QuerySettings, "k", "cycles", cycles=2)
    assert Parser("Works.", query=group).parse(["--k", "5"]).query == group(k=5.0, cycles=2)
    with pytest.raises(SystemExit):
        Parser("Works.", query=group).parse(["--t", "0.5"])


@pytest.mark.parametrize(
    ("group", "words", "name", "value"),
    [
        (QuerySettings, "--target 7", "queries_per_class", 7),
        (QuerySettings, "--split 7", "cycles", 7),
        (QuerySettings, "--ood_samples 7", "views", 7),
        (QuerySettings, "--load_senmatic_path f", "load_semantic_path", "f"),
        (QuerySettings, "--load_feature_path f", "load_distinctive_path", "f"),
        (TrainingSettings, "--mode senmatic --epoch 7", "epochs", 7),
        (TrainingSettings, "--mode senmatic", "mode", "semantic"),
        (TrainingSettings, "--mode feature", "mode", "distinctive"),
        (ProcessSettings, "--local-rank 1", "local_rank", 1),
    ],
)
def test_the_originals_spellings_are_taken(group, words, name, value):
    assert getattr(Parser("Works.", group=group).parse(words.split()).group, name) == value


def test_every_spelling_belongs_to_a_setting():
    groups = (QuerySettings, TrainingSettings, ProcessSettings)
    assert set(SPELLINGS) <= {field.name for group in groups for field in dataclasses.fields(group)}


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (number(int, 1), {"1": 1, "12": 12}, ["0", "-1", "1.5", "x", "", "nan", "1" * 5000]),
        (number(float, 0, 1, open_high=True), {"0": 0.0, ".5": 0.5}, ["1", "-0.1", "nan", "inf", "1e999"]),
        (number(float, 0, open_low=True), {"1e-9": 1e-9}, ["0", "inf", "-1"]),
        (threshold, {"auto": "auto", "0.5": 0.5}, ["automatic", "1.1", ""]),
        (mode, {"semantic": "semantic", "feature": "distinctive"}, ["eval", ""]),
        (class_name, {"3": 3, "cat": "cat", "03": "03"}, ["", "-1"]),
    ],
)
def test_kinds(kind, good, bad):
    assert {text: kind(text) for text in good} == good
    for text in bad:
        with pytest.raises(ArgumentTypeError, match="must be"):
            kind(text)


@pytest.mark.parametrize("variables", [{"LOCAL_RANK": "1"}, {"RANK": "3"}, {"WORLD_SIZE": ""}])
def test_leftovers_of_a_launcher_are_one_line(variables, monkeypatch, capsys):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as caught:
        Parser("Works.", encoder=EncoderSettings).parse([])
    assert caught.value.code == 2
    assert "leftover of a launcher" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["contrast_main.py", "active_main.py", "train_classifier/main.py", "reproduce.py"])
def test_help_and_a_mistyped_flag_answer_before_torch_is_imported(script, root):
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    for word, status in (("--help", 0), ("--hlep", 2)):
        done = subprocess.run([sys.executable, script, word], cwd=root, capture_output=True, text=True, env=environment)
        assert done.returncode == status
        imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
        assert imported and not imported & {"torch", "numpy", "matplotlib", "sklearn"}
