"""Loading data sets: digits, npz files good and bad, CIFAR found, downloaded or neither, and the front door."""

import io
import os
import zipfile
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import sklearn.datasets
import torchvision.datasets

from common.paper import DEFAULT_BUDGET
from datasets import LOADERS, load_data_and_split, load_dataset, torchvision_sets
from datasets.base import MAX_CLASSES
from utils import InputError

# Digits


def test_digits_shape_counts_and_labels(tmp_path):
    data = load_dataset("digits", tmp_path / "not needed")
    assert data.name == "digits"
    assert data.train_images.shape == (1437, 16, 16, 3)
    assert data.test_images.shape == (360, 16, 16, 3)
    assert data.train_images.dtype == data.test_images.dtype == np.uint8
    assert data.train_labels.dtype == data.test_labels.dtype == np.int64
    assert (data.num_classes, data.class_names, data.image_size) == (10, tuple("0123456789"), (16, 16))
    assert data.train_labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    counts = np.bincount(np.concatenate([data.train_labels, data.test_labels]))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # the data set's own description


def test_digits_pixels_by_hand():
    """Twice the size with half-pixel centres: corners stay, inner pixels are 9 3 3 1 sixteenths of their neighbours."""
    data = load_dataset("digits")
    source = sklearn.datasets.load_digits().images * (255 / 16)
    images = np.concatenate([data.train_images, data.test_images])
    assert (images == images[..., :1]).all()  # three equal channels
    gray = images[..., 0].astype(float)
    assert (gray[:, 0, 0] == np.round(source[:, 0, 0])).all()
    assert (gray[:, 15, 15] == np.round(source[:, 7, 7])).all()
    mixed = (9 * source[:, 3, 4] + 3 * source[:, 3, 5] + 3 * source[:, 4, 4] + source[:, 4, 5]) / 16
    assert np.abs(gray[:, 7, 9] - mixed).max() <= 0.5 + 1e-9
    assert gray.max() == 255


def test_digits_split_by_default():
    data, split = load_data_and_split("digits", "~/nowhere", mismatch=0.5)
    assert split.target_classes == (0, 1)
    assert len(split.labeled) == 20
    # 143 zeros and 146 ones, 20 of them labeled: 269 targets in the pool and as many others.
    assert np.sum(data.train_labels[split.unlabeled] < 2) == 269
    assert np.sum(data.train_labels[split.unlabeled] >= 2) == 269
    assert split.test.tolist() == np.flatnonzero(data.test_labels < 2).tolist()


def test_flags_replace_the_protocol():
    _, split = load_data_and_split(
        "digits", "~/nowhere", mismatch=0.25, target_classes=[7, 3], initial_budget=30, split_seed=5
    )
    assert (split.target_classes, len(split.labeled), split.mismatch, split.seed) == ((7, 3), 30, 0.25, 5)


# npz


def arrays(**changes):
    """The arrays of a good file, with some replaced (None: left out)."""
    generator = np.random.default_rng(0)
    good = {
        "train_images": generator.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8),
        "train_labels": np.asarray([0, 1, 2, 0, 1, 2]),
        "test_images": generator.integers(0, 256, (3, 5, 4, 3), dtype=np.uint8),
        "test_labels": np.asarray([2, 1, 4]),
    }
    return {name: value for name, value in (good | changes).items() if value is not None}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data.npz"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(path, save):
    content = arrays()
    save(path, **content)
    data = load_dataset("npz", path)
    for name, expected in content.items():
        assert getattr(data, name).tolist() == expected.tolist()
    assert data.train_images.dtype == np.uint8
    assert data.train_labels.dtype == data.test_labels.dtype == np.int64
    assert (data.name, data.num_classes, data.class_names) == ("npz", 5, ("0", "1", "2", "3", "4"))
    assert data.image_size == (5, 4)


def test_npz_grayscale_gets_three_equal_channels(path):
    gray = arrays()["train_images"][..., 0]
    np.savez(path, **arrays(train_images=gray))
    data = load_dataset("npz", path)
    assert data.train_images.shape == (6, 5, 4, 3)
    for channel in range(3):
        assert data.train_images[..., channel].tolist() == gray.tolist()
    assert data.test_images.shape == (3, 5, 4, 3)


@pytest.mark.parametrize("dtype", ["u1", "i2", "<i4", ">i8", "u8"])
def test_npz_labels_of_any_integer_type(path, dtype):
    np.savez(path, **arrays(train_labels=np.asarray([0, 1, 2, 0, 1, 2], dtype=dtype)))
    data = load_dataset("npz", path)
    assert data.train_labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.train_labels.dtype == np.dtype("=i8")


def test_npz_arrays_in_fortran_order_become_contiguous(path):
    images = np.asfortranarray(arrays()["train_images"])
    np.savez(path, **arrays(train_images=images))
    data = load_dataset("npz", path)
    assert data.train_images.flags.c_contiguous
    assert data.train_images.tolist() == images.tolist()


def test_npz_extra_arrays_are_left_alone(path):
    np.savez(path, extra=np.asarray([{}], dtype=object), **arrays())
    assert len(load_dataset("npz", path).train_images) == 6


def test_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.savez(tmp_path / "data.npz", **arrays())
    assert len(load_dataset("npz", "~/data.npz").train_images) == 6


IMAGES = np.zeros((6, 5, 4, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_labels": None}, r"lacks test_labels; it must hold train_images, train_labels, test_images, test_lab"),
        ({"train_images": None, "test_images": None}, r"lacks train_images, test_images;"),
        ({"train_images": IMAGES.astype(np.float32)}, r"train_images in .* must be uint8 \(0 to 255\), got float32"),
        ({"test_images": IMAGES[:3].astype(np.int64)}, r"test_images in .* must be uint8 \(0 to 255\), got int64"),
        ({"train_images": IMAGES[..., :2]}, r"train_images in .* must have shape .*, got \(6, 5, 4, 2\)"),
        ({"train_images": IMAGES.transpose(0, 3, 1, 2)}, r"must have shape .*, got \(6, 3, 5, 4\)"),
        ({"train_images": IMAGES[:, 0, :, 0]}, r"must have shape .*, got \(6, 4\)"),
        ({"train_images": np.uint8(3)}, r"must have shape .*, got \(\)"),
        ({"train_images": IMAGES[:0], "train_labels": np.asarray([], dtype=int)}, r"got \(0, 5, 4, 3\)"),
        ({"train_images": IMAGES[:, :0]}, r"got \(6, 0, 4, 3\)"),
        ({"test_images": np.zeros((3, 4, 5, 3), np.uint8)}, r"must have one size, got \(5, 4\) and \(4, 5\)"),
        ({"train_labels": np.arange(5)}, r"train_labels in .* one label per image: 5 labels for 6 images"),
        ({"test_labels": np.arange(4)}, r"test_labels in .* one label per image: 4 labels for 3 images"),
        ({"train_labels": np.asarray([0, 1, -1, 0, 1, 2])}, r"train_labels in .* must lie in 0 .. 99999, got -1 .. 2"),
        ({"train_labels": np.asarray([0, 1, MAX_CLASSES, 0, 1, 2])}, r"must lie in 0 .. 99999, got 0 .. 100000"),
        ({"train_labels": np.asarray([2**64 - 1] * 6, dtype=np.uint64)}, r"must lie in 0 .. 99999"),
        ({"train_labels": np.asarray([0.0, 1, 2, 0, 1, 2])}, r"train_labels in .* whole numbers, got float64 of shape"),
        ({"train_labels": np.asarray([True] * 6)}, r"whole numbers, got bool"),
        ({"train_labels": np.asarray(list("abcdef"))}, r"whole numbers, got <U1"),
        ({"train_labels": np.eye(6, dtype=int)}, r"whole numbers, got int64 of shape \(6, 6\)"),
    ],
)
def test_npz_with_bad_arrays(path, changes, message):
    np.savez(path, **arrays(**changes))
    with pytest.raises(InputError, match=message) as caught:
        load_dataset("npz", path)
    assert str(path) in str(caught.value)


def test_npz_without_a_file(tmp_path):
    for place in (tmp_path / "absent.npz", tmp_path):
        with pytest.raises(InputError, match=r"needs --data_path FILE.npz, and .* is no file") as caught:
            load_dataset("npz", place)
        assert str(place) in str(caught.value)


def member_offset(raw, name):
    """Where a member's data starts in a zip file, after its local header, name and extra field."""
    with zipfile.ZipFile(io.BytesIO(raw)) as file:
        start = file.getinfo(name).header_offset
    lengths = np.frombuffer(raw, dtype="<u2", count=2, offset=start + 26)
    return start + 30 + int(lengths.sum())


def saved(save=np.savez):
    buffer = io.BytesIO()
    save(buffer, **arrays())
    return buffer.getvalue()


def cut_in_half():
    return saved()[: len(saved()) // 2]


def flipped_pixel():
    raw = bytearray(saved())
    raw[member_offset(bytes(raw), "train_images.npy") + 200] ^= 1
    return raw


def broken_compression():
    raw = bytearray(saved(np.savez_compressed))
    raw[member_offset(bytes(raw), "train_images.npy")] = 0xFF  # a block type that deflate does not have
    return raw


def with_header_bits(offset_local, offset_central, value):
    raw = bytearray(saved())
    raw[raw.find(b"PK\x03\x04") + offset_local] = value
    raw[raw.find(b"PK\x01\x02") + offset_central] = value
    return raw


def one_array():
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


def members(content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in arrays():
            file.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def three_petabytes():
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 1000, 1000, 3)}
    )
    return members(header.getvalue())


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: b"", id="empty"),
        pytest.param(lambda: b"no zip file at all", id="text"),
        pytest.param(cut_in_half, id="truncated"),
        pytest.param(flipped_pixel, id="checksum"),
        pytest.param(broken_compression, id="broken compression"),
        pytest.param(lambda: with_header_bits(6, 8, 1), id="encrypted"),
        pytest.param(lambda: with_header_bits(8, 10, 99), id="unknown compression"),
        pytest.param(one_array, id="npy instead of npz"),
        pytest.param(lambda: members(b"no array"), id="members that are no arrays"),
        pytest.param(lambda: members(b"\x93NUMPY\x01\x00\x06\x00{'a': "), id="broken array header"),
        pytest.param(three_petabytes, id="header claims more than memory"),
    ],
)
def test_npz_damaged(path, make):
    path.write_bytes(make())
    with pytest.raises(InputError, match=r"cannot be read as an npz file without pickle") as caught:
        load_dataset("npz", path)
    assert str(path) in str(caught.value)


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("name", ["train_images", "train_labels", "test_images", "test_labels"])
def test_npz_with_a_pickle_inside_is_refused_and_not_executed(tmp_path, path, name):
    trace = tmp_path / "executed"
    np.savez(path, **arrays(**{name: np.asarray([Payload(trace)], dtype=object)}))
    with pytest.raises(InputError, match="without pickle"):
        load_dataset("npz", path)
    assert not trace.exists()
    with np.load(path, allow_pickle=True) as file:  # the payload does work, where pickle is allowed
        file[name]
    assert trace.is_dir()


def test_a_bare_pickle_named_npz_is_refused_and_not_executed(tmp_path, path):
    trace = tmp_path / "executed"
    np.asarray([Payload(trace)], dtype=object).dump(path)
    with pytest.raises(InputError, match="without pickle"):
        load_dataset("npz", path)
    assert not trace.exists()


def test_npz_needs_target_classes(path):
    # Said before the file is looked for.
    with pytest.raises(InputError, match=r"--dataset npz needs --target_classes \(the classes that matter\)"):
        load_data_and_split("npz", path, mismatch=0.5)


def test_npz_split(path):
    labels = np.arange(3000) % 3
    images = np.zeros((3000, 2, 2), dtype=np.uint8)
    images[1] = 1
    np.savez(path, train_images=images, train_labels=labels, test_images=images[:9], test_labels=labels[:9])
    data, split = load_data_and_split("npz", path, mismatch=0.5, target_classes=(2,))
    assert len(split.labeled) == DEFAULT_BUDGET == 800
    assert len(split.unlabeled) == 400
    assert split.test.tolist() == [2, 5, 8]
    assert data.num_classes == 3


# CIFAR


@pytest.fixture
def source(monkeypatch):
    """Puts a class in CIFAR-10's place that needs no files; ``present`` says which parts lie on disk."""
    state = SimpleNamespace(present={True, False}, failure=None, calls=[])

    class FakeCIFAR10:
        filename = "cifar-10-python.tar.gz"
        base_folder = "cifar-10-batches-py"
        tgz_md5 = "c58f30108f718f92721af3b95e74349a"
        classes = ["plane", "car", "bird"]

        def __init__(self, root, train=True, download=False):
            state.calls.append((root, train, download))
            if download:
                if state.failure is not None:
                    raise state.failure
                state.present.add(train)
            if train not in state.present:
                raise RuntimeError("Dataset not found or corrupted. You can use download=True to download it")
            count = 6 if train else 3
            self.data = np.full((count, 32, 32, 3), 10 + train, dtype=np.uint8)
            self.data[0] = 0
            self.targets = [index % 3 for index in range(count)]

    monkeypatch.setitem(torchvision_sets.SOURCES, "cifar10", FakeCIFAR10)
    return state


def test_cifar_found_is_used_as_it_is(source, tmp_path):
    data = load_dataset("cifar10", tmp_path)
    assert source.calls == [(str(tmp_path), True, False), (str(tmp_path), False, False)]
    assert data.train_images.shape == (6, 32, 32, 3)
    assert data.test_images.shape == (3, 32, 32, 3)
    assert (data.train_images[1:] == 11).all()
    assert (data.test_images[1:] == 10).all()
    assert data.train_labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.test_labels.tolist() == [0, 1, 2]
    assert data.train_labels.dtype == data.test_labels.dtype == np.int64
    assert (data.name, data.num_classes, data.class_names) == ("cifar10", 3, ("plane", "car", "bird"))


@pytest.mark.parametrize("present", [set(), {True}, {False}])
def test_cifar_missing_is_downloaded(source, tmp_path, present):
    source.present = set(present)
    data = load_dataset("cifar10", tmp_path)
    downloads = [train for _, train, download in source.calls if download]
    assert downloads == [train for train in (True, False) if train not in present]
    assert (len(data.train_images), len(data.test_images)) == (6, 3)


@pytest.mark.parametrize(
    "failure",
    [URLError("no route to host"), RuntimeError("File not found or corrupted."), PermissionError(13, "denied")],
)
def test_cifar_that_cannot_be_downloaded(source, tmp_path, failure):
    source.present, source.failure = set(), failure
    with pytest.raises(InputError) as caught:
        load_dataset("cifar10", tmp_path / "here")
    message = str(caught.value)
    assert message.startswith(f"cifar10 is not in {tmp_path / 'here'} and could not be downloaded ({failure})")
    assert "cifar-10-python.tar.gz (md5 c58f30108f718f92721af3b95e74349a)" in message
    assert "cifar-10-batches-py" in message
    assert "--data_path" in message


@pytest.mark.parametrize(
    ("name", "file", "folder"),
    [
        ("cifar10", "cifar-10-python.tar.gz", "cifar-10-batches-py"),
        ("cifar100", "cifar-100-python.tar.gz", "cifar-100-python"),
    ],
)
@pytest.mark.parametrize("damaged", [False, True])
def test_torchvisions_own_classes_name_file_and_place(monkeypatch, tmp_path, name, file, folder, damaged):
    def download(self):
        raise URLError("no network in tests")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", download)  # CIFAR100 inherits it
    if damaged:
        (tmp_path / folder).mkdir()
        for part in ("data_batch_1", "train", "test", "batches.meta", "meta"):
            (tmp_path / folder / part).write_bytes(b"damaged")
    with pytest.raises(InputError) as caught:
        load_dataset(name, tmp_path)
    for part in (file, folder, str(tmp_path), "no network in tests"):
        assert part in str(caught.value)


# SVHN, MNIST and Fashion-MNIST


def write_idx(path, array):
    """An uncompressed MNIST file: a magic number that says bytes and dimensions, the shape, the values."""
    shape = np.asarray(array.shape, dtype=">i4").tobytes()
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + shape + array.astype(np.uint8).tobytes())


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_mnist_from_files(tmp_path, name, folder):
    raw = tmp_path / folder / "raw"
    raw.mkdir(parents=True)
    images = {part: np.random.default_rng(0).integers(0, 256, (n, 28, 28)) for part, n in (("train", 5), ("t10k", 3))}
    for part, values in images.items():
        write_idx(raw / f"{part}-images-idx3-ubyte", values)
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(len(values)))
    data = load_dataset(name, tmp_path)
    assert data.train_images.shape == (5, 28, 28, 3)
    assert all((data.train_images[..., channel] == images["train"]).all() for channel in range(3))
    assert (data.test_images[..., 1] == images["t10k"]).all()
    assert (data.train_labels.tolist(), data.test_labels.tolist(), data.num_classes) == ([0, 1, 2, 3, 4], [0, 1, 2], 10)
    assert data.class_names[9] == {"mnist": "9", "fashion_mnist": "Ankle boot"}[name]


def test_svhn_from_files(tmp_path, monkeypatch):
    import scipy.io

    monkeypatch.setattr(torchvision.datasets.SVHN, "_check_integrity", lambda self: True)
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    for part in ("train", "test"):
        scipy.io.savemat(tmp_path / f"{part}_32x32.mat", {"X": images, "y": np.asarray([[10], [1], [9], [10]])})
    data = load_dataset("svhn", tmp_path)
    assert data.train_labels.tolist() == data.test_labels.tolist() == [0, 1, 9, 0]  # the files call the digit 0 ten
    assert (data.train_images == images.transpose(3, 0, 1, 2)).all()
    assert data.class_names == tuple("0123456789")


@pytest.mark.parametrize(
    ("name", "files", "place"),
    [
        ("svhn", ("train_32x32.mat (md5 e26dedcc434d2e4c54c9b2d4a06d8373)", "test_32x32.mat (md5 "), "."),
        ("mnist", ("train-images-idx3-ubyte.gz (md5 f68b3c2dcbeaaa9fbdd348bbdeb94873)", "t10k-labels"), "MNIST/raw"),
        ("fashion_mnist", ("train-images-idx3-ubyte.gz (md5 8d4fb7e6c68d591d4c3dfef9ec88bf0d)",), "FashionMNIST/raw"),
    ],
)
def test_others_that_cannot_be_downloaded(monkeypatch, tmp_path, name, files, place):
    def download(self):
        raise URLError("no network in tests")

    monkeypatch.setattr(torchvision_sets.SOURCES[name], "download", download)
    with pytest.raises(InputError) as caught:
        load_dataset(name, tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{name} is not in {tmp_path} and could not be downloaded")
    for part in (*files, f"into {tmp_path / place}", "--data_path", "--others_path", "no network in tests"):
        assert part in message


def test_damaged_mnist(tmp_path):
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (raw / f"{part}-{kind}-ubyte").write_bytes(b"damaged, and of some length")
    with pytest.raises(InputError, match=r"mnist .*damaged|mnist .*could not be downloaded"):
        load_dataset("mnist", tmp_path)


@pytest.mark.parametrize("name", ["svhn", "mnist", "fashion_mnist"])
def test_they_have_no_protocol(name, tmp_path):
    with pytest.raises(InputError, match=f"--dataset {name} needs --target_classes"):
        load_data_and_split(name, tmp_path, mismatch=0.5)


# The front door


@pytest.mark.parametrize("name", ["cifar", "CIFAR10", "imagenet", ""])
def test_unknown_data_set(name, tmp_path):
    with pytest.raises(
        InputError,
        match=rf"--dataset {name} is unknown; choose from cifar10, cifar100, svhn, mnist, fashion_mnist, digits, npz",
    ):
        load_dataset(name, tmp_path)


def test_the_parser_offers_what_can_be_loaded():
    from common.arguments import DATASETS

    assert tuple(LOADERS) == DATASETS


@pytest.mark.parametrize("value", [0, 255])
def test_images_that_are_all_the_same_are_refused_and_one_other_is_enough(path, value):
    same = np.full_like(IMAGES, value)
    np.savez(path, **arrays(train_images=same))
    with pytest.raises(InputError, match=r"all 6 training images are the same, so nothing can be learned .*check how"):
        load_dataset("npz", path)
    same[5, 4, 3, 2] = 7
    np.savez(path, **arrays(train_images=same))
    assert np.array_equal(load_dataset("npz", path).train_images, same)
