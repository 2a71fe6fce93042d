"""evals/annotation/loop.py: queries go out, labels come back, and the folder of images may change in between."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.files import read_json, write_json
from common.settings import DataSettings
from datasets import load_data_and_split
from datasets.base import Dataset
from datasets.split import Split
from evals.annotation import loop
from evals.annotation.queries import AnnotationQuery
from evals.cycles import QueryLoop
from evals.features import FeatureBank
from evals.strategies import STRATEGIES
from utils import InputError

KINDS = ("cat", "dog", "bird")  # birds are not a target class


def draw(path: Path, number: int) -> None:
    """An image of 32x32 pixels whose shade says what it is: number mod 3."""
    pixels = np.random.default_rng(number).integers(0, 60, (32, 32, 3)) + 80 * (number % 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def true_labels(query: AnnotationQuery) -> dict[str, str]:
    kinds = {path: KINDS[int(Path(path).stem) % 3] for path in query.paths}
    return {path: "other" if kind == "bird" else kind for path, kind in kinds.items()}


def paths_of(state: dict, name: str) -> list[str]:
    return [path for path, _ in state["files"][name]]


def labels_of(state: dict) -> dict[str, str]:
    """The class of each labeled image of an index file, by path."""
    return dict(zip(paths_of(state, "labeled"), (state["class_names"][number] for number in state["labels"])))


class Project:
    """A folder with 4 labeled cats and dogs each and 24 images in the pool, and its index folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.images, self.index = folder, folder / "mine", folder / "query"

    def load(self) -> tuple[Dataset, Split]:
        return load_data_and_split(DataSettings(dataset="folder", data_path=str(self.images)))

    def run(
        self, labels=None, *, partial=False, overwrite=False, seed=1, target=4, strategy="random", banks=None
    ) -> AnnotationQuery | None:
        """Takes labels and queries as the command does; with this seed the first query has some of each kind."""
        file = self.fill_in(labels) if labels else None
        data, split = self.load()
        progress = loop.resume_annotation(self.index, data, split, file=file, partial=partial, overwrite=overwrite)
        if progress.waiting or not len(progress.split.unlabeled):
            return progress.waiting
        query_loop = QueryLoop(banks or {}, progress.split, progress.labels, STRATEGIES[strategy], seed=seed)
        cycle = query_loop.query(progress.cycle + 1, target)
        return loop.write_next_query(self.index, self.images, progress, data, cycle, strategy=strategy, settings={})

    def fill_in(self, labels: dict[str, str]) -> Path:
        path = self.folder / "filled.csv"
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([("path", "label"), *labels.items()])
        return path

    def state(self, cycle: int) -> dict:
        return read_json(self.index / f"cycle_{cycle}.json")

    def snapshot(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in self.index.rglob("*") if path.is_file()}

    def refuses(self, message: str, *args, **settings) -> None:
        """Whether a run is refused and changes nothing."""
        before = self.snapshot()
        with pytest.raises(InputError, match=message):
            self.run(*args, **settings)
        assert self.snapshot() == before


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    for number in (0, 1, 3, 4, 6, 7, 9, 10):
        draw(project.images / "labeled" / KINDS[number % 3] / f"{number}.png", number)
    for number in range(100, 124):
        draw(project.images / "unlabeled" / f"{number}.png", number)
    return project


def test_cycles_until_the_pool_is_empty(project, capsys):
    images = {path: path.read_bytes() for path in project.images.rglob("*.png")}
    first = project.run()
    assert f"cycle 1 waits for the labels of 8 images: open {first.page} in a browser" in capsys.readouterr().out
    initial = project.state(0)
    assert labels_of(initial) == {path: path.split("/")[1] for path in paths_of(initial, "labeled")}
    assert (len(initial["labeled"]), initial["queried"], initial["metrics"]) == (8, [], {"labeled": 8, "pool": 24})

    labels = true_labels(first)
    second = project.run(labels)
    counts = [list(labels.values()).count(kind) for kind in ("cat", "dog", "other")]
    assert sum(counts) == 8 and all(counts)
    found = counts[0] + counts[1]
    assert (
        f"cycle 1: 8 labels, target {found} (cat {counts[0]}, dog {counts[1]}), other {counts[2]}, precision "
        f"{100 * found / 8:.1f} %, labeled {8 + found}, pool 16"
    ) in capsys.readouterr().out
    state = project.state(1)
    assert labels_of(state) == labels_of(initial) | {path: name for path, name in labels.items() if name != "other"}
    assert set(paths_of(state, "set_aside")) == {path for path, name in labels.items() if name == "other"}
    assert paths_of(state, "queried") == first.paths
    assert state["metrics"] == {
        "queried": 8, "found": found, "found_per_class": counts[:2], "precision": 100 * found / 8, "recall": None,
        "labeled": 8 + found, "pool": 16,
    }  # fmt: skip

    third = project.run(true_labels(second), target=100)
    assert len(third.paths) == 8 and "fewer than wanted" in capsys.readouterr().out
    assert sorted(first.paths + second.paths + third.paths) == [f"unlabeled/{number}.png" for number in range(100, 124)]
    assert project.run(true_labels(third)) is None
    assert "the pool is empty" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in project.images.rglob("*.png")} == images


def test_the_index_files_are_all_that_is_needed(project):
    query = project.run(true_labels(project.run()))
    (query.folder / "query.json").unlink()  # as if the command had not finished
    shutil.rmtree(project.index / "cycle_1")
    assert project.run().paths == query.paths and (query.folder / "query.json").is_file()


def test_repeating_a_command_changes_nothing(project, capsys):
    first = project.run()
    before = project.snapshot()
    assert project.run() == first and project.snapshot() == before
    second = project.run(true_labels(first))
    before = project.snapshot()
    capsys.readouterr()
    assert project.run(true_labels(first)) == second and project.snapshot() == before
    assert "are in cycle_1.json already" in capsys.readouterr().out


def test_overwrite_queries_anew_unless_the_table_is_filled_in(project):
    first = project.run()
    initial = (project.index / "cycle_0.json").read_bytes()
    second = project.run(overwrite=True, seed=5)
    assert set(second.paths) != set(first.paths) and second.storage_key != first.storage_key
    assert (project.index / "cycle_0.json").read_bytes() == initial
    second.table.write_text("something")
    project.refuses("to_label.csv is filled in: take it with --labels", overwrite=True)


def test_partial_labels_return_the_other_images_to_the_pool(project, capsys):
    labels = true_labels(project.run())
    some = dict(list(labels.items())[:5])
    project.refuses("3 of 8 images have no label", some)
    project.run(some, partial=True)
    assert "cycle 1: 5 labels of 8 asked for" in capsys.readouterr().out
    state = project.state(1)
    assert paths_of(state, "queried") == list(some)
    assert (state["metrics"]["unanswered"], state["metrics"]["pool"]) == (3, 19)
    # The rest comes later: neither dropped nor mixed with what was taken.
    late = next(path for path in labels if path not in some)
    for more in (labels, dict(list(labels.items())[5:])):
        message = f"were taken already, and 3 .* such as that of {late} .* move .*cycle_1.json away and .* all labels"
        project.refuses(message, more, partial=True)
    (project.index / "cycle_1.json").rename(project.folder / "away.json")
    assert len(project.run(labels).paths) == 8
    assert paths_of(project.state(1), "queried") == list(labels) and "unanswered" not in project.state(1)["metrics"]


def test_a_correction_replaces_labels_once_the_index_file_is_away(project, capsys):
    labels = true_labels(project.run())
    query = project.run(labels)
    wrong = next(path for path, name in labels.items() if name == "other")
    project.refuses(rf"were taken already, and 1 .*{wrong} \(cat, before other\)", {**labels, wrong: "cat"})
    (project.index / "cycle_1.json").rename(project.folder / "away.json")
    query.table.write_text("begun")
    project.run({**labels, wrong: "cat"})
    assert labels_of(project.state(1))[wrong] == "cat"
    # The next query is made anew, and what had been filled in of it is kept.
    assert (query.folder / "to_label.replaced.csv").read_text() == "begun"
    assert project.run().after != query.after and not project.run().is_filled()


def test_a_query_made_before_its_index_file_changed_is_made_anew(project, capsys):
    """Where the same images are asked for again, the browser still has their labels."""
    query = project.run()
    write_json(project.index / "cycle_0.json", {**project.state(0), "seconds": 1})
    again = project.run()
    assert "the query of cycle 1 was made before the labels in cycle_0.json" in capsys.readouterr().out
    assert again.after != query.after and again.storage_key == query.storage_key
    assert project.run() == again and "made before" not in capsys.readouterr().out


def test_scores_suggest_classes(project):
    features = torch.randn(32, 4, 16, generator=torch.Generator().manual_seed(0))
    shifts = {"semantic": features[:, :1], "distinctive": features}
    banks = {name: FeatureBank(np.arange(32), values) for name, values in shifts.items()}
    images = project.run(strategy="ccal", banks=banks).images
    assert [image.suggestion for image in images] == ["cat"] * 4 + ["dog"] * 4
    for image in images:
        assert image.joint == pytest.approx(image.semantic + image.distinctive, abs=1e-6)
    semantic = project.run(strategy="semantic", banks={"semantic": banks["semantic"]}, overwrite=True).images
    assert {image.distinctive for image in semantic} == {None} and all(image.suggestion for image in semantic)
    dealt = project.run(overwrite=True).images
    assert {(image.suggestion, image.joint, image.semantic, image.distinctive) for image in dealt} == {(None,) * 4}
    banks["penultimate"] = banks.pop("semantic")
    for strategy in ("badge", "mqnet"):  # which look at features and deal images out to the classes as well
        dealt = project.run(strategy=strategy, banks=banks, overwrite=True).images
        assert {(image.suggestion, image.joint) for image in dealt} == {(None, None)}
    chosen = project.run(strategy="eaoa", banks=banks, overwrite=True).images
    assert all(image.suggestion for image in chosen)


# What is refused, with nothing changed


def test_labels_of_other_images(project):
    project.refuses(r"--labels .*filled\.csv: no query in .* waits for labels", {"unlabeled/100.png": "cat"})
    labels = true_labels(project.run())
    project.refuses("line 10: 'labeled/cat/0.png' is not among", {**labels, "labeled/cat/0.png": "dog"})


def test_data_that_nobody_can_label(project):
    data, split = load_data_and_split(DataSettings(dataset="digits"))
    with pytest.raises(InputError, match="digits has all its labels"):
        loop.resume_annotation(project.index, data, split, file=None, partial=False, overwrite=False)
    draw(project.images / "labeled" / "Other" / "1.png", 1000)
    project.refuses("a class is named 'Other'")


def test_a_gap_in_the_index_files(project):
    project.run(true_labels(project.run()))
    (project.index / "cycle_0.json").unlink()
    project.refuses(r"holds cycle_1\.json but no cycle_0\.json")


# The folder of images changes in between


def test_the_page_shows_what_was_scored_though_a_file_was_replaced(project):
    data, split = project.load()
    progress = loop.resume_annotation(project.index, data, split, file=None, partial=False, overwrite=False)
    cycle = QueryLoop({}, split, progress.labels, STRATEGIES["random"]).query(1, 4)
    scored = {data.paths[index]: np.array(data.train_images[index]) for index in cycle.result.indices}
    Image.new("RGB", (64, 48), "red").save(project.images / next(iter(scored)))
    query = loop.write_next_query(project.index, project.images, progress, data, cycle, strategy="random", settings={})
    items = json.loads(re.search(r'id="query">(.*?)</script>', query.page.read_text())[1])["items"]
    assert [item["path"] for item in items] == list(scored)
    for item in items:
        with Image.open(io.BytesIO(base64.b64decode(item["image"].split(",")[1]))) as image:
            assert np.array_equal(np.array(image), scored[item["path"]])


def test_the_page_shows_six_labeled_examples_of_each_class_and_photographs_in_512_pixels(project, monkeypatch):
    """The first ones: the four in labeled/, then those that people labeled."""
    Image.new("RGB", (600, 400), "red").save(project.images / "labeled/cat/0.png")
    query = project.run(true_labels(project.run()))
    page = json.loads(re.search(r'id="query">(.*?)</script>', query.page.read_text())[1])
    labels = labels_of(project.state(1))
    for entry in page["classes"]:
        expected = [path for path, name in labels.items() if name == entry["name"]][:6]
        assert len(expected) >= 5 and [shown["path"] for shown in entry["examples"]] == expected
    for shown in [*page["items"], *page["classes"][0]["examples"]]:
        assert (query.folder / shown["link"]).resolve() == (project.images / shown["path"]).resolve()
    photograph = next(shown for shown in page["classes"][0]["examples"] if shown["path"] == "labeled/cat/0.png")
    with Image.open(io.BytesIO(base64.b64decode(photograph["image"].split(",")[1]))) as image:
        assert (image.format, image.size) == ("WEBP", (512, 341))
    monkeypatch.setattr(loop, "MANY", 8)  # as many as are asked for
    again = re.search(r'id="query">(.*?)</script>', project.run(overwrite=True).page.read_text())[1]
    [large] = [shown for shown in json.loads(again)["classes"][0]["examples"] if not shown["small"]]
    with Image.open(io.BytesIO(base64.b64decode(large["image"].split(",")[1]))) as image:
        assert image.size == (256, 171)


def test_images_that_are_gone_are_named(project, capsys):
    labels = true_labels(project.run())
    gone, later = (next(path for path, name in labels.items() if name == kind) for kind in ("cat", "dog"))
    (project.images / gone).unlink()
    query = project.run(labels)
    assert f"no longer in unlabeled/ as queried ({gone})" in capsys.readouterr().out
    assert gone not in labels_of(project.state(1)) and project.run(labels) == query
    (project.images / later).unlink()
    project.run()
    assert f"left out of the labeled set ({later})" in capsys.readouterr().out


def test_names_that_are_not_unicode_are_left_out(project, capsys):
    draw(project.images / "unlabeled" / os.fsdecode(b"\xff\xfe.png"), 700)
    assert len(project.run(target=100).paths) == 24
    assert "warning: 1 image(s) are left out of the query: their names are not valid UTF-8" in capsys.readouterr().out


# What labeling is worth


def answer_some(query: AnnotationQuery, targets: int) -> dict[str, str]:
    """Labels with so many targets, whatever the images show."""
    return {path: "cat" if number < targets else "other" for number, path in enumerate(query.paths)}


def test_a_random_query_estimates_what_is_in_the_pool(project, capsys):
    second = project.run(answer_some(project.run(), 6))
    assert "targets: 6 of 8 in cycle 1; of any random hundred about 75 would be (by these 8)\n" in printed(capsys)
    project.run(answer_some(second, 1))
    expected = "targets: 1 of 8 in cycle 2, 6 of 8 in cycle 1; of any random hundred about 44 would be (by these 16)\n"
    assert expected in printed(capsys)


def test_without_a_random_query_there_is_no_estimate_and_the_page_says_what_was_found(project, capsys):
    banks = {"penultimate": FeatureBank(np.arange(32), torch.randn(32, 1, 4, generator=torch.manual_seed(0)))}
    second = project.run(
        answer_some(project.run(strategy="posterior", banks=banks), 4), strategy="posterior", banks=banks
    )
    assert "targets: 4 of 8 in cycle 1\n" in printed(capsys)
    page = second.page.read_text()
    assert '"worth": "targets: 4 of 8 in cycle 1"' in page
    # Exactly half is no reason to stop; less than half of the best cycle is.
    third = project.run(answer_some(second, 2), strategy="posterior", banks=banks)
    assert "targets: 2 of 8 in cycle 2, 4 of 8 in cycle 1\n" in printed(capsys)
    project.run(answer_some(third, 1), strategy="posterior", banks=banks)
    last = "targets: 1 of 8 in cycle 3, 2 of 8 in cycle 2; less than half of what the best cycle found"
    assert last in printed(capsys)


def test_suggestions_of_a_strategy_that_compares_no_scores_are_the_likeliest_classes(project):
    """Posterior: the class of the largest probability, images of one suggestion together."""
    data, split = project.load()
    values = torch.full((32, 1, 2), 0.0)
    for image in range(32):  # cats in one direction, dogs in the other, by name
        kind = int(Path(data.paths[image]).stem) % 3
        values[image, 0] = torch.tensor([[4.0, 0.0], [0.0, 4.0], [-4.0, -4.0]][kind])
    query = project.run(strategy="posterior", banks={"penultimate": FeatureBank(np.arange(32), values)}, target=100)
    suggested = [image.suggestion for image in query.images]
    assert suggested == sorted(suggested) and len(suggested) == 24  # the first class does not take all
    by_kind = {image.path: image.suggestion for image in query.images}
    truth = {path: name for path, name in true_labels(query).items() if name != "other"}
    assert {path: by_kind[path] for path in truth} == truth
    assert all(0 <= image.joint <= 1 for image in query.images)


def printed(capsys) -> str:
    return capsys.readouterr().out
