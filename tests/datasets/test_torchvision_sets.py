"""Data sets that torchvision reads: found, downloaded, damaged, or neither there nor to be downloaded."""

from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torchvision.datasets

from datasets import torchvision_sets
from datasets.torchvision_sets import SOURCES, load_torchvision
from utils import InputError


@pytest.fixture
def source(monkeypatch):
    """Puts a class in CIFAR-10's place that needs no files; ``present`` says which parts lie on disk."""
    state = SimpleNamespace(present={True, False}, failure=None, downloads=[])

    class FakeCIFAR10(torchvision.datasets.CIFAR10):
        def __init__(self, root, train=True, download=False):
            if download:
                state.downloads.append(train)
                if state.failure is not None:
                    raise state.failure
            elif train not in state.present:
                raise RuntimeError("Dataset not found or corrupted. You can use download=True to download it")
            count = 6 if train else 3
            self.data = np.full((count, 32, 32, 3), 10 + train, dtype=np.uint8)
            self.targets = [index % 3 for index in range(count)]
            self.classes = ["plane", "car", "bird"]

    monkeypatch.setitem(torchvision_sets.SOURCES, "cifar10", FakeCIFAR10)
    return state


@pytest.mark.parametrize("present", [{True, False}, {True}, {False}, set()])
def test_only_what_is_missing_is_downloaded(source, tmp_path, present):
    source.present = present
    data = load_torchvision("cifar10", tmp_path)
    assert source.downloads == [train for train in (True, False) if train not in present]
    assert (data.train_images == np.full((6, 32, 32, 3), 11)).all()
    assert (data.test_images == np.full((3, 32, 32, 3), 10)).all()
    assert (data.train_labels.tolist(), data.test_labels.tolist()) == ([0, 1, 2, 0, 1, 2], [0, 1, 2])
    assert data.train_labels.dtype == data.test_labels.dtype == np.int64
    assert (data.name, data.num_classes, data.class_names) == ("cifar10", 3, ("plane", "car", "bird"))


@pytest.mark.parametrize("failure", [RuntimeError("File not found or corrupted."), PermissionError(13, "denied")])
def test_a_download_that_fails(source, tmp_path, failure):
    source.present, source.failure = set(), failure
    with pytest.raises(InputError) as caught:
        load_torchvision("cifar10", tmp_path)
    assert str(caught.value).startswith(f"cifar10 is not in {tmp_path} and could not be downloaded ({failure})")


@pytest.mark.parametrize(
    ("name", "files", "place"),
    [
        ("cifar10", ("cifar-10-python.tar.gz (md5 c58f30108f718f92721af3b95e74349a)", "cifar-10-batches-py"), "."),
        ("mnist", ("train-images-idx3-ubyte.gz (md5 f68b3c2dcbeaaa9fbdd348bbdeb94873)", "t10k-labels"), "MNIST/raw"),
    ],
)
def test_the_message_names_the_files_and_their_place(monkeypatch, tmp_path, name, files, place):
    def download(self):
        raise URLError("no network in tests")

    monkeypatch.setattr(SOURCES[name], "download", download)
    with pytest.raises(InputError) as caught:
        load_torchvision(name, tmp_path)
    for part in (*files, f"into {tmp_path / place}", "--data_path", "--others_path", "no network in tests"):
        assert part in str(caught.value)


def write_idx(path, array):
    """An uncompressed MNIST file: a magic number that says bytes and dimensions, the shape, the values."""
    shape = np.asarray(array.shape, dtype=">i4").tobytes()
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + shape + array.astype(np.uint8).tobytes())


@pytest.mark.parametrize(
    ("name", "folder", "ninth"), [("mnist", "MNIST", "9"), ("fashion_mnist", "FashionMNIST", "Ankle boot")]
)
def test_mnist_from_files_good_old_and_damaged(tmp_path, name, folder, ninth):
    raw = tmp_path / folder / "raw"
    raw.mkdir(parents=True)
    images = {part: np.random.default_rng(0).integers(0, 256, (n, 28, 28)) for part, n in (("train", 5), ("t10k", 3))}
    for part, values in images.items():
        write_idx(raw / f"{part}-images-idx3-ubyte", values)
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(len(values)))
    data = load_torchvision(name, tmp_path)
    assert (data.train_images == images["train"][..., None]).all() and data.train_images.shape == (5, 28, 28, 3)
    assert (data.test_images == images["t10k"][..., None]).all()
    assert (data.train_labels.tolist(), data.test_labels.tolist()) == ([0, 1, 2, 3, 4], [0, 1, 2])
    assert (data.num_classes, data.class_names[9]) == (10, ninth)
    (raw / "t10k-images-idx3-ubyte").write_bytes(b"damaged, and of some length")
    with pytest.raises(InputError, match=f"{name} in .* is damaged"):
        load_torchvision(name, tmp_path)
    (tmp_path / folder / "processed").mkdir()
    with pytest.raises(InputError, match="processed holds .* old torchvision versions; remove that folder"):
        load_torchvision(name, tmp_path)


def test_svhn_from_files(tmp_path, monkeypatch):
    import scipy.io

    monkeypatch.setattr(torchvision.datasets.SVHN, "_check_integrity", lambda self: True)
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    for part in ("train", "test"):
        scipy.io.savemat(tmp_path / f"{part}_32x32.mat", {"X": images, "y": np.asarray([[10], [1], [9], [10]])})
    data = load_torchvision("svhn", tmp_path)
    assert data.train_labels.tolist() == data.test_labels.tolist() == [0, 1, 9, 0]  # the files call the digit 0 ten
    assert (data.train_images == images.transpose(3, 0, 1, 2)).all()
    assert data.class_names == tuple("0123456789")
