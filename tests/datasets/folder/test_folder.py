"""A person's folder of images: its two forms, what is left out, and bad folders."""

import csv
import io
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.console import log
from datasets import load_data_and_split, load_dataset
from datasets.base import UNKNOWN
from utils import InputError

SIZE = 32


def picture(value, size=(SIZE, SIZE)):
    """A picture of its own bytes for each value."""
    generator = np.random.default_rng(value)
    return Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def put(path, value, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(value).save(path, **options)


@pytest.fixture
def root(tmp_path):
    """The annotation form: classes cat (3) and dog (2), 6 in the pool, 2 test images."""
    place = tmp_path / "mine"
    for number in range(3):
        put(place / f"labeled/cat/c{number}.png", number)
    for number in range(2):
        put(place / f"labeled/dog/d{number}.png", 10 + number)
    for number in range(4):
        put(place / f"unlabeled/u{number}.png", 20 + number)
    for number in range(2):
        put(place / f"unlabeled/dog/deep/{number}.png", 30 + number)
    put(place / "test/cat/t.png", 40)
    put(place / "test/dog/t.png", 41)
    return place


def load(place, **options):
    return load_dataset("folder", place, **options)


def report(place, size=SIZE):
    with open(place / f".ccal_cache/{size}/report.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["path", "reason"]
    return dict(rows[1:])


def test_annotation_form(root):
    data = load(root)
    assert data.paths == (
        "labeled/cat/c0.png", "labeled/cat/c1.png", "labeled/cat/c2.png", "labeled/dog/d0.png", "labeled/dog/d1.png",
        "unlabeled/dog/deep/0.png", "unlabeled/dog/deep/1.png",
        "unlabeled/u0.png", "unlabeled/u1.png", "unlabeled/u2.png", "unlabeled/u3.png",
    )  # fmt: skip
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1] + 6 * [UNKNOWN]
    assert (data.num_classes, data.class_names, data.image_size) == (2, ("cat", "dog"), (32, 32))
    assert data.test_labels.tolist() == [0, 1]
    assert isinstance(data.train_images, np.memmap)
    assert data.train_images.dtype == np.uint8
    for images, values in (
        (data.train_images, [0, 1, 2, 10, 11, 30, 31, 20, 21, 22, 23]),
        (data.test_images, [40, 41]),
    ):
        assert images.shape == (len(values), 32, 32, 3)
        for image, value in zip(images, values):
            assert (image == np.asarray(picture(value))).all()


def test_annotation_split(root):
    data, split = load_data_and_split("folder", root, mismatch=0.8, split_seed=3)
    assert split.labeled.tolist() == [0, 1, 2, 3, 4]
    assert split.unlabeled.tolist() == [5, 6, 7, 8, 9, 10]
    assert split.test.tolist() == [0, 1]
    assert (split.target_classes, split.mismatch, split.seed) == ((0, 1), None, 3)
    assert not data.has_oracle
    with pytest.raises(InputError, match="nobody has labeled image 7"):
        split.annotate(np.asarray([7]), data.train_labels)


def test_without_a_test_folder(root):
    for path in (root / "test").rglob("*.png"):
        path.unlink()
    for name in ("test/cat", "test/dog", "test"):
        os.rmdir(root / name)
    data, split = load_data_and_split("folder", root, mismatch=0.8)
    assert data.test_images.shape == (0, 32, 32, 3)
    assert data.test_labels.tolist() == split.test.tolist() == []


def test_class_names_below_unlabeled_are_never_read(root):
    before = load(root)
    os.rename(root / "unlabeled/dog", root / "unlabeled/wolf")
    after = load(root)
    assert before.train_labels.tolist() == after.train_labels.tolist()
    assert after.class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"target_classes": ["cat"]}, "--target_classes draws a split"),
        ({"initial_budget": 3}, "--initial_budget draws a split"),
        ({"mismatch": 0.5}, "--mismatch draws a split"),
    ],
)
def test_flags_that_draw_a_split_are_refused(root, flags, message):
    with pytest.raises(InputError, match=message):
        load_data_and_split("folder", root, **{"mismatch": 0.8, **flags})


@pytest.fixture
def benchmark(tmp_path):
    """The benchmark form: three classes with 6 train and 2 test images each."""
    place = tmp_path / "bench"
    for number, name in enumerate(("10", "2", "fox")):
        for image in range(6):
            put(place / f"train/{name}/{image}.png", 100 * number + image)
        for image in range(2):
            put(place / f"test/{name}/{image}.png", 100 * number + 50 + image)
    return place


def test_benchmark_form(benchmark):
    data = load(benchmark)
    assert data.class_names == ("10", "2", "fox")
    assert data.train_labels.tolist() == 6 * [0] + 6 * [1] + 6 * [2]
    assert data.test_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.paths[6] == "train/2/0.png"
    assert data.has_oracle


@pytest.mark.parametrize(
    ("given", "meant"), [(["fox"], (2,)), ([2], (1,)), ([10, "fox"], (0, 2)), ([0], (0,)), (["fox", 2], (2, 1))]
)
def test_target_classes_by_name_and_number(benchmark, given, meant):
    """A name that looks like a number is the name: the class 2 is the second folder here."""
    _, split = load_data_and_split(
        "folder", benchmark, mismatch=0.5, target_classes=given, initial_budget=4 * len(meant)
    )
    assert split.target_classes == meant


def test_unknown_class_name(benchmark):
    with pytest.raises(InputError, match="there is no class 'wolf'; the data set has 10, 2, fox"):
        load_data_and_split("folder", benchmark, mismatch=0.5, target_classes=["wolf"])


def test_names_work_for_other_data_sets():
    _, by_name = load_data_and_split("digits", "", mismatch=0.5, target_classes=["7", "3"])
    _, by_number = load_data_and_split("digits", "", mismatch=0.5, target_classes=[7, 3])
    assert by_name.digest == by_number.digest


def digest(place, **options):
    flags = {"mismatch": 0.8, **options}
    return load_data_and_split("folder", place, **flags)[1].digest


def test_digest_of_a_folder_to_which_nothing_happened(root, benchmark):
    drawing = {"mismatch": 0.5, "target_classes": ["fox"], "initial_budget": 2}
    for place, flags in ((root, {}), (benchmark, drawing)):
        first = digest(place, **flags)
        assert digest(place, **flags) == first
        path = next(place.rglob("*.png"))
        os.utime(path, ns=(1, 1))  # read again, and found to be the same
        assert digest(place, **flags) == first
        assert digest(place, image_size=48, **flags) != first


@pytest.mark.parametrize("path", ["labeled/cat/c1.png", "unlabeled/u2.png"])
def test_digest_of_a_changed_folder(root, path):
    first = digest(root)
    put(root / path, 999)
    changed = digest(root)
    os.rename(root / path, root / path.replace(".png", "x.png"))
    renamed = digest(root)
    (root / path.replace(".png", "x.png")).unlink()
    assert len({first, changed, renamed, digest(root)}) == 4


def test_test_images_may_come_later(root):
    first = digest(root)
    put(root / "test/cat/more.png", 99)
    assert digest(root) == first
    assert len(load(root).test_images) == 3


def test_digest_of_a_changed_benchmark(benchmark):
    flags = {"mismatch": 0.5, "target_classes": ["fox"], "initial_budget": 2}
    first = digest(benchmark, **flags)
    put(benchmark / "train/2/3.png", 999)
    assert digest(benchmark, **flags) != first


def test_missing_folder(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load(tmp_path / "absent")


def test_copies(root):
    content = (root / "labeled/cat/c0.png").read_bytes()
    (root / "unlabeled/a copy.png").write_bytes(content)
    (root / "unlabeled/u9.png").write_bytes((root / "unlabeled/u0.png").read_bytes())
    (root / "test/cat/leak.png").write_bytes(content)
    data = load(root)
    assert "labeled/cat/c0.png" in data.paths
    assert len(data.paths) == 11
    assert len(data.test_images) == 2
    assert report(root) == {
        "unlabeled/a copy.png": "left out, duplicate: of labeled/cat/c0.png",
        "test/cat/leak.png": "left out, duplicate: of labeled/cat/c0.png",
        "unlabeled/u9.png": "left out, duplicate: of unlabeled/u0.png",
    }


def test_a_copy_in_two_classes_is_a_contradiction(root):
    content = (root / "labeled/cat/c0.png").read_bytes()
    (root / "labeled/dog/same.png").write_bytes(content)
    (root / "unlabeled/again.png").write_bytes(content)
    data = load(root)
    assert "labeled/cat/c0.png" not in data.paths
    assert "labeled/dog/same.png" not in data.paths
    assert "unlabeled/again.png" in data.paths
    both = "left out, contradiction: labeled/cat/c0.png and labeled/dog/same.png"
    assert report(root) == {"labeled/cat/c0.png": both, "labeled/dog/same.png": both}


def test_the_cache_holds_the_pixels_of_the_path(root):
    """Files come, change and go: every image stays the one of its path."""
    load(root)
    values = dict(zip(load(root).paths, [0, 1, 2, 10, 11, 30, 31, 20, 21, 22, 23]))
    put(root / "labeled/cat/b.png", 70)
    put(root / "unlabeled/u1.png", 71)
    (root / "unlabeled/dog/deep/0.png").unlink()
    values |= {"labeled/cat/b.png": 70, "unlabeled/u1.png": 71}
    del values["unlabeled/dog/deep/0.png"]
    data = load(root)
    assert sorted(data.paths) == sorted(values)
    for path, image in zip(data.paths, data.train_images):
        assert (image == np.asarray(picture(values[path]))).all(), path
    assert Path(root / ".ccal_cache/32/images.npy").stat().st_size == 128 + 13 * 32 * 32 * 3


@pytest.mark.parametrize("part", ["unlabeled", "test", "labeled"])
def test_a_part_that_is_a_file(root, part):
    shutil.rmtree(root / part, ignore_errors=True)
    (root / part).touch()
    with pytest.raises(InputError, match=f"{part} is no folder, and must be one with images in it"):
        load(root)


def test_a_part_may_be_a_link_to_anywhere(root, tmp_path):
    """The heap lies on another disk, say; links within it may stay within it, and not leave it."""
    before = load(root)
    (root / "unlabeled").rename(tmp_path / "heap")
    (root / "unlabeled").symlink_to(tmp_path / "heap")
    put(tmp_path / "elsewhere/secret.png", 93)
    (tmp_path / "heap/out.png").symlink_to(tmp_path / "elsewhere/secret.png")
    (tmp_path / "heap/within.png").symlink_to("u1.png")
    after = load(root)
    assert after.paths == before.paths
    assert report(root)["unlabeled/out.png"] == "left out, link: leads out of the folder"
    assert report(root)["unlabeled/within.png"] == "left out, duplicate: of unlabeled/u1.png"


# What is left out


def test_what_is_left_out_is_counted_and_listed(root, tmp_path, capsys):
    (root / "unlabeled/notes.txt").write_text("words")
    (root / "unlabeled/zero.png").touch()
    (root / "unlabeled/cut.png").write_bytes((root / "unlabeled/u0.png").read_bytes()[:500])
    (root / "unlabeled/.hidden.png").write_bytes(b"x")
    put(root / "unlabeled/small.png", 90, compress_level=1)
    picture(90, (20, 5)).save(root / "unlabeled/small.png")
    put(root / "labeled/loose.png", 91)
    put(root / "test/wolf/w.png", 92)
    put(tmp_path / "elsewhere/secret.png", 93)
    (root / "unlabeled/out.png").symlink_to(tmp_path / "elsewhere/secret.png")
    (root / "unlabeled/outside").symlink_to(tmp_path / "elsewhere")
    (root / "unlabeled/nowhere.png").symlink_to("absent.png")
    (root / "unlabeled/round").symlink_to("..")
    (root / "unlabeled/within.png").symlink_to("u1.png")
    os.mkfifo(root / "unlabeled/pipe")
    before = load(root).paths
    assert len(before) == 11
    reasons = report(root)
    assert reasons.pop("unlabeled/cut.png").startswith("left out, unreadable: damaged (")
    assert reasons == {
        "unlabeled/notes.txt": "left out, no image: not jpeg, png, webp or bmp",
        "unlabeled/zero.png": "left out, empty file: 0 bytes",
        "unlabeled/.hidden.png": "left out, hidden",
        "unlabeled/small.png": "left out, too small: 20x5 pixels, at least 8x8 are needed",
        "labeled/loose.png": "left out, in no class folder: directly beneath labeled/",
        "test/wolf/w.png": "left out, of no labeled class: there is no labeled/wolf/",
        "unlabeled/out.png": "left out, link: leads out of the folder",
        "unlabeled/outside": "left out, link: leads out of the folder",
        "unlabeled/round": "left out, link: leads back to a folder that holds it",
        "unlabeled/nowhere.png": "left out, link: leads nowhere",
        "unlabeled/within.png": "left out, duplicate: of unlabeled/u1.png",
        "unlabeled/pipe": "left out, no regular file",
    }
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out: ")]
    for part in ("1 no image", "1 empty file", "1 too small", "1 hidden", "1 in no class folder", "report.csv"):
        assert part in line


def test_what_is_used_otherwise_than_one_would_expect_is_listed(root, capsys):
    frames = [picture(60), picture(61)]
    frames[0].save(root / "unlabeled/moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(root / "unlabeled/clear.png")
    data = load(root)
    assert report(root) == {
        "unlabeled/moving.webp": "used, animated, its first frame is used",
        "unlabeled/clear.png": "used, transparent, shown on white",
    }
    assert (data.train_images[data.paths.index("unlabeled/clear.png")] == 255).all()
    assert "used: 1 " in capsys.readouterr().out


@pytest.mark.parametrize(
    "name",
    ["a b.png", 'it\'s "q".png', "cät 🐈.png", "two\nlines.png", "-rf.png", "a,b;c.png", os.fsdecode(b"\xff\xfe.png")],
)
def test_names_of_every_kind(root, name, capsys):
    put(root / f"labeled/dog/{name}", 50)
    (root / f"unlabeled/bad {name}").write_text("no image")
    data = load(root)
    assert f"labeled/dog/{name}" in data.paths
    assert (data.train_images[data.paths.index(f"labeled/dog/{name}")] == np.asarray(picture(50))).all()
    with open(root / ".ccal_cache/32/report.csv", newline="", encoding="utf-8") as file:
        [(path, _)] = list(csv.reader(file))[1:]
    assert path == f"unlabeled/bad {name}".encode("utf-8", "backslashreplace").decode()
    assert load(root).paths == data.paths  # from the manifest


@pytest.mark.parametrize("name", ["my cats", "🐈", "a\nb", os.fsdecode(b"\xff")])
def test_class_names_of_every_kind(root, name, capsys):
    os.rename(root / "labeled/cat", root / "labeled" / name)
    os.rename(root / "test/cat", root / "test" / name)
    data = load(root)
    assert sorted(data.class_names) == sorted(["dog", name])
    capsys.readouterr()


# Bad folders: one line


def empty(path):
    for entry in sorted(path.rglob("*"), reverse=True):
        entry.unlink() if entry.is_file() else entry.rmdir()


def only_one_class(root):
    empty(root / "labeled/dog")
    (root / "labeled/dog").rmdir()


def no_class_folders(root):
    empty(root / "labeled")
    put(root / "labeled/a.png", 1)


def renamed(root):
    for part in ("labeled", "unlabeled"):
        os.rename(root / part, root / f"my {part}")


def no_images(root):
    for path in (root / "labeled/dog").iterdir():
        path.write_text("x")


BAD = {
    "no folder": (lambda root: os.rename(root, root.parent / "gone"), "does not exist"),
    "a file": (lambda root: (empty(root), root.rmdir(), root.touch()), "is no folder"),
    "empty": (empty, r"lacks train/ \(it holds nothing\): --dataset folder needs labeled/<class>/ and unlabeled/, or"),
    "something else": (renamed, r"lacks train/ \(it holds my labeled, my unlabeled, test\)"),
    "no pool": (lambda root: (empty(root / "unlabeled"), (root / "unlabeled").rmdir()), "lacks unlabeled/"),
    "an empty pool": (lambda root: empty(root / "unlabeled"), "unlabeled holds no usable jpeg, png, webp or bmp"),
    "nothing labeled": (lambda root: empty(root / "labeled"), "labeled holds no class folder: put the images of each"),
    "no class folders": (no_class_folders, "holds no class folder"),
    "an empty class": (lambda root: (root / "labeled/fox").mkdir(), "labeled/fox holds no usable .*listed in .*report"),
    "a class of no images": (no_images, "labeled/dog holds no usable"),
    "both forms": (lambda root: (root / "train").mkdir(), "holds both train/ and labeled/: give them a folder each"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD.values(), ids=BAD)
def test_bad_folder(root, spoil, message):
    spoil(root)
    with pytest.raises(InputError, match=message) as caught:
        load(root)
    assert "\n" not in str(caught.value)


def test_one_class_and_a_class_with_one_image_are_said(root, capsys):
    (root / "labeled/dog/d1.png").unlink()
    assert load(root).train_labels.tolist()[:4] == [0, 0, 0, 1]
    assert "warning: labeled/dog has one image only: the distinctive score needs two" in capsys.readouterr().out
    only_one_class(root)
    assert load(root).num_classes == 1
    assert "warning: labeled/ has one class only (cat): the classifier needs two" in capsys.readouterr().out


def test_folders_within_a_class_folder_belong_to_the_class(root, capsys):
    put(root / "labeled/cat/tabby/x.png", 55)
    data = load(root)
    assert data.train_labels[data.paths.index("labeled/cat/tabby/x.png")] == 0
    assert "folders within labeled/cat/ count as that class" in capsys.readouterr().out


def test_a_benchmark_needs_both_parts(benchmark):
    empty(benchmark / "test")
    with pytest.raises(InputError, match="test holds no usable"):
        load(benchmark)
    (benchmark / "test").rmdir()
    with pytest.raises(InputError, match="lacks test/"):
        load(benchmark)


@pytest.mark.parametrize("flag", ["image_size", "cache_dir"])
def test_flags_of_folders_are_refused_elsewhere(flag):
    with pytest.raises(InputError, match=f"--{flag} 64 is for --dataset folder"):
        load_dataset("digits", **{flag: 64})


def test_names_that_a_terminal_cannot_show_are_escaped(root, monkeypatch):
    name = os.fsdecode("🐈".encode() + b"\xff")
    os.rename(root / "labeled/cat", root / "labeled" / name)
    os.rename(root / "test/cat", root / "test" / name)
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    data = load(root)
    log(f"{data.class_names[1]} was found")
    stream.flush()
    assert b"\\U0001f408\\udcff was found\n" in stream.buffer.getvalue()
    assert b"(dog 2, \\U0001f408\\udcff 3)" in stream.buffer.getvalue()
