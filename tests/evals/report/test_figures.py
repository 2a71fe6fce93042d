"""What the report's figures are made of: groups of points, borders, maps; cells of tables and rows of images."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.plots import BLUE, GREY, ORANGE, PALETTE
from evals.kept import KeptCycle
from evals.report.figures import borders, class_points, group_points, scatter_panel, tsne_map
from evals.report.page import Table, escape, mosaic, shown, table_html
from evals.report.runs import find_run, read_pool
from evals.report.sections import evenly
from tests.evals.report.made_up import build_run


def test_borders_are_the_smallest_queried_values() -> None:
    scores, classes, queried = np.array([5.0, 4.0, 3.0, 2.0, 9.0]), np.array([0, 0, 1, 1, 1]), np.array([2, 0, 1])
    cycle = KeptCycle(np.arange(5), 5, scores, classes, None, None, None, queried, *[None] * 4)
    assert borders(cycle) == {0: 4.0, 1: 3.0}


def test_classes_are_coloured_targets_first() -> None:
    groups = class_points(np.zeros((5, 2)), np.array(["a", "b", "c", "c", "not annotated"]), ["c"])
    by_name = {group.name: (len(group.positions), group.color) for group in groups}
    assert by_name["c, target"] == (2, PALETTE[0])
    assert by_name["a"] == (1, PALETTE[1]) and by_name["b"] == (1, PALETTE[2])
    assert by_name["not annotated"] == (1, GREY)
    many = class_points(np.zeros((30, 2)), np.array([f"{n:02}" for n in range(30)]), ["29"])
    counts = {group.name: len(group.positions) for group in many}
    assert sum(counts.values()) == 30 and counts["further classes"] == 20 and counts["29, target"] == 1
    shapes = [(group.color, group.marker) for group in many]
    assert len({marker for _, marker in shapes[:10]}) == 10  # told apart without colours, too
    assert len({*shapes}) == len({color for color, _ in shapes}) == 12  # neither the rest nor the unknown is alike


def test_what_is_queried_keeps_the_colour_and_shape_of_what_it_is() -> None:
    mask, positions = np.array([True, False]), np.zeros((2, 2))
    for name, color in {"target": BLUE, "other": ORANGE, "not annotated": GREY}.items():
        queried, left = (group_points(name, mask, positions, fate=fate) for fate in ("queried", ""))
        assert (queried.color, queried.marker) == (left.color, left.marker) and left.color == color
        assert queried.outlined and not left.outlined and queried.name == f"queried, {name}"
    start = group_points("target", mask, positions, fate="labeled at the start")
    assert (start.color, start.marker, len(start.positions)) == (BLUE, "D", 1)
    panel = scatter_panel("p", [queried, left])
    assert "stroke: currentColor" in panel.svg  # the outline shows on a dark page, too


def test_a_map_parts_what_the_features_part_and_is_repeatable() -> None:
    features = np.random.default_rng(0).normal(size=(60, 2, 8)) * 0.1
    features[np.arange(60), :, np.arange(60) % 2] += 5
    positions = tsne_map(features)
    np.testing.assert_array_equal(positions, tsne_map(features))
    distances = np.linalg.norm(positions[:, None] - positions, axis=2) + np.eye(60) * 1e9
    np.testing.assert_array_equal(distances.argmin(1) % 2, np.arange(60) % 2)


@pytest.mark.parametrize("features", [np.ones((9, 1, 60)), np.linspace(-1, 1, 9)[:, None, None], np.eye(4)[:, None]])
def test_a_map_of_collapsed_or_few_features_is_finite(features: np.ndarray) -> None:
    assert np.isfinite(tsne_map(features)).all()


def test_fates_part_all_images_of_the_sample(tmp_path: Path) -> None:
    pool = read_pool(find_run(build_run(tmp_path), "run"), "run1")
    fates = pool.fates()
    assert {name: int(mask.sum()) for name, mask in fates.items()} == {
        ("", "not queried"): 80, ("queried", "other"): 9, ("queried", "target"): 11, ("queried", "not annotated"): 0,
        ("labeled at the start", "target"): 20,
    }  # fmt: skip
    assert np.sum(list(fates.values()), axis=0).tolist() == [1] * 120
    assert pool.classes()[[0, 2, 3, 4]].tolist() == ["cat", "frog", "ship", "cat"]


def test_chosen_cycles_have_the_first_and_the_last() -> None:
    assert evenly([1, 2, 3], 6) == [1, 2, 3]
    assert evenly(list(range(1, 12)), 6) == [1, 3, 5, 7, 9, 11]
    assert evenly([1, 2, 3, 4], 2) == [1, 4]


def test_cells_and_rows_of_images() -> None:
    values = (None, 3, 0.5, 12.346, 0.00012346, 12345.67, "x")
    assert [*map(shown, values)] == ["–", "3", "0.5", "12.35", "0.0001235", "12345.7", "x"]
    assert escape("<a href='x'>&\x00\ud800") == "&lt;a href=&#x27;x&#x27;&gt;&amp;\ufffd\ufffd"
    html = table_html(Table(["a", "b"], [["<", 1], ["x" * 50, None]]))
    assert '<td>&lt;</td><td class="number">1</td>' in html
    assert f'<td class="long">{"x" * 50}</td><td class="number">–</td>' in html
    row = np.asarray(Image.open(io.BytesIO(mosaic([np.full((16, 8, 3), n, np.uint8) for n in (9, 90)]))))
    assert row.shape == (64, 32 + 2 + 32, 3)  # four times as large, with a gap
    assert row[0, :, 0].tolist() == [9] * 32 + [255] * 2 + [90] * 32


def test_styles_stay_within_the_page(root: Path) -> None:
    style = (root / "evals" / "report" / "templates" / "report.css").read_text()
    assert not re.search(r"url\(|@import|@font-face|http", style)
    assert "prefers-color-scheme: dark" in style and "@media print" in style
