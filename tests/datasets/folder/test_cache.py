"""The cache of a folder's images: what is read again and what not, damage, interruption, and several processes."""

import errno
import fcntl
import json
import multiprocessing
import os
import signal

import numpy as np
import pytest
from PIL import Image

from common.session import session
from common.settings import ProcessSettings
from datasets import load_dataset
from datasets.folder import cache as image_cache
from datasets.folder.pictures import Unusable
from utils import InputError, Interrupted

CACHE = ".ccal_cache/32"
FILES = {"images.npy", "manifest.json", "lock", "report.csv"}


def pixels(value):
    return np.random.default_rng(value).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def put(root, *paths):
    """Each file's name is the seed of its pixels."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(int(path.split("/")[-1][:-4]))).save(root / path)


@pytest.fixture
def root(tmp_path):
    put(tmp_path, *(f"unlabeled/{number}.png" for number in range(100, 140)))
    put(tmp_path, "labeled/cat/1.png", "labeled/cat/2.png", "labeled/dog/3.png", "labeled/dog/4.png")
    return tmp_path


@pytest.fixture
def read(monkeypatch):
    """The names of files that were read, in any order."""
    names, real = [], image_cache.read_picture

    def counted(path, size):
        names.append(path.name)
        return real(path, size)

    monkeypatch.setattr(image_cache, "read_picture", counted)
    return names


def load(root, **options):
    """Loads the folder and compares every image with its path."""
    data = load_dataset("folder", root, **options)
    if not options.get("image_size"):
        for path, image in zip(data.paths, data.train_images, strict=True):
            assert (image == pixels(int(path.split("/")[-1].split(".")[0]))).all(), path
    return data


def test_a_second_start_reads_and_writes_nothing(root, read):
    (root / "unlabeled/bad.png").write_text("not an image")
    first = load(root)
    assert len(read) == 45
    before = {name: (root / CACHE / name).stat().st_mtime_ns for name in FILES - {"lock"}}
    second = load(root)
    assert len(read) == 45
    assert {name: (root / CACHE / name).stat().st_mtime_ns for name in before} == before
    assert (second.paths, second.digest) == (first.paths, first.digest)
    assert isinstance(second.train_images, np.memmap)
    second.train_images[0] = 0  # in memory only
    load(root)


def test_only_new_and_changed_files_are_read(root, read):
    load(root)
    read.clear()
    put(root, "unlabeled/300.png")
    os.utime(root / "unlabeled/107.png", ns=(5, 5))
    (root / "unlabeled/103.png").unlink()
    os.rename(root / "unlabeled/108.png", root / "unlabeled/108.moved.png")
    assert len(load(root).paths) == 44
    assert sorted(read) == ["107.png", "108.moved.png", "300.png"]


def test_copies_and_contradictions_that_come_and_go(root, read):
    def used():
        return [path for path in load(root).paths if "105" in path]

    content = (root / "unlabeled/105.png").read_bytes()
    (root / "unlabeled/105.copy.png").write_bytes(content)
    assert used() == ["unlabeled/105.copy.png"]
    read.clear()
    (root / "unlabeled/105.copy.png").unlink()
    assert used() == ["unlabeled/105.png"] and read == []  # the row of its content is there
    for path in ("labeled/cat/105.png", "labeled/dog/105.png"):
        (root / path).write_bytes(content)
    assert used() == ["unlabeled/105.png"]
    (root / "unlabeled/105.png").unlink()
    assert used() == []
    (root / "labeled/cat/105.png").unlink()
    assert used() == ["labeled/dog/105.png"]


def test_a_file_without_permission_is_read_once_it_has_it(root, read, monkeypatch):
    def refuse(path, size):
        read.append(path.name)
        raise Unusable("unreadable: Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(image_cache, "read_picture", refuse)
        real = os.access
        patch.setattr(os, "access", lambda path, mode: mode != os.R_OK and real(path, mode))
        for _ in range(2):
            with pytest.raises(InputError, match="holds no usable"):
                load(root)
        assert len(read) == 44
    assert len(load(root).paths) == 44


def test_each_size_and_place_has_its_own(root, tmp_path_factory, read):
    place = tmp_path_factory.mktemp("cache")
    first = load(root, cache_dir=place)
    assert not (root / CACHE).exists()
    assert load(root, image_size=48, cache_dir=place).image_size == (48, 48)
    assert load(root, cache_dir=place).digest == first.digest and len(read) == 2 * 44
    other = tmp_path_factory.mktemp("other") / root.name
    os.rename(root, other)  # a folder of the same name elsewhere has a place of its own
    assert load(other, cache_dir=place).digest == first.digest and len(read) == 3 * 44
    with pytest.raises(InputError, match=r"--cache_dir .* lies among the images in .*unlabeled"):
        load(other, cache_dir=other / "unlabeled/cache")


def cut(name):
    return lambda cache: os.truncate(cache / name, (cache / name).stat().st_size // 2)


def change(field, value):
    def spoil(cache):
        content = json.loads((cache / "manifest.json").read_text())
        content["files"][0][field] = value or content["files"][1][field]
        (cache / "manifest.json").write_text(json.dumps(content))

    return spoil


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(change(4, None), id="one image becomes the copy of another"),
        pytest.param(change(7, 7), id="another row"),
        pytest.param(cut("manifest.json"), id="half a manifest"),
        pytest.param(cut("images.npy"), id="half the images"),
        pytest.param(lambda cache: (cache / "images.npy").unlink(), id="no images"),
        pytest.param(lambda cache: (cache / "images.npy").write_bytes(b"damaged"), id="other images"),
        pytest.param(lambda cache: (cache / "manifest.json").write_text("[]"), id="other manifest"),
    ],
)
def test_a_damaged_cache_is_made_again(root, read, capsys, spoil):
    load(root)
    spoil(root / CACHE)
    load(root)
    assert len(read) == 2 * 44 and f"warning: {root / CACHE} is damaged" in capsys.readouterr().out


@pytest.mark.parametrize("at", ["read_picture", "atomic_write"])
def test_an_indexing_that_is_stopped_starts_again(root, monkeypatch, at):
    """The handler of the signal raises; what was there before is whole, and nothing else stays."""
    load(root)
    (root / CACHE / ".images.npy.abc.tmp").touch()  # of a command that was killed
    put(root, "unlabeled/400.png")
    with monkeypatch.context() as patch, session(ProcessSettings(device="cpu"), on_stop="raise"):
        patch.setattr(image_cache, at, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted, match="SIGTERM"):
            load(root)
    assert set(os.listdir(root / CACHE)) == FILES
    assert "unlabeled/400.png" in load(root).paths


def test_a_full_disk_is_an_error_that_names_the_file(root, monkeypatch):
    monkeypatch.setattr(os, "pwrite", lambda handle, content, offset: 10)
    with pytest.raises(OSError, match="No space left") as caught:
        load(root)
    assert caught.value.filename == str(root / CACHE / "images.npy")


def test_two_commands_at_once(root):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    commands = [context.Process(target=lambda: queue.put(load(root).digest)) for _ in range(2)]
    for command in commands:
        command.start()
    assert queue.get(timeout=120) == queue.get(timeout=120) == load(root).digest
    for command in commands:
        command.join()
    assert set(os.listdir(root / CACHE)) == FILES


def test_it_waits_for_the_lock_and_does_without_where_there_are_none(root, monkeypatch, capsys):
    outcomes = [OSError(errno.ENOLCK, "No locks available"), None, BlockingIOError()]

    def flock(handle, operation):
        if outcome := outcomes.pop():
            raise outcome

    monkeypatch.setattr(fcntl, "flock", flock)
    load(root)
    assert "waiting for another command" in capsys.readouterr().out
    load(root)
    assert "cannot be locked (No locks available)" in capsys.readouterr().out and not outcomes


def test_a_cache_that_cannot_be_written_is_used_while_nothing_changes(root, monkeypatch):
    first, real = load(root), os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and real(path, mode))
    assert load(root).digest == first.digest
    put(root, "unlabeled/300.png")
    with pytest.raises(InputError, match="is not up to date and cannot be written; name another --cache_dir"):
        load(root)
