"""Predictions: the file of a model, the table and the page that it gives, and what is refused."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common import checkpoint
from common.session import run_command
from datasets.results_file import Row
from train_classifier import predict
from train_classifier.engine import probabilities
from train_classifier.model_file import load_model, save_model
from train_classifier.network import NETWORKS, EncoderClassifier, Head, bare_encoder, build_network
from utils import InputError

ROW = Row("npz", 0.5, "ccal", "proper", 1, 4, 5e-4, 3, 900, 0, 90.0, 95.0, "a", "b", 1.0)
NAMES = ("=cat", "<dog>")


def small_network(outputs: int) -> EncoderClassifier:
    encoder = bare_encoder("resnet8")
    torch.nn.init.normal_(head := Head(torch.zeros(1, encoder.feature_dim), outputs).linear.weight)
    network = EncoderClassifier(encoder, Head(torch.zeros(1, encoder.feature_dim), outputs))
    network.head.linear.weight.data = head.data
    return network


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "out" / "cycle_3_seed_0.model"
    save_model(path, small_network(3), ROW, names=NAMES, other=True, size=(8, 8))
    return path


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


def test_a_model_is_what_was_trained(tmp_path: Path, pixels: np.ndarray) -> None:
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    scratch = [(build_network(2, seed=1, name=name), False) for name in NETWORKS]
    for network, other in [(small_network(3), True), *scratch]:
        save_model(tmp_path / "x.model", network, ROW, names=NAMES, other=other, size=(8, 8))
        found = load_model(tmp_path / "x.model")
        assert (probabilities(found.network, images) == probabilities(network, images)).all()
        assert found.outputs == (*NAMES, *(["other"] if other else [])) and found.image_size == (8, 8)
    content = torch.load(tmp_path / "x.model", weights_only=True)
    assert content["row"] == dataclasses.asdict(ROW) and content["mean"] == [0.485, 0.456, 0.406]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format_version"),
        ({"network": "resnet50"}, "network has a wrong"),
        ({"other": False}, "weights do not fit its resnet8"),
        ({"state_dict": {}}, "weights do not fit"),
        ({"state_dict": {"a": torch.tensor(float("nan"))}}, "state_dict has a wrong"),
    ],
)
def test_a_damaged_model_is_refused(model: Path, change: dict, message: str) -> None:
    checkpoint.save(model, torch.load(model, weights_only=True) | change)
    with pytest.raises(InputError, match=message):
        load_model(model)


def test_table_and_page_hold_every_image_sorted_by_confidence(
    tmp_path: Path, model: Path, pixels: np.ndarray, capsys
) -> None:
    folder = tmp_path / "photos" / "deep"
    folder.mkdir(parents=True)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{number}&.png")
    (folder / "broken.png").write_bytes(b"no image")
    np.savez(tmp_path / "more.npz", test_images=pixels, test_labels=np.zeros(6))
    words = [str(model), str(tmp_path / "photos"), str(tmp_path / "more.npz"), str(folder / "0&.png")]
    assert run_command(predict.main, [*words, "--device", "cpu"]) == 0
    written = model.parent / "predictions"
    assert "13 images by" in (printed := capsys.readouterr().out) and "1 left out (1 no image)" in printed
    with open(written / "predictions.csv", newline="") as file:
        heading, *rows = csv.reader(file)
    assert heading == ["path", "class", "'=cat", "<dog>", "other", "left out"]
    expected = probabilities(load_model(model).network, torch.from_numpy(pixels).permute(0, 3, 1, 2))
    names = [
        *(str(folder / f"{n}&.png") for n in range(6)),
        *(f"{tmp_path / 'more.npz'}:test_images[{n}]" for n in range(6)),
    ]
    for row, name, values in zip(rows, [*names, names[0]], [*expected, *expected, expected[0]], strict=False):
        assert row[0] == name and row[1] == heading[2 + values.argmax()] and row[5] == ""
        assert [float(cell) for cell in row[2:5]] == pytest.approx(values.tolist(), abs=1e-6)
    assert rows[13:] == [[str(folder / "broken.png"), "", "", "", "", "no image: not jpeg, png, webp or bmp"]]
    page = (written / "predictions.html").read_text()
    assert page.count("<img ") == 13 and "&lt;dog&gt;: " in page and "<dog>" not in page and "<script" not in page
    for part in page.split("<section>")[1:]:
        shown = [float(item.rsplit(">", 1)[1].split(" ")[0]) for item in part.split(" %</li>")[:-1]]
        assert shown == sorted(shown, reverse=True)


def test_of_many_images_the_most_and_least_confident_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "SHOWN", 4)
    images = [(f"{n}.png", np.zeros((8, 8, 3), np.uint8)) for n in range(9)]
    values = np.array([[0.5 + n / 20, 0.5 - n / 20] for n in range(9)])
    page = predict.page_html("lead", ("a", "b"), images, values)
    assert [part.split('"')[0] for part in page.split('<li title="')[1:]] == ["8.png", "7.png", "1.png", "0.png"]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "no usable image .nothing is there"),
        (lambda path: path.write_text("no image"), "no usable image .1 no image"),
        (
            lambda path: np.savez(open(path, "wb"), images=np.zeros((2, 9, 9), np.uint8)),
            "have 9x9 pixels; the model takes 8x8",
        ),
        (lambda path: np.savez(open(path, "wb"), x=np.zeros(3)), "lacks images"),
    ],
)
def test_images_that_cannot_be_used_are_refused(tmp_path: Path, model: Path, capsys, prepare, message: str) -> None:
    path = tmp_path / ("x.npz" if "pixels" in message or "lacks" in message else "x.png")
    prepare(path)
    assert run_command(predict.main, [str(model), str(path), "--device", "cpu"]) == 2
    line = capsys.readouterr().err
    assert message.replace(".", "(", 1) in line if "usable" in message else message in line
    assert not (model.parent / "predictions").exists()
