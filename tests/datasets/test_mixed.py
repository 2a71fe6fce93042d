"""Mixed pools: what is drawn from which data set, in which shape, and what the digest covers."""

import json
import random

import numpy as np
import pytest
from PIL import Image

from active_main import main as query
from datasets import load_data_and_split
from datasets.mixed import data_name, fitted
from utils import InputError

FLAGS = {"mismatch": 0.5, "target_classes": [0, 1], "initial_budget": 4}


def write_npz(path, *, count, size=8, first=0, classes=2):
    """Images whose every pixel says which one it is."""
    images = np.broadcast_to(
        np.arange(first, first + count, dtype=np.uint8)[:, None, None, None], (count, size, size, 3)
    )
    labels = np.arange(count) % classes
    np.savez(path, train_images=images, train_labels=labels, test_images=images[:6], test_labels=labels[:6])
    return path


@pytest.fixture
def target(tmp_path):
    """36 images of three classes, pixels 0 .. 35; 12 of them of class 2, which is no target."""
    return write_npz(tmp_path / "target.npz", count=36, classes=3)


@pytest.fixture
def others(tmp_path):
    """Two sources: 30 images in an npz file (pixels 100 .. 129), 10 in a folder (200 .. 209), another size."""
    one = write_npz(tmp_path / "sky.npz", count=30, first=100, size=12)
    for number in range(10):
        path = tmp_path / f"sea/deep/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (20, 14), 200 + number).save(path)
    return [str(one), str(tmp_path / "sea")]


def load(target, others, **changes):
    return load_data_and_split("npz", target, **{**FLAGS, **changes}, others=others)


def test_who_is_drawn(target, others):
    data, split = load(target, others)
    own, plain = load_data_and_split("npz", target, **{**FLAGS, "mismatch": 0.25})
    assert (split.labeled == plain.labeled).all()
    assert (split.unlabeled[:20] == plain.unlabeled[:20]).all()
    # The protocol's draw, over 30 and 10 images in a row.
    drawn = random.Random(0).sample(range(40), 20)
    values = [100 + number if number < 30 else 200 + number - 30 for number in drawn]
    assert split.unlabeled[20:].tolist() == list(range(36, 56))
    assert data.train_images.shape == (56, 8, 8, 3)
    assert (data.train_images[:36] == own.train_images).all()
    assert data.train_images[36:, 3, 3].tolist() == [[value] * 3 for value in values]
    assert data.sources == ("npz", "sky", "sea")
    assert data.source_numbers.tolist() == [0] * 36 + [1 if value < 200 else 2 for value in values]
    assert data.train_labels[36:].tolist() == [3 if value < 200 else 4 for value in values]
    assert (data.num_classes, data.class_names) == (5, ("0", "1", "2", "sky", "sea"))
    assert data.name == data_name("npz", others) == "npz+sky+sea"
    sea = sum(value >= 200 for value in values)
    assert 0 < sea < 10
    assert data.count_by_source(split.unlabeled) == {"npz": 20, "sky": 20 - sea, "sea": sea}


def test_the_mismatch_is_kept(target, others):
    for mismatch in (0.0, 0.2, 0.6):
        data, split = load(target, others, mismatch=mismatch)
        counts = data.count_by_source(split.unlabeled)
        assert (counts["npz"], counts["sky"] + counts["sea"]) == (20, round(20 * mismatch / (1 - mismatch)))


def test_test_images_are_those_of_target_classes(target, others):
    data, split = load(target, others)
    assert data.test_labels.tolist() == [0, 1, 0, 1]
    assert split.test.tolist() == [0, 1, 2, 3]
    assert data.test_images[:, 0, 0, 0].tolist() == [0, 1, 3, 4]


def test_too_few_others(target, others):
    with pytest.raises(InputError, match=r"asks for 181 images of other classes and 40 exist; the largest .* is 0.666"):
        load(target, others, mismatch=0.9)


def test_digest_covers_the_sources(target, others, tmp_path):
    first = load(target, others)[1].digest
    assert load(target, others)[1].digest == first
    digests = {first, load(target, others[:1])[1].digest}
    digests |= {load(target, others[::-1])[1].digest, load(target, others, split_seed=3)[1].digest}
    (tmp_path / "sky.npz").rename(tmp_path / "sun.npz")
    renamed = [str(tmp_path / "sun.npz"), others[1]]
    digests.add(load(target, renamed)[1].digest)
    (tmp_path / "moved").mkdir()
    (tmp_path / "sun.npz").rename(tmp_path / "moved/sky.npz")
    assert load(target, [str(tmp_path / "moved/sky.npz"), others[1]])[1].digest == first  # wherever it lies
    write_npz(tmp_path / "moved/sky.npz", count=30, first=101, size=12)
    digests.add(load(target, [str(tmp_path / "moved/sky.npz"), others[1]])[1].digest)
    assert len(digests) == 6


def test_names_are_fit_for_folders_and_tables():
    assert data_name("cifar10", None) == "cifar10"
    assert data_name("cifar10", ["svhn", "some/where/my sky (1).npz", "../été/"]) == "cifar10+svhn+my_sky__1_+été"
    assert data_name("cifar10", [f"{letter * 40}.npz" for letter in "abc"]) == "cifar10+3_others"


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (["nonsense"], "--others nonsense is no npz file, no folder, and none of cifar10, "),
        (["digits", "digits"], "--others names digits twice"),
    ],
)
def test_bad_others(target, others, message):
    with pytest.raises(InputError, match=message):
        load(target, others)


def test_the_target_data_are_no_others(target, tmp_path):
    for other in (target, tmp_path):
        with pytest.raises(InputError, match="holds the target classes themselves"):
            load(target, [str(other)])
    with pytest.raises(InputError, match="holds the target classes themselves"):
        load_data_and_split("digits", "", mismatch=0.5, others=["digits"])


def test_the_target_images_of_a_folder_are_no_others(tmp_path):
    for number in range(12):
        path = tmp_path / f"data/{('train', 'test')[number % 2]}/{('cat', 'dog')[number // 2 % 2]}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (32, 32), 10 * number).save(path)
    for number in range(4):
        (tmp_path / "data/sky").mkdir(exist_ok=True)
        Image.new("L", (32, 32), 200 + number).save(tmp_path / f"data/sky/{number}.png")
    (tmp_path / "link").symlink_to(tmp_path / "data/train/cat")
    flags = {"mismatch": 0.5, "target_classes": ["cat"], "initial_budget": 1}
    for other in ("data/train/cat", "data/test", "link", "data", "."):
        with pytest.raises(InputError, match="holds the target classes themselves"):
            load_data_and_split("folder", tmp_path / "data", **flags, others=[str(tmp_path / other)])
    data, split = load_data_and_split("folder", tmp_path / "data", **flags, others=[str(tmp_path / "data/sky")])
    assert data.count_by_source(split.unlabeled) == {"folder": 2, "sky": 2}


def test_copies_of_the_target_data_are_counted_in_a_warning(target, tmp_path, capsys):
    """Of the 20 others all are drawn; 6 of them (pixels 30 .. 35) are in the data set, too."""
    load(target, [str(write_npz(tmp_path / "heap.npz", count=20, first=30))])
    assert "warning: 6 of the images drawn from heap are, pixel by pixel, in npz, too" in capsys.readouterr().out
    load(target, [str(write_npz(tmp_path / "other.npz", count=20, first=50))])
    assert "warning" not in capsys.readouterr().out


def test_flags_without_their_purpose(target):
    with pytest.raises(InputError, match="--others_path x is for --others"):
        load_data_and_split("npz", target, **FLAGS, others_path="x")
    with pytest.raises(InputError, match="--cache_dir x is for --dataset folder"):
        load_data_and_split("npz", target, **FLAGS, cache_dir="x")


def test_a_folder_of_others_needs_images(target, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"--others .*empty holds no usable jpeg, png, webp or bmp image"):
        load(target, [str(tmp_path / "empty")])


@pytest.mark.parametrize("shape", [(8, 8), (4, 8), (6, 4), (12, 24), (32, 32)])
def test_fitted_is_the_whole_resized_and_its_centre(shape):
    images = np.random.default_rng(0).integers(0, 256, (3, 12, 24, 3), dtype=np.uint8)
    found = fitted(images, shape)
    assert found.shape == (3, *shape, 3)
    scale = max(shape[0] / 12, shape[1] / 24)
    height, width = round(12 * scale), round(24 * scale)
    top, left = (height - shape[0]) // 2, (width - shape[1]) // 2
    for image, whole in zip(found, images):
        resized = np.asarray(Image.fromarray(whole).resize((width, height), Image.Resampling.BILINEAR))
        assert (image == resized[top : top + shape[0], left : left + shape[1]]).all()


def test_a_query_counts_by_source(target, others, tmp_path, capsys):
    flags = ["--dataset", "npz", "--data_path", target, "--mismatch", 0.5, "--initial_budget", 4]
    flags += ["--target_classes", "1", "0", "--others", *others, "--strategy", "random", "--target", 5, "--split", 2]
    query([*map(str, flags), "--index_dir", str(tmp_path / "out"), "--device", "cpu"])
    printed = capsys.readouterr().out
    data, split = load(target, others, target_classes=[1, 0])
    start = json.loads((tmp_path / "out/cycle_0.json").read_text())
    assert start["dataset"] == "npz+sky+sea"
    assert start["metrics"]["pool_by_source"] == data.count_by_source(split.unlabeled)
    for cycle in (1, 2):
        content = json.loads((tmp_path / f"out/cycle_{cycle}.json").read_text())
        counts = content["metrics"]["queried_by_source"]
        assert counts == data.count_by_source(np.asarray(content["queried"]))
        assert counts["npz"] == content["metrics"]["found"]  # all that comes from the target data is of target classes
        assert f"  queried: {counts['npz']} from npz, {counts['sky']} from sky, {counts['sea']} from sea" in printed
