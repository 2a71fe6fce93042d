"""docs/tutorial.md: its commands run, in its order, and print what it shows."""

from __future__ import annotations

import csv
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import active_main
import contrast_main
import train_classifier.main
import train_classifier.predict
from common.files import read_json
from common.session import run_command

COMMANDS = {
    "contrast_main.py": contrast_main.main,
    "active_main.py": active_main.main,
    "train_classifier/main.py": train_classifier.main.main,
    "-m train_classifier.predict": train_classifier.predict.main,
}
# What makes the run short; the order of steps, files and flags is the document's.
SHORT = {"--epochs": "1", "--warmup": "0"}
Truth = Callable[[str], str]
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def blocks(text: str) -> list[tuple[str, str]]:
    """Kind (bash, text, python) and content of each block of the document, in order."""
    return re.findall(r"```(bash|text|python)\n(.*?)```", text, flags=re.DOTALL)


def run(command: str) -> None:
    words = shlex.split(command)[1:]
    name = " ".join(words[:2]) if words[0] == "-m" else words[0]
    words = words[len(name.split()) :]
    words = [SHORT.get(before, word) for before, word in zip(["", *words], words)]
    words += ["--epochs", "1"] * (name == "train_classifier/main.py")
    assert run_command(COMMANDS[name], words) == 0, command


def label(command: str, truth: Truth) -> None:
    """Fills in the csv that a command asks for, as somebody who knows."""
    name = re.search(r"--labels (\S+)", command)
    if not name:
        return
    cycle = re.search(r"\d+", name[1])[0]
    with open(Path("runs/query") / f"cycle_{cycle}" / "to_label.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    with open(name[1], "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row | {"label": truth(row["path"])} for row in rows)


def plain(line: str) -> str:
    """A line without numbers, deviations (of one seed there is none), widths and the place of the scripts."""
    line = re.sub(r"\S*/(?=active_main.py|train_classifier/)| ± [\d.]+", "", line)
    return " ".join(re.sub(r"\d+(\.\d+)?(e-?\d+)?", "#", line).split())


def lacking(shown: str, printed: str) -> str | None:
    """The first line shown that was not printed, in the order shown; "..." stands for anything."""
    lines: Iterator[str] = iter([plain(line) for line in printed.splitlines()])
    for line in shown.splitlines():
        pattern = re.compile(re.escape(plain(line)).replace(r"\.\.\.", ".*"))
        if line != "..." and not any(pattern.fullmatch(found) for found in lines):
            return line
    return None


def go_through(text: str, truth: Truth, capsys: pytest.CaptureFixture) -> None:
    """Runs all commands of the document in the working directory and compares what they print."""
    printed = ""
    for kind, content in blocks(text):
        if kind == "bash":
            label(content, truth)
            capsys.readouterr()
            run(content)
            printed = capsys.readouterr().out
        elif kind == "text":
            missing = lacking(content, printed)
            assert missing is None, f"not printed: {missing}\nprinted:\n{printed}"


def check_result() -> None:
    """Three cycles are in, the fourth waits; the classifier has measured all labeled sets, and sorted what is new."""
    states = [read_json(f"runs/query/cycle_{cycle}.json") for cycle in range(4)]
    assert [len(state["labeled"]) for state in states] == sorted(len(state["labeled"]) for state in states)
    asked = [path for state in states for path, _ in state["files"]["queried"]]
    assert len(set(asked)) == len(asked) == 150
    assert sorted(path.name for path in Path("runs/query/cycle_4").iterdir()) == [
        "label.html", "query.json", "to_label.csv",
    ]  # fmt: skip
    with open("runs/query/classifier/results.csv", newline="") as file:
        assert {row["cycle"] for row in csv.DictReader(file)} == {"0", "1", "2", "3"}
    with open("runs/query/classifier/predictions/predictions.csv", encoding="utf-8-sig", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(list(Path("new").iterdir())) > 0
    with open("labels/labels.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    labeled = [path.relative_to("mine").as_posix() for path in Path("mine/labeled").rglob("*.png")]
    assert {row["path"] for row in rows} == {*labeled, *asked}
    assert all(row["class"] == (truth(row["path"]) or row["class"]) for row in rows)


@pytest.fixture
def text(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The document; the working directory is empty."""
    monkeypatch.chdir(tmp_path)
    return (root / "docs" / "tutorial.md").read_text()


def truth(path: str) -> str:
    """What a picture of the document's script shows, by its name."""
    name = Path(path).name.split("_")[0]
    return name if name in CLASSES[:2] else "other"


class Pictures:
    """Stands in for torchvision's CIFAR-10, which would be downloaded: crops of two photographs, turned or tinted."""

    classes = CLASSES
    each = 200  # pictures of a class

    def __init__(self, root: str, *, train: bool, download: bool) -> None:
        from sklearn.datasets import load_sample_images

        draw, photographs = np.random.default_rng(int(train)), load_sample_images().images
        self.targets, self.data = [], []
        for label in range(len(CLASSES)):
            photograph = np.rot90(photographs[label % 2], label // 2 % 4) if label < 8 else 255 - photographs[label % 2]
            for _ in range(self.each):
                top, left = (int(draw.integers(size - 64)) for size in photograph.shape[:2])
                self.targets.append(label)
                self.data.append(photograph[top : top + 64 : 2, left : left + 64 : 2])


def test_the_tutorial(text, capsys, monkeypatch):
    [example] = [content for kind, content in blocks(text) if kind == "python"]
    monkeypatch.setattr("torchvision.datasets.CIFAR10", Pictures)
    monkeypatch.setattr(sys, "argv", ["active_main.py"])
    example = re.sub(r'"unlabeled": \d+', '"unlabeled": 20', example)  # of each class, so that 200 - 150 are left
    exec(compile(example, "docs/tutorial.md", "exec"), {})
    go_through(text, truth, capsys)
    check_result()


def test_a_line_that_is_not_printed_is_seen():
    printed = "cycle 1: 20 labels\nwrote a and b\nnext: python x.py --flag 3 --labels l.csv\n"
    assert lacking("...\ncycle 2: 18 labels\n...\nnext: python ... --labels l.csv\n", printed) is None
    assert lacking("cycle 1: 20 images\n", printed) == "cycle 1: 20 images"
    assert lacking("wrote a and b\ncycle 1: 20 labels\n", printed) == "cycle 1: 20 labels"
