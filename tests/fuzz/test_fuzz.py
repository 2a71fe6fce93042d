"""A short run of python -m tests.fuzz, and what it must be able to find."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.fuzz.__main__ import attempts, fuzz
from tests.fuzz.mutations import mutated
from tests.fuzz.targets import MAKERS, Target
from utils import InputError

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")


def test_damaged_files_are_accepted_or_refused_and_nothing_else(tmp_path):
    tally = fuzz(tmp_path, tries=15, seed=1)
    assert {outcome for _, outcome in tally} == {"accepted", "refused"}, list(tmp_path.glob("*.txt"))
    kinds = {kind for kind, _ in tally}
    assert len(kinds) == len(MAKERS) and all(tally[kind, "accepted"] + tally[kind, "refused"] == 15 for kind in kinds)


def raising(error):
    def read(path):
        raise error

    return read


def die(path):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("read", "outcome"),
    [
        (lambda path: None, "accepted"), (raising(InputError("no")), "refused"), (raising(InputError("")), "broken"),
        (raising(KeyError("field")), "broken"), (raising(AssertionError()), "broken"),
        (lambda path: bytearray(2**32), "broken"), (lambda path: time.sleep(60), "broken"), (die, "broken"),
    ],
)  # fmt: skip
def test_what_a_reader_does_is_told_apart(tmp_path, monkeypatch, read, outcome):
    monkeypatch.setattr("tests.fuzz.__main__.SECONDS", 0.5)
    file, out = tmp_path / "file", tmp_path / "out"
    out.mkdir()
    found = attempts(Target("kind", (file,), read), {file: b"valid"}, range(2, 4), seed=0, out=out)
    assert found == [outcome] * 2
    assert (out / "kind-3").exists() == (outcome == "broken")


def test_damage_repeats_by_its_seed_and_changes_most_files():
    data = b'{"a": [1, 2, 3], "b": {"c": 4.5}, "d": "text"}'
    one, again = ([mutated(data, np.random.default_rng(n), [b"other"]) for n in range(100)] for _ in range(2))
    assert one == again
    assert len(set(one)) > 80 and sum(file != data for file in one) > 90
