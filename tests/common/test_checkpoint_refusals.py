"""What checkpoints and args.json are refused for, word for word, and the calls that they rest on."""

from __future__ import annotations

import contextlib
import os
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from common import checkpoint, provenance
from common.files import SMALL_JSON, read_json, write_json
from tests.hostile import Payload, crafted_pickle, write_zip
from utils import InputError

DIGEST = "0123456789abcdef" * 4
OTHER = "fedcba9876543210" * 4


@contextlib.contextmanager
def refused(message: str):
    with pytest.raises(InputError) as caught:
        yield caught
    assert str(caught.value) == message


# Loading


def test_a_sealed_file_of_another_checksum_is_refused_by_that(tmp_path):
    path = tmp_path / "last.ckpt"
    checkpoint.save_sealed(path, {"epoch": 1})
    line, payload = path.read_bytes().split(b"\n", 1)
    path.write_bytes(line[:-1] + (b"0" if line[-1:] != b"0" else b"1") + b"\n" + payload)
    message = f"checkpoint {path} is damaged or no checkpoint (its checksum does not fit); train or copy it again"
    with refused(message) as caught:
        checkpoint.load(path)
    assert caught.value.reason == "its checksum does not fit"


def test_a_record_of_another_checksum_is_refused_by_that(tmp_path):
    path = tmp_path / "last.model"
    checkpoint.save(path, {"w": torch.arange(256, dtype=torch.uint8)})
    raw = bytearray(path.read_bytes())
    at = raw.find(bytes(range(256)))
    raw[at] ^= 1
    path.write_bytes(raw)
    with refused(
        f"checkpoint {path} is damaged or no checkpoint (a checksum in it does not fit); train or copy it again"
    ):
        checkpoint.load(path)


def test_weights_only_holds_where_the_walk_through_the_pickle_would_not(tmp_path, monkeypatch):
    """Two locks, one behind the other: here the first is open."""
    trace, path = tmp_path / "executed", tmp_path / "last.model"
    write_zip(path, crafted_pickle({"w": Payload(trace)}), {})
    monkeypatch.setattr(checkpoint, "check_checkpoint", lambda file, path: None)
    with pytest.raises(InputError, match="damaged or no checkpoint"):
        checkpoint.load(path)
    assert not trace.exists()


def test_tensors_come_to_the_device_asked_for(tmp_path):
    for write in (checkpoint.save, checkpoint.save_sealed):
        write(tmp_path / "last.ckpt", {"w": torch.ones(3)})
        assert checkpoint.load(tmp_path / "last.ckpt")["w"].device.type == "cpu"
        assert checkpoint.load(tmp_path / "last.ckpt", torch.device("meta"))["w"].device.type == "meta"
        assert checkpoint.load_last(tmp_path, torch.device("meta"))[1]["w"].device.type == "meta"


def test_what_a_resume_tells_of_bad_files(tmp_path, capsys):
    last, previous = tmp_path / "last.ckpt", tmp_path / "last.prev.ckpt"
    remedy = "copy one of them from elsewhere, or remove the folder to start anew"
    last.write_bytes(b"")
    with refused(f"{last} is damaged or no checkpoint (EOFError) and {previous} is not there: {remedy}"):
        checkpoint.load_last(tmp_path)
    with zipfile.ZipFile(last, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(1000))
    with pytest.raises(InputError, match=r"archive/data\.pkl declares 1000 bytes, made of \d+ in the file"):
        checkpoint.load_last(tmp_path)
    checkpoint.save_sealed(previous, {"epoch": 4})
    assert checkpoint.load_last(tmp_path) == (previous, {"epoch": 4})
    said = capsys.readouterr().out
    assert f"copy or write it again; the one before it, {previous}, is used" in said
    checkpoint.save(last, {"epoch": 5})
    assert checkpoint.load_last(tmp_path) == (last, {"epoch": 5})
    assert capsys.readouterr().out == (
        f"warning: {last} has no checksum, as earlier versions of this code wrote it: damage would go unseen\n"
    )


# The file before


def test_a_link_that_a_kill_has_left_is_replaced(tmp_path):
    last, previous, scratch = (tmp_path / name for name in ("last.ckpt", "last.prev.ckpt", ".last.prev.ckpt.link.tmp"))
    checkpoint.save_sealed(last, {"epoch": 1})
    scratch.write_text("of an earlier process")
    checkpoint.save_sealed(last, {"epoch": 2}, previous=previous)
    assert checkpoint.load(previous) == {"epoch": 1} and checkpoint.load(last) == {"epoch": 2}
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "last.prev.ckpt"]


def test_two_names_of_one_file_leave_no_third(tmp_path):
    """POSIX's rename does nothing where both names are one file's, and leaves the old name."""
    last, previous = tmp_path / "last.ckpt", tmp_path / "last.prev.ckpt"
    checkpoint.save_sealed(last, {"epoch": 1})
    os.link(last, previous)
    checkpoint.save_sealed(last, {"epoch": 2}, previous=previous)
    assert checkpoint.load(previous) == {"epoch": 1} and checkpoint.load(last) == {"epoch": 2}
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "last.prev.ckpt"]


def test_a_file_system_without_links_renames(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("no links here")

    last, previous = tmp_path / "last.ckpt", tmp_path / "last.prev.ckpt"
    checkpoint.save_sealed(last, {"epoch": 1})
    monkeypatch.setattr(os, "link", refuse)
    checkpoint.save_sealed(last, {"epoch": 2}, previous=previous)
    assert checkpoint.load(previous) == {"epoch": 1} and checkpoint.load(last) == {"epoch": 2}
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "last.prev.ckpt"]


def test_where_links_work_the_last_file_is_there_at_every_moment(tmp_path, monkeypatch):
    last, previous = tmp_path / "last.ckpt", tmp_path / "last.prev.ckpt"
    checkpoint.save_sealed(last, {"epoch": 1})
    there, rename = [], os.replace

    def watching(one, other):
        there.append(last.exists())
        rename(one, other)
        there.append(last.exists())

    monkeypatch.setattr(os, "replace", watching)
    checkpoint.save_sealed(last, {"epoch": 2}, previous=previous)
    assert there == [True] * 4


# Weights


def save_state(folder: Path, **changes) -> Path:
    state = nn.Linear(2, 3).state_dict() | changes
    checkpoint.save(folder / "last.model", state)
    return folder / "last.model"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("strict", [True, False])
def test_weights_that_are_not_finite_are_named(tmp_path, value, strict):
    network = nn.Linear(2, 3)
    before = network.weight.clone()
    path = save_state(tmp_path, bias=torch.tensor([0.0, value, 0.0]))
    with refused(
        f"checkpoint {path} holds weights that are not finite (bias): its training went wrong, train it again"
    ):
        checkpoint.load_weights(path, network, strict=strict)
    assert torch.equal(network.weight, before)


def test_counts_are_no_weights(tmp_path):
    checkpoint.require_finite_weights(tmp_path, {"count": torch.tensor(7), "flag": torch.tensor(True)})


@pytest.mark.parametrize(("count", "more"), [(5, ""), (6, ""), (7, " and 1 more"), (9, " and 3 more")])
def test_six_keys_are_listed_and_the_rest_counted(tmp_path, count, more):
    state = {f"k{number}": torch.tensor(torch.nan) for number in range(count)}
    listed = ", ".join(f"k{number}" for number in range(min(count, 6)))
    with refused(
        f"checkpoint {tmp_path} holds weights that are not finite ({listed}{more}): its training went wrong, train it "
        "again"
    ):
        checkpoint.require_finite_weights(tmp_path, state)


def test_what_does_not_fit_is_told_with_the_flags_that_cause_it(tmp_path, capsys):
    path = save_state(tmp_path, bias=torch.zeros(4), extra=torch.zeros(1))
    parts = "does not know extra", "differs in the shape of bias"
    with refused(
        f"checkpoint {path} does not fit this encoder: it {parts[0]}; it {parts[1]}. Give the flags of its training "
        "(--model, --simclr_dim, --shift_trans_type, --dataset)"
    ):
        checkpoint.load_weights(path, nn.Linear(2, 3))
    network = nn.Linear(2, 3)
    before = network.bias.clone()
    checkpoint.load_weights(path, network, strict=False)
    assert torch.equal(network.bias, before)
    assert torch.equal(network.weight, checkpoint.load(path)["weight"])
    assert capsys.readouterr().out == f"warning: {path}: {'; '.join(parts)}; left as initialised (--no_strict)\n"


# Random states


def test_numpys_place_lies_within_its_numbers():
    state = checkpoint.rng_state()
    for place in (0, 624):
        state["numpy"][2] = place
        checkpoint.restore_rng(state)
        assert np.random.get_state()[2] == place
    for place in (-1, 625, 10**6):
        state["numpy"][2] = place
        with pytest.raises(ValueError, match=f"^a random state at {place} of 624 numbers$"):
            checkpoint.restore_rng(state)


def fake_gpus(monkeypatch, count):
    restored = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [torch.tensor([n]) for n in range(count)])
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", lambda states: restored.append(states))
    return restored


def test_every_gpus_state_is_kept_and_restored(monkeypatch):
    restored = fake_gpus(monkeypatch, 2)
    state = checkpoint.rng_state()
    assert [value.tolist() for value in state["cuda"]] == [[0], [1]]
    checkpoint.restore_rng(state)
    assert [[value.tolist() for value in values] for values in restored] == [[[0], [1]]]


@pytest.mark.parametrize(("before", "now"), [(2, 1), (1, 2), (2, 0), (0, 2), (0, 0)])
def test_states_of_another_number_of_gpus_are_left_out(monkeypatch, before, now):
    fake_gpus(monkeypatch, before)
    state = checkpoint.rng_state()
    assert len(state["cuda"]) == before
    restored = fake_gpus(monkeypatch, now)
    checkpoint.restore_rng(state)
    assert restored == []


# args.json


def write_record(folder: Path, **changes) -> Path:
    checkpoint.write_args(folder, {"model": "resnet8"}, split_digest=DIGEST, processes=1)
    content = {**read_json(folder / "args.json"), **changes}
    write_json(folder / "args.json", {name: value for name, value in content.items() if value is not None})
    return folder / "args.json"


def check(folder: Path, *, split_digest: str = DIGEST, **more) -> None:
    checkpoint.check_run(folder / "last.model", split_digest=split_digest, expected={"model": "resnet8"}, **more)


def test_the_first_version_and_files_without_one_are_read(tmp_path, capsys):
    assert read_json(write_record(tmp_path))["format_version"] == 1
    check(tmp_path)
    assert "format_version" not in read_json(write_record(tmp_path, format_version=None))
    check(tmp_path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("version", [0, 2, "1", [1]])
def test_other_versions_are_refused(tmp_path, version):
    path = write_record(tmp_path, format_version=version)
    with refused(
        f"{path} is of format version {version} and this code reads 1; restore it, or remove it to load unchecked"
    ):
        check(tmp_path)


def test_a_record_without_a_split_is_refused(tmp_path):
    path = write_record(tmp_path, split_digest=None)
    with refused(f"{path} lacks split_digest; restore it, or remove it to load unchecked"):
        check(tmp_path)


def test_a_record_of_something_else_is_refused(tmp_path):
    path = write_record(tmp_path, arguments=[])
    with refused(f"{path} is no settings file of contrast_main.py; restore it, or remove it to load unchecked"):
        check(tmp_path)


def test_a_record_of_megabytes_is_not_read(tmp_path):
    path = write_record(tmp_path)
    os.truncate(path, SMALL_JSON + 1)
    with refused(f"{path} has {SMALL_JSON + 1} bytes and such a file has {SMALL_JSON} at most; write it again"):
        check(tmp_path)


def test_another_split_is_told_with_both_digests(tmp_path):
    write_record(tmp_path)
    with refused(
        f"{tmp_path / 'last.model'} was trained on another split (digest 0123456789ab, here fedcba987654); give its "
        "training's --dataset, --mismatch, --target_classes, --initial_budget and --split_seed"
    ):
        check(tmp_path, split_digest=OTHER)


def test_a_folder_that_may_have_changed_only_warns(tmp_path, capsys):
    write_record(tmp_path)
    check(tmp_path, may_have_changed=True)
    assert capsys.readouterr().out == ""
    check(tmp_path, split_digest=OTHER, may_have_changed=True)
    told = "was trained before the folder changed; train again once much of it is new"
    assert capsys.readouterr().out == f"warning: {tmp_path / 'last.model'} {told}\n"


# The commit


def test_the_commit_is_asked_for_once_with_a_limit(monkeypatch):
    asked = []

    def answer(words, **how):
        asked.append((words, how))
        return subprocess.CompletedProcess(words, 0, stdout="abc-dirty\n")

    monkeypatch.setattr(subprocess, "run", answer)
    assert provenance.git_commit() == "abc-dirty"
    place = str(Path(checkpoint.__file__).parent)
    words = ["git", "-C", place, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    assert asked == [(words, {"capture_output": True, "text": True, "timeout": 10, "check": True})]


@pytest.mark.parametrize(
    "error", [FileNotFoundError("git"), subprocess.CalledProcessError(128, "git"), subprocess.TimeoutExpired("git", 10)]
)
def test_without_git_the_commit_is_unknown(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(subprocess, "run", fail)
    assert provenance.git_commit() == "unknown"
