"""The table of a query, from files made by hand."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from common.provenance import int64_digest
from common.session import run_command
from datasets.index_files import IndexFile, write_index_file
from datasets.results_file import Row, append_row, read_rows
from evals import summary
from utils import InputError


def write_query(folder: Path, strategy: str, found: list[int], digest: str = "d") -> list[int]:
    """Index files of cycles that query 10 images each, and the labeled list of the last one."""
    labeled = [1, 2]
    for cycle, count in enumerate([0, *found]):
        labeled = labeled + [100 * cycle + n for n in range(count)]
        metrics = {"found": count, "precision": 10.0 * count, "auroc_semantic": 0.97, "pool": 50 - 10 * cycle}
        content = IndexFile(
            dataset="npz", mismatch=0.5, split_digest=digest, target_classes=[0, 1], strategy=strategy, cycle=cycle,
            labeled=labeled, queried=list(range(1000 * cycle, 1000 * cycle + 10)) if cycle else [], set_aside=[],
            metrics=metrics if cycle else {},
        )  # fmt: skip
        write_index_file(folder, content)
    return labeled


@pytest.fixture
def argv(tmp_path: Path) -> list[str]:
    """Flags for two cycles of a query and a random one, and classifiers of cycles 0 and 2."""
    last = int64_digest(write_query(tmp_path / "ccal", "ccal", [9, 5]))
    write_query(tmp_path / "random", "random", [2, 3])
    row = Row("npz", 0.5, "ccal", "proper", 9, 32, 0.1, 0, 2, 0, 70.0, 71.0, int64_digest([1, 2]), "data", 1.0)
    append_row(tmp_path / "results.csv", row)
    for seed, accuracy in enumerate([80.0, 84.0]):
        change = {
            "balanced_accuracy": accuracy - 10,
            "rejection": 40.0,
            "split_digest": "d",
            "cycle": 2,
            "labeled": 16,
            "seed": seed,
            "accuracy": accuracy,
            "index_digest": last,
        }
        append_row(tmp_path / "results.csv", dataclasses.replace(row, **change))
    names = {"index_dir": "ccal", "random_dir": "random", "results": "results.csv", "out_path": "out"}
    return [word for flag, name in names.items() for word in (f"--{flag}", str(tmp_path / name))]


def test_further_queries_stand_beside_it(tmp_path: Path, argv: list[str], capsys) -> None:
    write_query(tmp_path / "pixels", "semantic", [7])
    summary.main([*argv, "--beside", str(tmp_path / "pixels")])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    start = lines.index(["cycle", "ccal", "pixels", "random", "ccal", "accuracy"])
    assert [" ".join(line) for line in lines[start + 1 : start + 4]] == [
        "0 0 0 0 70.00 %", "1 9 7 2 -", "2 5 3 82.00 ± 2.83 %",
    ]  # fmt: skip
    assert " ".join(lines[start + 4]) == "ccal: 14 of 20 queried were targets; pixels 7 of 10; random 5"
    write_query(tmp_path / "pixels", "semantic", [7], digest="another")
    with pytest.raises(InputError, match="pixels and .*ccal are of different splits"):
        summary.main([*argv, "--beside", str(tmp_path / "pixels")])


def test_the_table_puts_together_what_the_files_hold(tmp_path: Path, argv: list[str], capsys) -> None:
    summary.main(argv)
    with open(tmp_path / "out" / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    names = [
        "cycle",
        "labeled",
        "queried",
        "found",
        "precision",
        "random_precision",
        "accuracy",
        "deviation",
        "seeds",
        "annotated",
    ]
    assert list(rows[0])[:8] == names[:8]
    assert [[row[name] for name in names] for row in rows] == [
        ["0", "2", "0", "0", "", "", "70.0", "", "1", "0"],
        ["1", "11", "10", "9", "90.0", "20.0", "", "", "0", "10"],
        ["2", "16", "10", "5", "50.0", "30.0", "82.0", str(8**0.5), "2", "20"],  # |84 - 80| / sqrt(2), ddof = 1
    ]
    assert [(row["auroc_semantic"], row["pool"]) for row in rows] == [("", ""), ("0.97", "40"), ("0.97", "30")]
    shown = capsys.readouterr().out
    heading, *lines = shown.splitlines()[:4]
    assert "random query" in heading and "published" not in heading and "AUROC of the score" not in heading
    assert lines[2].split() == [
        "2",
        "10",
        "5",
        "50.0",
        "%",
        "30.0",
        "%",
        "0.9700",
        "16",
        "82.00",
        "±",
        "2.83",
        "%",
        "72.00",
        "%",
        "40.0",
        "%",
    ]
    assert (tmp_path / "out" / "summary.png").read_bytes().startswith(b"\x89PNG")


def test_the_figure_has_accuracy_by_images_annotated(tmp_path: Path, argv: list[str], monkeypatch) -> None:
    """Those of the query, and those of the random one where they are in the same results.csv."""
    shown = []
    monkeypatch.setattr("common.plots.plot_summary", lambda path, **given: shown.append(given))
    last = summary.read_cycles(tmp_path / "random")[-1]
    [row, *_] = summary.read_rows(tmp_path / "results.csv")
    changes = {"strategy": "random", "cycle": 2, "accuracy": 75.0, "index_digest": int64_digest(last.labeled)}
    append_row(tmp_path / "results.csv", dataclasses.replace(row, **changes))
    summary.main(argv)
    assert shown[0]["accuracy"] == {"ccal": [(0, 70.0, None), (20, 82.0, 8**0.5)], "random": [(20, 75.0, None)]}
    rows = summary.cycle_rows(summary.read_cycles(tmp_path / "random"))
    summary.draw(tmp_path / "x.png", rows, strategy="random")  # its own precision is not overwritten
    assert shown[1]["precision"] == {"random": [(1, 20.0), (2, 30.0)]}


def test_what_was_found_is_said_in_one_sentence(tmp_path: Path) -> None:
    write_query(tmp_path, "any", [0, 0])
    empty = summary.cycle_rows(summary.read_cycles(tmp_path))

    def rows(*found: int) -> list[summary.CycleRow]:
        return [dataclasses.replace(empty[n], found=count, annotated=750 * n) for n, count in enumerate([0, *found])]

    both, random = rows(900, 575), rows(309, 0)
    assert summary.headline({"posterior": both, "random": random}) == "1,475 of 1,500 queried were targets; random 309"
    assert summary.headline({"posterior": both}) == "1,475 of 1,500 queried were targets"
    assert summary.headline({"new": rows(), "random": random}) == "random: 309 of 1,500 queried were targets"
    assert summary.headline({"posterior": both, "short": rows(7), "random": random}) == (
        "posterior: 1,475 of 1,500 queried were targets; short 7 of 750; random 309"
    )
    assert summary.headline({"new": rows()}) == summary.headline({}) == ""


def of_another_order(path: Path) -> None:
    """Classifiers of the same labeled images, whose split has the classes in another order."""
    rows = read_rows(path)
    path.unlink()
    for row in rows:
        append_row(path, dataclasses.replace(row, split_digest="order"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: (path / "ccal" / "cycle_0.json").unlink(), "holds no cycle_0.json"),
        (lambda path: (path / "results.csv").unlink(), "does not exist"),
        (lambda path: (path / "results.csv").write_text("a,b\n1,2\n"), "is damaged"),
        (lambda path: write_query(path / "random", "random", [1], digest="other"), "different splits"),
        (lambda path: of_another_order(path / "results.csv"), "has no classifier of the query"),
    ],
)
def test_what_cannot_be_put_together_is_refused(tmp_path: Path, argv: list[str], capsys, change, message) -> None:
    change(tmp_path)
    assert run_command(summary.main, argv) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_published_values_stand_beside_the_authors_split_alone(shared: Path, tmp_path: Path) -> None:
    labeled = np.load(shared / "data" / "published_queries_cifar10_mismatch80.npz")["cycle_0"].tolist()
    first = IndexFile("cifar10", 0.8, "d", [0, 1], "ccal", 0, labeled, [], [])
    metrics = {"found": 1400, "precision": 93.33, "auroc_semantic": 0.97, "auroc_utility": 0.95}
    second = dataclasses.replace(first, cycle=1, queried=list(range(1500)), metrics=metrics)
    rows = summary.cycle_rows([first, second])
    assert [row.published_found for row in rows] == [None, 1421]
    assert rows[1].published_precision == 100 * 1421 / 1500
    cells = summary.table_cells(rows)
    assert cells[0][-2:] == ["published found", "published precision"]
    assert cells[2] == ["1", "1500", "1400", "93.3 %", "0.9700", "0.9500", "800", "1421", "94.7 %"]
    summary.write_markdown(tmp_path / "x.md", "title", rows, notes=["a note"], figure="x.png", commands="python x.py")
    lines = (tmp_path / "x.md").read_text().splitlines()
    assert "- a note" in lines and "| " + " | ".join(["---"] * 9) + " |" in lines and "python x.py" in lines
    for changed in ({"labeled": labeled[::-1]}, {"mismatch": 0.6}, {"dataset": "cifar10+svhn"}):
        assert summary.published_found([dataclasses.replace(first, **changed), second]) == ()
    assert summary.published_found([first, dataclasses.replace(second, queried=list(range(150)))]) == ()
