"""Figures: written, valid, in one style, and robust to what a run can hand them."""

from __future__ import annotations

import io
import warnings
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.plots import (
    GREY,
    INK,
    PALETTE,
    TAN,
    Curve,
    draw_curves,
    draw_panel,
    histogram_draws,
    inline_svg,
    legend_columns,
    plot_accuracy,
    plot_histogram,
    plot_summary,
    series_label,
)  # fmt: skip

NAN, INFINITE = float("nan"), float("inf")


def pixels_of(path: Path) -> np.ndarray:
    """The decoded picture, of a sensible size, with something drawn on it; the path holds nothing else."""
    pixels = np.asarray(Image.open(path).convert("RGB")) / 255
    assert pixels.shape[0] > 200 and pixels.shape[1] > 300 and pixels.min() < pixels.max()
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    return pixels


HISTOGRAMS = {
    "ordinary": {"target": np.linspace(-1, 1, 50), "other": np.linspace(0, 2, 7)},
    "empty": {"target": np.array([1.0, 2.0]), "other": np.empty(0)},
    "nothing": {},
    "not finite": {"all": np.array([-INFINITE, 0.0, NAN, 1.0, INFINITE])},
    "as wide as single precision": {"all": np.array([-3e38, 0, 3e38], dtype=np.float32)},
}
ACCURACIES = {
    "ordinary": {"ccal": [(800, 89.2, 0.4), (2221, 92.0, 0.2)], "random": [(800, 89.2, None), (1100, 90.0, None)]},
    "not finite": {"ccal": [(800, NAN, None), (900, INFINITE, NAN), (1000, 50.0, INFINITE)], "random": []},
}
PRECISIONS = {"not finite": {"ccal": [(1, NAN), (2, INFINITE)]}, "nothing": {}}
DRAW = {f"histogram, {n}": lambda p, d=d: plot_histogram(p, d, label="score") for n, d in HISTOGRAMS.items()}
DRAW |= {f"accuracy, {n}": lambda p, d=d: plot_accuracy(p, d) for n, d in ACCURACIES.items()}
DRAW |= {f"summary, {n}": lambda p, d=d: plot_summary(p, precision=d, accuracy={}) for n, d in PRECISIONS.items()}


@pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)
def test_whatever_is_drawn_is_one_png_without_a_warning(tmp_path, draw):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(tmp_path / "made" / "figure.png")
    pixels_of(tmp_path / "made" / "figure.png")


def test_groups_of_a_histogram_share_their_bins_and_one_axis_from_0() -> None:
    """A hundred others for one target: its bars are a hundredth of theirs, and are seen where the rest is cut off."""
    from matplotlib.figure import Figure

    groups = {"other": np.repeat([0.0, 1.0], 400), "target": np.repeat([0.0, 1.0], 4), "queried": np.array([1.0, 1.0])}
    whole, enlarged = (Figure().add_subplot() for _ in range(2))
    for draw, axes in zip(histogram_draws(groups, xlabel="x", borders={"cat": 0.5}), (whole, enlarged), strict=True):
        draw(axes)
        handles, labels = axes.get_legend_handles_labels()
        counts = dict(zip(labels, (handle.get_data().values for handle in handles[:3])))
        assert {name: (values[0], values[-1]) for name, values in counts.items()} == {
            "other (800)": (400, 400), "target (8)": (4, 4), "queried (2)": (0, 2),
        }  # fmt: skip
        assert len({tuple(handle.get_data().edges) for handle in handles[:3]}) == 1
        assert axes.get_yscale() == "linear" and axes.get_ylim()[0] == 0 and labels[3] == "border: cat"
    assert whole.get_ylim()[1] > 400 and enlarged.get_ylim()[1] == pytest.approx(2.2)
    assert len(histogram_draws({"target": np.zeros(3), "queried": np.zeros(2)}, xlabel="x")) == 1  # all can be seen


def test_the_accuracies_of_queries_stand_in_one_panel_in_the_colours_of_their_precision(tmp_path, monkeypatch) -> None:
    drawn = []
    monkeypatch.setattr("common.plots.draw_curves", lambda axes, curves, **labels: drawn.append((curves, labels)))
    points = [(0, 80.0, None), (60, 90.0, 1.0)]
    plot_summary(tmp_path / "x.png", precision={"a": [(1, 9.0)], "b": []}, accuracy={"a": [], "b": points})
    curves, labels = drawn[1]
    assert labels["xlabel"] == "images annotated, others included"
    assert [(curve.name, curve.points, curve.color) for curve in curves] == [
        ("a", [], PALETTE[0]),
        ("b", points, PALETTE[1]),
    ]


def test_a_figure_replaces_an_earlier_one_or_leaves_everything_as_it_was(tmp_path):
    path = tmp_path / "figure.png"
    path.write_text("earlier")
    plot_accuracy(path, ACCURACIES["ordinary"])
    pixels_of(path)
    before = path.read_bytes()
    with pytest.raises(OSError, match=r"figure\.png|directory"):
        plot_accuracy(path / "figure.png", ACCURACIES["ordinary"])
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["figure.png"]


def test_an_svg_for_a_page_has_its_own_ids_and_the_pages_colour():
    text = (
        '<?xml version="1.0"?>\n<!DOCTYPE svg SYSTEM "http://x">\n<svg xmlns:xlink="http://y" width="9pt" height="8pt" '
        'viewBox="0 0 9 8" xmlns="http://z" version="1.1"><metadata>http://m</metadata><defs><style type="text/css">'
        f'*{{a: b}}</style></defs><!-- a & b --><g id="a"><use xlink:href="#a" style="stroke: {INK}"/>'
        '<image xlink:href="data:image/png;base64,AA"/><path clip-path="url(#c)"/></g></svg>'
    )
    assert inline_svg(text, prefix="p") == (
        '<svg viewBox="0 0 9 8"><defs></defs><g id="p-a"><use href="#p-a" style="stroke: currentColor"/>'
        '<image href="data:image/png;base64,AA"/><path clip-path="url(#p-c)"/></g></svg>'
    )


def test_a_panel_draws_each_curve_with_its_name_whatever_it_is():
    curves = [Curve(name, [(1, 2.0, None), (2, 3.0, 1.0)]) for name in ("_hidden", "$x_$", "<b> & --> \N{CAT}")]
    panel, again = (draw_panel("p", lambda axes: draw_curves(axes, curves, xlabel="x", ylabel="y")) for _ in range(2))
    svg = ET.fromstring(panel.svg)
    assert len([element for element in svg.iter() if element.get("id", "").startswith("p-legend")]) == 1
    assert all(color in panel.svg for color in PALETTE[:3])
    assert "http" not in panel.svg and INK not in panel.svg
    assert Image.open(io.BytesIO(panel.png)).convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    assert again == panel


def test_names_fit_into_legends_and_colours_show_on_light_and_dark():
    assert series_label("_a") == " _a" and len(series_label("x" * 99)) == 44
    assert [legend_columns(["ab", "x" * n]) for n in (13, 14, 24, 25)] == [3, 2, 2, 1]
    for color in (*PALETTE, GREY, TAN):  # against white, and the page's dark ground (#15181c)
        parts = [(int(color[place : place + 2], 16) / 255) ** 2.2 for place in (1, 3, 5)]
        luminance = np.dot([0.2126, 0.7152, 0.0722], parts)
        assert 1.05 / (luminance + 0.05) > 3 and (luminance + 0.05) / (0.009 + 0.05) > 3, color
