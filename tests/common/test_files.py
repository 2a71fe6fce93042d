"""common/files.py: whole files or none, and files that lie about themselves or would run code."""

from __future__ import annotations

import errno
import io
import json
import os
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest

from common import files
from common.files import (
    atomic_write,
    check_fields,
    is_count,
    is_number,
    is_text,
    memory_size,
    naming_file,
    read_json,
    read_npz,
    require_writable,
    write_json,
)  # fmt: skip
from tests.hostile import Payload, npy, pickled_npy, with_declared_size
from utils import InputError

PIXELS = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


def archive(members, *, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in members:
            file.writestr(name, content)
    return buffer.getvalue()


def one(content, **how):
    return archive([("a.npy", content)], **how)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data.npz"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    "array",
    [
        PIXELS, PIXELS.astype(">i8"), np.asfortranarray(PIXELS), PIXELS[:, ::2], np.zeros((0, 4)), np.asarray(3.5),
        np.zeros(10**6, np.uint8),  # compresses a thousandfold, and is honest about it
        np.zeros(2, [("x", "i4")]), np.asarray(["a", "bc"]),
    ],
    ids=lambda array: f"{array.dtype} {array.shape}",
)  # fmt: skip
def test_arrays_come_back(path, save, array):
    save(path, a=array, b=PIXELS)
    found = read_npz(path, ["a", "b"])
    assert list(found) == ["a", "b"]
    for name, expected in (("a", array), ("b", PIXELS)):
        assert found[name].dtype == expected.dtype
        assert np.array_equal(found[name], expected)


SMALL = npy("|u1", (4,), b"abcd")
LIES = {
    "a shape of petabytes": (lambda: one(npy("|u1", (10**9, 10**6))), "without pickle"),
    "a shape larger than the data": (lambda: one(npy("<f8", (4,), b"abcd")), "without pickle"),
    "a shape smaller than the data": (lambda: one(npy("|u1", (3,), b"abcd")), "without pickle"),
    "a shape below 0": (lambda: one(npy("|u1", (-1,), b"abcd")), "without pickle"),
    "a shape below 0, twice": (lambda: one(npy("|u1", (-2, -2), b"abcd")), "without pickle"),
    "a type of terabytes": (lambda: one(npy("|V2000000000", (500,), b"abcd")), "without pickle"),
    "Python objects": (lambda: one(npy("|O", (1,), b"N.")), "without pickle"),
    "Python objects in a field": (lambda: one(npy([("x", "|O")], (1,), b"N.")), "without pickle"),
    "a header of megabytes": (lambda: one(npy("|u1" + " " * 2**21, (4,), version=(2, 0))), "without pickle"),
    "a header that is code": (lambda: one(npy("|u1", "__import__('os')", b"")), "without pickle"),
    "a version of tomorrow": (lambda: one(npy("|u1", (4,), b"abcd", version=(9, 0))), "without pickle"),
    "a member that is no array": (lambda: one(b"hello, world"), "without pickle"),
    "a compressed bomb": (
        lambda: with_declared_size(one(bytes(10**6), compression=zipfile.ZIP_DEFLATED), "a.npy", 2**31),
        "that cannot be",
    ),
    "a stored member that grows": (lambda: with_declared_size(one(SMALL), "a.npy", 2**20), "that cannot be"),
    "two members of one name": (lambda: archive([("a.npy", SMALL), ("a.npy", SMALL)]), "two members of one name"),
    "a member above the folder": (lambda: archive([("../a.npy", SMALL)]), "lacks a; it must hold a"),
    "a member at an absolute path": (lambda: archive([("/a.npy", SMALL)]), "lacks a; it must hold a"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(("make", "message"), LIES.values(), ids=LIES)
def test_an_archive_that_lies_is_refused(tmp_path, path, make, message):
    path.write_bytes(make())
    with pytest.raises(InputError, match=message) as caught:
        read_npz(path, ["a"])
    assert str(path) in str(caught.value)
    assert os.listdir(tmp_path) == ["data.npz"]  # nothing is unpacked, in this folder or above it
    assert not (tmp_path.parent / "a.npy").exists()


def test_arrays_beyond_memory_are_refused_by_the_declared_sizes(path, monkeypatch):
    np.savez_compressed(path, a=np.zeros(10**6, np.uint8), b=np.zeros(10**6, np.uint8), c=np.zeros(10**7, np.uint8))
    monkeypatch.setattr(files, "memory_size", lambda: 2_000_300)  # two arrays and their headers of 128 bytes
    assert sum(array.nbytes for array in read_npz(path, ["a", "b"]).values()) == 2_000_000
    monkeypatch.setattr(files, "memory_size", lambda: 2_000_200)
    with pytest.raises(InputError, match=r"declares arrays of 0\.002 GB, and this machine has 0\.002 GB of memory"):
        read_npz(path, ["a", "b"])


def test_a_pickle_in_a_member_is_not_executed(tmp_path, path):
    trace = tmp_path / "executed"
    content = pickled_npy(Payload(trace))
    path.write_bytes(one(content))
    with pytest.raises(InputError, match="without pickle"):
        read_npz(path, ["a"])
    assert not trace.exists()
    np.load(io.BytesIO(content), allow_pickle=True)  # the payload is one that works
    assert trace.is_dir()


# JSON


def test_json_beyond_its_limit_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    path.write_text(json.dumps("x" * 98))  # 100 bytes with the quotes
    assert read_json(path, limit=100) == "x" * 98
    monkeypatch.setattr(files.Path, "read_bytes", lambda path: pytest.fail("the file was read"))
    with pytest.raises(InputError, match=r"file\.json has 100 bytes and such a file has 99 at most"):
        read_json(path, limit=99)


def test_json_from_a_pipe_or_a_folder_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(InputError, match="regular file"):
            read_json(path)


def test_memory_is_this_machines():
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 2**28 < memory_size() <= pages


def test_memory_is_no_more_than_the_containers(tmp_path, monkeypatch):
    limits = {"/sys/fs/cgroup/memory.max": "max\n", "/sys/fs/cgroup/memory/memory.limit_in_bytes": "123456789\n"}
    monkeypatch.setattr(files.Path, "read_text", lambda path: limits[str(path)])
    assert memory_size() == 123456789


# Fields


@pytest.mark.parametrize(
    ("value", "count", "share"),
    [
        (0, True, True), (1, True, True), (2**62 - 1, True, False), (2**62, False, False), (-1, False, False),
        (1.0, False, True), (0.5, False, True), (-0.001, False, False), (1.001, False, False), (True, False, False),
        ("1", False, False), (None, False, False), ([1], False, False), (float("nan"), False, False),
        (float("inf"), False, False), (10**400, False, False), (-(10**400), False, False),
    ],
)  # fmt: skip
def test_counts_and_numbers_within_bounds(value, count, share):
    assert is_count(value) is count and is_number(value, 0, 1) is share


def test_fields_are_checked_by_name(tmp_path):
    path = tmp_path / "record.json"
    checks = {"a": is_count, "b": is_text}
    check_fields(path, {"a": 1, "b": "x", "c": None}, checks, remedy="restore it")
    for content, message in (
        ([], "holds no JSON object"),
        ({"a": 1}, "lacks b"),
        ({"a": -1, "b": "x"}, "a has a wrong type or value"),
        ({"a": 1, "b": None}, "b has a wrong type or value"),
    ):
        with pytest.raises(InputError, match=rf"record\.json:? {message}; restore it$"):
            check_fields(path, content, checks, remedy="restore it")


# Writing


@pytest.fixture
def path_of_old(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    return path


def test_a_file_is_replaced_once_it_is_whole(tmp_path, path_of_old):
    with atomic_write(path_of_old) as file:
        file.write(b"new")
        assert path_of_old.read_bytes() == b"old"
    assert path_of_old.read_bytes() == b"new"
    with atomic_write(str(tmp_path / "a" / "b" / "file")) as file:
        file.write(b"new")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path)) == ["a", "file"]
    (tmp_path / "link").symlink_to(path_of_old)
    with atomic_write(tmp_path / "link") as file:
        file.write(b"other")  # in the link's place, not through it
    assert path_of_old.read_bytes() == b"new" and not (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_error_keeps_the_old_file(tmp_path, path_of_old, error):
    with pytest.raises(error), atomic_write(path_of_old) as file:
        file.write(b"half of the ne")
        raise error("stop")
    assert path_of_old.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("function", ["fsync", "chmod", "replace"])
def test_a_full_disk_names_the_file_and_leaves_nothing(tmp_path, monkeypatch, function):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, function, refuse)
    with pytest.raises(OSError) as caught, atomic_write(tmp_path / "file") as file:
        file.write(b"new")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "file"))
    monkeypatch.undo()
    assert os.listdir(tmp_path) == []
    with pytest.raises(FileNotFoundError) as caught, naming_file(tmp_path / "file"):
        open(tmp_path / "other")
    assert caught.value.filename == str(tmp_path / "other")  # an error that names its file keeps it


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_a_file_has_the_permissions_of_the_umask(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        with atomic_write(tmp_path / "file"):
            pass
        assert os.umask(mask) == mask  # left as it was
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_a_folder_that_can_be_written_is_left_unmade_and_others_are_refused(tmp_path):
    require_writable(tmp_path / "a" / "b", "--out")
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written .*; name another --out"):
        require_writable(tmp_path / "file" / "b", "--out")
    if Path("/proc/self").is_dir():  # where not even root can make anything
        with pytest.raises(InputError, match=r"^/proc/x cannot be written .*; name another --feature_cache$"):
            require_writable("/proc/x", "--feature_cache")


def test_json_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "marked.json").write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xa9"}')
    assert read_json(tmp_path / "marked.json") == {"a": "\u00e9"}


def test_json_comes_back_as_plain_values(tmp_path):
    path = tmp_path / "sub" / "file.json"
    values = {"float": np.float64(0.25), "int": np.int64(7), "array": np.asarray([[1, 2]]), "path": Path("a/b")}
    write_json(path, values)
    assert read_json(path) == {"float": 0.25, "int": 7, "array": [[1, 2]], "path": "a/b"}
    with pytest.raises(TypeError, match="set has no JSON form"):
        write_json(path, {"a": {1}})
    write_json(path, {"a": 1})
    assert path.read_bytes() == b'{\n  "a": 1\n}\n'


@pytest.mark.parametrize(
    "content", [b"", b'{"a": 1', b"{'a': 1}", b"\xff\xfe\x00", b"[" * 100_000, b"[" + b"1" * 5000 + b"]"],
    ids=["empty", "cut off", "single quotes", "binary", "nested too deep", "number too long"],
)  # fmt: skip
def test_what_is_not_json_is_refused_by_name(tmp_path, content):
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(InputError, match=r"file\.json is not valid JSON"):
        read_json(tmp_path / "file.json")
    with pytest.raises(InputError, match=r"absent\.json does not exist"):
        read_json(tmp_path / "absent.json")
