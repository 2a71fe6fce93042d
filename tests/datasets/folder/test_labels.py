"""Labels that people gave are found again in a folder that has changed since."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from datasets.base import UNKNOWN
from datasets.folder.labels import CHANGED, GONE, SET_ASIDE, TAKEN_BACK, class_number, locate
from datasets.index_files import IndexFile
from utils import InputError

A, B, C, D, E = "labeled/cat/a.png", "labeled/dog/b.png", "unlabeled/c.png", "unlabeled/d.png", "unlabeled/e.png"
FILES = {A: "A", B: "B", C: "C", D: "D", E: "E"}  # digest by path
# c.png is a dog, e.png is of neither class; d.png was not queried.
CONTENT = IndexFile(
    dataset="folder",
    mismatch=None,
    split_digest="0",
    target_classes=[0, 1],
    strategy="ccal",
    cycle=1,
    labeled=[0, 1, 2],
    queried=[2, 4],
    set_aside=[4],
    class_names=["cat", "dog"],
    labels=[0, 1, 1],
    files={"labeled": [[A, "A"], [B, "B"], [C, "C"]], "queried": [[C, "C"], [E, "E"]], "set_aside": [[E, "E"]]},
)


def folder(files: dict[str, str], class_names: tuple[str, ...] = ("cat", "dog")) -> SimpleNamespace:
    """What is looked at of a data set of these files."""
    names = [path.split("/")[1] if path.startswith("labeled/") else None for path in files]
    labels = np.asarray([UNKNOWN if name is None else class_names.index(name) for name in names])
    return SimpleNamespace(paths=[*files], digests=[*files.values()], train_labels=labels, class_names=class_names)


def moved(*moves: tuple[str, str]) -> dict[str, str]:
    return {dict(moves).get(path, path): digest for path, digest in FILES.items()}


def without(*paths: str) -> dict[str, str]:
    return {path: digest for path, digest in FILES.items() if path not in paths}


NEW, CAT, DOG, BACK = "unlabeled/z/new name.png", "labeled/cat/c.png", "labeled/dog/e.png", "unlabeled/a.png"


@pytest.mark.parametrize(
    ("files", "labeled", "labels", "lost"),
    [
        pytest.param(FILES, [A, B, C], {A: 0, B: 1, C: 1, E: SET_ASIDE}, {}, id="unchanged"),
        pytest.param(moved((C, NEW)), [A, B, NEW], {A: 0, B: 1, NEW: 1, E: SET_ASIDE}, {}, id="renamed"),
        # The folder's label counts, not the person's.
        pytest.param(moved((C, CAT), (E, DOG)), [A, B, CAT], {A: 0, B: 1, CAT: 0, DOG: 1}, {}, id="into class folders"),
        pytest.param(moved((A, BACK)), [B, C], {B: 1, C: 1, E: SET_ASIDE}, {TAKEN_BACK: [A]}, id="into the pool"),
        pytest.param(without(A, C), [B], {B: 1, E: SET_ASIDE}, {GONE: [A, C]}, id="removed"),
        pytest.param(without(E), [A, B, C], {A: 0, B: 1, C: 1}, {}, id="removed without a label"),
        pytest.param(FILES | {C: "X"}, [A, B], {A: 0, B: 1, E: SET_ASIDE}, {CHANGED: [C]}, id="replaced in the pool"),
        pytest.param(FILES | {A: "X"}, [A, B, C], {A: 0, B: 1, C: 1, E: SET_ASIDE}, {}, id="replaced in a class"),
    ],
)
def test_labels_follow_the_files(files, labeled, labels, lost):
    data = folder(files)
    found = locate(CONTENT, "cycle_1.json", data)
    assert [data.paths[image] for image in found.labeled] == labeled
    assert [data.paths[image] for image in found.annotated] == [path for path in labeled if "unlabeled" in path]
    assert [data.paths[image] for image in found.set_aside] == [path for path in labels if labels[path] == SET_ASIDE]
    assert found.labels.tolist() == [labels.get(path, UNKNOWN) for path in data.paths]
    assert found.lost == lost


def test_new_images_and_classes_shift_the_numbers_and_nothing_else():
    files = dict(sorted({"labeled/bird/x.png": "X", **FILES, "unlabeled/aa.png": "Y"}.items()))
    data = folder(files, ("bird", "cat", "dog"))
    found = locate(CONTENT, "cycle_1.json", data)
    assert found.labels.tolist() == [0, 1, 2, UNKNOWN, 2, UNKNOWN, SET_ASIDE]
    assert [data.paths[image] for image in found.labeled] == [A, B, C]


def test_a_class_folder_in_another_form_of_its_name_is_the_class():
    assert class_number("caf\u00e9", ("bar", "cafe\u0301"), "x") == class_number("Dog", ("cat", "dog"), "x") == 1


def test_what_cannot_be_located():
    with pytest.raises(InputError, match=r"cycle_1.json has images of class 'dog'.*no folder labeled/dog any more"):
        locate(CONTENT, "cycle_1.json", folder(without(B), ("cat",)))
    with pytest.raises(InputError, match="x.json does not name its images by path"):
        locate(replace(CONTENT, files=None, labels=None, class_names=None), "x.json", folder(FILES))


def test_the_warning_names_three_paths_at_most(capsys):
    found = locate(CONTENT, "cycle_1.json", folder(without(A, B, C)))
    replace(found, lost={GONE: [A, B, C, D, E]}).warn("cycle_1.json")
    printed = capsys.readouterr().out
    assert printed == f"warning: 5 labeled image(s) of cycle_1.json {GONE} ({A}, {B}, {C} and 2 more)\n"
