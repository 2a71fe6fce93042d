"""common/panels.py and the report's figures: svg for a page, groups of points, borders, maps, thumbnails."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import Dataset
from datasets.index_files import IndexFile
from evals.features import FeatureBank
from evals.report.figures import class_points
from evals.report.images import borders, image_rows
from evals.report.maps import SAMPLE, fates_of, feature_map, neighbour_share
from evals.report.page import Table, Thumbnail, escape, mosaic, shown, table_html
from evals.report.panels import GREY, INK, PALETTE, draw_curves, draw_panel, inline_svg, legend_columns, series_label
from evals.report.pool import Material
from evals.report.runs import Query, Run
from evals.report.scores import PoolCycle, known_truth
from evals.report.view import Pool, evenly

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")


def test_an_svg_for_a_page_has_its_own_ids_and_the_pages_colour() -> None:
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


def test_a_panel_draws_each_curve_with_its_name_whatever_it_is() -> None:
    names = ["_hidden", "$x_$", "<b> & --> \N{CAT}"]
    curves = [{"name": name, "points": [(1, 2.0, None), (2, 3.0, 1.0)]} for name in names]
    panel = draw_panel("p", lambda axes: draw_curves(axes, curves, xlabel="x", ylabel="y"))
    svg = ET.fromstring(panel.svg)
    assert len([e for e in svg.iter() if e.get("id", "").startswith("p-legend")]) == 1
    for color in PALETTE[:3]:
        assert color in panel.svg
    assert "http" not in panel.svg and INK not in panel.svg
    assert Image.open(io.BytesIO(panel.png)).convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    again = draw_panel("p", lambda axes: draw_curves(axes, curves, xlabel="x", ylabel="y"))
    assert again == panel


def test_names_and_legends_fit() -> None:
    assert series_label("_a") == " _a"
    assert len(series_label("x" * 99)) == 44
    assert [legend_columns(["ab", "x" * n]) for n in (13, 14, 24, 25)] == [3, 2, 2, 1]
    luminance = {c: sum(w * ((int(c[i : i + 2], 16) / 255) ** 2.2) for w, i in ((0.2126, 1), (0.7152, 3), (0.0722, 5)))
                 for c in (*PALETTE, GREY)}  # fmt: skip
    for color, value in luminance.items():  # against white, and the dark ground (#15181c)
        assert 1.05 / (value + 0.05) > 3 and (value + 0.05) / (0.009 + 0.05) > 3, color


def test_borders_are_the_smallest_queried_values() -> None:
    utility = np.array([5.0, 4.0, 3.0, 2.0, -np.inf])
    cycle = PoolCycle(1, np.arange(5), np.array([0, 1, 2, 4]), utility, np.array([0, 0, 1, 1, 1]), None, None)
    assert borders(cycle) == {0: 4.0, 1: 3.0}


def test_classes_are_coloured_targets_first() -> None:
    labels = np.array([0, 1, 2, 2, -1])
    groups = class_points(np.zeros((5, 2)), labels, ["a", "b", "c"], [2])
    by_name = {group.name: (len(group.x), group.color) for group in groups}
    assert by_name["c, target"] == (2, PALETTE[0])
    assert by_name["a"] == (1, PALETTE[1]) and by_name["b"] == (1, PALETTE[2])
    assert by_name["not annotated"] == (1, GREY)
    many = class_points(np.zeros((30, 2)), np.arange(30), [str(n) for n in range(30)], [29])
    assert sum(len(group.x) for group in many) == 30
    assert {group.name: len(group.x) for group in many}["further classes"] == 20


def test_a_map_parts_what_the_features_part_and_is_repeatable() -> None:
    rng = np.random.default_rng(0)
    groups = np.arange(60) % 2
    features = rng.normal(size=(60, 2, 8)) * 0.1
    features[np.arange(60), :, groups] += 5
    bank = FeatureBank(np.arange(100, 160), torch.from_numpy(features).float())
    found, again = feature_map(bank), feature_map(bank)
    np.testing.assert_array_equal(found.positions, again.positions)
    assert found.indices.tolist() == list(range(100, 160))
    assert neighbour_share(found.positions, groups) == 100
    assert feature_map(FeatureBank(np.arange(3), torch.ones(3, 1, 4))) is None
    assert SAMPLE >= 1000


def test_shares_of_neighbours_by_hand() -> None:
    line = np.array([[0.0, 0], [1, 0], [2, 0], [3, 0], [4, 0], [5, 0]])
    # Each image's 5 neighbours are all the others: two of its own group and three of the other
    assert neighbour_share(line, np.array([0, 0, 0, 1, 1, 1])) == pytest.approx(40)
    assert neighbour_share(line, np.array([0, 0, 0, 1, 1, -1])) is None


def pool_of(*, utility: np.ndarray | None) -> Pool:
    """Twenty images; 2 .. 15 are queried, of which the even ones are targets."""
    first = IndexFile("npz", 0.5, "d", [0], "ccal", 0, [0, 1], [], [])
    second = IndexFile("npz", 0.5, "d", [0], "ccal", 1, [0, 1], list(range(2, 16)), [3])
    labels = np.where(np.arange(20) % 2 == 0, 0, 1)
    data = Dataset("npz", np.zeros((20, 2, 2, 3), np.uint8), labels, np.zeros((0, 2, 2, 3)), labels[:0], 2, ("a", "b"))
    pool, queried = np.arange(2, 20), np.arange(2, 16)
    cycles = [] if utility is None else [PoolCycle(1, pool, queried, utility, None, None, None)]
    material = Material(data=data, cycles=cycles, truth=known_truth([first, second], data, cycles))
    query = Query(Path("q"), "q", [first, second])
    return Pool("run1", Run("r", Path("r"), [], [query], [], None, None, []), query, material)


def test_rows_of_images_go_from_the_best_to_the_border() -> None:
    rows = image_rows(pool_of(utility=np.arange(18) / 10), 1)
    assert [picture.words for picture in rows["best"]][:2] == ["b, 1.300", "a, 1.200"]
    assert len(rows["best"]) == 12
    assert [picture.words for picture in rows["borderline"]] == ["b, 0.100", "a, 0.000"]
    assert [picture.words for picture in rows["wrong"]] == [f"b, {n / 10:.3f}" for n in range(13, 0, -2)]
    assert all(picture.wrong for picture in rows["wrong"])
    plain = image_rows(pool_of(utility=None), 1)
    assert {name: len(pictures) for name, pictures in plain.items()} == {"found": 7, "wrong": 7}
    assert plain["found"][0] == Thumbnail(plain["found"][0].image, "a")


def test_fates_part_all_images() -> None:
    fates = fates_of(pool_of(utility=None), np.arange(20))
    counts = {name: int(mask.sum()) for name, mask in fates.items()}
    assert counts == {
        "not queried": 4, "queried, other": 7, "queried, target": 7, "queried, not annotated": 0,
        "labeled at the start": 2,
    }  # fmt: skip
    assert np.sum(list(fates.values()), axis=0).tolist() == [1] * 20


def test_chosen_cycles_have_the_first_and_the_last() -> None:
    assert evenly(list(range(1, 4)), 6) == [1, 2, 3]
    assert evenly(list(range(1, 12)), 6) == [1, 3, 5, 7, 9, 11]
    assert evenly([1, 2, 3, 4], 2) == [1, 4]


def test_cells_and_mosaics() -> None:
    assert [shown(value) for value in (None, 3, 0.5, 12.346, 0.00012346, 12345.67, "x")] == (
        ["–", "3", "0.5", "12.35", "0.0001235", "12345.7", "x"]
    )
    assert escape("<a href='x'>&\x00\ud800") == "&lt;a href=&#x27;x&#x27;&gt;&amp;\ufffd\ufffd"
    html = table_html(Table(["a", "b"], [["<", 1], ["x" * 50, None]]))
    assert '<td>&lt;</td><td class="number">1</td>' in html
    assert f'<td class="long">{"x" * 50}</td><td class="number">–</td>' in html
    images = [np.full((size, size, 3), 9, np.uint8) for size in (16, 200)]
    assert Image.open(io.BytesIO(mosaic(images))).size == (130, 64)


def test_styles_stay_within_the_page(root: Path) -> None:
    style = (root / "evals" / "report" / "templates" / "report.css").read_text()
    assert not re.search(r"url\(|@import|@font-face|http", style)
    assert "prefers-color-scheme: dark" in style and "@media print" in style
