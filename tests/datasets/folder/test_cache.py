"""The cache of a folder's images: what is read again and what not, damage, interruption, and several processes."""

import errno
import fcntl
import json
import multiprocessing
import os
import re
import signal
import time

import numpy as np
import pytest
from PIL import Image

from datasets import load_dataset
from datasets.folder import cache as image_cache
from utils import InputError, Interrupted


def put(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(value).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
    for number in range(3):
        put(tmp_path / f"labeled/cat/{number}.png", number)
        put(tmp_path / f"labeled/dog/{number}.png", 10 + number)
    for number in range(120):
        put(tmp_path / f"unlabeled/{number:03}.png", 100 + number)
    return tmp_path


@pytest.fixture
def read(monkeypatch):
    """The names of files that were read, in any order."""
    names, real = [], image_cache.read_picture

    def counted(path, size):
        names.append(os.path.basename(path))
        return real(path, size)

    monkeypatch.setattr(image_cache, "read_picture", counted)
    return names


def load(root, **options):
    return load_dataset("folder", root, **options)


def check(data):
    """Every image is the one of its path."""
    for path, image in zip(data.paths, data.train_images, strict=True):
        number = int(path.split("/")[-1].split(".")[0])
        value = number + {"c": 0, "d": 10}[path.split("/")[1][0]] if path.startswith("labeled") else 100 + number
        expected = np.random.default_rng(value).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        assert (image == expected).all(), path


def test_a_second_start_reads_nothing(root, read):
    first = load(root)
    assert len(read) == 126
    check(first)
    modified = (root / ".ccal_cache/32/images.npy").stat().st_mtime_ns
    read.clear()
    second = load(root)
    assert read == []
    assert (root / ".ccal_cache/32/images.npy").stat().st_mtime_ns == modified
    assert (second.paths, second.digest) == (first.paths, first.digest)
    assert (second.train_images == first.train_images).all()


def test_only_what_changed_is_read_again(root, read):
    load(root)
    read.clear()
    put(root / "unlabeled/200.png", 300)
    os.utime(root / "unlabeled/007.png", ns=(5, 5))
    (root / "unlabeled/003.png").unlink()
    os.rename(root / "unlabeled/008.png", root / "unlabeled/moved.png")
    data = load(root)
    assert sorted(read) == ["007.png", "200.png", "moved.png"]
    assert len(data.paths) == 126
    os.rename(root / "unlabeled/moved.png", root / "unlabeled/008.png")
    check(load(root))


def test_a_copy_takes_the_place_of_its_original(root, read):
    (root / "unlabeled/zz.png").write_bytes((root / "unlabeled/005.png").read_bytes())
    assert "unlabeled/zz.png" not in load(root).paths
    read.clear()
    (root / "unlabeled/005.png").unlink()
    assert "unlabeled/zz.png" in load(root).paths
    assert read == ["zz.png"]
    os.rename(root / "unlabeled/zz.png", root / "unlabeled/005.png")
    check(load(root))


def test_bad_files_are_not_read_again(root, read):
    (root / "unlabeled/bad.png").write_text("no image")
    (root / "unlabeled/empty.png").touch()
    load(root)
    read.clear()
    load(root)
    assert read == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_read_once_it_has_it(root, read):
    (root / "unlabeled/004.png").chmod(0)
    assert len(load(root).paths) == 125
    read.clear()
    load(root)
    assert read == []
    (root / "unlabeled/004.png").chmod(0o644)
    check(load(root))
    assert read == ["004.png"]


def test_each_size_has_its_own(root, read):
    load(root)
    assert load(root, image_size=48).image_size == (48, 48)
    read.clear()
    check(load(root))
    assert read == []


def test_another_cache_dir(root, tmp_path_factory, read):
    place = tmp_path_factory.mktemp("cache")
    first = load(root, cache_dir=place)
    check(first)
    assert not (root / ".ccal_cache").exists()
    read.clear()
    assert load(root, cache_dir=place).digest == first.digest == load(root).digest
    other = tmp_path_factory.mktemp("other") / root.name
    os.rename(root, other)  # a folder of the same name elsewhere has a place of its own
    read.clear()
    assert load(other, cache_dir=place).digest == first.digest
    assert len(read) == 126


def test_a_cache_among_the_images_is_refused(root):
    with pytest.raises(InputError, match=r"--cache_dir .* lies among the images in .*unlabeled: name another one"):
        load(root, cache_dir=root / "unlabeled/cache")


def test_damage_of_the_cache_is_mended(root, read, capsys):
    folder = root / ".ccal_cache/32"

    def cut(name):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    def other_rows():
        content = json.loads((folder / "manifest.json").read_text())
        content["files"][0][-1] = 7
        (folder / "manifest.json").write_text(json.dumps(content))

    def other_hash():  # it would make two images copies of one
        content = json.loads((folder / "manifest.json").read_text())
        content["files"][0][3] = content["files"][1][3]
        (folder / "manifest.json").write_text(json.dumps(content))

    spoilers = [
        other_hash,
        lambda: cut("manifest.json"), lambda: cut("images.npy"), lambda: (folder / "images.npy").unlink(), other_rows,
        lambda: (folder / "manifest.json").write_text("[]"), lambda: (folder / "images.npy").write_bytes(b"damaged"),
    ]  # fmt: skip
    for spoil in spoilers:
        load(root)
        spoil()
        read.clear()
        capsys.readouterr()
        check(load(root))
        assert len(read) == 126
        assert f"warning: {folder} is damaged" in capsys.readouterr().out


def test_an_indexing_that_was_killed_before_its_manifest_is_done_again(root, read):
    load(root)
    (root / ".ccal_cache/32/manifest.json").unlink()
    read.clear()
    check(load(root))
    assert len(read) == 126


def test_a_request_to_stop_keeps_what_was_read(root, read, monkeypatch):
    monkeypatch.setattr(image_cache, "_cpus", lambda: 1)
    counted = image_cache.read_picture

    def stopping(path, size):
        if len(read) == 40:
            os.kill(os.getpid(), signal.SIGTERM)
        if len(read) >= 40:
            time.sleep(0.02)  # the other thread has to see it
        return counted(path, size)

    monkeypatch.setattr(image_cache, "read_picture", stopping)
    with pytest.raises(Interrupted, match="SIGTERM: the images read so far are kept"):
        load(root)
    kept = len(read)
    assert 40 <= kept < 126
    monkeypatch.setattr(image_cache, "read_picture", counted)
    check(load(root))
    assert len(read) < 126 + kept  # not all of them once more
    assert sorted(set(read)) == sorted({path.name for path in root.rglob("*.png")})


def index(root, queue):
    data = load(root)
    queue.put((data.digest, int(data.train_images.sum(dtype=np.int64))))


def test_two_commands_at_once(root):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    commands = [context.Process(target=index, args=(root, queue)) for _ in range(2)]
    for command in commands:
        command.start()
    first, second = queue.get(timeout=120), queue.get(timeout=120)
    for command in commands:
        command.join()
    assert first == second
    data = load(root)
    assert first == (data.digest, int(data.train_images.sum(dtype=np.int64)))
    check(data)
    assert sorted(os.listdir(root / ".ccal_cache/32")) == ["images.npy", "lock", "manifest.json", "report.csv"]


def test_a_file_system_without_locks(root, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    check(load(root))
    assert re.search(r"warning: .* cannot be locked \(No locks available\)", capsys.readouterr().out)


def test_the_images_are_mapped_and_not_to_be_changed(root):
    data = load(root)
    assert isinstance(data.train_images, np.memmap)
    data.train_images[0] = 0  # in memory only
    check(load(root))


def test_a_file_replaced_by_one_of_equal_size_and_time_is_read_again(root, read):
    """As archives and reproducible exports leave them; bmp files of one shape have one size."""
    first, second = root / "unlabeled/a.bmp", root / "unlabeled/b.bmp"
    for path, value in ((first, 40), (second, 200)):
        Image.fromarray(np.full((32, 32, 3), value, np.uint8)).save(path)
        os.utime(path, ns=(10**18, 10**18))
    before = load(root)
    read.clear()
    first.write_bytes(second.read_bytes()[:-1] + b"\xc9")
    os.utime(first, ns=(10**18, 10**18))
    after = load(root)
    assert len(read) == 1
    place = after.paths.index("unlabeled/a.bmp")
    assert (before.train_images[place].max(), after.train_images[place].min()) == (40, 200)


def test_the_manifest_says_what_was_read(root):
    import hashlib

    load(root)
    content = json.loads((root / ".ccal_cache/32/manifest.json").read_text())
    assert content["fields"] == ["path", "size", "mtime_ns", "ctime_ns", "sha256", "problem", "detail", "row"]
    path, size, mtime_ns, ctime_ns, digest, problem, detail, row = content["files"][4]
    file = root / path
    assert (path, problem, detail, row) == ("labeled/dog/1.png", "", "", 4)
    assert (size, mtime_ns, ctime_ns) == (file.stat().st_size, file.stat().st_mtime_ns, file.stat().st_ctime_ns)
    assert digest == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_folder_that_cannot_be_written(root, monkeypatch):
    """Read as long as nothing in it changes; then another place must be named."""
    first = load(root)
    real = os.access
    folder = root / ".ccal_cache/32"
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and real(path, mode))
    assert load(root).digest == first.digest
    put(root / "unlabeled/300.png", 400)
    with pytest.raises(InputError, match=f"{folder} is not up to date and cannot be written; name another --cache_dir"):
        load(root)
