"""datasets/annotations.py: labels that people gave are found again in a folder that has changed since."""

from __future__ import annotations

import numpy as np
import pytest

from datasets.base import UNKNOWN, Dataset
from datasets.folder.labels import CHANGED, GONE, OTHER, TAKEN_BACK, locate
from datasets.index_files import IndexFile
from utils import InputError


def folder(files: dict[str, str], class_names: tuple[str, ...] = ("cat", "dog")) -> Dataset:
    """A data set of these files: digest by path."""
    numbers = {name: number for number, name in enumerate(class_names)}
    labels = [numbers.get(path.split("/")[1], UNKNOWN) if path.startswith("labeled/") else UNKNOWN for path in files]
    return Dataset(
        name="folder",
        train_images=np.zeros((len(files), 8, 8, 3), dtype=np.uint8),
        train_labels=np.asarray(labels, dtype=np.int64),
        test_images=np.zeros((0, 8, 8, 3), dtype=np.uint8),
        test_labels=np.zeros(0, dtype=np.int64),
        num_classes=len(class_names),
        class_names=class_names,
        paths=tuple(files),
        digests=tuple(files.values()),
    )


FILES = {"labeled/cat/a.png": "A", "labeled/dog/b.png": "B", "unlabeled/c.png": "C", "unlabeled/d.png": "D"}
FILES |= {"unlabeled/e.png": "E"}
# c.png is a dog, e.png is none of both; d.png was not asked for.
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
    files={
        "labeled": [["labeled/cat/a.png", "A"], ["labeled/dog/b.png", "B"], ["unlabeled/c.png", "C"]],
        "queried": [["unlabeled/c.png", "C"], ["unlabeled/e.png", "E"]],
        "set_aside": [["unlabeled/e.png", "E"]],
    },
)


def found(files: dict[str, str], class_names: tuple[str, ...] = ("cat", "dog")):
    """By path: labels; and the paths of labeled, annotated and set-aside images, and what is lost."""
    data = folder(files, class_names)
    located = locate(CONTENT, "cycle_1.json", data)
    labels = {path: int(label) for path, label in zip(data.paths, located.labels)}
    parts = [[data.paths[image] for image in part] for part in (located.labeled, located.annotated, located.set_aside)]
    return labels, *parts, located.lost


def test_an_unchanged_folder():
    labels, labeled, annotated, set_aside, lost = found(FILES)
    assert list(labels.values()) == [0, 1, 1, UNKNOWN, OTHER]
    assert labeled == ["labeled/cat/a.png", "labeled/dog/b.png", "unlabeled/c.png"]
    assert (annotated, set_aside, lost) == (["unlabeled/c.png"], ["unlabeled/e.png"], {})


def test_new_images_shift_the_numbers_and_nothing_else():
    more = {"labeled/bird/x.png": "X", **FILES, "unlabeled/aa.png": "Y"}
    labels, labeled, annotated, set_aside, lost = found(dict(sorted(more.items())), ("bird", "cat", "dog"))
    assert labels["unlabeled/c.png"] == 2 and labels["labeled/bird/x.png"] == 0
    assert labels["unlabeled/aa.png"] == UNKNOWN
    assert labeled == ["labeled/cat/a.png", "labeled/dog/b.png", "unlabeled/c.png"]
    assert (annotated, set_aside, lost) == (["unlabeled/c.png"], ["unlabeled/e.png"], {})


def test_a_renamed_file_is_the_same_image():
    renamed = {path.replace("c.png", "z/new name.png"): digest for path, digest in FILES.items()}
    labels, _, annotated, _, lost = found(renamed)
    assert labels["unlabeled/z/new name.png"] == 1
    assert annotated == ["unlabeled/z/new name.png"] and not lost


def test_an_image_that_was_moved_into_a_class_folder_has_that_class():
    moved = {
        path.replace("unlabeled/c", "labeled/cat/c").replace("unlabeled/e", "labeled/dog/e"): digest
        for path, digest in FILES.items()
    }
    labels, labeled, annotated, set_aside, lost = found(moved)
    assert labels["labeled/cat/c.png"] == 0 and labels["labeled/dog/e.png"] == 1
    assert "labeled/cat/c.png" in labeled and not annotated and not set_aside and not lost


def test_what_is_gone_is_said_and_left_out():
    left = {path: digest for path, digest in FILES.items() if path not in ("labeled/cat/a.png", "unlabeled/c.png")}
    labels, labeled, annotated, _, lost = found(left)
    assert labeled == ["labeled/dog/b.png"] and not annotated
    assert lost == {GONE: ["labeled/cat/a.png", "unlabeled/c.png"]}


def test_an_image_that_was_set_aside_and_is_gone_matters_to_nobody():
    left = {path: digest for path, digest in FILES.items() if path != "unlabeled/e.png"}
    assert found(left)[3:] == ([], {})


def test_another_image_under_a_labeled_name_is_in_the_pool_again():
    labels, _, annotated, _, lost = found({**FILES, "unlabeled/c.png": "another"})
    assert labels["unlabeled/c.png"] == UNKNOWN and not annotated
    assert lost == {CHANGED: ["unlabeled/c.png"]}


def test_another_image_in_a_class_folder_has_that_class():
    labels, labeled, _, _, lost = found({**FILES, "labeled/cat/a.png": "another"})
    assert labels["labeled/cat/a.png"] == 0 and "labeled/cat/a.png" in labeled and not lost


def test_an_image_that_was_moved_out_of_its_class_folder_is_in_the_pool_again():
    moved = {path.replace("labeled/cat/a", "unlabeled/a"): digest for path, digest in FILES.items()}
    labels, labeled, _, _, lost = found(moved)
    assert labels["unlabeled/a.png"] == UNKNOWN and "unlabeled/a.png" not in labeled
    assert lost == {TAKEN_BACK: ["labeled/cat/a.png"]}


def test_a_class_whose_folder_is_gone_is_named():
    left = {path: digest for path, digest in FILES.items() if path != "labeled/dog/b.png"}
    with pytest.raises(InputError, match="cycle_1.json has images of class 'dog'.*no folder labeled/dog any more"):
        found(left, ("cat",))


def test_a_file_without_names_cannot_be_located():
    from dataclasses import replace

    with pytest.raises(InputError, match="x.json does not name its images by path"):
        locate(replace(CONTENT, files=None, labels=None, class_names=None), "x.json", folder(FILES))


def test_the_warning_names_three_paths_at_most(capsys):
    left = {path: digest for path, digest in FILES.items() if path == "unlabeled/d.png"}
    located = locate(CONTENT, "cycle_1.json", folder(left))
    located.warn("cycle_1.json")
    assert capsys.readouterr().out == (
        "warning: 3 labeled image(s) of cycle_1.json are no longer in the folder and left out of the labeled set "
        "(labeled/cat/a.png, labeled/dog/b.png, unlabeled/c.png)\n"
    )
