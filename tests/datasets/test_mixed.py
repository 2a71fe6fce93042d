"""Mixed pools: what is drawn from which data set, in which shape, and what the digest covers."""

import random

import numpy as np
import pytest
from PIL import Image

from datasets.mixed import counted, data_name, fitted
from tests.runs import load_split
from utils import InputError


def write_npz(path, *, count, size=8, first=0, classes=2):
    """Images whose every pixel says which one it is."""
    images = np.arange(first, first + count, dtype=np.uint8)[:, None, None, None] + np.zeros((size, size, 3), np.uint8)
    labels = np.arange(count) % classes
    path.parent.mkdir(exist_ok=True)
    np.savez(path, train_images=images, train_labels=labels, test_images=images[:6], test_labels=labels[:6])
    return path


@pytest.fixture
def target(tmp_path):
    """36 images of three classes, pixels 0 .. 35; 12 of them of class 2, which is not a target."""
    return write_npz(tmp_path / "data/target.npz", count=36, classes=3)


@pytest.fixture
def others(tmp_path):
    """Two sources: 30 images in an npz file (pixels 100 .. 129), 10 in a folder (200 .. 209), of other sizes."""
    for number in range(10):
        (tmp_path / "sea/deep").mkdir(parents=True, exist_ok=True)
        Image.new("L", (20, 14), 200 + number).save(tmp_path / f"sea/deep/{number}.png")
    return [str(write_npz(tmp_path / "sky.npz", count=30, first=100, size=12)), str(tmp_path / "sea")]


def load(target, others, *, mismatch=0.5, **options):
    draw = {"mismatch": mismatch, "target_classes": [0, 1], "initial_budget": 4}
    return load_split("npz", target, **draw, others=others, **options)


def test_who_is_drawn(target, others):
    data, split = load(target, others)
    own, plain = load(target, None, mismatch=0.25)
    assert (split.labeled == plain.labeled).all()
    assert (split.unlabeled[:20] == plain.unlabeled[:20]).all()
    # The protocol's draw, over 30 and 10 images in a row.
    values = [100 + i if i < 30 else 170 + i for i in random.Random(0).sample(range(40), 20)]
    assert split.unlabeled[20:].tolist() == list(range(36, 56))
    assert (data.train_images[:36] == own.train_images).all()
    assert (data.train_images[36:] == np.reshape(values, (20, 1, 1, 1))).all()
    assert data.sources == ("npz", "sky", "sea")
    assert data.source_numbers.tolist() == [0] * 36 + [1 if value < 200 else 2 for value in values]
    assert data.train_labels[36:].tolist() == [3 if value < 200 else 4 for value in values]
    assert (data.num_classes, data.class_names) == (5, ("0", "1", "2", "sky", "sea"))
    assert data.name == data_name("npz", others) == "npz+sky+sea"
    sea = sum(value >= 200 for value in values)
    assert 0 < sea < 10 and counted(data, split.unlabeled) == f"20 from npz, {20 - sea} from sky, {sea} from sea"
    # Of the test images, those of target classes are left.
    assert (data.test_labels.tolist(), split.test.tolist()) == ([0, 1, 0, 1], [0, 1, 2, 3])
    assert data.test_images[:, 0, 0, 0].tolist() == [0, 1, 3, 4]


def test_the_mismatch_is_kept(target, others):
    for mismatch in (0.0, 0.2, 0.6):
        data, split = load(target, others, mismatch=mismatch)
        counts = data.count_by_source(split.unlabeled)
        assert (counts["npz"], counts["sky"] + counts["sea"]) == (20, round(20 * mismatch / (1 - mismatch)))
    with pytest.raises(InputError, match=r"asks for 181 images of other classes and 40 exist; the largest .* is 0.666"):
        load(target, others, mismatch=0.9)


def test_the_digest_covers_the_sources_wherever_they_lie(target, others, tmp_path):
    def digest(*others, **options):
        return load(target, others, **options)[1].digest

    sky, sea = others
    first = digest(sky, sea)
    elsewhere = str(write_npz(tmp_path / "moved/sky.npz", count=30, first=100, size=12))
    assert digest(sky, sea) == digest(elsewhere, sea) == first
    renamed = str(write_npz(tmp_path / "sun.npz", count=30, first=100, size=12))
    digests = [digest(renamed, sea), digest(sky), digest(sea, sky), digest(sky, sea, split_seed=3)]
    write_npz(tmp_path / "sky.npz", count=30, first=101, size=12)
    assert len({first, *digests, digest(sky, sea)}) == 6


def test_names_are_fit_for_folders_and_tables():
    assert data_name("cifar10", None) == "cifar10"
    assert data_name("cifar10", ["svhn", "some/where/my sky (1).npz", "../été/"]) == "cifar10+svhn+my_sky__1_+été"
    assert data_name("cifar10", [f"{letter * 40}.npz" for letter in "abc"]) == "cifar10+3_others"


def test_bad_others(target, tmp_path):
    (tmp_path / "link").symlink_to(target.parent)
    own = "holds the target classes themselves"
    for others, message in {
        ("nonsense",): "nonsense is not an npz file, a folder, or one of cifar10, ",
        ("digits", "digits"): "names digits twice",
        **{(str(place),): own for place in (target, target.parent, tmp_path, tmp_path / "link")},
    }.items():
        with pytest.raises(InputError, match=f"--others .*{message}"):
            load(target, others)
    draw = {"mismatch": 0.5, "target_classes": [0], "initial_budget": 1}
    with pytest.raises(InputError, match=own):
        load_split("digits", "", **draw, others=["digits"])
    for flag in ("others_path", "cache_dir"):
        with pytest.raises(InputError, match=f"--{flag} x is for --"):
            load_split("npz", target, **draw, **{flag: "x"})


def test_the_subfolders_in_use_are_no_others(tmp_path):
    for number in range(12):
        path = tmp_path / f"{('train', 'test')[number % 2]}/{('cat', 'dog')[number // 2 % 2]}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (32, 32), 10 * number).save(path)
    (tmp_path / "sky").mkdir()
    for number in range(4):
        Image.new("L", (32, 32), 200 + number).save(tmp_path / f"sky/{number}.png")
    draw = {"mismatch": 0.5, "target_classes": ["cat"], "initial_budget": 1}
    for other in ("train/cat", "test"):
        with pytest.raises(InputError, match="holds the target classes themselves"):
            load_split("folder", tmp_path, **draw, others=[str(tmp_path / other)])
    data, split = load_split("folder", tmp_path, **draw, others=[str(tmp_path / "sky")])
    assert data.count_by_source(split.unlabeled) == {"folder": 2, "sky": 2}
    assert data.paths[-1] in {f"sky/{number}" for number in range(4)}


def test_copies_of_the_target_data_are_counted_in_a_warning(target, tmp_path, capsys):
    """Of the 20 others all are drawn; 6 of them (pixels 30 .. 35) are in the data set, too."""
    load(target, [str(write_npz(tmp_path / "heap.npz", count=20, first=30))])
    assert "warning: 6 of the images drawn from heap are, pixel by pixel, in npz, too" in capsys.readouterr().out
    load(target, [str(write_npz(tmp_path / "other.npz", count=20, first=50))])
    assert "of the images drawn from" not in capsys.readouterr().out


@pytest.mark.parametrize("shape", [(8, 8), (4, 8), (6, 4), (12, 24), (32, 32)])
def test_fitted_is_the_whole_resized_and_its_centre(shape):
    images = np.random.default_rng(0).integers(0, 256, (3, 12, 24, 3), dtype=np.uint8)
    found = fitted(images, shape)
    scale = max(shape[0] / 12, shape[1] / 24)
    height, width = round(12 * scale), round(24 * scale)
    top, left = (height - shape[0]) // 2, (width - shape[1]) // 2
    for image, whole in zip(found, images, strict=True):
        resized = np.asarray(Image.fromarray(whole).resize((width, height), Image.Resampling.BILINEAR))
        assert (image == resized[top : top + shape[0], left : left + shape[1]]).all()
    assert fitted(images[:0], shape).shape == (0, *shape, 3)
