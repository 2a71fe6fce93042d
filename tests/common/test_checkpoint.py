"""common/checkpoint.py: atomic files, damaged and hostile files, mismatches, settings records and random states."""

import errno
import hashlib
import json
import os
import pathlib
import pickle
import random
import stat

import numpy as np
import pytest
import torch

from common import checkpoint
from common.files import remove_leftovers, write_json
from models import build_encoder
from utils import InputError

DIGEST = "a" * 64


@pytest.fixture
def encoder():
    return build_encoder("resnet8", num_classes=3, shifts=4, simclr_dim=8, seed=0)


@pytest.fixture
def weights(tmp_path, encoder):
    path = tmp_path / checkpoint.MODEL_FILE
    checkpoint.save(path, encoder.state_dict())
    return path


def other_encoder(**settings):
    return build_encoder("resnet8", **{"num_classes": 3, "shifts": 4, "simclr_dim": 8, "seed": 1, **settings})


def changed(path, change):
    """Rewrites a state_dict file after ``change`` was applied to it."""
    state = dict(torch.load(path, weights_only=True))
    change(state)
    torch.save(state, path)


def equal(one, other):
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


# Saving


def test_what_is_saved_comes_back(tmp_path):
    content = {"epoch": 3, "model": {"w": torch.arange(6.0).view(2, 3)}, "rng": [(1, None, "x")], "rate": 0.1}
    checkpoint.save(tmp_path / "new" / "folder" / "last.ckpt", content)
    loaded = checkpoint.load(tmp_path / "new" / "folder" / "last.ckpt")
    assert torch.equal(loaded["model"].pop("w"), content["model"].pop("w")) and loaded == content


class FailsWhenPickled:
    def __reduce__(self):
        raise OSError("no space left")


def test_a_failing_save_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "last.ckpt"
    checkpoint.save(path, {"epoch": 1})
    before = path.read_bytes()
    with pytest.raises(OSError, match="no space left"):
        checkpoint.save(path, {"weights": torch.zeros(100_000), "bad": FailsWhenPickled()})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_a_failing_rename_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    checkpoint.save(path, {"epoch": 1})

    def fail(*arguments):
        raise OSError("disk on fire")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk on fire"):
        checkpoint.save(path, {"epoch": 2})
    assert checkpoint.load(path) == {"epoch": 1}
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_the_file_has_the_usual_permissions(tmp_path):
    mask = os.umask(0o022)
    try:
        checkpoint.save(tmp_path / "last.ckpt", {})
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "last.ckpt").stat().st_mode) == 0o644


# Loading


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"checkpoint .*last\.model does not exist; train it with contrast_main\.py"):
        checkpoint.load(tmp_path / "last.model")


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        checkpoint.load(tmp_path)


LEGACY = pickle.dumps({"a": 1.5, "b": [1, 2, 3]}, 2)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"\n\n",
        b'{"a": 1}',
        b"\x89PNG\r\n\x1a\n000",
        b"PK\x03\x04" + b"0" * 100,
        b"\x80\x02",
        LEGACY[:12],
        LEGACY[:-6],
        b"epoch,loss\n1,2\n",  # a csv file; like the rest, it looks like a pickle at first
        b"\x80",
        b"\x80\x02e.",
        b"\x80\x02J\x01",
    ],
)
def test_a_file_of_other_content_is_refused(tmp_path, content):
    path = tmp_path / "last.ckpt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"checkpoint .*last\.ckpt is damaged or no checkpoint"):
        checkpoint.load(path)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint_is_refused(weights, share):
    content = weights.read_bytes()
    weights.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"damaged or no checkpoint .*train or copy it again"):
        checkpoint.load(weights)


class Payload:
    """Runs a command when it is unpickled by a loader that executes pickles."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, 2))])
def test_a_payload_is_refused_and_not_executed(tmp_path, write):
    canary, path = tmp_path / "executed", tmp_path / "last.model"
    write({"conv1.weight": Payload(canary)}, path)
    with pytest.raises(InputError, match="damaged or no checkpoint"):
        checkpoint.load(path)
    assert not canary.exists()
    pickle.loads(pickle.dumps(Payload(canary)))  # the payload is one that works
    assert canary.exists()


# Weights


def test_weights_come_back(weights, encoder):
    other = other_encoder()
    assert not equal(other.state_dict(), encoder.state_dict())
    checkpoint.load_weights(weights, other)
    assert equal(other.state_dict(), encoder.state_dict())


def test_the_originals_two_unused_heads_are_ignored(weights, encoder, capsys):
    def add_heads(state):
        state["joint_distribution_layer.weight"] = torch.ones(40, 64)
        state["joint_distribution_layer.bias"] = torch.ones(40)
        state["shift_dis.0.weight"] = torch.ones(3, 3)

    changed(weights, add_heads)
    other = other_encoder()
    checkpoint.load_weights(weights, other)
    assert equal(other.state_dict(), encoder.state_dict())
    assert capsys.readouterr().out == ""


def test_the_originals_whole_list_of_keys_loads(shared, tmp_path):
    listed = json.loads((shared / "golden" / "checkpoint_keys.json").read_text())["resnet18_4_shifts_10_classes"]
    torch.save({name: torch.full(shape, 1 if not shape else 0.5) for name, shape in listed}, tmp_path / "last.model")
    encoder = build_encoder("resnet18", num_classes=10, shifts=4, seed=0)
    checkpoint.load_weights(tmp_path / "last.model", encoder)
    assert encoder.layer4[1].conv2.weight.unique().tolist() == [0.5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("conv1.weight"), r"it lacks conv1\.weight\."),
        (lambda state: state.update({"module.x": torch.ones(1)}), r"it does not know module\.x\."),
        (
            lambda state: state.update({"shift_cls_layer.weight": torch.ones(1, 64)}),
            r"it differs in the shape of shift_cls_layer\.weight\.",
        ),
        (
            lambda state: (state.pop("bn1.weight"), state.update({"a": torch.ones(1), "b": torch.ones(1)})),
            r"it lacks bn1\.weight; it does not know a, b\.",
        ),
    ],
)
def test_mismatches_are_named_with_the_flags_that_cause_them(weights, change, message):
    changed(weights, change)
    other = other_encoder()
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(InputError, match=message + r" Give the flags .*--model, --simclr_dim, --shift_trans_type"):
        checkpoint.load_weights(weights, other)
    assert equal(other.state_dict(), before)


def test_a_long_list_of_mismatches_is_cut(weights):
    with pytest.raises(InputError, match=r"it lacks layer1\.1\.conv1\.weight.* and \d+ more"):
        checkpoint.load_weights(weights, build_encoder("resnet20", num_classes=3, shifts=4, simclr_dim=8))


def test_no_strict_loads_what_fits_and_lists_the_rest(weights, encoder, capsys):
    def change(state):
        del state["conv1.weight"]
        state["shift_cls_layer.weight"] = torch.ones(1, 64)
        state["stranger"] = torch.ones(1)

    changed(weights, change)
    other = other_encoder()
    initial = {key: value.clone() for key, value in other.state_dict().items()}
    checkpoint.load_weights(weights, other, strict=False)
    for key, value in other.state_dict().items():
        kept = key in ("conv1.weight", "shift_cls_layer.weight")
        assert torch.equal(value, (initial if kept else encoder.state_dict())[key])
    line = capsys.readouterr().out
    assert line.startswith("warning: ") and "left as initialised (--no_strict)" in line
    assert all(key in line for key in ("conv1.weight", "shift_cls_layer.weight", "stranger"))


@pytest.mark.parametrize("content", [{"model": {"w": torch.ones(1)}, "epoch": 3}, [torch.ones(1)], torch.ones(2), 5])
def test_a_resume_file_or_anything_else_is_no_state_dict(tmp_path, encoder, content):
    checkpoint.save(tmp_path / "last.ckpt", content)
    with pytest.raises(InputError, match=r"is no state_dict; give the file last\.model, not last\.ckpt"):
        checkpoint.load_weights(tmp_path / "last.ckpt", encoder)


# args.json


def write_record(folder, **arguments):
    checkpoint.write_args(folder, {"model": "resnet8", "simclr_dim": 8, **arguments}, split_digest=DIGEST, processes=2)


def test_args_json_holds_settings_split_processes_versions_and_commit(tmp_path):
    write_record(tmp_path)
    record = json.loads((tmp_path / "args.json").read_text())
    assert record["arguments"] == {"model": "resnet8", "simclr_dim": 8}
    assert record["split_digest"] == DIGEST and record["processes"] == 2
    assert record["versions"]["torch"] == torch.__version__ and record["versions"]["numpy"] == np.__version__
    assert set(record["versions"]) == {"python", "torch", "torchvision", "numpy"}
    assert record["git_commit"] == "unknown" or len(record["git_commit"].removesuffix("-dirty")) == 40


def test_a_run_that_agrees_passes_silently(tmp_path, capsys):
    write_record(tmp_path)
    checkpoint.check_run(
        tmp_path / "last.model", split_digest=DIGEST, expected={"model": "resnet8", "simclr_dim": 8, "newer_flag": 1}
    )
    assert capsys.readouterr().out == ""


def test_another_split_is_refused(tmp_path):
    write_record(tmp_path)
    with pytest.raises(InputError, match=r"another split \(digest aaaaaaaaaaaa, here bbbbbbbbbbbb\); .*--mismatch"):
        checkpoint.check_run(tmp_path / "last.model", split_digest="b" * 64, expected={})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model", "resnet18", "--model resnet8, not resnet18"),
        ("simclr_dim", 128, "--simclr_dim 8, not 128"),
        ("mode", "semantic", "--mode distinctive, not semantic"),
    ],
)
def test_other_settings_are_refused_with_both_values(tmp_path, name, value, message):
    write_record(tmp_path, mode="distinctive")
    with pytest.raises(InputError, match=f"was trained with {message}; give the flag or file that fits"):
        checkpoint.check_run(tmp_path / "last.model", split_digest=DIGEST, expected={name: value})


def test_without_a_record_it_only_warns(tmp_path, capsys):
    checkpoint.check_run(tmp_path / "last.model", split_digest=DIGEST, expected={"model": "resnet18"})
    out = capsys.readouterr().out
    assert out.startswith("warning: ") and "has no args.json beside it" in out


@pytest.mark.parametrize("content", [[], {"arguments": 3}, {"model": "resnet8"}])
def test_a_record_of_something_else_is_refused(tmp_path, content):
    write_json(tmp_path / "args.json", content)
    with pytest.raises(InputError, match=r"args\.json is no settings file of contrast_main\.py"):
        checkpoint.check_run(tmp_path / "last.model", split_digest=DIGEST, expected={})


def test_a_record_that_is_no_json_is_refused(tmp_path):
    (tmp_path / "args.json").write_text("{")
    with pytest.raises(InputError, match="is not valid JSON"):
        checkpoint.check_run(tmp_path / "last.model", split_digest=DIGEST, expected={})


# Random states


def draw():
    return (
        [random.random() for _ in range(3)] + [random.gauss(0, 1)],
        [*np.random.random(3).tolist(), np.random.normal()],
        torch.rand(3).tolist() + torch.randn(1).tolist(),
    )


@pytest.mark.parametrize("burn", [0, 1, 7])
def test_random_states_survive_a_checkpoint_file(tmp_path, burn):
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    for _ in range(burn):
        draw()  # leaves a cached second normal number behind
    checkpoint.save(tmp_path / "last.ckpt", {"rng": [checkpoint.rng_state()]})
    expected = draw(), draw()
    random.seed(7), np.random.seed(8), torch.manual_seed(9)
    assert draw() != expected[0]
    checkpoint.restore_rng(checkpoint.load(tmp_path / "last.ckpt")["rng"][0])
    assert (draw(), draw()) == expected


# Sealed files, and the one before


@pytest.fixture
def sealed(tmp_path):
    """A run's two checkpoints, of epochs 1 and 2."""
    last, previous = tmp_path / checkpoint.RESUME_FILE, tmp_path / checkpoint.PREVIOUS_FILE
    for epoch in (1, 2):
        content = {"epoch": epoch, "weights": torch.arange(300.0), "rng": [(1, None, "x")]}
        checkpoint.save_sealed(last, content, previous=previous)
    return last, previous


def epochs(*paths):
    return [checkpoint.load(path)["epoch"] for path in paths]


def test_a_sealed_file_comes_back_and_the_one_before_is_kept(sealed):
    assert epochs(*sealed) == [2, 1]
    loaded = checkpoint.load(sealed[0])
    assert torch.equal(loaded["weights"], torch.arange(300.0)) and loaded["rng"] == [(1, None, "x")]
    seal, payload = sealed[0].read_bytes().split(b"\n", 1)
    assert seal.decode() == f"CCAL checkpoint, SHA-256 of what follows this line: {hashlib.sha256(payload).hexdigest()}"
    assert set(os.listdir(sealed[0].parent)) == {"last.ckpt", "last.prev.ckpt"}


def test_a_file_cut_anywhere_is_refused_and_the_one_before_is_used(sealed, capsys):
    whole = sealed[0].read_bytes()
    cuts = [0, 1, len(checkpoint.SEAL) - 1, len(checkpoint.SEAL), len(checkpoint.SEAL) + 64, len(checkpoint.SEAL) + 65]
    cuts += [int(share * len(whole)) for share in np.linspace(0.05, 0.999, 16)] + [len(whole) - 1]
    for cut in cuts:
        sealed[0].write_bytes(whole[:cut])
        with pytest.raises(checkpoint.Damaged, match=r"last\.ckpt is damaged or no checkpoint"):
            checkpoint.load(sealed[0])
        path, content = checkpoint.load_last(sealed[0].parent)
        assert (path, content["epoch"]) == (sealed[1], 1)
        assert f"warning: {sealed[0]} is damaged" in capsys.readouterr().out


def test_any_changed_byte_is_seen(sealed):
    whole = bytearray(sealed[0].read_bytes())
    assert len(whole) < 5000
    for place in range(0, len(whole), 7):
        changed = whole.copy()
        changed[place] ^= 1 << place % 8
        sealed[0].write_bytes(changed)
        with pytest.raises(checkpoint.Damaged):
            checkpoint.load(sealed[0])


def test_a_changed_number_in_a_bare_file_is_seen(tmp_path):
    """last.model has no seal, but the checksums of its format's parts."""
    path = tmp_path / "last.model"
    checkpoint.save(path, {"weights": torch.full((1000,), 7.25)})
    content = path.read_bytes()
    place = content.index(np.float32(7.25).tobytes() * 10) + 123
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(checkpoint.Damaged, match="a checksum in it does not fit"):
        checkpoint.load(path)
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["weights"].unique().tolist() == [7.25]  # bare, for everyone


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("links", [True, False])
def test_a_kill_at_any_moment_of_saving_leaves_a_whole_file(links, tmp_path, monkeypatch):
    """Before and after every call that changes the folder, and with and without hard links."""
    last, previous = tmp_path / checkpoint.RESUME_FILE, tmp_path / checkpoint.PREVIOUS_FILE
    real = {name: getattr(os, name) for name in ("replace", "link", "fsync", "chmod")}
    moments, stop_at = [], None

    def watched(name):
        def call(*arguments, **settings):
            for part in ("before", "after"):
                moments.append((name, part))
                if len(moments) == stop_at:
                    raise Killed
                if part == "before":
                    if name == "link" and not links:
                        raise OSError(errno.EPERM, "Operation not permitted")
                    real[name](*arguments, **settings)

        return call

    for stop_at in [None, *range(1, 30)]:
        for path in tmp_path.iterdir():
            path.unlink()
        for epoch in (1, 2):
            checkpoint.save_sealed(last, {"epoch": epoch}, previous=previous)
        del moments[:]
        with monkeypatch.context() as patched:
            for name in real:
                patched.setattr(os, name, watched(name))
            patched.setattr(pathlib.Path, "unlink", lambda path, missing_ok=False: None)  # the dead clear nothing up
            patched.setattr(os, "unlink", lambda path: None)
            try:
                checkpoint.save_sealed(last, {"epoch": 3}, previous=previous)
                killed = False
            except Killed:
                killed = True
        if stop_at is None:
            total = len(moments)
            assert total >= 10
        assert killed == (stop_at is not None and stop_at <= total)
        whole = [checkpoint.load(path)["epoch"] for path in (last, previous) if path.exists()]
        assert whole[0] >= 2 and (len(whole) == 2 or not links)
        assert checkpoint.load_last(tmp_path)[1]["epoch"] >= 2
        if links:
            assert last.exists()
        # The next save clears up and goes on.
        remove_leftovers(tmp_path, "*")
        checkpoint.save_sealed(last, {"epoch": 4}, previous=previous)
        assert checkpoint.load(last)["epoch"] == 4 and set(os.listdir(tmp_path)) == {last.name, previous.name}
    assert total < 30


def test_without_a_name_for_it_the_old_file_goes(sealed):
    checkpoint.save_sealed(sealed[0], {"epoch": 3})
    assert epochs(*sealed) == [3, 1]


def test_a_full_disk_leaves_both_files(sealed, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError) as caught:
        patched.setattr(os, "fsync", full)
        checkpoint.save_sealed(sealed[0], {"epoch": 3}, previous=sealed[1])
    assert caught.value.filename == str(sealed[0])
    assert epochs(*sealed) == [2, 1] and len(os.listdir(sealed[0].parent)) == 2


def test_the_last_file_is_used_without_a_word(sealed, capsys):
    path, content = checkpoint.load_last(sealed[0].parent)
    assert (path, content["epoch"]) == (sealed[0], 2) and capsys.readouterr().out == ""


def test_nothing_that_can_be_read_is_one_line_with_both_reasons(sealed):
    sealed[0].write_bytes(b"")
    sealed[1].unlink()
    with pytest.raises(InputError, match=r"last\.ckpt is damaged .* and .*last\.prev\.ckpt is not there: copy one"):
        checkpoint.load_last(sealed[0].parent)
