"""common/provenance.py: digests, versions, the commit, and a run's log."""

import hashlib
import json
import os
import struct
import subprocess

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from common import provenance
from common.provenance import RunLog, file_digest, git_commit, image_digest, int64_digest, read_log, versions
from utils import InputError


def test_the_digest_of_indices_is_sha256_of_little_endian_int64():
    values = [31604, 0, 5, 2**40, -1]
    expected = hashlib.sha256(struct.pack("<5q", *values)).hexdigest()
    assert int64_digest(values) == int64_digest(np.asarray(values, dtype=">i8")) == expected
    assert int64_digest(values[::-1]) == hashlib.sha256(struct.pack("<5q", *values[::-1])).hexdigest()
    expected = hashlib.sha256(struct.pack("<3q", 1, 3, 5)).hexdigest()
    assert int64_digest(np.arange(6, dtype=np.uint8)[1::2]) == expected
    assert int64_digest([]) == hashlib.sha256(b"").hexdigest()


def test_the_digest_of_images_depends_on_pixels_and_order_and_not_on_blocks(monkeypatch):
    images = np.arange(5 * 12, dtype=np.uint8).reshape(5, 2, 2, 3)
    chosen = np.asarray([4, 0, 2])
    expected = hashlib.sha256(images[4].tobytes() + images[0].tobytes() + images[2].tobytes()).hexdigest()
    assert image_digest(images, chosen) == expected
    monkeypatch.setattr(provenance, "HASH_BLOCK", 2)
    assert image_digest(images, chosen) == expected
    assert image_digest(images, chosen[::-1]) != expected


def test_the_digest_of_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert file_digest(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()


def test_versions_and_commit(monkeypatch):
    assert set(versions()) == {"python", "torch", "torchvision", "numpy"}

    def answer(words, **options):
        return subprocess.CompletedProcess(words, 0, stdout="abc-dirty\n")

    def fail(words, **options):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", answer)
    assert git_commit() == "abc-dirty"
    monkeypatch.setattr(subprocess, "run", fail)
    assert git_commit() == "unknown"


def events(path):
    """The events of a tensorboard file: records of length (8 bytes), checksum (4), data, checksum (4)."""
    raw, position, found = path.read_bytes(), 0, []
    while position < len(raw):
        (length,) = struct.unpack_from("<Q", raw, position)
        found.append(Event.FromString(raw[position + 12 : position + 12 + length]))
        position += 16 + length
    return found


def scalars(path):
    return [(event.step, value.tag, value.simple_value) for event in events(path) for value in event.summary.value]


def test_the_log_has_a_json_line_and_tensorboard_scalars_per_epoch(tmp_path):
    log = RunLog(tmp_path / "run")
    log.write(1, {"loss": 2.5, "lr": 0.125})
    log.write(2, {"loss": 1.5})
    # Before it is closed: a run that is killed keeps what it wrote.
    assert read_log(tmp_path / "run") == ([{"epoch": 1, "loss": 2.5, "lr": 0.125}, {"epoch": 2, "loss": 1.5}], 0)
    log.close()
    [file] = (tmp_path / "run" / "tensorboard").iterdir()
    assert scalars(file) == [(1, "loss", 2.5), (1, "lr", 0.125), (2, "loss", 1.5)]


def test_a_resumed_run_keeps_the_epochs_done_and_drops_later_ones(tmp_path):
    """Epoch 3 was trained after the last checkpoint and epoch 4's line was cut short by the kill."""
    first = RunLog(tmp_path)
    for epoch in (1, 2, 3):
        first.write(epoch, {"loss": epoch / 2})
    first.close()
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"epoch": 4, "lo')
    [before] = (tmp_path / "tensorboard").iterdir()
    before = before.rename(before.with_name("events.out.tfevents.0.before"))
    resumed = RunLog(tmp_path, done=2)
    resumed.write(3, {"loss": 8.0})
    resumed.close()
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [0.5, 1.0, 8.0]
    [after] = (path for path in (tmp_path / "tensorboard").iterdir() if path != before)
    # Tensorboard is told to forget what it saw from step 3 on.
    assert [event.step for event in events(after) if event.HasField("session_log")] == [3]
    assert scalars(after) == [(3, "loss", 8.0)]


def test_damaged_lines_are_counted_and_left_out(tmp_path):
    lines = ['{"epoch": 1, "loss": NaN, "lr": 0.5, "note": "x"}', "{", "[1]", '{"loss": 1}', "[" * 10_000]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    assert read_log(tmp_path) == ([{"epoch": 1, "lr": 0.5}], 4)
    assert read_log(tmp_path / "nowhere") == ([], 0)


def test_a_disabled_log_writes_nothing(tmp_path):
    log = RunLog(tmp_path / "run", enabled=False)
    log.write(1, {"loss": 1.0})
    log.close()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_the_log_is_a_regular_file_of_the_folders_own(tmp_path, kind):
    """A pipe would be waited for, and lines must not go where a link leads."""
    path, other = tmp_path / "run" / "log.jsonl", tmp_path / "other"
    path.parent.mkdir()
    other.write_text('{"epoch": 1}\n')
    if kind == "link":
        path.symlink_to(other)
        log = RunLog(tmp_path / "run", done=1)
        log.write(2, {"loss": 0.5})
        log.close()
        assert other.read_text() == '{"epoch": 1}\n'
        assert path.read_text() == '{"epoch": 1}\n{"epoch": 2, "loss": 0.5}\n'
    else:
        os.mkfifo(path) if kind == "pipe" else path.mkdir()
        with pytest.raises(InputError, match="regular file"):
            RunLog(tmp_path / "run")
