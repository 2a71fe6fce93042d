"""The page of made-up runs says what their files say, loads nothing, and bears damaged files."""

from __future__ import annotations

import dataclasses
import html
import html.parser
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from common.provenance import int64_digest
from common.session import run_command
from datasets.index_files import IndexFile, write_index_file
from evals import kept, summary
from evals.features import FeatureBank
from evals.report import __main__ as report
from evals.report.runs import find_run
from evals.report.sections import stage_rows
from evals.scores import PoolScores
from tests.chromium import Tab, running_browser
from tests.evals.report.made_up import (
    CLASSES,
    DIGEST,
    HOSTILE,
    build_run,
    result_of,
    save_cycle,
    save_sample,
    write_encoder,
    write_query,
    write_results,
)  # fmt: skip

# Of each table whether it is wider than its place, and whether it says so, which the browser knows a frame later.
WIDE_TABLES = """
    document.querySelectorAll("details").forEach((part) => { part.open = true; });
    const answer = () => [...document.querySelectorAll(".scroll")].map((box) =>
        [box.scrollWidth > box.clientWidth, parseFloat(getComputedStyle(box, "::before").height) > 9]);
    setTimeout(() => arguments[0](answer()), 200);
"""


class Page:
    """Tables as lists of rows, text by section, and the words of the thumbnails."""

    def __init__(self, path: Path) -> None:
        self.text = path.read_text()
        parts = re.findall(r"<section[^>]*><h2[^>]*>(.*?)</h2>(.*?)</section>", self.text, flags=re.DOTALL)
        self.sections = {title: html.unescape(re.sub(r"<[^>]*>", "", body)) for title, body in parts}
        rows = [re.findall(r"<tr>(.*?)</tr>", table) for table in re.findall(r"<table>(.*?)</table>", self.text)]
        cells = [[re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in table] for table in rows]
        self.tables = [[[html.unescape(cell) for cell in row] for row in table] for table in cells]
        self.thumbnails = [html.unescape(words) for words in re.findall(r'<img alt="([^"]*)"', self.text)]

    def rows(self, *heading: str) -> list[list[str]]:
        """The rows of the first table whose heading starts so; none where there is no such table."""
        return next((table[1:] for table in self.tables if table[0][: len(heading)] == list(heading)), [])


def make(*folders: Path, out: Path | None = None) -> Page:
    assert run_command(report.main, [*map(str, folders), *(["--out", str(out)] if out else [])]) == 0
    return Page(out or folders[0] / "report.html")


@pytest.fixture(scope="module", autouse=True)
def quick_maps() -> Iterator[None]:
    """Maps that take no time; tests/evals/report/test_figures.py tests the real ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evals.report.figures.tsne_map", lambda features: features[:, 0, :2])
        yield


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run without its page."""
    return build_run(tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    """A run with its page, and what that holds; tests leave both as they are."""
    folder = build_run(tmp_path_factory.mktemp("made"))
    return folder, make(folder)


def test_the_numbers_are_those_of_the_files(made: tuple[Path, Page]) -> None:
    _, page = made
    assert page.rows("query", "cycle") == [
        ["ccal", "1", "10", "7", "70.00", "17.50", "0.75", "0.625", "27", "90"],
        ["ccal", "2", "10", "4", "40.00", "27.50", "0.75", "0.625", "31", "80"],
        ["random", "1", "10", "2", "20.00", "5.00", "0.75", "0.625", "22", "90"],
        ["random", "2", "10", "1", "10.00", "7.50", "0.75", "0.625", "23", "80"],
    ]
    # 60 and 64 have the deviation sqrt(8) (ddof = 1)
    accuracies = [["ccal", "0", "20", "62.00", "2.83", "2"], ["ccal", "20", "31", "80.00", "–", "1"]]
    assert page.rows("query", "annotated") == accuracies
    assert page.rows("query", "cycles")[0] == ["ccal", "2", "20", "11", "55.00", "27.50", "31", "80.00 %"]
    assert page.rows("encoder", "epoch")[-1] == ["enc/semantic", "3", "2.50", "60.00", "23.00"]
    times = [row[:2] for row in page.rows("stage", "time")]
    assert times[0] == ["enc/semantic", "3.0 min"] and ["query", "60 s"] in times and times[-1] == ["classifier", "4 s"]
    assert page.rows("stage", "commit")[0][1:] == ["0123456789abcdef0123-dirty", "torch 2.99"]


def test_it_begins_with_what_was_found_and_calls_classes_by_their_names(made: tuple[Path, Page]) -> None:
    _, page = made
    start = re.sub(r"<[^>]*>", " ", page.text[page.text.index("</h1>") :]).split(maxsplit=10)
    assert " ".join(start[:9]) == "11 of 20 queried were targets; random 3 contrastive"
    assert f"Data set npz, target classes cat, {HOSTILE}; 80 % of the pool are others." in page.sections[
        "Overview"
    ].replace("\ufffd", "\u2028")
    named = [row for row in page.rows("stage", "setting") if row[1] == "classes"]
    assert [row[0] for row in named] == ["query (ccal)", "query (random)"] and all("cat, " in row[2] for row in named)
    assert "logarithmic" not in page.text


def test_classes_without_names_are_numbered_and_several_runs_have_a_sentence_each(tmp_path: Path) -> None:
    for name, found in (("one", (7,)), ("two", (9, 8))):
        write_query(tmp_path / name, "ccal", found=found)
    page = make(tmp_path / "one", tmp_path / "two", out=tmp_path / "both.html")
    assert re.findall(r'<p class="first">(.*?)</p>', page.text) == [
        "one: 7 of 10 queried were targets",
        "two: 17 of 20 queried were targets",
    ]
    assert "target classes class 0, class 1;" in page.sections["Overview"]


@pytest.mark.parametrize(
    ("used", "wanted"),
    [
        ("ab", ["11.0 min", "features 10.0 min, scoring and selection 60 s"]),
        ("a", ["2.7 min", "features 100 s, scoring and selection 60 s"]),
        ("ac", ["60 s", "scoring and selection, without features"]),  # nobody knows what c's took
        ("", ["60 s", "scoring and selection, without features"]),
    ],
)
def test_the_time_of_a_query_has_that_of_its_features_in_it(used: str, wanted: list[str], tmp_path: Path) -> None:
    write_query(tmp_path / "query", "ccal")
    for path in (tmp_path / "query").glob("cycle_*.json"):
        content = json.loads(path.read_text())
        content["settings"]["checkpoint_digests"] = {letter: letter * 64 for letter in used}
        path.write_text(json.dumps(content))
    kept_features = {"semantic": {"checkpoint": "a" * 64, "seconds": 100.0}, "damaged": [], "by_hand": None}
    kept_features |= {"distinctive": {"checkpoint": "b" * 64, "seconds": 500}, "older": {"checkpoint": "c" * 64}}
    for name, record in kept_features.items():
        (tmp_path / f"{name}.npy").touch()
        if record is not None:
            (tmp_path / f"{name}.json").write_text(json.dumps(record))
    assert stage_rows(find_run(tmp_path, "run")) == [["query", *wanted]]


def test_scores_and_images_are_those_that_the_query_kept(made: tuple[Path, Page]) -> None:
    _, page = made
    # Of the pool 20 .. 119, even ones are candidates of class 0 (cat), of which 24, 30, .., 114 are targets; queried
    # are 20 .. 29, of which the index files call 20 .. 26 targets; the worst even one is 28: S + D = 172 / 200 * 1.5
    assert page.rows("cycle", "class")[0][:7] == ["1", "cat", "50", "16", "5", "1", "1.29"]
    groups = {tuple(row[:3]) for row in page.rows("cycle", "group")}
    assert {("1", "target", "33"), ("1", "other", "67"), ("1", "queried", "10"), ("2", "target", "30")} <= groups
    assert page.thumbnails[0] == "cat, 1.350" and page.thumbnails[10:12] == ["ship, 1.298", "cat, 1.290"]
    assert [row[1] for row in page.rows("group", "images shown") if row[0].startswith("cat")] == ["30"]


def test_nothing_is_loaded_and_all_is_escaped(made: tuple[Path, Page]) -> None:
    text, elements = made[1].text, []
    parser = html.parser.HTMLParser()
    parser.handle_starttag = lambda tag, attrs: elements.append((tag, dict(attrs)))
    parser.feed(text)
    assert "http://" not in text and "https://" not in text and "@import" not in text
    assert not {tag for tag, _ in elements} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    ids = [attrs["id"] for _, attrs in elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    for tag, attrs in elements:
        for name, value in attrs.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                assert value.startswith("data:image/png;base64,") or (value[0] == "#" and value[1:] in ids), value
            for target in re.findall(r"url\(([^)]*)\)", value or ""):
                assert target[0] == "#" and target[1:] in ids
    policy = next(attrs["content"] for _, attrs in elements if attrs.get("http-equiv"))
    assert policy.startswith("default-src 'none'") and "script" not in policy
    escaped = "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; &quot;$q$&quot; _é\ufffd"
    assert escaped in text and "<script" not in text


def test_each_figure_is_sound_svg_with_words_a_table_and_a_png(made: tuple[Path, Page]) -> None:
    folder, page = made
    figures = re.findall(r"<figure>(.*?)</figure>", page.text, flags=re.DOTALL)
    assert len(figures) == 2 + 2 + 2 + 4 + 4 + 4  # found, accuracy, histograms, scatter plots, maps, training
    for figure in figures:
        svg = ET.fromstring(re.search(r"<svg.*</svg>", figure, flags=re.DOTALL)[0])
        assert svg.get("role") == "img" and len(svg.get("aria-label")) > 20
        assert "currentColor" in figure and "<table>" in figure and "<figcaption>" in figure
    pictures = sorted((folder / "report_figures").iterdir())
    assert len(pictures) == len(figures) + 4  # best and wrong images of two cycles
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)


def test_what_is_missing_is_said_with_the_command(tmp_path: Path) -> None:
    write_encoder(tmp_path / "one" / "semantic", "semantic")
    alone = make(tmp_path / "one").sections
    assert "active_main.py" in alone["What the queries found"]
    assert "train_classifier.main" in alone["Accuracy of the classifier"]
    assert "contrast_main.py --mode distinctive" in alone["Training of the encoders"]
    write_query(tmp_path / "two", "ccal")
    without = make(tmp_path / "two").sections
    for title in ("Scores of the pool", "Semantic against distinctive score", "Queried images"):
        assert "active_main.py keeps" in without[title]
    assert "active_main.py keeps" in without["Maps of the feature spaces"]
    write_query(tmp_path / "three", "random")
    assert "the strategy random needs none" in make(tmp_path / "three").sections["Scores of the pool"]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["nowhere"], "nowhere is not a folder"),
        (["run", "empty"], "empty holds no encoder and no index file"),
        (["run/distinctive/args.json"], "is not a folder"),
        (["foreign"], "not valid JSON"),
        (["run", "run/query/.."], "given twice"),
        (["run", "--out", "page.pdf"], "html file"),
        (["run", "--out", "foreign/args.json/page.html"], "cannot be written"),
    ],
)
def test_a_useless_run_is_one_line_and_status_2(words, wanted, run: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    run.rename("run")
    for folder in ("empty", "foreign"):
        Path(folder).mkdir()
    Path("foreign", "args.json").write_text("[1")
    assert run_command(report.main, words) == 2
    error = capsys.readouterr().err
    assert wanted in error and error.count("\n") == 1
    assert not Path("run", "report.html").exists()


def test_damaged_files_are_named_and_the_rest_is_shown(run: Path) -> None:
    (run / "query" / "cycle_2.json").write_text("{")
    (run / "distinctive" / "args.json").write_text('{"arguments": {"mode": "other"}}')
    with open(run / "enc" / "semantic" / "log.jsonl", "a") as file:
        file.write('{"epoch": 4, "loss": NaN, "seconds": "x"}\n{"epoch": 5, "lo\n[]\n')
    (run / "classifier" / "results.csv").write_text("a,b\n1,2\n")
    (run / "query" / "scores" / "cycle_1.npz").write_bytes(b"PK\x03\x04 no archive")
    (run / "query" / "scores" / "sample.npz").write_bytes(b"")
    page = make(run)
    assert [row[1] for row in page.rows("query", "cycle")] == ["1", "1", "2"]
    notes = page.sections["Settings, versions and time"]
    for words in ("cycle_2.json is not valid JSON", "not the settings file", "2 of 6 lines", "results.csv is damaged"):
        assert words in notes
    for words in ("cycle_1.npz cannot be read", "sample.npz cannot be read", "No scores"):
        assert words in page.sections["Scores of the pool"]
    assert page.rows("encoder", "epoch")[-1] == ["enc/semantic", "4", "–", "–", "–"]


def test_scores_of_another_query_are_not_shown_as_this_ones(run: Path) -> None:
    save_cycle(run / "query", 2)
    (run / "query" / "scores" / "cycle_2.npz").replace(run / "query" / "scores" / "cycle_1.npz")
    page = make(run)
    assert "cycle_1.npz is of another query" in page.sections["Scores of the pool"]
    assert page.rows("cycle", "group") == []


def test_runs_are_compared(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_encoder(other / "semantic", "semantic", lr_init=0.3, device="cuda")
    write_query(other / "query", "ccal", found=(3,))
    page = make(run, other, out=tmp_path / "both.html")
    rows = page.rows("stage", "setting")
    assert ["semantic encoder", "lr_init", "0.1", "0.3"] in rows
    assert not [row for row in rows if row[1] in ("logdir", "device", "suffix", "epochs", "k")]
    assert ["query (random)", "(whole stage)", "on record", "–"] in rows
    names = [row[0] for row in page.rows("query", "cycle")]
    assert names == ["a & <b>: ccal"] * 2 + ["a & <b>: random"] * 2 + ["other: ccal"]
    label = html.unescape(re.search(r'aria-label="([^"]*%)"', page.text)[1])
    assert "a & <b>: ccal from 70 to 40 %" in label and "other: ccal from 30 to 30 %" in label
    assert (tmp_path / "both_figures" / "scores_run1_cycle_1.png").is_file()
    for place in "xy":  # of one name
        write_query(tmp_path / place / "same", "random")
    page = make(tmp_path / "x" / "same", tmp_path / "y" / "same", out=tmp_path / "both.html")
    assert {row[0] for row in page.rows("query", "cycle")} == {f"{tmp_path}/{n}/same: random" for n in "xy"}


def test_queries_of_a_mixed_pool_are_counted_by_source(tmp_path: Path) -> None:
    write_query(tmp_path / "mixed", "ccal", found=(7,))
    for cycle, name, counts in ((0, "pool", {"digits": 40, "mnist": 60}), (1, "queried", {"digits": 7, "mnist": 3})):
        path = tmp_path / "mixed" / f"cycle_{cycle}.json"
        content = json.loads(path.read_text())
        content["metrics"][f"{name}_by_source"] = counts
        path.write_text(json.dumps(content))
    assert make(tmp_path / "mixed").rows("query", "images", "source") == [
        ["ccal", "pool at the start", "digits", "40"],
        ["ccal", "pool at the start", "mnist", "60"],
        ["ccal", "queried in cycle 1", "digits", "7"],
        ["ccal", "queried in cycle 1", "mnist", "3"],
    ]


def test_the_published_lists_stand_beside_a_query_of_that_split(tmp_path: Path, monkeypatch) -> None:
    write_query(tmp_path / "cifar", "ccal", dataset="cifar10")
    assert "ublished" not in make(tmp_path / "cifar").sections["What the queries found"]  # other images to begin with
    monkeypatch.setattr(summary, "PUBLISHED_LABELED", int64_digest(range(20)))
    monkeypatch.setattr(summary, "PUBLISHED_QUERIED", 10)
    published = [row for row in make(tmp_path / "cifar").rows("query", "cycle") if row[0] == "published lists"]
    assert [row[4] for row in published] == ["94.73", "93.00", "93.00", "94.80", "92.67", "78.07", "29.27"]
    assert published[-1][5] == "93.84"  # 8633 of 9200


def test_answers_of_people_count_wherever_the_images_are_by_now(tmp_path: Path) -> None:
    """Of four images asked for, a is a cat and b is not; then a moves, c is labeled, and b's label is taken back."""
    folder = tmp_path / "mine" / "query"
    names = {"class_names": ["cat"], "settings": {}}
    start = {"labeled": [["labeled/cat/s.png", "S"]], "queried": [], "set_aside": []}
    first = IndexFile("folder", None, DIGEST, [0], "ccal", 0, [0], [], [], labels=[0], files=start, **names)
    one = {"labeled": [*start["labeled"], ["a.png", "A"]], "queried": [["a.png", "A"], ["b.png", "B"]]}
    one |= {"set_aside": [["b.png", "B"]]}
    two = {"labeled": [["s.png", "S"], ["labeled/cat/a.png", "A"], ["c.png", "C"]], "queried": [["c.png", "C"]]}
    write_index_file(folder, first)
    changes = {"cycle": 1, "labeled": [0, 1], "queried": [1, 2], "set_aside": [2], "labels": [0, 0], "files": one}
    write_index_file(folder, dataclasses.replace(first, **changes))
    changes = {"cycle": 2, "labeled": [5, 1, 3], "queried": [3], "labels": [0, 0, 0], "files": {**two, "set_aside": []}}
    write_index_file(folder, dataclasses.replace(first, **changes))
    unknown = {"is_target": None, "names": None}
    pool = np.arange(20, 120)
    result = result_of(pool[:4], np.array([4.0, 3.0, 2.0, 1.0]))
    save_cycle(folder, 1, result=result, paths=["a.png", "b.png", "c.png", "d.png"], **unknown)
    save_sample(folder, paths=[f"{n}.png" for n in range(116)] + ["a.png", "b.png", "c.png", "d.png"])
    page = make(tmp_path / "mine")
    classes = [words.split(",")[0] for words in page.thumbnails]
    assert classes == ["cat", "not annotated", "cat", "not annotated"]
    groups = {row[1]: row[2] for row in page.rows("cycle", "group")}
    assert groups == {"target": "2", "not annotated": "98", "queried": "4"}
    fates = {row[0]: row[1] for table in page.tables if table[0][0] == "group" for row in table[1:]}
    assert fates["queried, target"] == "2" and fates["queried, not annotated"] == "1"


def test_a_query_with_penultimate_features_and_neither_score_is_shown(tmp_path: Path) -> None:
    """Its query score, its features and its images are there; two strategies' accuracies stand in one panel."""
    write_query(tmp_path / "query" / "posterior", "posterior", found=(7,))
    write_query(tmp_path / "query" / "random", "random", found=(2,))
    save_cycle(tmp_path / "query" / "posterior", 1, scores=PoolScores())
    bank = FeatureBank(np.arange(120), torch.randn(120, 1, 9, generator=torch.manual_seed(0)))
    kept.save_sample(tmp_path / "query" / "posterior", {"penultimate": bank}, np.arange(120) % 4, class_names=CLASSES)
    for name, accuracy in (("posterior", 90.0), ("random", 70.0)):
        folder = tmp_path / "query" / name
        write_results(
            tmp_path / "classifier" / name / "results.csv", folder, accuracies={1: (accuracy,)}, strategy=name
        )
    page = make(tmp_path)
    assert "7 of 10 queried were targets; random 2" in page.text
    assert page.rows("query", "annotated") == [
        ["posterior", "10", "27", "90.00", "–", "1"],
        ["random", "10", "22", "70.00", "–", "1"],
    ]
    assert "does not have both scores" in page.sections["Semantic against distinctive score"]
    assert "Penultimate features by class" in page.sections["Maps of the feature spaces"]
    assert "No scores" not in page.sections["Scores of the pool"] and page.thumbnails
    label = html.unescape(re.search(r'aria-label="(Accuracy by images annotated[^"]*)"', page.text)[1])
    assert "posterior from 90 to 90 %; random from 70 to 70 %" in label


def test_of_a_large_pool_the_page_says_how_many_are_shown_and_it_is_the_same_again(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(kept, "MAX_POOL", 50)
    write_query(tmp_path / "query", "ccal", found=(7,))
    save_cycle(tmp_path / "query", 1)
    page = make(tmp_path)
    assert "Cycle 1: 50 of the pool's 100 images" in page.sections["Scores of the pool"]
    assert make(tmp_path, out=tmp_path / "again.html").text == page.text
    names = ("report_figures", "again_figures")
    one, again = ((tmp_path / name / "scatter_run1_cycle_1_class_0.png").read_bytes() for name in names)
    assert one == again


def test_a_browser_shows_it_at_any_width_in_light_and_dark(made: tuple[Path, Page], tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_bytes((made[0] / "report.html").read_bytes())
    grounds = set()
    with running_browser(tmp_path / "profile") as driver:
        tab = Tab(driver, path)
        for width in (1280, 400):
            metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            assert driver.execute_script("return document.documentElement.scrollWidth") <= width
            said = driver.execute_async_script(WIDE_TABLES)
            assert all(is_wide == is_said for is_wide, is_said in said) and len({*map(tuple, said)}) == 2
        for scheme in ("light", "dark"):
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            grounds.add(driver.execute_script("return getComputedStyle(document.body).backgroundColor"))
        assert len(grounds) == 2
        loaded = driver.execute_script("return [...document.images].every((image) => image.naturalWidth > 0)")
        assert loaded and tab.complaints() == []
        assert {address.split(":")[0] for address in tab.requests()} <= {"file", "data"}
