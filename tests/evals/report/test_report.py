"""evals/report.py: the page of made-up runs says what their files say, loads nothing, and bears damaged files."""

from __future__ import annotations

import csv
import dataclasses
import html.parser
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from common.cli import run_cli
from common.provenance import int64_digest
from datasets.index_files import IndexFile, write_index_file
from datasets.results_file import COLUMNS
from evals.report import __main__ as report

HOSTILE = "<script>alert('x')</script> & \"$q$\" _é\u2028"
DIGEST = "d" * 64
POOL = np.arange(20, 120)


class Reader(html.parser.HTMLParser):
    """Tables as lists of rows, attributes by tag, and text by section."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, str] = {}
        self._cell, self._heading = False, False
        self._title = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self._cell = True
            self.tables[-1][-1].append("")
        if tag == "h2":
            self._heading, self._title = True, ""

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False
        if tag == "h2":
            self._heading = False

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.tables[-1][-1][-1] += data
        if self._heading:
            self._title += data
        elif self._title:
            self.sections[self._title] = self.sections.get(self._title, "") + data


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text())
    return reader


def encoder(folder: Path, mode: str, **arguments: object) -> None:
    folder.mkdir(parents=True)
    settings = {"mode": mode, "epochs": 3, "lr_init": 0.1, "logdir": str(folder), "device": "cpu", **arguments}
    record = {"arguments": settings, "split_digest": DIGEST, "processes": 1, "versions": {"torch": "2.99"}}
    (folder / "args.json").write_text(json.dumps({**record, "git_commit": "0123456789abcdef0123-dirty"}))
    lines = [{"epoch": n, "loss": 5.5 - n, "seconds": 60.0, "test_probe_accuracy": 20.0 + n} for n in (1, 2, 3)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def index_files(folder: Path, strategy: str, *, found: tuple[int, ...] = (7, 4), dataset: str = "npz") -> None:
    """Cycles of ten queries each; of these the first ``found`` are targets."""
    labeled, aside = list(range(20)), []
    first = IndexFile(dataset, 0.8, DIGEST, [0, 1], strategy, 0, labeled, [], [], settings={"k": 100.0, "t": 0.9})
    write_index_file(folder, first)
    for cycle, count in enumerate(found, start=1):
        queried = list(range(10 + 10 * cycle, 20 + 10 * cycle))
        labeled, aside = labeled + queried[:count], aside + queried[count:]
        metrics = {"queried": 10, "found": count, "precision": 10.0 * count, "recall": 2.5 * (len(labeled) - 20)}
        metrics |= {"auroc_semantic": 0.75, "auroc_utility": 0.625, "labeled": len(labeled), "pool": 100 - 10 * cycle}
        write_index_file(
            folder,
            dataclasses.replace(
                first, cycle=cycle, labeled=labeled, queried=queried, set_aside=list(aside), metrics=metrics, seconds=30
            ),
        )


def results(path: Path, folder: Path, *, accuracies: dict[int, tuple[float, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for cycle, values in accuracies.items():
            labeled = json.loads((folder / f"cycle_{cycle}.json").read_text())["labeled"]
            for seed, value in enumerate(values):
                row = dict.fromkeys(COLUMNS, "1") | {"strategy": "ccal", "cycle": cycle, "seed": seed, "seconds": 1.5}
                writer.writerow(row | {"accuracy": value, "index_digest": int64_digest(labeled)})


def scores(folder: Path) -> None:
    """What --save_score keeps: two classes by turns, S and D that grow with the index."""
    folder.mkdir()
    for cycle in (1, 2):
        pool = POOL[10 * (cycle - 1) :]
        height = (200 - pool) / 200
        arrays = {"indices": pool, "is_target": pool % 3 == 0, "pseudo_class": pool % 2, "semantic": height}
        arrays |= {"distinctive": np.stack([height / 2, height / 4], axis=1), "query_score": height * 1.5}
        np.savez(folder / f"cycle_{cycle}.npz", queried=pool[:10], **arrays)


def build_run(place: Path) -> Path:
    """A run as a person might lay it out, with names that are no fun."""
    folder = place / "a & <b>"
    encoder(folder / "enc" / "semantic", "semantic", suffix=HOSTILE)
    encoder(folder / "distinctive", "distinctive")
    index_files(folder / "query", "ccal")
    index_files(folder / "deep" / "er" / HOSTILE[:20].replace("/", ""), "random", found=(2, 1))
    scores(folder / "query" / "scores")
    results(folder / "classifier" / "results.csv", folder / "query", accuracies={0: (60.0, 64.0), 2: (80.0,)})
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run without its page."""
    return build_run(tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Reader]:
    """A run with its page, and what that holds; tests leave both as they are."""
    folder = build_run(tmp_path_factory.mktemp("made"))
    return folder, make(folder)


def make(*folders: Path, out: Path | None = None) -> Reader:
    words = [*map(str, folders), *(["--out", str(out)] if out else [])]
    assert run_cli(report.main, words) == 0
    return read(out or folders[0] / "report.html")


def rows_of(reader: Reader, *heading: str) -> list[list[str]]:
    """The rows of the first table whose heading starts so."""
    return next(table[1:] for table in reader.tables if table[0][: len(heading)] == list(heading))


def test_the_numbers_are_those_of_the_files(made: tuple[Path, Reader]) -> None:
    _, page = made
    assert rows_of(page, "query", "cycle") == [
        ["ccal", "1", "10", "7", "70.00", "17.50", "0.75", "0.625", "27", "90"],
        ["ccal", "2", "10", "4", "40.00", "27.50", "0.75", "0.625", "31", "80"],
        ["random", "1", "10", "2", "20.00", "5.00", "0.75", "0.625", "22", "90"],
        ["random", "2", "10", "1", "10.00", "7.50", "0.75", "0.625", "23", "80"],
    ]
    # 60 and 64 have the deviation sqrt(8) (ddof = 1)
    assert rows_of(page, "query", "labeled") == [
        ["ccal", "20", "62.00", "2.83", "2"],
        ["ccal", "31", "80.00", "–", "1"],
    ]
    assert rows_of(page, "query", "data set")[0] == (
        ["ccal", "npz", "0.8", "0 1", "2", "20", "11", "55.00", "27.50", "31", "80.00"]
    )
    log = rows_of(page, "encoder", "epoch")
    assert log[-1] == ["enc/semantic", "3", "2.50", "60.00", "23.00"]
    times = rows_of(page, "stage", "time")
    assert times[0][:3] == ["enc/semantic", "3.0 min", "3 epochs of training"]
    assert times[0][4] == "0123456789ab-dirty"
    assert times[2][:2] == ["query", "60 s"]
    assert times[-1][:2] == ["classifier", "4 s"]


def test_scores_are_those_of_the_kept_files(made: tuple[Path, Reader]) -> None:
    _, page = made
    assert "Scores as --save_score kept them." in page.sections["Scores of the pool"]
    first = rows_of(page, "cycle", "class")
    # Of the pool 20 .. 119, even ones are candidates of class 0, of which 24, 30, .., 114 are targets; queried are
    # 20 .. 29, the worst even one 28: S + D = 172 / 200 * 1.5
    assert first[0][:7] == ["1", "0", "50", "16", "5", "1", "1.29"]
    groups = {tuple(row[:3]) for row in rows_of(page, "cycle", "group")}
    assert {("1", "target", "33"), ("1", "other", "67"), ("1", "queried", "10"), ("2", "target", "30")} <= groups


def test_nothing_is_loaded_and_all_is_escaped(made: tuple[Path, Reader]) -> None:
    run, page = made
    text = (run / "report.html").read_text()
    assert "http://" not in text and "https://" not in text
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    for tag, attrs in page.elements:
        for name, value in attrs.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                assert value.startswith("data:image/png;base64,") or (value[0] == "#" and value[1:] in ids), value
            for target in re.findall(r"url\(([^)]*)\)", value or ""):
                assert target[0] == "#" and target[1:] in ids
    assert "@import" not in text
    policy = next(attrs["content"] for tag, attrs in page.elements if attrs.get("http-equiv"))
    assert policy.startswith("default-src 'none'") and "script" not in policy
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; &quot;$q$&quot; _é\ufffd" in text.replace(
        "\\u2028", "\ufffd"
    )


def test_each_figure_is_sound_svg_with_words_a_table_and_a_png(made: tuple[Path, Reader]) -> None:
    run, _ = made
    text = (run / "report.html").read_text()
    figures = re.findall(r"<figure>(.*?)</figure>", text, flags=re.DOTALL)
    assert len(figures) == 2 + 1 + 2 + 4 + 4  # found, accuracy, histograms, scatter plots, training
    for figure in figures:
        svg = ET.fromstring(re.search(r"<svg.*</svg>", figure, flags=re.DOTALL)[0])
        assert svg.get("role") == "img" and len(svg.get("aria-label")) > 20
        assert "currentColor" in figure and "<table>" in figure and "<figcaption>" in figure
    pictures = sorted((run / "report_figures").iterdir())
    assert len(pictures) == len(figures)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)


def test_what_is_missing_is_said_with_the_command(tmp_path: Path) -> None:
    encoder(tmp_path / "one" / "semantic", "semantic")
    alone = make(tmp_path / "one").sections
    assert "active_main.py" in alone["What the queries found"]
    assert "results.csv" in alone["Accuracy by labeled images"]
    assert "contrast_main.py --mode distinctive" in alone["Training of the encoders"]
    index_files(tmp_path / "two", "ccal")
    without = make(tmp_path / "two").sections
    assert "train_classifier.main" in without["Accuracy by labeled images"]
    assert "contrast_main.py" in without["Training of the encoders"]
    for title in ("Scores of the pool", "Semantic against distinctive score", "Maps of the feature spaces"):
        assert "no args.json of an encoder of this split" in without[title]
    assert "--save_score" in without["Scores of the pool"]
    assert "no args.json" in without["Queried images"]


@pytest.mark.parametrize("case", ["absent", "empty", "file", "foreign", "twice", "no html", "bad place"])
def test_a_useless_run_is_one_line_and_status_2(case: str, run: Path, tmp_path: Path, capsys) -> None:
    words, wanted = [str(run)], "bad"
    if case == "absent":
        words, wanted = [str(tmp_path / "nowhere")], "nowhere is no folder"
    elif case == "empty":
        (tmp_path / "empty").mkdir()
        words, wanted = [str(run), str(tmp_path / "empty")], "empty holds no encoder and no index file"
    elif case == "file":
        words, wanted = [str(run / "distinctive" / "args.json")], "is no folder"
    elif case == "foreign":
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "args.json").write_text("[1")
        words, wanted = [str(tmp_path / "x")], "not valid JSON"
    elif case == "twice":
        words, wanted = [str(run), f"{run}/query/.."], "given twice"
    elif case == "no html":
        words, wanted = [str(run), "--out", str(tmp_path / "page.pdf")], "html file"
    else:
        (tmp_path / "block").write_text("")
        words, wanted = [str(run), "--out", str(tmp_path / "block" / "page.html")], "cannot be written"
    assert run_cli(report.main, words) == 2
    error = capsys.readouterr().err
    assert wanted in error and error.count("\n") == 1
    assert not (run / "report.html").exists()


def test_damaged_files_are_named_and_the_rest_is_shown(run: Path) -> None:
    (run / "query" / "cycle_2.json").write_text("{")
    (run / "distinctive" / "args.json").write_text('{"arguments": {"mode": "other"}}')
    with open(run / "enc" / "semantic" / "log.jsonl", "a") as file:
        file.write('{"epoch": 4, "loss": NaN, "seconds": "x"}\n{"epoch": 5, "lo\n[]\n')
    (run / "classifier" / "results.csv").write_text("a,b\n1,2\n")
    (run / "reproduce.json").write_text("[]")
    (run / "query" / "scores" / "cycle_1.npz").write_bytes(b"PK\x03\x04 no archive")
    page = make(run)
    assert [row[1] for row in rows_of(page, "query", "cycle")] == ["1", "1", "2"]
    notes = page.sections["Settings, versions and time"]
    for words in ("cycle_2.json is not valid JSON", "names no mode", "2 of 6 lines are damaged", "results.csv is no"):
        assert words in notes
    assert "reproduce.json is no record" in notes
    assert "No scores" in page.sections["Scores of the pool"]
    assert rows_of(page, "encoder", "epoch")[-1] == ["enc/semantic", "4", "–", "–", "–"]


def test_runs_are_compared(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    encoder(other / "semantic", "semantic", lr_init=0.3)
    index_files(other / "query", "ccal", found=(3,))
    page = make(run, other, out=tmp_path / "both.html")
    rows = rows_of(page, "stage", "setting")
    assert ["semantic encoder", "lr_init", "0.1", "0.3"] in rows
    assert not [row for row in rows if row[1] in ("logdir", "epochs", "k")]
    assert ["query (random)", "(whole stage)", "on record", "–"] in rows
    names = [row[0] for row in rows_of(page, "query", "cycle")]
    assert names == ["a & <b>: ccal"] * 2 + ["a & <b>: random"] * 2 + ["other: ccal"]
    label = next(a["aria-label"] for tag, a in page.elements if tag == "svg")
    assert "a & <b>: ccal from 70 to 40 %" in label and "other: ccal from 30 to 30 %" in label
    assert (tmp_path / "both_figures" / "scores_run1_cycle_1.png").is_file()


def test_two_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for place in ("x", "y"):
        index_files(tmp_path / place / "same", "random")
    page = make(tmp_path / "x" / "same", tmp_path / "y" / "same", out=tmp_path / "both.html")
    assert {row[0] for row in rows_of(page, "query", "cycle")} == {f"{tmp_path}/{n}/same: random" for n in "xy"}


def test_queries_of_a_mixed_pool_are_counted_by_source(tmp_path: Path) -> None:
    index_files(tmp_path / "mixed", "ccal", found=(7,))
    for cycle, name, counts in ((0, "pool", {"digits": 40, "mnist": 60}), (1, "queried", {"digits": 7, "mnist": 3})):
        path = tmp_path / "mixed" / f"cycle_{cycle}.json"
        content = json.loads(path.read_text())
        content["metrics"][f"{name}_by_source"] = counts
        path.write_text(json.dumps(content))
    assert rows_of(make(tmp_path / "mixed"), "query", "images", "source") == [
        ["ccal", "pool at the start", "digits", "40"],
        ["ccal", "pool at the start", "mnist", "60"],
        ["ccal", "queried in cycle 1", "digits", "7"],
        ["ccal", "queried in cycle 1", "mnist", "3"],
    ]


def test_the_published_lists_stand_beside_cifar10_at_that_mismatch_only(tmp_path: Path) -> None:
    index_files(tmp_path / "cifar", "ccal", dataset="cifar10")
    page = make(tmp_path / "cifar")
    published = [row for row in rows_of(page, "query", "cycle") if row[0] == "published lists"]
    assert [row[4] for row in published] == ["94.73", "93.00", "93.00", "94.80", "92.67", "78.07", "29.27"]
    assert published[-1][5] == "93.84"  # 8633 of 9200
    assert "compare with care" in page.sections["What the queries found"]  # ten queries a cycle, not 1500
    index_files(tmp_path / "digits", "ccal", dataset="digits")
    assert "ublished" not in make(tmp_path / "digits").sections["What the queries found"]


def test_the_same_run_gives_the_same_page(made: tuple[Path, Reader], tmp_path: Path) -> None:
    run, _ = made
    make(run, out=tmp_path / "report.html")
    for name in ("report.html", "report_figures/scatter_run1_cycle_1_class_0.png"):
        assert (tmp_path / name).read_bytes() == (run / name).read_bytes()
