"""active_main.py --annotate: what the command adds to the loop in evals/annotation, up to the classifier."""

from __future__ import annotations

import csv
import os
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import active_main
import contrast_main
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


def table(index: Path, cycle: int) -> list[dict[str, str]]:
    with open(index / f"cycle_{cycle}" / "to_label.csv", encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def rows(root: Path, cycle: int) -> list[dict[str, str]]:
    return table(root / "query", cycle)


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


def test_a_strategy_of_ones_own_is_the_same_in_each_round(root, capsys):
    file = root / "own.py"
    file.write_text(
        "from evals.strategies import STRATEGIES, Strategy\n"
        "mine = Strategy(STRATEGIES['random'].utilities, needs=(), by_class=False)\n"
    )
    own = ["--strategy", f"{file}:mine"]
    assert annotate(root, *RANDOM, *own) == 0
    following = capsys.readouterr().out.splitlines()[-1]
    assert shlex.join([*own, "--labels"]) in following
    assert annotate(root, f"--strategy={file}:mine", "--labels", fill_in(root, 1)) == 0
    assert read_json(root / "query" / "cycle_1.json")["strategy"] == "mine"
    file.write_text(f"{file.read_text()}open({str(root / 'ran')!r}, 'w')\n")
    capsys.readouterr()
    assert annotate(root, "--labels", fill_in(root, 2)) == 2  # a folder that somebody else made may name any file
    assert f"query remembers --strategy {file}:mine, a file that would be run: give it" in capsys.readouterr().err
    assert not (root / "ran").exists()
    assert annotate(root, *own, "--labels", fill_in(root, 2)) == 2
    assert "(another version of the strategy's file): give the file as it was, or add" in capsys.readouterr().err
    assert annotate(root, *own, "--labels", fill_in(root, 2), "--new_settings") == 0


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


# Settings are given once


def test_an_index_folder_remembers_its_settings(root, capsys):
    assert annotate(root, *RANDOM) == 0
    index = ["--annotate", "--index_dir", str(root / "query")]
    assert run_command(active_main.main, [*index, "--labels", fill_in(root, 1)]) == 0
    assert [len(rows(root, cycle)) for cycle in (1, 2)] == [8, 8]
    first, second = (read_json(root / "query" / f"cycle_{cycle}" / "query.json")["settings"] for cycle in (1, 2))
    assert first == second and first["strategy"] == "random" and first["seed"] == 1
    # What changes no result, and the number of images, may differ, and is remembered.
    assert (
        run_command(active_main.main, [*index, "--labels", fill_in(root, 2), "--target", "1", "--device", "cpu"]) == 0
    )
    assert len(rows(root, 3)) == 2
    assert run_command(active_main.main, [*index, "--labels", fill_in(root, 3)]) == 0
    assert len(rows(root, 4)) == 2


@pytest.mark.parametrize("more", [["--seed", "2"], ["--k", "50"]])
def test_other_settings_than_the_cycles_before_are_refused(root, capsys, more):
    annotate(root, *RANDOM)
    index = ["--annotate", "--index_dir", str(root / "query")]
    before = {path: path.read_bytes() for path in (root / "query").rglob("*") if path.is_file()}
    words = [*index, "--labels", fill_in(root, 1), *more]
    assert run_command(active_main.main, words) == 2
    assert f"made with other settings ({more[0]} was" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (root / "query").rglob("*") if path.is_file()} == before
    assert run_command(active_main.main, [*words, "--new_settings"]) == 0
    assert run_command(active_main.main, [*index, "--labels", fill_in(root, 2)]) == 0  # they are those from now on
    states = [read_json(root / "query" / f"cycle_{cycle}.json")["settings"] for cycle in (1, 2)]
    name = more[0].removeprefix("--")
    assert states[0][name] != states[1][name] == float(more[1])


def test_features_whose_images_have_moved_are_refused(root, capsys):
    """As many images as before, in another order: the rows of the file would be those of others."""
    images = root / "mine"
    count = sum(len([*(images / part).rglob("*.png")]) for part in ("labeled", "unlabeled"))
    np.save(root / "features.npy", np.random.default_rng(0).normal(size=(count, 4)))
    assert annotate(root, "--strategy", "posterior", "--features", str(root / "features.npy"), "--target", "2") == 0
    asked = {Path(row["path"]).name for row in rows(root, 1)}
    moved = next(path for path in sorted((images / "unlabeled").glob("*.png")) if path.name not in asked)
    moved.rename(next(path for path in sorted((images / "labeled").iterdir())) / moved.name)
    words = ["--annotate", "--index_dir", str(root / "query"), "--labels", fill_in(root, 1)]
    assert run_command(active_main.main, words) == 2
    assert "other images than the" in capsys.readouterr().err


def test_an_index_folder_is_of_one_strategy(root, capsys):
    annotate(root, *RANDOM)
    np.save(root / "features.npy", np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32))
    posterior = ["--strategy", "posterior", "--features", str(root / "features.npy"), "--labels", fill_in(root, 1)]
    for more in ([], ["--new_settings"]):
        assert annotate(root, *posterior, *more) == 2
        error = capsys.readouterr().err
        assert "--strategy was random, is posterior" in error and "give another --index_dir" in error


def test_a_query_without_answers_may_be_made_anew_with_other_settings(root):
    annotate(root, *RANDOM)
    assert annotate(root, *RANDOM, "--overwrite", "--seed", "2") == 0
    assert read_json(root / "query/cycle_1/query.json")["settings"]["seed"] == 2


def test_another_encoder_is_seen(root, capsys):
    features = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    for name, values in (("before", features), ("after", -features)):
        np.save(root / f"{name}.npy", values)
    posterior = ["--strategy", "posterior", "--target", "4", "--features"]
    assert annotate(root, *posterior, str(root / "before.npy")) == 0
    assert annotate(root, *posterior, str(root / "after.npy"), "--labels", fill_in(root, 1)) == 2
    assert "other features from files" in capsys.readouterr().err
    shutil.move(root / "before.npy", root / "moved.npy")  # the same content
    assert annotate(root, *posterior, str(root / "moved.npy"), "--labels", fill_in(root, 1)) == 0


def test_damaged_settings_are_named(root, capsys):
    annotate(root, *RANDOM)
    (root / "query/settings.json").write_text('{"format_version": 1, "flags": "--seed 1"}')
    assert annotate(root) == 2
    assert "settings.json: flags has a wrong type" in capsys.readouterr().err


# What the commands print as next runs as printed


def follow(line: str, *more: str) -> None:
    commands = {"contrast_main.py": contrast_main.main, "active_main.py": active_main.main}
    commands["main.py"] = train_classifier.main.main
    _, script, *words = shlex.split(line.removeprefix("next: "))
    assert run_command(commands[Path(script).name], [*words, *more]) == 0


def test_the_next_lines_lead_from_a_folder_to_a_classifier(root, capsys, monkeypatch):
    """What is added to a line shortens a training, no more."""
    monkeypatch.chdir(root)
    words = (
        "--dataset folder --data_path mine --mode semantic --model resnet8 --precision fp32 --epochs 1 --batch_size 8"
    )
    follow(f"next: python contrast_main.py {words} --logdir runs/semantic")
    lines = []
    while "train_classifier" not in (line := capsys.readouterr().out.splitlines()[-1]):
        lines.append(line)
        if "--labels" in line:
            cycle = len(lines) - 1
            kinds = {row["path"]: KINDS[int(Path(row["path"]).stem) % 3] for row in table(root / "runs/query", cycle)}
            answers = [f"{path},{'other' if kind == 'bird' else kind}\n" for path, kind in kinds.items()]
            Path(f"labels_cycle_{cycle}.csv").write_text("path,label\n" + "".join(answers))
        follow(line, *(["--target", "6"] if len(lines) == 1 else []))
    assert ["--strategy posterior" in line for line in lines] == [True, False, False]
    assert sorted(path.name for path in Path("runs/query").glob("cycle_?.json")) == [
        "cycle_0.json", "cycle_1.json", "cycle_2.json",
    ]  # fmt: skip
    follow(line, "--epochs", "1", "--runs", "1")
    assert len(Path("runs/query/classifier/results.csv").read_text().splitlines()) == 4


def test_people_are_asked_for_fifty_images_or_what_there_is(root, capsys):
    assert annotate(root, "--strategy", "random") == 0
    assert "--queries_per_class 25 suits people" in capsys.readouterr().out
    assert len(rows(root, 1)) == 24
    for number in range(400, 440):
        draw(root / "mine/unlabeled" / f"{number}.png", number)
    assert annotate(root, "--strategy", "random", "--overwrite") == 0
    assert len(rows(root, 1)) == 50


def test_a_class_alone_without_others_gets_no_line_that_is_refused(root, capsys):
    shutil.rmtree(root / "mine/labeled/dog")
    shutil.rmtree(root / "mine/test")
    annotate(root, *RANDOM, "--target", "24")
    (root / "all_cats.csv").write_text("path,label\n" + "".join(f"{row['path']},cat\n" for row in rows(root, 1)))
    assert annotate(root, *RANDOM, "--labels", str(root / "all_cats.csv")) == 0
    printed = capsys.readouterr().out
    assert "the pool is empty" in printed and "train_classifier" not in printed


# The answers for other programs


def test_the_answers_are_exported(root, capsys):
    features = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    np.save(root / "features.npy", features)
    posterior = ["--strategy", "posterior", "--target", "4", "--features", str(root / "features.npy")]
    annotate(root, *posterior)
    annotate(root, *posterior, "--labels", fill_in(root, 1))
    words = ["--index_dir", str(root / "query"), "--export", str(root / "out")]
    os.unlink(root / "features.npy")  # neither features nor encoders are needed
    assert run_command(active_main.main, words) == 0
    answers = {row["path"]: row["label"] for row in csv.DictReader(open(root / "filled_1.csv"))}
    with open(root / "out/labels.csv", encoding="utf-8-sig", newline="") as file:
        found = {row["path"]: (row["class"], row["cycle"]) for row in csv.DictReader(file)}
    expected = {path: (name, "1") for path, name in answers.items()}
    for path in sorted((root / "mine/labeled").rglob("*.png")):
        expected[path.relative_to(root / "mine").as_posix()] = (path.parent.name, "0")
    assert found == expected and len(found) == 16
    for path, (name, _) in found.items():
        link = root / "out/images" / name / path
        assert link.is_symlink() and link.read_bytes() == (root / "mine" / path).read_bytes()
    assert sum(path.is_file() for path in (root / "out/images").rglob("*")) == 16

    tasks = {task["data"]["path"]: task for task in read_json(root / "out/label_studio.json")}
    waiting = {row["path"]: row for row in rows(root, 2)}
    assert set(tasks) == set(found) | set(waiting)
    for path, task in tasks.items():
        assert task["data"]["image"] == f"/data/local-files/?d=mine/{path}"
        chosen = [entry["result"][0]["value"]["choices"] for entry in task.get("annotations", [])]
        assert chosen == ([[found[path][0]]] if path in found else [])
    for path, row in waiting.items():
        [prediction] = tasks[path]["predictions"]
        assert prediction["score"] == pytest.approx(float(row["joint_score"]), abs=1e-6)
        assert prediction["result"][0]["value"]["choices"] == [row["suggested_class"]]
        assert prediction["model_version"] == "cycle 2"

    kept = (root / "out/labels.csv").read_bytes()
    assert run_command(active_main.main, words) == 2
    assert "not empty: name a new folder" in capsys.readouterr().err
    assert (root / "out/labels.csv").read_bytes() == kept
    assert run_command(active_main.main, [*words[:-1], str(root / "mine/unlabeled/out")]) == 2
    assert "lies among the images" in capsys.readouterr().err


def test_where_links_fail_the_images_are_copied(root, monkeypatch):
    annotate(root, *RANDOM)

    def refuse(*args):
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    assert run_command(active_main.main, ["--index_dir", str(root / "query"), "--export", str(root / "out")]) == 0
    copy = root / "out/images/cat/labeled/cat/0.png"
    assert not copy.is_symlink() and copy.read_bytes() == (root / "mine/labeled/cat/0.png").read_bytes()


def test_without_answers_there_is_nothing_to_export(root, capsys):
    assert run_command(active_main.main, words(root, "--export", str(root / "out"))) == 2
    assert "holds no cycle_0.json" in capsys.readouterr().err and not (root / "out").exists()
