"""The report on an annotated query shows the images that were queried, though the folder has changed since."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from common import checkpoint
from common.cli import run_cli
from datasets import load_data_and_split
from evals.report import __main__ as report
from evals.report.pool import Material, gather
from evals.report.runs import find_run
from evals.report.scores import OTHER, TARGET, UNKNOWN
from models import build_encoder
from tests.evals.annotation.test_loop import KINDS, Place, draw, paths_of, truth


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(sys, "argv", ["active_main.py"])
    made = Place(tmp_path / "run")
    made.images = tmp_path / "mine"
    made.fill()
    return made


def encoders(place: Place) -> list[str]:
    """Untrained encoders in the run's folder, and the flags that query with them."""
    _, split = load_data_and_split("folder", place.images, mismatch=0.8)
    torch.manual_seed(0)
    for name, shift, count in (("semantic", "none", 1), ("distinctive", "rotation", 4)):
        encoder = build_encoder("resnet8", num_classes=2, shifts=count, simclr_dim=16)
        folder = place.folder / "model" / name
        checkpoint.save(folder / "last.model", encoder.state_dict())
        arguments = {"mode": name, "dataset": "folder", "data_path": str(place.images), "mismatch": None}
        arguments |= {"model": "resnet8", "shift_trans_type": shift, "simclr_dim": 16}
        checkpoint.write_args(folder, arguments, split_digest=split.digest, processes=1)
    words = f"--strategy ccal --load_path {place.folder / 'model'} --model resnet8 --simclr_dim 16 --precision fp32"
    return [*words.split(), "--shift_trans_type", "rotation"]


def label(place: Place, cycle: int, *more: str) -> None:
    """Gives the true labels of a waiting query, which makes the next one."""
    assert place.run(*more, "--labels", str(place.fill_in(place.answers(cycle)))) == 0


def seen(place: Place, data_path: Path | None = None) -> Material:
    run = find_run(place.folder, "run")
    path = str(data_path) if data_path else None
    return gather(run, run.main_query, data_path=path, features="auto", device=torch.device("cpu"))


def two_cycles(place: Place, *more: str) -> None:
    """Between the cycles an image that sorts before all others of the pool joins, so that all numbers shift."""
    assert place.run(*more) == 0
    label(place, 1, *more)
    draw(place.images / "unlabeled" / "000099.png", 99)
    assert place.run(*more, "--overwrite") == 0
    label(place, 2, *more)


def check_images(place: Place, material: Material, *, without: frozenset[str] = frozenset()) -> None:
    """Every list has the images that the index file names, and what is known of them is true."""
    paths = material.data.paths
    for content in material.query.files:
        state = place.state(content.cycle)
        for name in ("labeled", "queried", "set_aside"):
            found = getattr(content, name)
            assert [paths[image] for image in found] == [p for p in paths_of(state, name) if p not in without]
            known = [TARGET if truth(paths[image]) != "other" else OTHER for image in found]
            assert material.truth.of(np.asarray(found, dtype=np.int64)).tolist() == known
        classes = [material.data.class_names[content.target_classes[number]] for number in content.labels]
        assert classes == [truth(paths[image]) for image in content.labeled]


def shifted(place: Place, material: Material, cycle: int) -> list[int]:
    """Where the images that a cycle queried lie in the folder's list now."""
    return [material.data.paths.index(path) for path in paths_of(place.state(cycle), "queried")]


def test_images_of_all_cycles_are_found_again_by_content(place: Place) -> None:
    two_cycles(place)
    draw(place.images / "labeled" / "cat" / "0000.png", 3000)  # sorts first, and was in no query
    material = seen(place, place.images)
    check_images(place, material)
    assert material.lost == []
    asked = {path for cycle in (1, 2) for path in paths_of(place.state(cycle), "queried")}
    rest = [n for n, path in enumerate(material.data.paths) if path.startswith("unlabeled/") and path not in asked]
    assert material.truth.of(np.asarray(rest)).tolist() == [UNKNOWN] * 9
    # Read as places in the folder as it is now, the numbers in the files would be other images.
    for content in material.query.cycles:
        assert len(content.queried) == 8 and content.queried != place.state(content.cycle)["queried"]
    assert [image - number for image, number in zip(shifted(place, material, 1), place.state(1)["queried"])] == [2] * 8
    assert [image - number for image, number in zip(shifted(place, material, 2), place.state(2)["queried"])] == [1] * 8


def test_a_new_class_folder_shifts_the_classes_and_not_what_was_said(place: Place) -> None:
    two_cycles(place)
    draw(place.images / "labeled" / "ant" / "6000.png", 6000)
    material = seen(place, place.images)
    assert material.query.files[0].target_classes == [1, 2]
    check_images(place, material)


def test_what_is_gone_is_left_out_and_said(place: Place) -> None:
    two_cycles(place)
    gone = paths_of(place.state(1), "queried")[0]
    (place.images / gone).unlink()
    material = seen(place, place.images)
    check_images(place, material, without=frozenset([gone]))
    assert len(material.query.files[1].queried) == 7
    [note] = material.lost
    assert note.startswith("1 image(s) of the index files are left out") and gone in note
    assert run_cli(report.main, [str(place.folder), "--data_path", str(place.images)]) == 0
    assert gone in (place.folder / "report.html").read_text()


def test_without_an_encoder_the_page_names_the_command(place: Place) -> None:
    two_cycles(place)
    assert f"python -m evals.report {place.folder} --data_path DIR" in seen(place).why["data"]
    other = place.folder.parent / "other"
    for number in range(3000, 3012):
        draw(other / "labeled" / KINDS[number % 2] / f"{number}.png", number)
        draw(other / "unlabeled" / f"{number}.png", number + 1000)
    assert "none of the query's labeled images is in the folder" in seen(place, other).why["data"]


def test_kept_scores_count_while_the_folder_is_as_it_was(place: Place) -> None:
    flags = encoders(place)
    assert place.run(*flags, "--save_score") == 0
    label(place, 1, *flags)
    material = seen(place)
    assert (material.source, material.why, material.notes) == ("as --save_score kept them", {}, [])
    (place.index / "scores" / "cycle_1.npz").unlink()
    again = seen(place)
    assert (again.source, again.notes) == ("computed again from the features", [])
    np.testing.assert_array_equal(again.cycles[0].pool, material.cycles[0].pool)
    np.testing.assert_allclose(again.cycles[0].utility, material.cycles[0].utility, atol=1e-5)


def test_an_encoder_is_known_by_its_checkpoint_once_the_folder_has_changed(place: Place) -> None:
    flags = encoders(place)
    draw(place.images / "unlabeled" / "200.png", 200)  # no index file has the split of the encoders any more
    two_cycles(place, *flags, "--save_score")
    draw(place.images / "labeled" / "cat" / "0000.png", 3000)
    material = seen(place)
    assert material.why == {} and material.source == "computed again from the features"
    assert any("folder has changed" in note for note in material.notes)
    check_images(place, material)
    paths = material.data.paths
    for cycle in material.cycles:
        before = place.state(cycle.number - 1)
        out = {*paths_of(before, "labeled"), *paths_of(before, "set_aside"), "labeled/cat/0000.png"}
        assert {paths[image] for image in cycle.pool} == {*paths} - out
        assert [paths[image] for image in cycle.queried] == paths_of(place.state(cycle.number), "queried")
    assert run_cli(report.main, [str(place.folder)]) == 0
    page = (place.folder / "report.html").read_text()
    assert "No images:" not in page and "No scores:" not in page and "No features:" not in page


def test_other_checkpoints_are_not_taken_for_the_querys(place: Place) -> None:
    flags = encoders(place)
    two_cycles(place, *flags)
    path = place.folder / "model" / "semantic" / "last.model"
    weights = torch.load(path, weights_only=True)
    checkpoint.save(path, {name: value + 1 if value.is_floating_point() else value for name, value in weights.items()})
    material = seen(place)
    assert "not what the query was made with" in material.why["features"]
    check_images(place, material)
    query = find_run(place.folder, "run").main_query
    settings = {**query.files[2].settings, "checkpoint_digests": {"semantic": "x", "distinctive": "y"}}
    query.files[2] = dataclasses.replace(query.files[2], settings=settings)
    run = find_run(place.folder, "run")
    why = gather(run, query, data_path=None, features="auto", device=torch.device("cpu")).why
    assert "different checkpoints" in why["features"]
