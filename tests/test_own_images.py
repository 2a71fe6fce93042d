"""The commands on a person's own folder: what runs without ground truth, what is refused, and benchmarks by name."""

import json
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image

import active_main
import contrast_main
import reproduce
import train_classifier.main
from common.session import run_command

NETWORK = ["--model", "resnet8", "--device", "cpu", "--precision", "fp32"]


def put(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path):
    place = tmp_path / "mine"
    for number in range(3):
        put(place / f"labeled/cat/{number}.png", number)
        put(place / f"labeled/dog/{number}.png", 10 + number)
    for number in range(26):
        put(place / f"unlabeled/{number}.png", 100 + number)
    return place


def train(root, *more):
    words = ["--dataset", "folder", "--data_path", str(root), *NETWORK, "--mode", "semantic", "--batch_size", "8"]
    return run_command(contrast_main.main, [*words, *map(str, more)])


def error(capsys):
    [line] = capsys.readouterr().err.splitlines()
    return line


def test_an_encoder_trains_without_ground_truth(root, tmp_path, capsys):
    """The probe learns from the labeled images alone; where there is no test set it is not evaluated."""
    assert train(root, "--epochs", 2, "--error_step", 1, "--logdir", tmp_path / "run") == 0
    printed = capsys.readouterr().out
    assert "6 labeled images of 2 class(es) (cat 3, dog 3), 26 unlabeled, 0 test" in printed
    assert "semantic encoder resnet8 on folder: 32 images" in printed
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    for line in lines:
        assert all(np.isfinite(value) for value in line.values())
        assert "test_probe_accuracy" not in line
    record = json.loads((tmp_path / "run/args.json").read_text())
    assert record["arguments"]["mismatch"] is None
    assert torch.load(tmp_path / "run/last.model", weights_only=True)["linear.weight"].shape[0] == 2


def test_encoders_are_trained_before_anything_is_labeled_and_used_afterwards(root, tmp_path, capsys):
    os.rename(root / "labeled", tmp_path / "labeled")
    for mode, shift in (("semantic", "none"), ("distinctive", "rotation")):
        where = ["--mode", mode, "--shift_trans_type", shift, "--logdir", tmp_path / mode]
        assert train(root, "--epochs", 1, *where) == 0
        printed = capsys.readouterr().out
        assert "no labeled/: the linear probe is skipped" in printed and f"resnet8 on folder: {26} images" in printed
    assert "once there are images in labeled/<class>/: python active_main.py" in printed and "next:" not in printed
    query = ["--dataset", "folder", "--data_path", str(root), *NETWORK, "--shift_trans_type", "rotation", "--annotate"]
    query += ["--load_path", str(tmp_path), "--target", "2", "--index_dir", str(tmp_path / "index")]
    assert run_command(active_main.main, query) == 2
    assert "has no labeled/: put a few images of each class" in error(capsys)
    os.rename(tmp_path / "labeled", root / "labeled")
    assert run_command(active_main.main, query) == 0
    assert "its probe is of 1 class(es) and here are 2" in capsys.readouterr().out
    assert len((tmp_path / "index/cycle_1/to_label.csv").read_text().splitlines()) == 5


def test_no_oracle_is_made_up(root, tmp_path, capsys):
    folder = ["--dataset", "folder", "--data_path", str(root)]
    words = [*folder, "--strategy", "random", "--target", "2", "--index_dir", str(tmp_path / "index")]
    assert run_command(active_main.main, words) == 2
    assert "give --annotate" in error(capsys)
    assert not (tmp_path / "index").exists()
    assert run_command(reproduce.main, [*folder, "--out", str(tmp_path / "all"), "--device", "cpu"]) == 2
    assert "there is no query to simulate" in error(capsys)


def test_a_benchmark_by_class_name(tmp_path, capsys):
    for number, name in enumerate(("cat", "dog", "fox")):
        for image in range(12):
            put(tmp_path / f"data/train/{name}/{image}.png", 100 * number + image)
        put(tmp_path / f"data/test/{name}/0.png", 100 * number + 50)
    data = ["--dataset", "folder", "--data_path", str(tmp_path / "data"), "--target_classes", "fox", "cat"]
    data += ["--mismatch", "0.25", "--initial_budget", "8", "--device", "cpu"]
    query = ["--strategy", "random", "--target", "3", "--split", "1", "--index_dir", str(tmp_path / "index")]
    assert run_command(active_main.main, [*data, *query]) == 0
    content = json.loads((tmp_path / "index/cycle_1.json").read_text())
    assert (content["target_classes"], content["mismatch"]) == ([2, 0], 0.25)
    classify = ["--epochs", "1", "--runs", "1", "--split", "1", "--out_path", str(tmp_path / "out")]
    assert run_command(train_classifier.main.main, [*data, *classify, "--index_dir", str(tmp_path / "index")]) == 0
    assert len((tmp_path / "out/results.csv").read_text().splitlines()) == 3


def test_encoders_of_a_mixed_pool_are_queried_with_the_same_flags(tmp_path, capsys):
    """The digests of both commands agree, and other sources are noticed."""
    for number in range(30):
        put(tmp_path / f"sky/{number}.png", 500 + number)
        put(tmp_path / f"sea/{number}.png", 900 + number)
    data = ["--dataset", "digits", "--target_classes", "0", "--initial_budget", "120", "--mismatch", "0.4", *NETWORK]
    mixed = [*data, "--others", str(tmp_path / "sky")]
    words = ["--mode", "semantic", "--epochs", "1", "--batch_size", "16", "--logdir", str(tmp_path / "semantic")]
    assert run_command(contrast_main.main, [*mixed, *words]) == 0
    assert re.search(r"pool of \d+ images: \d+ from digits, \d+ from sky", capsys.readouterr().out)
    query = ["--strategy", "semantic", "--load_path", str(tmp_path), "--target", "2", "--split", "1"]
    query += ["--index_dir", str(tmp_path / "index")]
    assert run_command(active_main.main, [*mixed, *query]) == 0
    content = json.loads((tmp_path / "index/cycle_1.json").read_text())
    assert set(content["metrics"]["queried_by_source"]) == {"digits", "sky"}
    assert content["dataset"] == "digits+sky"
    capsys.readouterr()
    other = [*data, "--others", str(tmp_path / "sea"), *query, "--overwrite"]
    assert run_command(active_main.main, other) == 2
    assert "another split" in error(capsys)
