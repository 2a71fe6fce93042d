"""active_main.py --annotate: queries go out, labels come back, and the folder may change in between."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import active_main
import train_classifier.main
from common import checkpoint
from common.cli import run_cli
from common.files import read_json, write_json
from datasets import load_data_and_split
from datasets.folder.labels import SET_ASIDE
from datasets.split import make_split
from evals.annotation import loop as annotation
from evals.annotation.label_csv import Asked
from evals.annotation.waiting_query import WaitingQuery, storage_key
from evals.cycles import query_cycles, query_once
from evals.features import FeatureBank
from evals.query import STRATEGIES
from models import build_encoder
from tests.chromium import Tab, running_browser

KINDS = ("cat", "dog", "bird")  # birds are no target class


def draw(path: Path, number: int) -> None:
    """An image of 32x32 pixels whose shade says what it is: number mod 3."""
    generator = np.random.default_rng(number)
    pixels = generator.integers(0, 60, (32, 32, 3)) + 80 * (number % 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


class Place:
    """A folder with 4 labeled cats and dogs each and 24 images in the pool, and the command."""

    def __init__(self, folder: Path) -> None:
        self.images = folder / "mine"
        self.index = folder / "query"
        self.folder = folder

    def fill(self) -> None:
        for number in range(12):
            if number % 3 < 2:
                draw(self.images / "labeled" / KINDS[number % 3] / f"{number}.png", number)
        for number in range(100, 124):
            draw(self.images / "unlabeled" / f"{number}.png", number)

    def words(self, *more: str) -> list[str]:
        words = f"--dataset folder --data_path {self.images} --index_dir {self.index} --strategy random --target 4"
        # With this seed the first query has some of each kind.
        return [*words.split(), "--seed", "1", "--device", "cpu", "--annotate", *more]

    def run(self, *more: str) -> int:
        try:
            return run_cli(active_main.main, self.words(*more))
        except SystemExit as stop:
            return stop.code

    def table(self, cycle: int) -> Path:
        return self.index / f"cycle_{cycle}" / "to_label.csv"

    def rows(self, cycle: int) -> list[dict[str, str]]:
        with open(self.table(cycle), encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file))

    def answers(self, cycle: int) -> dict[str, str]:
        """What a person would say, by path."""
        return {row["path"]: truth(row["path"]) for row in self.rows(cycle)}

    def fill_in(self, answers: dict[str, str], name: str = "filled.csv") -> Path:
        path = self.folder / name
        with open(path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "label"])
            writer.writerows(answers.items())
        return path

    def state(self, cycle: int) -> dict:
        return read_json(self.index / f"cycle_{cycle}.json")

    def snapshot(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in self.index.rglob("*") if path.is_file()}


def truth(path: str) -> str:
    kind = KINDS[int(Path(path).stem) % 3]
    return kind if kind != "bird" else "other"


def paths_of(state: dict, name: str) -> list[str]:
    return [path for path, _ in state["files"][name]]


@pytest.fixture(autouse=True)
def program_name(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["active_main.py"])


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    Place(folder).fill()
    return folder


@pytest.fixture
def place(template, tmp_path) -> Place:
    shutil.copytree(template / "mine", tmp_path / "mine")
    return Place(tmp_path)


# Going round


def test_two_cycles(place, capsys):
    assert place.run() == 0
    said = capsys.readouterr().out
    assert "cycle 1 waits for the labels of 8 images" in said
    assert f"open {place.index / 'cycle_1' / 'label.html'} in a browser, which saves them as labels_cycle_1.csv" in said
    command = shlex.join(["python", "active_main.py", *place.words("--labels", "labels_cycle_1.csv")])
    assert said.endswith(f"\nnext: {command}\n")
    initial = place.state(0)
    assert initial["labels"] == [0] * 4 + [1] * 4 and initial["queried"] == []
    assert {path.name for path in (place.index / "cycle_1").iterdir()} == {
        "label.html", "query.json", "to_label.csv",
    }  # fmt: skip

    answers = place.answers(1)
    assert place.run("--labels", str(place.fill_in(answers))) == 0
    said = capsys.readouterr().out
    kinds = [list(answers.values()).count(kind) for kind in ("cat", "dog", "other")]
    assert sum(kinds) == 8 and all(kinds)
    found = kinds[0] + kinds[1]
    assert (
        f"cycle 1: 8 labels, target {found} (cat {kinds[0]}, dog {kinds[1]}), other {kinds[2]}, precision "
        f"{100 * found / 8:.1f} %, labeled {8 + found}, pool 16"
    ) in said
    state = place.state(1)
    names = [["cat", "dog"][number] for number in state["labels"]]
    labels = dict(zip(paths_of(state, "labeled"), names))
    assert {path: name for path, name in labels.items() if path.startswith("unlabeled/")} == {
        path: name for path, name in answers.items() if name != "other"
    }
    assert set(paths_of(state, "set_aside")) == {path for path, name in answers.items() if name == "other"}
    assert paths_of(state, "queried") == list(answers)
    assert state["metrics"] == {
        "queried": 8, "found": found, "found_per_class": kinds[:2], "precision": 100 * found / 8, "recall": None,
        "labeled": 8 + found, "pool": 16,
    }  # fmt: skip

    second = place.answers(2)
    assert len(second) == 8 and not set(second) & set(answers)
    assert place.run("--labels", str(place.fill_in(second))) == 0
    assert place.state(2)["labeled"][: len(state["labeled"])] == state["labeled"]
    third = place.answers(3)
    assert len(third) == 8 and not set(third) & (set(answers) | set(second))
    assert place.run("--labels", str(place.fill_in(third))) == 0
    assert "the pool is empty" in capsys.readouterr().out
    assert not (place.index / "cycle_4").exists()


def test_nothing_in_the_person_s_folder_changes(place):
    before = {path: path.read_bytes() for path in place.images.rglob("*.png")}
    place.run()
    place.run("--labels", str(place.fill_in(place.answers(1))))
    assert {path: path.read_bytes() for path in place.images.rglob("*.png")} == before


def test_the_folder_of_index_files_is_all_that_is_needed(place):
    place.run()
    place.run("--labels", str(place.fill_in(place.answers(1))))
    asked = list(place.answers(2))
    for name in ("cycle_1", "cycle_2"):
        shutil.rmtree(place.index / name)
    shutil.rmtree(place.images / ".ccal_cache")
    assert place.run() == 0
    assert list(place.answers(2)) == asked


def test_a_command_given_twice_changes_nothing(place, capsys):
    place.run()
    before = place.snapshot()
    assert place.run() == 0
    assert "cycle 1 waits for the labels of 8 images" in capsys.readouterr().out
    assert place.snapshot() == before
    filled = str(place.fill_in(place.answers(1)))
    place.run("--labels", filled)
    before = place.snapshot()
    capsys.readouterr()
    assert place.run("--labels", filled) == 0
    said = capsys.readouterr().out
    assert "are in cycle_1.json already" in said and "cycle 2 waits" in said
    assert place.snapshot() == before


def test_a_query_that_was_cut_short_is_made_by_the_next_command(place):
    place.run()
    asked = list(place.answers(1))
    (place.index / "cycle_1" / "query.json").unlink()
    assert place.run() == 0
    assert list(place.answers(1)) == asked
    assert (place.index / "cycle_1" / "query.json").is_file()


def test_overwrite_queries_anew(place, capsys):
    place.run()
    first = set(place.answers(1))
    initial = (place.index / "cycle_0.json").read_bytes()
    assert place.run("--overwrite", "--seed", "5") == 0
    assert set(place.answers(1)) != first
    # As the help says: the index files stay.
    assert (place.index / "cycle_0.json").read_bytes() == initial


def content_of(page: Path) -> dict:
    return json.loads(re.search(r'id="query">(.*?)</script>', page.read_text(encoding="utf-8"))[1])


def key_in(page: Path) -> str:
    return content_of(page)["key"]


def test_the_same_images_asked_again_find_their_labels_in_the_browser(place):
    place.run()
    page, query = place.index / "cycle_1" / "label.html", read_json(place.index / "cycle_1" / "query.json")
    key = key_in(page)
    content = place.state(0)
    write_json(place.index / "cycle_0.json", {**content, "seconds": content["seconds"] + 1})
    page.unlink()
    assert place.run() == 0
    again = read_json(place.index / "cycle_1" / "query.json")
    assert again["after"] != query["after"] and again["images"] == query["images"]
    assert key_in(page) == key
    assert place.run("--overwrite", "--seed", "5") == 0
    assert key_in(page) != key


def test_what_the_browser_keeps_labels_by(tmp_path):
    """By place and number: what changes neither keeps the key, all that changes one of them changes it."""
    images = [Asked(f"unlabeled/{n}.png", f"{n}", "cat", 0.5, 0.25, 0.25) for n in range(3)]
    query = WaitingQuery(2, "before", ["cat", "dog"], "ccal", {"t": 0.9}, 1.5, images)
    key = storage_key(tmp_path, query)
    scored_anew = [dataclasses.replace(image, suggestion="dog", joint=1, semantic=0, distinctive=1) for image in images]
    for same in ({"after": "other"}, {"seconds": 2.5}, {"images": scored_anew}):
        assert storage_key(tmp_path, dataclasses.replace(query, **same)) == key
    for other in (
        {"cycle": 3},
        {"class_names": ["dog", "cat"]},
        {"images": images[::-1]},
        {"images": images[:2]},
        {"images": [dataclasses.replace(images[0], digest="9"), *images[1:]]},
        {"images": [dataclasses.replace(images[0], path="unlabeled/9.png"), *images[1:]]},
    ):
        assert storage_key(tmp_path, dataclasses.replace(query, **other)) != key
    assert storage_key(tmp_path / "elsewhere", query) != key


def test_the_help_of_overwrite_says_what_it_does_with_annotate(capsys):
    with pytest.raises(SystemExit):
        run_cli(active_main.main, ["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "with --annotate, keep them and make the query that waits for its labels anew" in said


def test_overwrite_keeps_what_somebody_has_filled_in(place, capsys):
    place.run()
    text = place.table(1).read_text(encoding="utf-8")
    place.table(1).write_text(text.replace(",,,,\n", ",,,,cat\n", 1), encoding="utf-8")
    before = place.snapshot()
    assert place.run("--overwrite", "--seed", "5") == 2
    assert "to_label.csv is filled in: take it with --labels" in capsys.readouterr().err
    assert place.snapshot() == before


def test_partial_returns_the_others_to_the_pool(place, capsys):
    place.run()
    answers = place.answers(1)
    half = dict(list(answers.items())[:5])
    filled = str(place.fill_in(half))
    before = place.snapshot()
    assert place.run("--labels", filled) == 2
    assert "3 of 8 images have no label" in capsys.readouterr().err
    assert place.snapshot() == before
    assert place.run("--labels", filled, "--partial") == 0
    assert "cycle 1: 5 labels of 8 asked for" in capsys.readouterr().out
    state = place.state(1)
    assert paths_of(state, "queried") == list(half)
    assert (state["metrics"]["unanswered"], state["metrics"]["pool"]) == (3, 19)
    # What was given may be given again.
    before = place.snapshot()
    assert place.run("--labels", filled, "--partial") == 0
    assert "are in cycle_1.json already" in capsys.readouterr().out
    assert place.snapshot() == before


@pytest.mark.parametrize("more", [[], ["--partial"]])
def test_labels_that_come_after_partial_ones_are_not_dropped(place, capsys, more):
    place.run()
    answers = place.answers(1)
    place.run("--labels", str(place.fill_in(dict(list(answers.items())[:3]))), "--partial")
    completed = str(place.fill_in(answers))
    before = place.snapshot()
    capsys.readouterr()
    assert place.run("--labels", completed, *more) == 2
    error = capsys.readouterr().err
    later = place.index / "cycle_2"
    assert f"are in already, without 5 that this file has, such as that of {list(answers)[3]}, whose images" in error
    assert error.endswith(
        f"to take what it says, move {place.index / 'cycle_1.json'} away, and {later}, whose query followed it, and "
        "give this file again\n"
    )
    assert error.count("\n") == 1 and place.snapshot() == before
    # As the message says.
    (place.index / "cycle_1.json").rename(place.folder / "away.json")
    later.rename(place.folder / "away")
    assert place.run("--labels", completed, *more) == 0
    assert paths_of(place.state(1), "queried") == list(answers)
    assert "unanswered" not in place.state(1)["metrics"]
    assert len(place.answers(2)) == 8


def test_only_the_labels_that_were_left_out(place, capsys):
    place.run()
    answers = list(place.answers(1).items())
    place.run("--labels", str(place.fill_in(dict(answers[:3]))), "--partial")
    shutil.rmtree(place.index / "cycle_2")
    before = place.snapshot()
    capsys.readouterr()
    assert place.run("--labels", str(place.fill_in(dict(answers[3:])))) == 2
    error = capsys.readouterr().err
    path = place.index / "cycle_1.json"
    assert f"move {path} away and give this file again with the 3 label(s) added that it lacks\n" in error
    assert place.snapshot() == before


def test_the_last_query_takes_what_is_left(place):
    place.run()
    assert place.run("--target", "100", "--labels", str(place.fill_in(place.answers(1)))) == 0
    assert len(place.answers(2)) == 16


def test_more_than_the_pool_has_is_refused_at_the_start(place, capsys):
    assert place.run("--target", "100") == 2
    assert "the largest --target here is 12" in capsys.readouterr().err
    assert not place.index.exists()


def test_twenty_images_are_labeled_in_the_browser_and_given_back(place, tmp_path):
    assert place.run("--target", "10") == 0
    answers = place.answers(1)
    assert len(answers) == 20
    presses = [{"cat": "1", "dog": "2", "other": "o"}[label] for label in answers.values()]
    page = place.index / "cycle_1" / "label.html"
    for part in (presses[:9], [*presses[9:], "s"]):  # the browser is closed in between
        with running_browser(tmp_path / "profile") as driver:
            tab = Tab(driver, page)
            tab.press(*part)
            if part[-1] == "s":
                saved = tab.saved("labels_cycle_1.csv")
            assert not tab.complaints()
    assert place.run("--target", "2", "--labels", str(saved)) == 0
    state = place.state(1)
    assert state["metrics"]["queried"] == 20
    assert dict(zip(paths_of(state, "labeled")[8:], state["labels"][8:])) == {
        path: ("cat", "dog").index(label) for path, label in answers.items() if label != "other"
    }


# What is refused, with nothing changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda answers: {**answers, "unlabeled/nothing.png": "cat"}, "line 10: 'unlabeled/nothing.png' is not among"),
        (lambda answers: {**answers, "labeled/cat/0.png": "dog"}, "line 10: 'labeled/cat/0.png' is not among"),
        (
            lambda answers: {**answers, next(iter(answers)): "bird"},
            "line 2: label 'bird' is no class here; write 'cat', 'd",
        ),
        (lambda answers: {}, "has no label in it"),
    ],
)
def test_a_wrong_table_changes_nothing(place, capsys, change, message):
    place.run()
    before = place.snapshot()
    capsys.readouterr()
    assert place.run("--labels", str(place.fill_in(change(place.answers(1))))) == 2
    error = capsys.readouterr().err
    assert "filled.csv" in error and message in error and error.count("\n") == 1
    assert place.snapshot() == before


def test_labels_that_contradict_those_that_are_in(place, capsys):
    place.run()
    answers = place.answers(1)
    place.run("--labels", str(place.fill_in(answers)))
    [other] = [path for path, name in answers.items() if name == "other"][:1]
    corrected = str(place.fill_in({**answers, other: "cat"}))
    before = place.snapshot()
    capsys.readouterr()
    assert place.run("--labels", corrected) == 2
    assert f"says otherwise of 1 image(s), such as {other} (cat, not other)" in capsys.readouterr().err
    assert place.snapshot() == before
    # As the message says: with the index file away the correction is taken, and the query after it is made anew.
    (place.index / "cycle_1.json").rename(place.folder / "away.json")
    place.table(2).write_text("begun")
    assert place.run("--labels", corrected) == 0
    assert other in paths_of(place.state(1), "labeled")
    # What had been filled in of that query is kept.
    assert "begun" in (place.index / "cycle_2" / "to_label.replaced.csv").read_text()
    assert "begun" not in place.table(2).read_text()


def test_a_query_made_before_a_correction_is_made_anew(place, capsys):
    place.run()
    answers = place.answers(1)
    place.run("--labels", str(place.fill_in(answers)))
    content = place.state(1)
    write_json(place.index / "cycle_1.json", {**content, "seconds": content["seconds"] + 1})
    capsys.readouterr()
    assert place.run() == 0
    assert "the query of cycle 2 was made before the labels in cycle_1.json: it is made anew" in capsys.readouterr().out
    assert place.run() == 0
    assert "made anew" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--labels", "nothing.csv"], "--labels nothing.csv: no query in"),
        (["--partial"], "--partial says how to take --labels CSV; give both"),
    ],
)
def test_flags_that_have_nothing_to_do(place, capsys, more, message):
    assert place.run(*more) == 2
    assert message in capsys.readouterr().err


def test_labels_go_with_annotate(place, capsys):
    words = [word for word in place.words("--labels", "x.csv") if word != "--annotate"]
    assert run_cli(active_main.main, words) == 2
    assert "--labels x.csv goes with --annotate; give both" in capsys.readouterr().err


def test_data_with_labels_need_no_people(place, capsys):
    words = f"--dataset digits --strategy random --annotate --index_dir {place.index}"
    assert run_cli(active_main.main, words.split()) == 2
    assert "digits has all its labels: leave --annotate out" in capsys.readouterr().err


def test_a_class_called_other(place, capsys):
    draw(place.images / "labeled" / "Other" / "1.png", 1000)
    assert place.run() == 2
    assert "a class is named 'Other'" in capsys.readouterr().err


def test_index_files_of_a_simulated_query_are_not_continued(place, capsys):
    words = f"--dataset digits --strategy random --target 5 --split 1 --index_dir {place.index}"
    assert run_cli(active_main.main, words.split()) == 0
    assert place.run() == 2
    assert "does not name its images by path" in capsys.readouterr().err


def test_a_gap_in_the_index_files(place, capsys):
    place.run()
    place.run("--labels", str(place.fill_in(place.answers(1))))
    (place.index / "cycle_0.json").unlink()
    assert place.run() == 2
    assert "holds cycle_1.json but no cycle_0.json" in capsys.readouterr().err


def test_a_query_file_without_a_version(place, capsys):
    place.run()
    path = place.index / "cycle_1" / "query.json"
    write_json(path, {name: value for name, value in read_json(path).items() if name != "format_version"})
    assert place.run() == 2
    assert "query.json is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("field", "value"),
    [("joint", "1"), ("semantic", [1]), ("suggestion", "bird"), ("path", 3), ("digest", None), ("more", 1)],
)
def test_a_query_file_with_a_wrong_field(place, capsys, field, value):
    place.run()
    path = place.index / "cycle_1" / "query.json"
    content = read_json(path)
    content["images"][2][field] = value
    write_json(path, content)
    assert place.run() == 2
    assert "query.json is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format_version": 1}', '{"format_version": 1, "cycle": 1, "images": 3}']
)
def test_a_damaged_query_file(place, capsys, text):
    place.run()
    (place.index / "cycle_1" / "query.json").write_text(text)
    assert place.run() == 2
    error = capsys.readouterr().err
    assert "query.json" in error and error.count("\n") == 1


# The folder of images changes in between


def test_the_page_shows_what_was_scored_though_a_file_is_replaced_meanwhile(place, monkeypatch):
    asked_images, replaced, scored = annotation.asked_images, [], {}

    def replace_first(*args):
        asked = asked_images(*args)
        for item in asked:
            with Image.open(place.images / item.path) as image:
                scored[item.path] = np.array(image)
        replaced.append(asked[0].path)
        Image.new("RGB", (64, 48), "red").save(place.images / asked[0].path)
        return asked

    monkeypatch.setattr(annotation, "asked_images", replace_first)
    assert place.run() == 0
    shown = {item["path"]: item["image"] for item in content_of(place.index / "cycle_1" / "label.html")["items"]}
    assert set(shown) == set(scored) and replaced
    for path, picture in shown.items():
        with Image.open(io.BytesIO(base64.b64decode(picture.split(",")[1]))) as image:
            assert np.array_equal(np.array(image), scored[path]), path


def test_new_images_join_the_pool(place):
    place.run()
    draw(place.images / "unlabeled" / "099.png", 99)  # before all others: every number shifts
    draw(place.images / "labeled" / "cat" / "00.png", 30)
    answers = place.answers(1)
    assert place.run("--labels", str(place.fill_in(answers))) == 0
    state = place.state(1)
    assert state["metrics"]["pool"] == 24 + 1 - 8
    assert "labeled/cat/00.png" in paths_of(state, "labeled")
    names = dict(zip(paths_of(state, "labeled"), state["labels"]))
    assert all(names[path] == ("cat", "dog").index(name) for path, name in answers.items() if name != "other")


def test_images_that_are_gone_are_named(place, capsys):
    place.run()
    answers = place.answers(1)
    gone = [path for path, name in answers.items() if name == "cat"][0]
    (place.images / gone).unlink()
    assert place.run("--labels", str(place.fill_in(answers))) == 0
    said = capsys.readouterr().out
    assert (
        f"warning: 1 label(s) are not used: the images are no longer in unlabeled/ as they were asked for ({gone})"
        in said
    )
    assert gone not in paths_of(place.state(1), "labeled")
    assert place.run("--labels", str(place.fill_in(answers))) == 0
    assert "1 label(s) in" in (said := capsys.readouterr().out) and "are in cycle_1.json already" in said

    later = [path for path, name in answers.items() if name == "dog"][0]
    (place.images / later).unlink()
    assert place.run() == 0
    said = capsys.readouterr().out
    assert (
        f"1 labeled image(s) of cycle_1.json are no longer in the folder and left out of the labeled set ({later})"
        in said
    )
    assert "cycle 2 waits" in said


def test_images_that_the_person_sorts_into_class_folders_stay_labeled(place):
    place.run()
    answers = place.answers(1)
    place.run("--labels", str(place.fill_in(answers)))
    for path, name in answers.items():
        if name != "other":
            (place.images / path).rename(place.images / "labeled" / name / Path(path).name)
    second = place.answers(2)
    assert place.run("--labels", str(place.fill_in(second))) == 0
    state = place.state(2)
    names = dict(zip(paths_of(state, "labeled"), state["labels"]))
    for path, name in answers.items():
        if name != "other":
            assert names[f"labeled/{name}/{Path(path).name}"] == ("cat", "dog").index(name)
    assert set(place.answers(3)) == {f"unlabeled/{n}.png" for n in range(100, 124)} - set(answers) - set(second)


def test_a_class_whose_folder_is_gone(place, capsys):
    place.run()
    place.run("--labels", str(place.fill_in(place.answers(1))))
    shutil.rmtree(place.images / "labeled" / "dog")
    assert place.run() == 2
    assert "there is no folder labeled/dog any more" in capsys.readouterr().err


def test_another_folder_of_images(place, capsys, tmp_path):
    place.run()
    shutil.rmtree(place.images)
    draw(place.images / "labeled" / "cat" / "1.png", 500)
    draw(place.images / "unlabeled" / "2.png", 501)
    assert place.run("--target", "1") == 2
    assert "none of the labeled images of" in capsys.readouterr().err


def test_names_that_are_no_text_are_left_out(place, capsys):
    name = b"\xff\xfe.png"
    draw(place.images / "unlabeled" / "x.png", 700)
    (place.images / "unlabeled" / "x.png").rename(place.images / "unlabeled" / __import__("os").fsdecode(name))
    assert place.run() == 0
    assert "warning: 1 image(s) are left out of the query: their names are no UTF-8 text" in capsys.readouterr().out


def test_awkward_names_go_round(place):
    names = ["=1+1.png", "a,b.png", 'quote".png', "new\nline.png", "🐈 cat.png", "'.png", "<script>.png", " space .png"]
    for path in sorted((place.images / "unlabeled").iterdir()):
        if int(path.stem) >= 100 + len(names):
            path.unlink()
        else:
            path.rename(path.with_name(names[int(path.stem) - 100]))
    assert place.run() == 0
    rows = place.rows(1)
    assert {row["path"] for row in rows} == {f"unlabeled/{name}" for name in names}
    answers = {row["path"]: "cat" for row in rows}
    assert place.run("--labels", str(place.fill_in(answers))) == 0
    assert set(paths_of(place.state(1), "queried")) == set(answers)


# With encoders: the same queries as where an oracle is simulated


@pytest.fixture(scope="module")
def banks() -> dict[str, FeatureBank]:
    import torch

    generator = torch.Generator().manual_seed(0)
    indices = np.arange(90)
    return {
        name: FeatureBank(indices, torch.randn(90, shifts, 16, generator=generator))
        for name, shifts in (("semantic", 1), ("distinctive", 4))
    }


@pytest.mark.parametrize("strategy", ["ccal", "semantic", "distinctive", "random"])
def test_with_the_oracle_s_answers_each_query_is_that_of_the_simulation(banks, strategy):
    truth = np.arange(90) % 3
    split = make_split(truth, truth, target_classes=(2, 0), mismatch=0.3, initial_budget=10)
    settings = {"target": 4, "k": 10.0, "t": 0.5, "seed": 3}
    known = np.where(np.isin(np.arange(90), split.labeled), truth, SET_ASIDE)
    for cycle in query_cycles(split, truth, banks, STRATEGIES[strategy], cycles=3, **settings):
        alone = query_once(split, known, banks, STRATEGIES[strategy], number=cycle.number, **settings)
        assert alone.result.indices.tolist() == cycle.result.indices.tolist()
        assert alone.result.pseudo_class.tolist() == cycle.result.pseudo_class.tolist()
        split = cycle.split
        known = known.copy()
        known[split.labeled] = truth[split.labeled]


@pytest.fixture
def encoders(place) -> list[str]:
    """Untrained encoders beside the place, as the command's flags."""
    _, split = load_data_and_split("folder", place.images, mismatch=0.8)
    for name, shift, count in (("semantic", "none", 1), ("distinctive", "rotation", 4)):
        encoder = build_encoder("resnet8", num_classes=2, shifts=count, simclr_dim=16)
        checkpoint.save(place.folder / "model" / name / "last.model", encoder.state_dict())
        arguments = {"mode": name, "dataset": "folder", "model": "resnet8", "shift_trans_type": shift}
        checkpoint.write_args(place.folder / "model" / name, arguments, split_digest=split.digest, processes=1)
    words = f"--strategy ccal --load_path {place.folder / 'model'} --model resnet8 --simclr_dim 16 --precision fp32"
    return [*words.split(), "--shift_trans_type", "rotation", "--feature_cache", str(place.folder / "features")]


def test_the_joint_score_suggests_classes(place, encoders, capsys):
    assert place.run(*encoders, "--print_score", "--save_score") == 0
    rows = place.rows(1)
    assert [row["suggested_class"] for row in rows] == sorted(row["suggested_class"] for row in rows)
    for row in rows:
        joint, semantic, distinctive = (float(row[f"{name}_score"]) for name in ("joint", "semantic", "distinctive"))
        assert joint == pytest.approx(semantic + distinctive, abs=2e-6)
    scores = np.load(place.index / "scores" / "cycle_1.npz")
    assert len(scores["indices"]) == 24 and "is_target" not in scores
    assert "query score" in capsys.readouterr().out
    # Set-aside images stay among the kept features, so that these fit the next cycle, too.
    assert place.run(*encoders, "--labels", str(place.fill_in(place.answers(1)))) == 0
    assert "semantic features of 32 images: kept from" in capsys.readouterr().out


def test_encoders_from_before_the_folder_changed_are_warned_of(place, encoders, capsys):
    draw(place.images / "unlabeled" / "200.png", 200)
    assert place.run(*encoders) == 0
    assert "semantic/last.model was trained before the folder changed" in capsys.readouterr().out


# The classifier trains on people's labels


def classify(place: Place, *more: str) -> int:
    words = (
        f"--dataset folder --data_path {place.images} --index_dir {place.index} --out_path {place.folder / 'results'}"
    )
    return run_cli(train_classifier.main.main, [*words.split(), "--runs", "2", "--epochs", "1", "--split", "1", *more])


def results(place: Place) -> list[dict[str, str]]:
    with open(place.folder / "results" / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_classifier_measures_on_the_test_folder(place, capsys):
    for number in range(300, 306):
        if number % 3 < 2:
            draw(place.images / "test" / KINDS[number % 3] / f"{number}.png", number)
    place.run()
    place.run("--labels", str(place.fill_in(place.answers(1))))
    assert classify(place) == 0
    rows = results(place)
    found = place.state(1)["metrics"]["found"]
    assert [(row["cycle"], row["seed"], row["labeled"]) for row in rows] == [
        ("0", "0", "8"), ("0", "1", "8"), ("1", "0", str(8 + found)), ("1", "1", str(8 + found)),
    ]  # fmt: skip
    assert {100 * part / 4 for part in range(5)} >= {float(row["accuracy"]) for row in rows}
    # A further image in the pool shifts the numbers: the finished rows still stand for the same images.
    draw(place.images / "unlabeled" / "000.png", 800)
    capsys.readouterr()
    assert classify(place) == 0
    assert capsys.readouterr().out.count("kept from results.csv") == 4


def test_the_classifier_without_a_test_folder_holds_out_folds(place, capsys):
    place.run()
    place.run("--labels", str(place.fill_in(place.answers(1))))
    assert classify(place) == 0
    assert "no test images" in capsys.readouterr().out
    assert len(results(place)) == 4


def test_the_classifier_trains_on_what_people_said(place, monkeypatch):
    """The images and the classes that it is given are those of the answers."""
    place.run()
    answers = place.answers(1)
    place.run("--labels", str(place.fill_in(answers)))
    data, split = load_data_and_split("folder", place.images, mismatch=0.8)
    cycle = train_classifier.main.read_cycle(place.index, 1, data=data, split=split)
    state = place.state(1)
    assert cycle.classes.tolist() == state["labels"]
    by_path = dict(zip(data.paths, data.train_images))
    assert all((image == by_path[path]).all() for image, path in zip(cycle.images, paths_of(state, "labeled")))
    said = [name for path in paths_of(state, "labeled") if (name := answers.get(path))]
    assert [("cat", "dog")[number] for number in cycle.classes[8:]] == said
