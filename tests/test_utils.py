"""utils.py: files, digests, seeds and the run's log."""

import errno
import hashlib
import json
import os
import random
import stat
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboardX.proto.event_pb2 import Event

from common.files import atomic_write, naming_file, read_json, require_writable, write_json
from common.provenance import RunLog, int64_digest
from utils import InputError, set_seed


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def umask():
    """Sets the process's umask for one test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


# Files


def test_atomic_write_replaces_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_atomic_write_keeps_the_old_file_when_the_body_raises(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(error), atomic_write(path) as file:
        file.write(b"half of the ne")
        raise error("stop")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_atomic_write_leaves_nothing_where_nothing_was(tmp_path):
    with pytest.raises(RuntimeError), atomic_write(tmp_path / "file"):
        raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_atomic_write_cleans_up_when_the_rename_fails(tmp_path):
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "inside").touch()
    with pytest.raises(OSError), atomic_write(tmp_path / "file") as file:
        file.write(b"new")
    assert os.listdir(tmp_path) == ["file"]


def test_atomic_write_makes_the_folder(tmp_path):
    with atomic_write(str(tmp_path / "a" / "b" / "file")) as file:
        file.write(b"new")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"new"


@pytest.mark.parametrize("function", ["fsync", "chmod", "replace"])
def test_atomic_write_names_the_file_where_the_system_does_not(tmp_path, monkeypatch, function):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, function, refuse)
    with pytest.raises(OSError) as caught, atomic_write(tmp_path / "file") as file:
        file.write(b"new")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "file"))
    monkeypatch.undo()
    assert os.listdir(tmp_path) == []


def test_an_error_that_names_its_file_keeps_it(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, naming_file(tmp_path / "file"):
        open(tmp_path / "other")
    assert caught.value.filename == str(tmp_path / "other")


def test_a_folder_that_can_be_made_is_left_unmade(tmp_path):
    require_writable(tmp_path / "a" / "b", "--out")
    assert os.listdir(tmp_path) == []


def test_a_folder_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is no writable folder; name another --out"):
        require_writable(tmp_path / "file" / "b", "--out")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc here")
def test_a_folder_in_which_nobody_can_make_anything():
    with pytest.raises(InputError, match=r"^/proc/x cannot be written .*; name another --feature_cache$"):
        require_writable("/proc/x", "--feature_cache")


def test_a_full_disk_is_no_bad_input(tmp_path, monkeypatch):
    def refuse(path, *_):
        raise OSError(errno.ENOSPC, "No space left on device", path)

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(OSError, match="No space left"):
        require_writable(tmp_path, "--out")


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0o002, 0o664)])
def test_atomic_write_gives_the_permissions_of_the_umask(tmp_path, umask, mask, mode):
    umask(mask)
    with atomic_write(tmp_path / "file"):
        pass
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode
    assert os.umask(mask) == mask  # left as it was


def test_json_round_trip_of_what_the_runs_write(tmp_path):
    path = tmp_path / "sub" / "file.json"
    write_json(
        path,
        {
            "float": np.float64(0.25),
            "int": np.int64(7),
            "bool": np.bool_(True),
            "array": np.asarray([[1, 2], [3, 4]], dtype=np.int64),
            "path": Path("a/b"),
            "none": None,
            "nested": {"list": [1, 2.5, "x"]},
        },
    )
    assert read_json(path) == {
        "float": 0.25,
        "int": 7,
        "bool": True,
        "array": [[1, 2], [3, 4]],
        "path": "a/b",
        "none": None,
        "nested": {"list": [1, 2.5, "x"]},
    }


def test_write_json_text_is_indented_and_ends_with_a_newline(tmp_path):
    write_json(tmp_path / "file.json", {"a": 1})
    assert (tmp_path / "file.json").read_bytes() == b'{\n  "a": 1\n}\n'


def test_write_json_of_something_without_json_form_keeps_the_old_file(tmp_path):
    write_json(tmp_path / "file.json", 1)
    with pytest.raises(TypeError, match="set has no JSON form"):
        write_json(tmp_path / "file.json", {"a": {1}})
    assert read_json(tmp_path / "file.json") == 1
    assert os.listdir(tmp_path) == ["file.json"]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b'{"a": 1', id="cut off"),
        pytest.param(b"{'a': 1}", id="single quotes"),
        pytest.param(b"\xff\xfe\x00", id="binary"),
        pytest.param(b"[" * 100_000, id="nested too deep"),
        pytest.param(b"[" + b"1" * 5000 + b"]", id="number too long"),
    ],
)
def test_read_json_refuses_what_is_no_json(tmp_path, content):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not valid JSON") as caught:
        read_json(path)
    assert str(path) in str(caught.value)


def test_read_json_names_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="absent.json does not exist"):
        read_json(tmp_path / "absent.json")


# Digests


def test_int64_digest_is_sha256_of_little_endian_int64():
    values = [31604, 0, 5, 2**40, -1]
    expected = hashlib.sha256(struct.pack("<5q", *values)).hexdigest()
    assert int64_digest(values) == expected
    assert int64_digest(np.asarray(values, dtype=np.int64)) == expected
    assert int64_digest(np.asarray(values, dtype=">i8")) == expected
    assert int64_digest(values[::-1]) == hashlib.sha256(struct.pack("<5q", *values[::-1])).hexdigest() != expected


def test_int64_digest_widens_smaller_types_and_takes_strided_arrays():
    expected = hashlib.sha256(struct.pack("<3q", 1, 3, 5)).hexdigest()
    assert int64_digest(np.arange(6, dtype=np.int32)[1::2]) == expected
    assert int64_digest(np.arange(6, dtype=np.uint8)[1::2]) == expected


def test_int64_digest_of_nothing_is_that_of_no_bytes():
    assert int64_digest([]) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_set_seed_repeats_all_three_sources():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    set_seed(3)
    first = draw()
    assert draw() != first
    set_seed(3)
    assert draw() == first
    set_seed(4)
    assert all(a != b for a, b in zip(draw(), first, strict=True))


def test_set_seed_takes_seeds_beyond_numpys_32_bits():
    set_seed(2**40 + 5)
    value = np.random.rand()
    np.random.seed(5)
    assert np.random.rand() == value


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
def test_each_process_draws_from_a_stream_of_its_own(seed):
    drawn = []
    for rank in range(3):
        set_seed(seed, rank=rank)
        drawn.append((random.random(), np.random.rand(), torch.rand(()).item()))
    set_seed(seed)
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == drawn[0]  # the first process's is as with one
    assert all(len(set(values)) == 3 for values in zip(*drawn))


# Logs


def read_records(path):
    """Yields the events of a tensorboard file: records of length (8 bytes), checksum (4), data, checksum (4)."""
    raw = path.read_bytes()
    position = 0
    while position < len(raw):
        (length,) = struct.unpack_from("<Q", raw, position)
        yield Event.FromString(raw[position + 12 : position + 12 + length])
        position += 16 + length


def scalars(path):
    """Yields (step, name, value) of every scalar in a tensorboard file."""
    for event in read_records(path):
        for value in event.summary.value:
            yield event.step, value.tag, value.simple_value


def test_run_log_writes_json_lines_and_tensorboard_scalars(tmp_path):
    run_log = RunLog(tmp_path / "run")
    run_log.write(1, {"loss": 2.5, "lr": 0.125})
    run_log.write(2, {"loss": 1.5})
    # Before close: a run that is killed keeps what it wrote.
    text = (tmp_path / "run" / "log.jsonl").read_text()
    assert [json.loads(line) for line in text.splitlines()] == [
        {"epoch": 1, "loss": 2.5, "lr": 0.125},
        {"epoch": 2, "loss": 1.5},
    ]
    run_log.close()
    (events,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert list(scalars(events)) == [(1, "loss", 2.5), (1, "lr", 0.125), (2, "loss", 1.5)]


def test_run_log_of_a_resumed_run_keeps_the_epochs_done_and_drops_later_ones(tmp_path):
    """Epoch 3 was trained after the last checkpoint and epoch 4's line was cut short by the kill."""
    first = RunLog(tmp_path)
    for epoch in (1, 2, 3):
        first.write(epoch, {"loss": epoch / 2})
    first.close()
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"epoch": 4, "lo')
    (before,) = (tmp_path / "tensorboard").iterdir()
    before = before.rename(before.with_name("events.out.tfevents.0.before"))
    resumed = RunLog(tmp_path, done=2)
    resumed.write(3, {"loss": 8.0})
    resumed.close()
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [
        {"epoch": 1, "loss": 0.5},
        {"epoch": 2, "loss": 1.0},
        {"epoch": 3, "loss": 8.0},
    ]
    (after,) = (path for path in (tmp_path / "tensorboard").iterdir() if path != before)
    # Tensorboard is told to forget what it saw from step 3 on.
    purges = [event.step for event in read_records(after) if event.HasField("session_log")]
    assert purges == [3]
    assert list(scalars(after)) == [(3, "loss", 8.0)]


def test_run_log_that_is_whole_is_appended_to(tmp_path):
    for done in (0, 1):
        run_log = RunLog(tmp_path, done=done)
        run_log.write(done + 1, {"loss": 0.5})
        run_log.close()
    assert (tmp_path / "log.jsonl").read_text() == '{"epoch": 1, "loss": 0.5}\n{"epoch": 2, "loss": 0.5}\n'


def test_run_log_disabled_writes_nothing(tmp_path):
    run_log = RunLog(tmp_path / "run", enabled=False)
    run_log.write(1, {"loss": 1.0})
    run_log.close()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_run_log_refuses_what_is_no_file(tmp_path, kind):
    """A pipe would be waited for, for ever."""
    path = tmp_path / "log.jsonl"
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    with pytest.raises(InputError, match="log.jsonl is no regular file"):
        RunLog(tmp_path)


def test_run_log_does_not_follow_a_link(tmp_path):
    other = tmp_path / "other"
    other.write_text('{"epoch": 1}\n')
    (tmp_path / "log.jsonl").symlink_to(other)
    log = RunLog(tmp_path, done=1)
    log.write(2, {"loss": 0.5})
    log.close()
    assert other.read_text() == '{"epoch": 1}\n'
    assert (tmp_path / "log.jsonl").read_text() == '{"epoch": 1}\n{"epoch": 2, "loss": 0.5}\n'
