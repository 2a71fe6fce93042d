"""A folder of images as a data set: pixels and labels by path, copies, what is left out, and its digest."""

import csv
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from datasets import load_dataset
from datasets.base import UNKNOWN
from datasets.folder import index_others
from tests.runs import load_split
from utils import InputError


def pixels(value):
    return np.random.default_rng(value).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def put(root, values):
    for path, value in values.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(value)).save(root / path)


@pytest.fixture
def root(tmp_path):
    """The annotation form: classes cat (3) and dog (2), 6 in the pool, 2 test images."""
    values = {f"labeled/cat/c{i}.png": i for i in range(3)} | {f"labeled/dog/d{i}.png": 10 + i for i in range(2)}
    values |= {f"unlabeled/u{i}.png": 20 + i for i in range(4)} | {f"unlabeled/dog/{i}.png": 30 + i for i in range(2)}
    put(tmp_path / "mine", values | {"test/cat/t.png": 40, "test/dog/t.png": 41})
    return tmp_path / "mine"


def load(root, **options):
    return load_dataset("folder", root, **options)


def report(root):
    with open(root / ".ccal_cache/32/report.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["path", "reason"]
    return dict(rows[1:])


def test_annotation_form(root):
    data, split = load_split("folder", root, split_seed=3)
    values = [0, 1, 2, 10, 11, 30, 31, 20, 21, 22, 23]
    assert data.paths[4:8] == ("labeled/dog/d1.png", "unlabeled/dog/0.png", "unlabeled/dog/1.png", "unlabeled/u0.png")
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1] + 6 * [UNKNOWN] and data.test_labels.tolist() == [0, 1]
    assert (data.num_classes, data.class_names, data.image_size) == (2, ("cat", "dog"), (32, 32))
    assert (data.train_images == np.stack([pixels(value) for value in values])).all()
    assert (data.test_images == np.stack([pixels(40), pixels(41)])).all()
    assert (split.labeled.tolist(), split.unlabeled.tolist()) == ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9, 10])
    assert (split.test.tolist(), split.target_classes, split.mismatch, split.seed) == ([0, 1], (0, 1), None, 3)
    assert not data.has_oracle
    with pytest.raises(InputError, match="nobody has labeled image 7"):
        split.annotate(np.asarray([7]), data.train_labels)
    shutil.rmtree(root / "test")
    assert load(root).test_images.shape == (0, 32, 32, 3)


def test_benchmark_form(tmp_path):
    values = {f"train/{name}/{i}.png": 10 * int(name) + i for name in ("10", "2") for i in range(3)}
    put(tmp_path, values | {f"test/{name}/t.png": int(name) for name in ("10", "2")})
    data = load(tmp_path)
    assert (data.class_names, data.has_oracle) == (("10", "2"), True)
    assert (data.train_labels.tolist(), data.test_labels.tolist()) == ([0, 0, 0, 1, 1, 1], [0, 1])
    assert (data.train_images == np.stack([pixels(value) for value in (100, 101, 102, 20, 21, 22)])).all()
    put(tmp_path, {"test/2/t.png": 999})
    assert load(tmp_path).digest != data.digest
    assert index_others(tmp_path, size=8, cache_dir=None).shape == (6, 8, 8, 3)  # of train/
    assert index_others(tmp_path / "test", size=32, cache_dir=tmp_path).shape == (2, 32, 32, 3)
    for path in (tmp_path / "test").rglob("*.png"):
        path.unlink()
    with pytest.raises(InputError, match="test holds no usable"):
        load(tmp_path)
    with pytest.raises(InputError, match=r"--others .*test holds no usable"):
        index_others(tmp_path / "test", size=32, cache_dir=None)


def test_the_digest_is_of_paths_contents_and_size(root):
    first = load(root).digest
    os.utime(root / "unlabeled/u2.png", ns=(1, 1))  # read again, and found to be the same
    put(root, {"test/cat/more.png": 99})  # a test set may come later
    assert load(root).digest == first and len(load(root).test_images) == 3
    digests = [first, load(root, image_size=48).digest]
    for path in ("labeled/cat/c1.png", "unlabeled/u2.png"):
        put(root, {path: 999 + len(digests)})
        digests.append(load(root).digest)
        os.rename(root / path, root / path.replace(".png", "x.png"))
        digests.append(load(root).digest)
        (root / path.replace(".png", "x.png")).unlink()
        digests.append(load(root).digest)
    assert len(set(digests)) == 8


def test_of_copies_one_is_used_and_contradictions_are_not(root):
    cat, dog, u0 = (
        (root / path).read_bytes() for path in ("labeled/cat/c0.png", "labeled/dog/d0.png", "unlabeled/u0.png")
    )
    copies = {"unlabeled/a copy.png": cat, "test/cat/leak.png": cat, "unlabeled/u9.png": u0}
    copies |= {"labeled/cat/wrong.png": dog, "unlabeled/again.png": dog}
    for path, content in copies.items():
        (root / path).write_bytes(content)
    data = load(root)
    assert {"labeled/cat/c0.png", "unlabeled/u0.png", "unlabeled/again.png"} < set(data.paths)
    assert (len(data.paths), len(data.test_images)) == (11, 2)
    contradiction = "left out, contradiction: labeled/cat/wrong.png and labeled/dog/d0.png"
    assert report(root) == {
        "unlabeled/a copy.png": "left out, duplicate: of labeled/cat/c0.png",
        "test/cat/leak.png": "left out, duplicate: of labeled/cat/c0.png",
        "unlabeled/u9.png": "left out, duplicate: of unlabeled/u0.png",
        "labeled/cat/wrong.png": contradiction,
        "labeled/dog/d0.png": contradiction,
    }


def test_the_report_says_what_is_left_out_or_used_otherwise(root, capsys):
    (root / "unlabeled/notes.txt").write_text("words")
    (root / "unlabeled/zero.png").touch()
    (root / "unlabeled/cut.png").write_bytes((root / "unlabeled/u0.png").read_bytes()[:500])
    put(root, {"labeled/loose.png": 91})
    clear = np.dstack([pixels(7), np.where(np.arange(32) < 16, 0, 255) * np.ones((32, 1), int)]).astype(np.uint8)
    Image.fromarray(clear).save(root / "unlabeled/clear.png")
    data = load(root)
    found = data.train_images[data.paths.index("unlabeled/clear.png")]
    assert len(data.paths) == 12 and (found[:, :16] == 255).all() and (found[:, 16:] == pixels(7)[:, 16:]).all()
    reasons = report(root)
    assert reasons.pop("unlabeled/cut.png").startswith("left out, damaged: ")
    assert reasons == {
        "unlabeled/notes.txt": "left out, no image: not jpeg, png, webp or bmp",
        "unlabeled/zero.png": "left out, empty file",
        "labeled/loose.png": "left out, in no class folder: directly in labeled/",
        "unlabeled/clear.png": "used, transparent, shown on white",
    }
    printed = capsys.readouterr().out
    for counted in ("1 no image", "1 empty file", "1 damaged", "1 in no class folder", "used: 1 transparent, shown"):
        assert counted in printed


@pytest.mark.parametrize("name", ['it\'s "q"', "cät", "two\nlines", "-rf a,b;c", os.fsdecode("🐈".encode() + b"\xff")])
def test_names_of_every_kind(root, name, capsys):
    os.rename(root / "labeled/cat", root / "labeled" / name)
    put(root, {f"labeled/{name}/{name}.png": 50})
    (root / f"unlabeled/bad {name}").write_text("no image")
    shutil.rmtree(root / "test")
    data = load(root)
    place = data.paths.index(f"labeled/{name}/{name}.png")
    assert data.class_names[data.train_labels[place]] == name
    assert (data.train_images[place] == pixels(50)).all()
    assert [*report(root)] == [f"unlabeled/bad {name}".encode("utf-8", "backslashreplace").decode()]
    assert load(root).paths == data.paths  # from the manifest
    shown = {"two\nlines": "two\\nlines", "🐈\udcff": "🐈\\udcff"}.get(name, name)
    assert f"{shown} 4" in capsys.readouterr().out


@pytest.mark.parametrize("part", ["unlabeled", "labeled/dog"])
def test_a_part_or_class_without_images_is_refused(root, part):
    for path in (root / part).rglob("*.png"):
        path.write_text("x")
    with pytest.raises(InputError, match=rf"{part} holds no usable .*left out: \d no image .* listed in .*report.csv"):
        load(root)


def test_links_out_of_the_folder_are_counted_in_the_refusal(root, tmp_path):
    """A data set of links into a store elsewhere."""
    for path in sorted(root.rglob("*.png")):
        link = tmp_path / "links" / path.relative_to(root)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    with pytest.raises(InputError, match=r"left out: 5 link \(leads out of the folder\); .*copy these"):
        load(tmp_path / "links")
    with pytest.raises(InputError, match=r"--others .*left out: 6 link \(leads out of the folder\)"):
        index_others(tmp_path / "links/unlabeled", size=32, cache_dir=tmp_path)
    for part in ("labeled", "unlabeled", "test"):
        shutil.rmtree(tmp_path / "links" / part)
        (tmp_path / "links" / part).symlink_to(root / part)
    assert load(tmp_path / "links").paths == load(root).paths


def again(root, path, copy):
    """The same picture in a file of other bytes."""
    (root / copy).parent.mkdir(parents=True, exist_ok=True)
    Image.open(root / path).save(root / copy, compress_level=0)
    assert (root / path).read_bytes() != (root / copy).read_bytes()


def test_the_same_picture_in_other_bytes_is_used_once(root, capsys):
    whole = load(root)
    again(root, "labeled/cat/c0.png", "unlabeled/a copy.png")
    again(root, "labeled/dog/d0.png", "test/dog/leak.png")
    capsys.readouterr()
    data = load(root)
    assert (data.paths, len(data.test_images), data.digest) == (whole.paths, 2, whole.digest)
    assert "left out: 2 duplicate;" in capsys.readouterr().out
    again(root, "labeled/cat/c1.png", "labeled/dog/c1.png")
    data = load(root)  # which of the two it is nobody knows
    assert data.paths == tuple(path for path in whole.paths if path != "labeled/cat/c1.png")
    said = "1 picture(s) stand under two classes and are left out: labeled/cat/c1.png and labeled/dog/c1.png"
    assert said in capsys.readouterr().out
    (root / "labeled/dog/c1.png").unlink()
    assert load(root).paths == whole.paths


def test_pictures_of_one_colour_and_of_another_range_are_warned_of(root, capsys):
    for number in range(4):
        Image.new("RGB", (32, 32), (9 + number, 200, 9)).save(root / f"unlabeled/flat{number}.png")
    twelve_bits = np.random.default_rng(0).integers(0, 3900, (2, 32, 32)).astype(np.uint16)
    twelve_bits[:, 0, 0] = 3900, 4095
    for number in range(2):
        Image.fromarray(twelve_bits[number]).save(root / f"unlabeled/bits{number}.png")
    Image.fromarray(pixels(3) // 128).save(root / "labeled/cat/mask.png")  # 0 and 1
    load(root)
    printed = capsys.readouterr().out
    flat = "4 picture(s) are of one colour everywhere: unlabeled/flat0.png, unlabeled/flat1.png"
    assert flat in printed and "unlabeled/flat2.png and 1 more; see" in printed
    assert "3 picture(s) are nearly black (largest value 4095 of 65535; another range?): labeled/cat/mask" in printed
    reasons = report(root)
    assert reasons["unlabeled/flat3.png"] == "used, of one colour"
    assert reasons["unlabeled/bits0.png"] == "used, nearly black: largest value 3900 of 65535"
    assert reasons["labeled/cat/mask.png"] == "used, nearly black: largest value 1 of 255"
    load(root)
    assert flat in capsys.readouterr().out  # from the manifest


def test_encoders_may_be_trained_before_anything_is_labeled(root):
    shutil.rmtree(root / "labeled")
    shutil.rmtree(root / "test")
    data = load(root)
    assert (len(data.paths), data.num_classes, data.class_names, data.has_oracle) == (6, 0, (), False)
    with pytest.raises(InputError, match="has no labeled/: put a few images of each class"):
        load_split("folder", root)


def test_a_class_with_one_image_gets_a_warning_and_one_class_is_enough(root, capsys):
    (root / "labeled/dog/d1.png").unlink()
    load(root)
    assert "warning: labeled/dog has one image only" in capsys.readouterr().out
    shutil.rmtree(root / "labeled/dog")
    assert load(root).num_classes == 1
    assert "warning" not in capsys.readouterr().out
