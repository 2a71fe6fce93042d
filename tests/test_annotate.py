"""active_main.py --annotate: what the command adds to the loop in evals/annotation, up to the classifier."""

from __future__ import annotations

import csv
import shlex
import shutil
import sys
from pathlib import Path

import pytest

import active_main
import train_classifier.main
from common import checkpoint
from common.files import read_json
from common.session import run_command
from common.settings import DataSettings
from datasets import load_data_and_split
from models import build_encoder
from tests.evals.annotation.test_loop import KINDS, draw, labels_of
from train_classifier.training_sets import read_training_set

RANDOM = ["--strategy", "random", "--target", "4", "--seed", "1"]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with mine/, of 4 labeled cats and dogs each, 24 images in the pool and 4 for the test."""
    monkeypatch.setattr(sys, "argv", ["active_main.py"])
    for number in (0, 1, 3, 4, 6, 7, 9, 10):
        draw(tmp_path / "mine" / "labeled" / KINDS[number % 3] / f"{number}.png", number)
    for number in range(100, 124):
        draw(tmp_path / "mine" / "unlabeled" / f"{number}.png", number)
    for number in (300, 301, 303, 304):
        draw(tmp_path / "mine" / "test" / KINDS[number % 3] / f"{number}.png", number)
    return tmp_path


def words(root: Path, *more: str) -> list[str]:
    places = ["--dataset", "folder", "--data_path", str(root / "mine"), "--index_dir", str(root / "query")]
    return [*places, "--device", "cpu", *more]


def annotate(root: Path, *more: str) -> int:
    return run_command(active_main.main, words(root, "--annotate", *more))


def rows(root: Path, cycle: int) -> list[dict[str, str]]:
    with open(root / "query" / f"cycle_{cycle}" / "to_label.csv", encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def fill_in(root: Path, cycle: int) -> str:
    """A csv with the true labels of a query."""
    path = root / f"filled_{cycle}.csv"
    kinds = {row["path"]: KINDS[int(Path(row["path"]).stem) % 3] for row in rows(root, cycle)}
    lines = [f"{name},{'other' if kind == 'bird' else kind}\n" for name, kind in kinds.items()]
    path.write_text("path,label\n" + "".join(lines))
    return str(path)


def test_the_command_names_its_files_and_the_next_command(root, capsys):
    assert annotate(root, *RANDOM) == 0
    printed = capsys.readouterr().out
    assert f"wrote {root / 'query/cycle_1/label.html'} and {root / 'query/cycle_1/to_label.csv'}\n" in printed
    following = shlex.split(printed.splitlines()[-1].removeprefix("next: python active_main.py "))
    assert following[-2:] == ["--labels", "labels_cycle_1.csv"] and "--annotate" in following
    assert annotate(root, *RANDOM) == 0  # the query waits: the same words again
    assert capsys.readouterr().out.splitlines()[-1] == printed.splitlines()[-1]
    # Those words continue the loop.
    shutil.copy(fill_in(root, 1), root / "labels_cycle_1.csv")
    assert run_command(active_main.main, [*following[:-1], str(root / "labels_cycle_1.csv")]) == 0
    assert "--labels labels_cycle_2.csv" in capsys.readouterr().out.splitlines()[-1]


def test_with_encoders(root, capsys):
    """Classes are suggested; features that were kept fit the next cycle, set-aside images included."""
    _, split = load_data_and_split(DataSettings(dataset="folder", data_path=str(root / "mine")))
    for name, shift, count in (("semantic", "none", 1), ("distinctive", "rotation", 4)):
        encoder = build_encoder("resnet8", num_classes=2, shifts=count, simclr_dim=16)
        checkpoint.save(root / "model" / name / "last.model", encoder.state_dict())
        arguments = {"mode": name, "dataset": "folder", "model": "resnet8", "shift_trans_type": shift}
        checkpoint.write_args(root / "model" / name, arguments, split_digest=split.digest, processes=1)
    flags = f"--load_path {root / 'model'} --model resnet8 --simclr_dim 16 --precision fp32 --target 4"
    flags = [*flags.split(), "--shift_trans_type", "rotation", "--feature_cache", str(root / "features")]
    assert annotate(root, *flags) == 0
    assert [row["suggested_class"] for row in rows(root, 1)] == ["cat"] * 4 + ["dog"] * 4
    assert annotate(root, *flags, "--labels", fill_in(root, 1)) == 0
    assert "semantic features of 32 images: kept from" in capsys.readouterr().out
    draw(root / "mine" / "unlabeled" / "200.png", 200)
    assert annotate(root, *flags, "--labels", fill_in(root, 2)) == 0
    assert "semantic/last.model was trained before the folder changed" in capsys.readouterr().out


def test_the_classifier_trains_on_what_people_said(root, capsys):
    annotate(root, *RANDOM)
    annotate(root, *RANDOM, "--labels", fill_in(root, 1))
    state = read_json(root / "query" / "cycle_1.json")
    data, split = load_data_and_split(DataSettings(dataset="folder", data_path=str(root / "mine")))
    training_set = read_training_set(root / "query", 1, data=data, split=split)
    assert [data.class_names[number] for number in training_set.classes] == list(labels_of(state).values())
    by_path = dict(zip(data.paths, data.train_images))
    assert all(
        (image == by_path[path]).all() for image, path in zip(training_set.images, labels_of(state), strict=True)
    )
    # A further image in the pool shifts the numbers: the finished rows still stand for the same images.
    classify = words(root, "--out_path", str(root / "results"), "--runs", "2", "--epochs", "1", "--split", "1")
    for kept in (0, 4):
        capsys.readouterr()
        assert run_command(train_classifier.main.main, classify) == 0
        assert capsys.readouterr().out.count("kept from results.csv") == kept
        draw(root / "mine" / "unlabeled" / "000.png", 800)
