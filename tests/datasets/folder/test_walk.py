"""The two forms of a folder, and which files are found in it."""

import os
import shutil

import pytest

from datasets.folder.walk import ANNOTATION, BENCHMARK, find_classes, find_form, walk
from utils import InputError


def put(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)


@pytest.fixture
def root(tmp_path):
    """The pool lies elsewhere, say on another disk."""
    put(tmp_path / "mine", "labeled/dog/d.png", "labeled/cat/c.png", "labeled/cat/tabby/b.png", "test/cat/t.png")
    put(tmp_path / "pool", "dog/deep/0.png", "u.png")
    (tmp_path / "mine/unlabeled").symlink_to(tmp_path / "pool")
    return tmp_path / "mine"


def test_the_files_of_both_forms(root):
    form = find_form(root)
    assert form is ANNOTATION and find_classes(root, form) == ("cat", "dog")
    assert [(file.path, file.label, file.size) for file in walk(root, form, ["cat", "dog"])] == [
        ("labeled/cat/c.png", "cat", 17),
        ("labeled/cat/tabby/b.png", "cat", 23),
        ("labeled/dog/d.png", "dog", 17),
        ("unlabeled/dog/deep/0.png", None, 14),
        ("unlabeled/u.png", None, 5),
        ("test/cat/t.png", "cat", 14),
    ]
    shutil.rmtree(root / "test")
    assert find_form(root) is ANNOTATION and len(walk(root, ANNOTATION, ["cat", "dog"])) == 5
    (root / "unlabeled").unlink()
    os.rename(root / "labeled", root / "train")
    put(root, "test/10/t.png", "test/.hidden/t.png")
    assert find_form(root) is BENCHMARK and find_classes(root, BENCHMARK) == ("10", "cat", "dog")
    assert {(file.path, file.label) for file in walk(root, ["."], None) if not file.problem} == {
        ("./train/cat/c.png", None),
        ("./train/cat/tabby/b.png", None),
        ("./train/dog/d.png", None),
        ("./test/10/t.png", None),
    }


def test_what_is_left_out(root, tmp_path):
    put(root, "labeled/loose.png", "test/wolf/w.png", "unlabeled/.hidden.png", ".ccal_cache/32/x", "aside/x.png")
    put(tmp_path, "elsewhere/secret.png")
    links = {
        "out.png": "../elsewhere/secret.png", "outside": "../elsewhere", "nowhere.png": "absent.png",
        "round": root, "itself": "itself", "within.png": "u.png", "aside": root / "aside",
    }  # fmt: skip
    for name, target in links.items():
        (root / "unlabeled" / name).symlink_to(target)
    os.mkfifo(root / "unlabeled/pipe")
    files = {file.path: file.problem for file in walk(root, ANNOTATION, ["cat", "dog"])}
    assert {path: problem for path, problem in files.items() if problem} == {
        "labeled/loose.png": "in no class folder: directly in labeled/",
        "test/wolf/w.png": "of no labeled class: there is no labeled/wolf/",
        "unlabeled/.hidden.png": "hidden",
        "unlabeled/out.png": "link: leads out of the folder",
        "unlabeled/outside": "link: leads out of the folder",
        "unlabeled/nowhere.png": "link: leads nowhere",
        "unlabeled/round": "link: leads back to a folder that holds it",
        "unlabeled/itself": "unreadable: Too many levels of symbolic links",
        "unlabeled/pipe": "not a regular file",
    }
    assert {"unlabeled/within.png", "unlabeled/aside/x.png"} < set(files)


def test_class_folders_whose_names_people_read_as_one(root, capsys):
    """Composed and decomposed accents, and letter case; labeled/ says how the class is written."""
    put(root, "labeled/caf\u00e9/k.png", "test/cafe\u0301/l.png", "test/DOG/t.png")
    assert find_classes(root, ANNOTATION) == ("caf\u00e9", "cat", "dog")
    assert "test/DOG is the class dog" in capsys.readouterr().out
    labels = {file.path: file.label for file in walk(root, ANNOTATION, ("caf\u00e9", "cat", "dog"))}
    assert (labels["test/cafe\u0301/l.png"], labels["test/DOG/t.png"]) == ("caf\u00e9", "dog")
    os.rename(root / "labeled", root / "train")
    assert find_classes(root, BENCHMARK) == ("caf\u00e9", "cat", "dog")
    put(root, "test/Dog/t.png")
    with pytest.raises(InputError, match="test holds 'DOG' and 'Dog', which people read as one name"):
        find_classes(root, BENCHMARK)
    put(root, "train/cafe\u0301/k.png")
    with pytest.raises(InputError, match=r"train holds 'cafe\\u0301' and 'caf\\xe9', which people read as one name"):
        find_classes(root, BENCHMARK)


def test_folders_of_the_system_are_no_classes_and_are_counted(root):
    put(root, "labeled/@eaDir/c.png/THUMB.jpg", "labeled/__MACOSX/x.png", "labeled/.thumbnails/x.png")
    put(root, "labeled/cat/@eaDir/c.png/THUMB.jpg", "unlabeled/System Volume Information/x", "unlabeled/eaDir/x.png")
    assert find_classes(root, ANNOTATION) == ("cat", "dog")
    files = {file.path: file.problem for file in walk(root, ANNOTATION, ["cat", "dog"])}
    assert {path: problem for path, problem in files.items() if problem} == {
        "labeled/@eaDir": "of the system",
        "labeled/__MACOSX": "of the system",
        "labeled/.thumbnails": "hidden",
        "labeled/cat/@eaDir": "of the system",
        "unlabeled/System Volume Information": "of the system",
    }
    assert "unlabeled/eaDir/x.png" in files


def replace_by_file(path):
    shutil.rmtree(path)
    path.touch()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "mine does not exist"),
        (replace_by_file, "mine is not a folder"),
        (lambda root: [shutil.rmtree(root), root.mkdir()], r"lacks train/ \(it holds nothing\)"),
        (lambda root: [path.rename(root / f"my {path.name}") for path in root.iterdir()], "it holds my labeled, my te"),
        (lambda root: (root / "unlabeled").unlink(), "lacks unlabeled/"),
        (lambda root: replace_by_file(root / "test"), "test is not a folder"),
        (lambda root: (root / "train").mkdir(), "holds both train/ and labeled/"),
        (lambda root: [shutil.rmtree(path) for path in (root / "labeled").iterdir()], "labeled holds no class folder"),
    ],
)
def test_folders_of_neither_form(root, spoil, message):
    spoil(root)
    with pytest.raises(InputError, match=message):
        find_classes(root, find_form(root))
