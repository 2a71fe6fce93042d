"""A benchmark's rows: standings worked out by hand, marks, what falls short, and the page, on made-up runs."""

from __future__ import annotations

import dataclasses
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

import pytest

from common.plots import GREY, PALETTE, Curve, draw_curves, draw_dots, draw_panel
from common.session import run_command
from datasets.results_file import write_csv
from evals.report import __main__ as report
from evals.report.comparison import (
    ACCURACY,
    AREA,
    BALANCED,
    COLORED,
    PRECISION,
    RECALL,
    SECONDS,
    ComparisonRow,
    by_classifier,
    figures,
    in_colour,
    mark,
    markdown_table,
    read_rows,
    seeds_text,
    standings,
    text_table,
)
from utils import InputError

ASKED = (0, 100, 300)
RECORD = {"format_version": 1, "settings": {"protocol": "ccal", "target_classes": [0, 1]}, "about": "2 of <10> classes"}
RECORD["command"] = "python benchmark.py --out RUN"


def run(
    strategy: str,
    seed: int,
    accuracy: Sequence[float | None],
    shares: Sequence[float] = (0.2, 0.2),
    seconds: Sequence[float] = (0, 0),
    classifier: str = "linear",
) -> list[ComparisonRow]:
    """Cycles 0, 1 and 2, in which 0, 100 and 300 images are asked for, these ``shares`` of them targets, of 400."""
    rows, found = [], 0
    for cycle, value in enumerate(accuracy):
        asked = ASKED[cycle]
        own = round(asked * shares[cycle - 1]) if cycle else 0
        found += own
        precision, time = (100 * own / asked, seconds[cycle - 1]) if cycle else (None, 9.0)
        values = {"asked": asked, "found": own, "labeled": 10 + found, "precision": precision, "recall": found / 4}
        values |= {"accuracy": value, "balanced_accuracy": value, "query_seconds": time, "training_seconds": None}
        rows.append(ComparisonRow(strategy, seed, classifier, cycle, **values))
    return rows


CCAL = run("ccal", 0, (50, 70, 90), (0.8, 0.6), (1, 3)) + run("ccal", 1, (50, 80, 94), (0.9, 0.7), (2, 4))
RANDOM = run("random", 0, (50, 60, 90)) + run("random", 1, (50, 60, 91))


def test_standings_by_hand() -> None:
    first, second = standings(RANDOM + CCAL)
    assert (first.strategy, second.strategy) == ("ccal", "random")
    # Trapezoids of ccal: (60 * 100 + 80 * 300) / 400 = 75, (65 * 100 + 87 * 300) / 400 = 81.5
    root = 2**0.5
    wanted = {ACCURACY: (92, 4 / root), AREA: (78.25, 6.5 / root), PRECISION: (75, 10 / root)}
    wanted |= {RECALL: (70, 10 / root), SECONDS: (2.5, 1 / root)}  # recall: 260 and 300 of 400
    assert {name: tuple(first.means[name]) for name in wanted} == {n: pytest.approx(v) for n, v in wanted.items()}
    assert tuple(second.means[AREA]) == pytest.approx((70.1875, 0.375 / root))
    assert first.means[BALANCED] is None  # it is the accuracy
    assert [point[:2] for point in first.points("precision")] == [(100, 85), (400, 65)]
    assert first.points("accuracy")[1] == (100, 75, pytest.approx(10 / root))
    changed = [dataclasses.replace(row, balanced_accuracy=row.accuracy - 2) for row in CCAL]
    assert standings(changed)[0].means[BALANCED].mean == 90


def test_one_seed_has_no_deviation_and_a_tie_goes_by_area() -> None:
    found = standings(run("a", 0, (50, 60, 90)) + run("b", 0, (50, 70, 90)) + run("c", 0, (50, 40, 91)))
    assert [own.strategy for own in found] == ["c", "b", "a"]
    assert found[0].means[ACCURACY] == (91, None) and str(found[0].means[ACCURACY]) == "91.00"
    assert [mark(own, ACCURACY, found) for own in found] == ["best", "", ""]


def test_marks_are_the_best_and_what_is_within_its_deviation() -> None:
    far = run("far", 0, (50, 60, 80)) + run("far", 1, (50, 60, 99))  # its own deviation would reach the best
    ceiling = run("ceiling", 0, (50, 99, 99), (1, 1)) + run("ceiling", 1, (50, 99, 99), (1, 1))
    scratch = run("ccal", 0, (50, 98, 98), classifier="scratch")
    groups = by_classifier(standings(RANDOM + CCAL + far + ceiling + scratch))
    assert {name: [own.strategy for own in group] for name, group in groups.items()} == {
        "linear": ["ceiling", "ccal", "random", "far"], "scratch": ["ccal"],
    }  # fmt: skip
    found = groups["linear"]
    assert [mark(own, ACCURACY, found) for own in found] == ["", "best", "close", "close"]
    assert [mark(own, AREA, found) for own in found] == ["", "best", "", ""]
    assert [mark(own, SECONDS, found) for own in found] == ["", "", "", ""]  # they are the machine's
    found = standings(CCAL + run("x", 0, (50, 60, 89.1)) + run("x", 1, (50, 60, 89.1)))
    assert mark(found[1], ACCURACY, found) == ""  # 92 - 2.83 is 89.17


def test_markdown_and_plain_text_say_the_same() -> None:
    found = standings(RANDOM + CCAL)
    lines = markdown_table(found).splitlines()
    assert lines[0] == "| strategy | final accuracy | area | mean precision | recall | seconds a query | seeds |"
    assert lines[2].startswith("| ccal | **92.00 ± 2.83** | **78.25 ± 4.60** | **75.00 ± 7.07** |")
    assert lines[3].startswith("| random | <u>90.50 ± 0.71</u> | 70.19 ± 0.27 |") and lines[3].endswith("| 2 |")
    plain = [re.split("  +", line.strip()) for line in text_table(found).splitlines()]
    assert plain[1][:3] == ["ccal", "92.00 ± 2.83 *", "78.25 ± 4.60 *"] and plain[2][1] == "90.50 ± 0.71 ~"


def test_what_a_strategy_lacks_is_said_and_it_is_not_the_best() -> None:
    late = run("late", 0, (50, 99, 99), (1, 1)) + run("late", 1, (50, 99), (1, 1))
    lone = run("lone", 0, (50, 60, 91))
    some = run("some", 0, (50, None, 99)) + run("some", 1, (50, None, 99))
    few = [dataclasses.replace(row, asked=row.asked // 2) for row in RANDOM]
    few = [dataclasses.replace(row, strategy="few") for row in few]
    found = standings(CCAL + late + lone + some + few)
    words = {own.strategy: seeds_text(own, found) for own in found}
    assert words == {
        "late": "2; 1 of 2 cycles", "some": "2; accuracy of cycles 0, 2", "ccal": "2", "lone": "1 of 2 seeds",
        "few": "2; 200 of 400 answers",
    }  # fmt: skip
    by_name = {own.strategy: own for own in found}
    assert by_name["late"].means[ACCURACY].mean == 99 and len(by_name["late"].runs[0]) == 2
    marks = {name: mark(own, ACCURACY, found) for name, own in by_name.items()}
    assert marks == {"late": "", "some": "", "ccal": "best", "lone": "", "few": "close"}
    scatter = figures(found, "")[-1]
    assert {row[0] for row in scatter.table.rows} == {"ccal", "lone", "few"}


def test_a_gap_ends_a_seed_and_its_last_row_counts() -> None:
    again = dataclasses.replace(CCAL[1], accuracy=1.0)
    [own] = standings([*CCAL[:3], again])
    assert [row.accuracy for row in own.runs[0]] == [50, 1, 90]
    [own] = standings([CCAL[0], CCAL[2]])
    assert [row.cycle for row in own.runs[0]] == [0] and own.means[AREA] is None
    with pytest.raises(InputError, match="seed of ccal linear has no row of cycle 0"):
        standings(CCAL[1:])


def test_without_accuracy_precision_decides() -> None:
    rows = [dataclasses.replace(row, accuracy=None, balanced_accuracy=None) for row in RANDOM + CCAL]
    found = standings(rows)
    assert [own.strategy for own in found] == ["ccal", "random"]
    assert (
        markdown_table(found).splitlines()[2].startswith("| ccal | **75.00 ± 7.07** | **70.00 ± 7.07** | 2.50 ± 0.71")
    )


def test_of_many_strategies_the_best_are_in_colour() -> None:
    rows = []
    for place in range(14):
        rows += run(f"s{place:02}", 0, (50, 60, 60 + place), (place / 20, place / 20))
    assert len(in_colour(standings(rows[:30]))) == len(PALETTE) == 10
    rows += run("random", 0, (50, 60, 55)) + run("ccal", 0, (50, 60, 75)) + run("ceiling", 0, (50, 99, 99))
    # In turn by accuracy and by precision: ccal, s13, s13, s12, s12, s11, ... until there are eight
    best = [f"s{place:02}" for place in (13, 12, 11, 10, 9, 8, 7)]
    assert in_colour(standings(rows)) == ["ccal", *best, "random"] and COLORED == 8
    pure = run("pure", 0, (50, 60, 10), (1, 1))  # the worst accuracy, and the best precision
    assert in_colour(standings(rows + pure)) == ["ccal", *best[:-1], "random", "pure"]


def test_rows_come_back_and_damage_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    assert read_rows(path) == []
    write_csv(path, CCAL)
    assert read_rows(path) == CCAL
    for old, new, words in (
        ("ccal,0,linear,2", "ccal,0,linear,x", "row 4: invalid literal"),
        (",90,90,", ",90,190,", "row 4: balanced_accuracy must be a finite number from 0 to 100"),
        ("strategy,", "name,", "the first line must be strategy,seed"),
    ):
        write_csv(path, CCAL)
        path.write_text(path.read_text().replace(old, new, 1))
        with pytest.raises(InputError, match=rf"results\.csv is damaged \({words}"):
            read_rows(path)


def write_run(folder: Path, rows: Sequence[ComparisonRow], **changes: object) -> Path:
    folder.mkdir()
    write_csv(folder / "results.csv", rows)
    (folder / "benchmark.json").write_text(json.dumps({**RECORD, **changes}))
    return folder


def test_the_page_has_the_table_the_settings_and_the_figures(tmp_path: Path) -> None:
    ceiling = run("ceiling", 0, (50, 99, 99), (1, 1))
    folder = write_run(tmp_path / "bench", RANDOM + CCAL + ceiling)
    (folder / "queries").mkdir()
    (folder / "queries" / "args.json").write_text("no query is looked at")
    assert run_command(report.main, [str(folder)]) == 0
    text = (folder / "report.html").read_text()
    assert '<td class="number"><b>92.00 ± 2.83</b></td>' in text and "<u>90.50 ± 0.71</u>" in text
    for words in (
        "2 of &lt;10&gt; classes",
        "python benchmark.py --out RUN",
        "target classes",
        "queries/STRATEGY/seed_N",
    ):
        assert words in text, words
    drawn = re.findall(r"<figure>(.*?)</figure>", text, flags=re.DOTALL)
    assert len(drawn) == 4 and sum("all-target pool from 99 to 99 %" in figure for figure in drawn) == 1
    for figure in drawn:
        assert ET.fromstring(re.search(r"<svg.*</svg>", figure, flags=re.DOTALL)[0]).get("role") == "img"
        assert "<table>" in figure and "random" in figure
    assert {path.name for path in (folder / "report_figures").iterdir()} == {
        "recall.png", "precision.png", "accuracy.png", "precision_accuracy.png",
    }  # fmt: skip
    table = (folder / "table.md").read_text()
    assert markdown_table(standings(RANDOM + CCAL + ceiling)) in table and RECORD["command"] in table


def test_each_classifier_has_a_part_and_no_figure_of_what_was_not_measured(tmp_path: Path) -> None:
    rows = [dataclasses.replace(row, accuracy=None, balanced_accuracy=None) for row in CCAL]
    rows += [dataclasses.replace(row, classifier="scratch", balanced_accuracy=1.0) for row in CCAL]
    folder, page = write_run(tmp_path / "both", rows), tmp_path / "x.html"
    assert run_command(report.main, [str(folder), "--out", str(page)]) == 0
    names = sorted(path.stem for path in (tmp_path / "x_figures").iterdir())
    both = [
        "accuracy_2",
        "balanced_accuracy_2",
        "precision",
        "precision_2",
        "precision_accuracy_2",
        "recall",
        "recall_2",
    ]
    assert names == both and (tmp_path / "table.md").is_file()
    ids = re.findall(r'\bid="([^"]*)"', page.read_text())
    assert len(ids) == len({*ids}) and "classifier scratch" in page.read_text()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not valid JSON"),
        (json.dumps({**RECORD, "format_version": 2}), "format_version"),
        (json.dumps({**RECORD, "settings": []}), "settings has a wrong type"),
        (json.dumps({**RECORD, "about": None}), "about has a wrong type"),
        (json.dumps(RECORD), "has no rows yet; make them with python benchmark.py --out RUN"),
        (None, "give its folder and no other"),
    ],
)
def test_a_damaged_benchmark_is_one_line(content: str | None, words: str, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_run(tmp_path / "bench", CCAL)
    if content:
        (folder / "benchmark.json").write_text(content)
        (folder / "results.csv").unlink()
    assert run_command(report.main, [str(folder), *([] if content else [str(tmp_path)])]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not (folder / "report.html").exists()


def test_bands_replace_error_bars_and_grey_lines_have_neither_band_nor_legend() -> None:
    from matplotlib.figure import Figure

    points = [(0, 50.0, 1.0), (100, 60.0, None)]
    axes = Figure().add_subplot()
    curves = [Curve("a", points, PALETTE[0], marker="D"), Curve("b", points, GREY, faint=True)]
    draw_curves(axes, curves, xlabel="x", ylabel="y", bands=True)
    band, *rest = [part for part in axes.collections if len(part.get_paths())]
    assert band.get_paths()[0].get_extents().bounds == (0, 49, 100, 11) and axes.get_legend_handles_labels()[1] == ["a"]
    assert [part.get_paths()[0].get_extents().height for part in rest] == [10]
    assert [line.get_marker() for line in axes.lines] == ["D", ""]


def test_names_beside_dots_cover_neither_each_other_nor_the_dots() -> None:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    spots = [(x / 10, y / 5) for x in range(4) for y in range(4)]
    dots = [Curve(f"strategy_{n}", [(*spot, 0.02, None)], PALETTE[n % 10]) for n, spot in enumerate(spots)]
    figure = Figure(layout="constrained", figsize=(5.2, 5))
    draw_dots(figure.add_subplot(), dots, xlabel="x", ylabel="y")
    [axes] = figure.axes
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text).padded(-1) for text in axes.texts]  # without the line to the dot
    assert [text.get_text() for text in axes.texts] == [dot.name for dot in dots]
    assert not any(box.count_overlaps(boxes) > 1 for box in boxes)
    assert not any(box.contains(*axes.transData.transform(spot)) for box in boxes for spot in spots)
    assert "<svg" in draw_panel("p", lambda axes: draw_dots(axes, dots[:1], xlabel="x", ylabel="y")).svg
