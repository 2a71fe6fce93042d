"""A short run of python -m tests.fuzz, and what it must be able to find."""

from __future__ import annotations

import io
import json
import os
import signal
import time
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.fuzz.__main__ import BATCH, fuzz, in_a_process, table
from tests.fuzz.mutations import change_fields, change_members, mutated
from tests.fuzz.targets import Target
from utils import InputError

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")


def test_damaged_files_are_accepted_or_refused_and_nothing_else(tmp_path):
    tally = fuzz(tmp_path, seconds=0, tries=15, seed=1)
    assert {outcome for _, outcome in tally} == {"accepted", "refused"}, list(tmp_path.glob("*.txt"))
    kinds = {kind for kind, _ in tally}
    assert len(kinds) == 11 and all(tally[kind, "accepted"] + tally[kind, "refused"] == 15 for kind in kinds)


def broken_reader(path: Path, behaviour) -> Target:
    path.write_bytes(b"valid")
    return Target("kind", (path,), (path,), behaviour)


def run_out_of_memory():
    bytearray(2**32)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def refuse():
    raise InputError("no")


def refuse_at_length():
    raise InputError("")


def miss_a_field():
    raise KeyError("field")


def contradict():
    assert [] == [1]


@pytest.mark.parametrize(
    ("behaviour", "outcome"),
    [
        (lambda: None, "accepted"), (refuse, "refused"), (refuse_at_length, "broken"), (miss_a_field, "broken"),
        (contradict, "broken"), (run_out_of_memory, "broken"), (die, "broken"),
    ],
)  # fmt: skip
def test_what_a_reader_does_is_told_apart(tmp_path, behaviour, outcome):
    target = broken_reader(tmp_path / "file", behaviour)
    out = tmp_path / "out"
    out.mkdir()
    tally = in_a_process(target, [b"other"], range(3, 6), seed=0, out=out)
    assert tally == {("kind", outcome): 3}
    kept = sorted(path.name for path in out.iterdir())
    assert kept == ([name for n in (3, 4, 5) for name in (f"kind-{n}", f"kind-{n}.txt")] if outcome == "broken" else [])
    assert (tmp_path / "file").read_bytes() == b"valid"


def test_a_reader_that_never_ends_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.fuzz.__main__.SECONDS", 0.1)
    start = time.monotonic()
    target = broken_reader(tmp_path / "file", lambda: time.sleep(60))
    assert in_a_process(target, [b"other"], range(1), seed=0, out=tmp_path) == {("kind", "broken"): 1}
    assert "TooLong" in (tmp_path / "kind-0.txt").read_text()
    assert time.monotonic() - start < 30


def test_a_process_that_dies_loses_one_try_alone(tmp_path):
    def die_sometimes():
        if (tmp_path / "file").read_bytes()[:1] in b"0123456789abcdefghijklmnopqrstuvwxyz":
            die()

    tally = in_a_process(broken_reader(tmp_path / "file", die_sometimes), [b"v"], range(30), seed=0, out=tmp_path)
    assert sum(tally.values()) == 30 <= BATCH
    assert 0 < tally["kind", "broken"] < 30


def test_damage_repeats_by_its_seed_and_changes_most_files():
    data = b'{"a": [1, 2, 3], "b": {"c": 4.5}, "d": "text"}'
    one, again = ([mutated(data, np.random.default_rng(n), [b"other"]) for n in range(100)] for _ in range(2))
    assert one == again
    assert len(set(one)) > 80 and sum(file != data for file in one) > 90


def test_fields_and_members_change_within_whole_files():
    data = b'{"a": [1, 2, 3], "b": {"c": 4.5}, "d": "text"}'
    changed = [change_fields(data, np.random.default_rng(n), []) for n in range(50)]
    assert len({json.dumps(json.loads(text)) for text in changed}) > 25
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.npy", b"first")
        file.writestr("b.npy", b"second")
    for n in range(50):
        with zipfile.ZipFile(io.BytesIO(change_members(buffer.getvalue(), np.random.default_rng(n), []))) as file:
            assert all(file.read(info) is not None for info in file.infolist())  # every checksum fits


def test_the_table_counts_by_hand():
    tally = {("a", "accepted"): 1, ("a", "refused"): 2, ("b", "broken"): 4}
    assert table(Counter(tally)).splitlines()[2:] == [
        "| a | 3 | 1 | 2 | 0 |",
        "| b | 4 | 0 | 0 | 4 |",
        "| all | 7 | 1 | 2 | 4 |",
    ]
