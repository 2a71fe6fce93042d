"""Figures: written, valid, and robust to what a run can hand them."""

from __future__ import annotations

import warnings
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from common.plots import plot_accuracy, plot_histogram, plot_summary

NAN, INFINITE = float("nan"), float("inf")


def assert_png(path: Path) -> np.ndarray:
    """The decoded picture: a png of a sensible size on which something is drawn."""
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    pixels = matplotlib.image.imread(path)
    assert pixels.shape[0] > 200
    assert pixels.shape[1] > 300
    assert pixels.min() < pixels.max()
    return pixels


HISTOGRAMS = {
    "ordinary": {"target": np.linspace(-1, 1, 50), "other": np.linspace(0, 2, 7)},
    "one value": {"all": np.array([0.5])},
    "constant": {"a": np.full(5, -1.0, np.float32), "b": np.full(3, -1.0, np.float32)},
    "constant, where single precision is coarse": {"all": np.full(5, 1e8, np.float32)},
    "an empty group": {"target": np.array([1.0, 2.0]), "other": np.empty(0)},
    "nothing but empty groups": {"target": np.empty(0), "other": np.empty(0)},
    "no groups": {},
    "some not finite": {"all": np.array([-INFINITE, 0.0, NAN, 1.0, INFINITE])},
    "none finite": {"all": np.array([-INFINITE, NAN, INFINITE])},
    "as wide as single precision": {"all": np.array([-3e38, 0, 3e38], dtype=np.float32)},
}


@pytest.mark.parametrize("groups", HISTOGRAMS.values(), ids=HISTOGRAMS)
def test_histogram_is_a_png(tmp_path, groups):
    path = tmp_path / "made" / "histogram.png"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_histogram(path, groups, label="query score")
    assert_png(path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("value", [-1.0, 0.0, 100.0, 1e8])
def test_histogram_of_a_constant_shows_its_bar(tmp_path, value):
    """Coloured pixels: without the bar there is only the legend's line, and less of the colour."""
    coloured = {}
    for name, group in {"constant": np.full(9, value, np.float32), "nothing": np.full(9, NAN, np.float32)}.items():
        plot_histogram(tmp_path / "x.png", {"all": group}, label="score")
        pixels = assert_png(tmp_path / "x.png")[..., :3]
        coloured[name] = int((pixels.max(2) - pixels.min(2) > 0.3).sum())
    assert coloured["nothing"] == 0
    assert coloured["constant"] > 300


ACCURACIES = {
    "ordinary": {"ccal": [(800, 89.2, 0.4), (2221, 92.0, 0.2)], "random": [(800, 89.2, 0.4), (1100, 90.0, 0.3)]},
    "single runs": {"ccal": [(800, 89.2, None), (2221, 92.0, None)]},
    "one point": {"ccal": [(800, 89.2, 0.0)]},
    "constant": {"ccal": [(800, 50.0, 0.0), (800, 50.0, 0.0)]},
    "not finite": {"ccal": [(800, NAN, None), (900, INFINITE, NAN), (1000, 50.0, INFINITE)]},
    "a series without points": {"ccal": [], "random": [(800, 89.2, 0.4)]},
    "no series": {},
}


@pytest.mark.parametrize("series", ACCURACIES.values(), ids=ACCURACIES)
def test_accuracy_curve_is_a_png(tmp_path, series):
    path = tmp_path / "made" / "accuracy.png"
    plot_accuracy(path, series)
    assert_png(path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


PRECISIONS = {
    "ordinary": {"ccal": [(1, 94.7), (2, 93.0)], "random": [(1, 20.0)]},
    "a strategy without cycles": {"ccal": [], "random": [(1, 20.0), (2, 20.0)]},
    "not finite": {"ccal": [(1, NAN), (2, INFINITE)]},
    "no strategies": {},
}


@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
def test_summary_is_a_png_and_wider_with_accuracies(tmp_path, precision):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_summary(tmp_path / "narrow.png", precision=precision, accuracy=[])
        plot_summary(tmp_path / "wide.png", precision=precision, accuracy=[(800, 89.2, None), (2221, NAN, 0.2)])
    narrow, wide = assert_png(tmp_path / "narrow.png"), assert_png(tmp_path / "wide.png")
    assert wide.shape[1] > 1.5 * narrow.shape[1]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["narrow.png", "wide.png"]


def test_published_values_and_a_title_are_drawn(tmp_path):
    """Black points appear that are not there without; they may be all there is."""
    black = {}
    for name, published in {"with": [(1, 94.7), (2, 29.3)], "without": []}.items():
        plot_summary(tmp_path / "x.png", precision={"ccal": []}, accuracy=[], published=published, title="scale 0.1")
        pixels = assert_png(tmp_path / "x.png")
        black[name] = int((pixels[100:300, 100:500, :3].max(2) < 0.1).sum())
    assert black["with"] > black["without"] + 50


DRAW = {
    "accuracy": lambda path: plot_accuracy(path, {"ccal": [(800, 89.2, 0.4), (2221, 92.0, 0.2)]}),
    "histogram": lambda path: plot_histogram(path, {"all": np.linspace(0, 1, 9)}, label="score"),
    "summary": lambda path: plot_summary(path, precision={"ccal": [(1, 94.7)]}, accuracy=[(800, 89.2, 0.4)]),
}


@pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)
def test_a_figure_replaces_an_earlier_one(tmp_path, draw):
    path = tmp_path / "figure.png"
    path.write_text("earlier")
    draw(path)
    assert_png(path)


@pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)
def test_a_path_that_cannot_be_written_leaves_nothing(tmp_path, draw):
    folder = tmp_path / "figure.png"
    folder.mkdir()
    with pytest.raises(OSError, match="directory"):
        draw(folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["figure.png"]
    file = tmp_path / "file"
    file.write_text("kept")
    with pytest.raises(OSError, match=r"file|directory"):
        draw(file / "figure.png")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["figure.png", "file"]
    assert file.read_text() == "kept"
