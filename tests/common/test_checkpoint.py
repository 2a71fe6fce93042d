"""common/checkpoint.py: atomic files, damaged and hostile files, mismatches and settings records."""

import errno
import json
import os
import pickle
import sys
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common import checkpoint
from common.files import remove_leftovers, write_json
from models import build_encoder
from tests.hostile import Call, Crafted, Data, Payload, crafted_pickle, write_sequence, write_zip
from tests.runs import equal
from utils import InputError

DIGEST, OTHER_DIGEST = "0123456789abcdef" * 4, "fedcba9876543210" * 4
FOUR = np.arange(4, dtype="<f4").tobytes()


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


# Saving


def test_what_is_saved_comes_back(tmp_path):
    path = tmp_path / "new" / "folder" / "last.ckpt"
    content = {"epoch": 3, "model": {"w": torch.arange(6.0).view(2, 3)}, "pair": [(1, None, "x")], "rate": 0.1}
    checkpoint.save(path, content)
    assert equal(checkpoint.load(path), content)
    assert os.listdir(path.parent) == ["last.ckpt"]


def test_copies_in_the_hosts_memory_keep_values_and_layout():
    weight = torch.nn.Parameter(torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last))
    found = checkpoint.to_cpu({"state": {0: {"buffer": weight}}, "betas": (0.9, 0.999), "lr": 0.1})
    copy = found["state"][0]["buffer"]
    assert torch.equal(copy, weight) and copy.stride() == weight.stride()
    assert copy.data_ptr() != weight.data_ptr() and not copy.requires_grad
    assert found["betas"] == (0.9, 0.999) and found["lr"] == 0.1


@pytest.mark.gpu
def test_copies_of_a_gpus_tensors_are_opened_without_one(tmp_path):
    torch.save(checkpoint.to_cpu({"w": torch.ones(2, device="cuda")}), tmp_path / "last.model")
    assert torch.load(tmp_path / "last.model", weights_only=True)["w"].device.type == "cpu"


def test_a_full_disk_leaves_both_files(pair, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError) as caught:
        patched.setattr(os, "fsync", full)
        checkpoint.save(pair[0], {"epoch": 3}, previous=pair[1])
    assert caught.value.filename == str(pair[0])
    assert epochs(*pair) == [2, 1] and len(os.listdir(pair[0].parent)) == 2


# The file before


@pytest.fixture
def pair(tmp_path):
    """A run's two checkpoints, of epochs 2 and 1."""
    last, previous = tmp_path / checkpoint.RESUME_FILE, tmp_path / checkpoint.PREVIOUS_FILE
    for epoch in (1, 2):
        checkpoint.save(last, {"epoch": epoch, "weights": torch.full((300,), 7.25)}, previous=previous)
    return last, previous


def epochs(*paths):
    return [checkpoint.load(path)["epoch"] for path in paths]


def test_the_last_file_is_used_without_a_word_and_the_one_before_is_kept(pair, capsys):
    assert epochs(*pair) == [2, 1]
    path, content = checkpoint.load_last(pair[0].parent)
    assert (path, content["epoch"]) == (pair[0], 2) and capsys.readouterr().out == ""


def test_a_file_cut_anywhere_is_refused_and_the_one_before_is_used(pair, capsys):
    whole = pair[0].read_bytes()
    for cut in [0, 1, *np.linspace(2, len(whole) - 1, 20, dtype=int)]:
        pair[0].write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"last\.ckpt is damaged or not a checkpoint"):
            checkpoint.load(pair[0])
        path, content = checkpoint.load_last(pair[0].parent)
        assert (path, content["epoch"]) == (pair[1], 1)
        assert f"warning: {pair[0]} is damaged" in capsys.readouterr().out


def test_every_changed_byte_of_a_record_is_seen(pair):
    """Of the pickle and of every tensor; what lies between them, such as padding, carries nothing."""
    whole = pair[0].read_bytes()
    with zipfile.ZipFile(pair[0]) as archive:
        for name in ("data.pkl", "data/0"):
            [record] = [member for member in archive.infolist() if member.filename.endswith(name)]
            start = whole.index(archive.read(record))
            for place in range(start, start + record.file_size, 11):
                raw = bytearray(whole)
                raw[place] ^= 1 << place % 8
                pair[0].write_bytes(raw)
                with pytest.raises(InputError, match=f"the checksum of .*{name} does not fit"):
                    checkpoint.load(pair[0])


def test_a_missing_file_gives_way_to_the_one_before(pair, capsys):
    pair[0].unlink()
    assert checkpoint.load_last(pair[0].parent)[0] == pair[1]
    assert f"{pair[0]} does not exist; the one before it" in capsys.readouterr().out


def test_nothing_that_can_be_read_is_one_line_with_both_reasons(pair):
    pair[0].write_bytes(b"")
    pair[1].unlink()
    with pytest.raises(InputError, match=r"last\.ckpt is damaged .* and .*last\.prev\.ckpt does not exist: copy one"):
        checkpoint.load_last(pair[0].parent)


class Killed(BaseException):
    """Stands for the end of the process."""


def test_a_kill_at_any_moment_of_saving_leaves_a_whole_file(tmp_path, monkeypatch):
    """Before each call that changes the folder; what the dead process left is cleared up by the next one."""
    last, previous = tmp_path / checkpoint.RESUME_FILE, tmp_path / checkpoint.PREVIOUS_FILE
    real, calls = {name: getattr(os, name) for name in ("replace", "fsync", "chmod")}, []

    def watched(name, stop_at):
        def call(*arguments):
            calls.append(name)
            if len(calls) == stop_at:
                raise Killed
            real[name](*arguments)

        return call

    for stop_at in range(1, 7):
        for epoch in (1, 2):
            checkpoint.save(last, {"epoch": epoch}, previous=previous)
        calls.clear()
        with monkeypatch.context() as patched, pytest.raises(Killed):
            for name in real:
                patched.setattr(os, name, watched(name, stop_at))
            patched.setattr(os, "unlink", lambda path: None)  # the dead clear nothing up
            checkpoint.save(last, {"epoch": 3}, previous=previous)
        assert checkpoint.load_last(tmp_path)[1]["epoch"] == (3 if stop_at == 6 else 2)
        remove_leftovers(tmp_path, "*")
        checkpoint.save(last, {"epoch": 4}, previous=previous)
        assert checkpoint.load_last(tmp_path) == (last, {"epoch": 4})
    # Both files' content reaches the disk before the old one gets its other name, and the new one its own.
    assert calls == ["fsync", "replace", "fsync", "chmod", "replace", "fsync"]


# Damaged and hostile files


GIANT = 10**12
PACKED = zipfile.ZIP_DEFLATED


def tensor(data=None, **sizes):
    return crafted_pickle({"w": Crafted(data or Data(), **sizes)})


# How the file is made; torch.load itself refuses what is not listed here.
BAD_FILES = {
    "nothing": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_bytes(b"epoch,loss\n1,2\n"),
    "a picture": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n000"),
    "the start of an archive": lambda path: path.write_bytes(b"PK\x03\x04" + b"0" * 100),
    "half a pickle": lambda path: path.write_bytes(pickle.dumps({"a": 1.5, "b": [1, 2, 3]}, 2)[:12]),
    "a pickle from elsewhere": lambda path: path.write_bytes(pickle.dumps({"a": 1.5}, 4)),
    "an archive without a pickle": lambda path: write_zip(path, b"", {}),
    "a compressed record": lambda path: write_zip(
        path, tensor(Data(count=10**7), size=(10**7,)), {"0": bytes(4 * 10**7)}, compression=PACKED
    ),
    "a tensor larger than its data": lambda path: write_zip(path, tensor(size=(GIANT,)), {"0": FOUR}),
    "data that claims terabytes": lambda path: write_zip(path, tensor(Data(count=GIANT), size=(GIANT,)), {"0": FOUR}),
    "data above the archive": lambda path: write_zip(path, tensor(Data("../../../secret")), {"0": FOUR}),
    "a frame of terabytes": lambda path: write_zip(path, b"\x80\x04\x95" + GIANT.to_bytes(8, "little") + b"N.", {}),
}


@pytest.mark.parametrize("make", BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_one_error_that_names_it(tmp_path, make):
    path = tmp_path / "last.ckpt"
    make(path)
    with pytest.raises(InputError, match=r"last\.ckpt( is damaged or not a checkpoint| declares)"):
        checkpoint.load(path)


@pytest.mark.parametrize("write", [write_zip, write_sequence], ids=["zip", "older format"])
@pytest.mark.parametrize(
    "content",
    [
        lambda trace: crafted_pickle({"w": Payload(trace)}),
        lambda trace: crafted_pickle(Crafted(Data(), size=Payload(trace))),
        lambda trace: crafted_pickle(Call(eval, f"__import__('os').mkdir({str(trace)!r})")),
    ],
    ids=["a value", "a tensor's size", "eval"],
)
def test_no_payload_is_executed(tmp_path, content, write):
    trace = tmp_path / "executed"
    path = write(tmp_path / "last.model", content(trace), {"0": FOUR})
    with pytest.raises(InputError, match="damaged or not a checkpoint"):
        checkpoint.load(path)
    assert not trace.exists()


def test_a_missing_file_is_named(tmp_path):
    for path in (tmp_path / "last.model", tmp_path):
        with pytest.raises(InputError, match=f"{path} does not exist"):
            checkpoint.load(path)


# Weights


def test_weights_come_back(weights, encoder):
    other = other_encoder()
    assert not equal(other.state_dict(), encoder.state_dict())
    checkpoint.load_weights(weights, other)
    assert equal(other.state_dict(), encoder.state_dict())


def test_the_format_before_torch_1_6_is_read(tmp_path, encoder):
    torch.save(encoder.state_dict(), tmp_path / "old.model", _use_new_zipfile_serialization=False)
    other = other_encoder()
    checkpoint.load_weights(tmp_path / "old.model", other)
    assert equal(other.state_dict(), encoder.state_dict())


def test_the_originals_whole_list_of_keys_loads_without_a_word(shared, tmp_path, capsys):
    """With the two heads that nothing uses."""
    listed = json.loads((shared / "golden" / "checkpoint_keys.json").read_text())["resnet18_4_shifts_10_classes"]
    assert any(name.startswith(checkpoint.IGNORED_PREFIXES[0]) for name, _ in listed)
    assert any(name.startswith(checkpoint.IGNORED_PREFIXES[1]) for name, _ in listed)
    torch.save({name: torch.full(shape, 1 if not shape else 0.5) for name, shape in listed}, tmp_path / "last.model")
    encoder = build_encoder("resnet18", num_classes=10, shifts=4, seed=0)
    checkpoint.load_weights(tmp_path / "last.model", encoder)
    assert encoder.layer4[1].conv2.weight.unique().tolist() == [0.5] and capsys.readouterr().out == ""


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
    # Each stage of resnet20 has two more blocks of two convolutions and two BatchNorms, whose counters do not matter:
    # 3 * 2 * (2 + 2 * 4) - 6 shown.
    with pytest.raises(InputError, match=r"it lacks layer1\.1\.conv1\.weight(, [\w.]+){5} and 54 more"):
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


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.", "model.encoder.", "backbone."])
@pytest.mark.parametrize("within", [False, True], ids=["bare", "state_dict"])
def test_what_stands_before_every_name_is_taken_off_and_said(tmp_path, encoder, capsys, prefix, strict, within):
    state = {prefix + key: value for key, value in encoder.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3} if within else state, tmp_path / "a.ckpt")
    other = other_encoder()
    checkpoint.load_weights(tmp_path / "a.ckpt", other, strict=strict)
    assert equal(other.state_dict(), encoder.state_dict())
    said = f"{tmp_path / 'a.ckpt'}: {prefix} was taken off the names of all {len(state)} entries\n"
    assert capsys.readouterr().out == said


@pytest.mark.parametrize("strict", [True, False])
def test_a_file_of_which_no_convolution_fits_is_refused(weights, strict):
    def change(state):
        for key in [key for key in state if "conv" in key or "shortcut.0" in key]:
            state[f"net.{key}"] = state.pop(key)

    changed(weights, change)
    other = other_encoder()
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(InputError, match=r"it lacks conv1\.weight.*; it does not know net\.conv1\.weight"):
        checkpoint.load_weights(weights, other, strict=strict)
    assert equal(other.state_dict(), before)


def test_the_counters_of_batchnorm_do_not_matter(weights, encoder, capsys):
    """Files of before PyTorch 0.4.1, and of other libraries, lack them."""

    def change(state):
        for key in [key for key in state if key.endswith("num_batches_tracked")]:
            del state[key]
        state["other.num_batches_tracked"] = torch.tensor(3)

    changed(weights, change)
    other = other_encoder()
    checkpoint.load_weights(weights, other)
    assert equal(dict(other.named_parameters()), dict(encoder.named_parameters())) and capsys.readouterr().out == ""


def test_a_probe_of_other_classes_is_left_out_and_said(tmp_path, encoder, capsys):
    """Of an encoder that was trained before its folder had the classes that it has now."""
    other = other_encoder(num_classes=1).state_dict()
    checkpoint.save(tmp_path / "a.model", other)
    probe = {key: value.clone() for key, value in encoder.state_dict().items() if key.startswith("linear.")}
    checkpoint.load_weights(tmp_path / "a.model", encoder)
    assert equal(dict(encoder.state_dict()), dict(other) | probe)
    assert "its probe is of 1 class(es) and here are 3" in capsys.readouterr().out


def test_safetensors_are_read_where_the_package_is_there(tmp_path, encoder, monkeypatch):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"damaged")
    with monkeypatch.context() as patched, pytest.raises(InputError, match="pip install safetensors"):
        patched.setitem(sys.modules, "safetensors.torch", None)
        checkpoint.load_weights(path, encoder)
    library = pytest.importorskip("safetensors.torch")
    with pytest.raises(InputError, match="damaged or not a checkpoint"):
        checkpoint.load_weights(path, encoder)
    other = other_encoder()
    library.save_file(other.state_dict(), path)
    checkpoint.load_weights(path, encoder)
    assert equal(encoder.state_dict(), other.state_dict())


def test_a_file_with_objects_says_which(tmp_path, encoder):
    """Such as the hyperparameters in a Lightning checkpoint."""
    torch.save({"state_dict": encoder.state_dict(), "hyper_parameters": SimpleNamespace(a=1)}, tmp_path / "a.ckpt")
    with pytest.raises(InputError, match="it holds types.SimpleNamespace, and tensors alone are loaded"):
        checkpoint.load_weights(tmp_path / "a.ckpt", encoder)


@pytest.mark.parametrize("content", [{"model": {"w": torch.ones(1)}, "epoch": 3}, [torch.ones(1)], {3: torch.ones(2)}])
def test_a_resume_file_or_anything_else_is_not_a_state_dict(tmp_path, encoder, content):
    checkpoint.save(tmp_path / "last.ckpt", content)
    holds = r" \(it holds (model, epoch|3)\)" if isinstance(content, dict) else ""
    with pytest.raises(InputError, match=f"is not a state_dict{holds}; give the file last.model, not last.ckpt"):
        checkpoint.load_weights(tmp_path / "last.ckpt", encoder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("strict", [True, False])
def test_weights_that_are_not_finite_are_named(weights, value, strict):
    changed(weights, lambda state: state["linear.bias"].__setitem__(1, value))
    other = other_encoder()
    before = other.conv1.weight.clone()
    with pytest.raises(InputError, match=r"weights that are not finite \(linear\.bias\)"):
        checkpoint.load_weights(weights, other, strict=strict)
    assert torch.equal(other.conv1.weight, before)


# args.json


def write_record(folder, **changes):
    """An args.json with some of its fields replaced, or left out where the change is None."""
    arguments = {"model": "resnet8", "simclr_dim": 8, "mode": "distinctive"}
    checkpoint.write_args(folder, arguments, split_digest=DIGEST, images_digest=DIGEST, processes=2)
    content = json.loads((folder / "args.json").read_text()) | changes
    write_json(folder / "args.json", {name: value for name, value in content.items() if value is not None})


def check(folder, *, digest=DIGEST, images=DIGEST, may_have_changed=False, **expected):
    checkpoint.check_run(
        folder / "last.model",
        split_digest=digest,
        images_digest=images,
        expected=expected,
        may_have_changed=may_have_changed,
    )


def test_args_json_holds_settings_digests_processes_versions_and_commit(tmp_path):
    write_record(tmp_path)
    record = json.loads((tmp_path / "args.json").read_text())
    assert record["arguments"] == {"model": "resnet8", "simclr_dim": 8, "mode": "distinctive"}
    assert record["split_digest"] == record["images_digest"] == DIGEST and record["processes"] == 2
    assert record["versions"]["torch"] == torch.__version__ and record["versions"]["numpy"] == np.__version__
    assert record["git_commit"] == "unknown" or len(record["git_commit"].removesuffix("-dirty")) == 40


def test_a_run_that_agrees_passes_silently_and_so_does_what_one_side_does_not_know(tmp_path, capsys):
    write_record(tmp_path)
    check(tmp_path, model="resnet8", simclr_dim=8, newer_flag=1)
    check(tmp_path, images=None, model="resnet8")
    write_record(tmp_path, images_digest=None, format_version=None)
    check(tmp_path, model="resnet8")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "resnet18"}, "--model was resnet8, is resnet18"),
        ({"simclr_dim": 128}, "--simclr_dim was 8, is 128"),
        ({"mode": "semantic"}, "--mode was distinctive, is semantic"),
        ({"digest": OTHER_DIGEST}, "another split"),
        ({"images": OTHER_DIGEST}, "other images"),
    ],
)
def test_other_settings_another_split_and_other_images_are_refused(tmp_path, given, message):
    write_record(tmp_path)
    with pytest.raises(InputError, match=rf"last\.model was made with other settings \({message}\)"):
        check(tmp_path, **given)


@pytest.mark.parametrize("given", [{"digest": OTHER_DIGEST}, {"images": OTHER_DIGEST}])
def test_a_folder_that_may_have_changed_only_warns_of_its_images(tmp_path, capsys, given):
    write_record(tmp_path)
    check(tmp_path, may_have_changed=True, model="resnet8")
    assert capsys.readouterr().out == ""
    check(tmp_path, may_have_changed=True, **given)
    assert "was trained before the folder changed" in capsys.readouterr().out
    with pytest.raises(InputError, match="--model was resnet8"):
        check(tmp_path, may_have_changed=True, model="resnet18", **given)


def test_without_a_record_it_only_warns(tmp_path, capsys):
    check(tmp_path, model="resnet18")
    assert "has no args.json beside it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arguments": 3}, "arguments has a wrong type"),
        ({"split_digest": None}, "lacks split_digest"),
        ({"format_version": 2}, "format version 2"),
    ],
)
def test_a_record_of_something_else_is_refused(tmp_path, changes, message):
    write_record(tmp_path, **changes)
    with pytest.raises(InputError, match=f"{message}.*remove it to load unchecked"):
        check(tmp_path)


@pytest.mark.parametrize(("done", "warned"), [(3, True), (7, False), ("3", False), (None, False)])
def test_weights_of_a_training_that_was_stopped_are_warned_of(tmp_path, capsys, done, warned):
    """By the epochs in last.ckpt beside it, where it can be read; other weights of that folder are left alone."""
    write_record(tmp_path)
    record = json.loads((tmp_path / "args.json").read_text())
    write_json(tmp_path / "args.json", record | {"arguments": record["arguments"] | {"epochs": 7}})
    if done is None:
        (tmp_path / "last.ckpt").write_bytes(b"damaged")
    else:
        checkpoint.save(tmp_path / "last.ckpt", {"epoch": done})
    check(tmp_path)
    assert ("last.model is of epoch 3 of 7: its training was stopped" in capsys.readouterr().out) == warned
    checkpoint.check_run(tmp_path / "other.model", split_digest=DIGEST, expected={})
    assert capsys.readouterr().out == ""


def test_a_long_name_in_a_damaged_file_does_not_make_a_long_line(tmp_path):
    path = tmp_path / "last.model"
    path.write_bytes(b"\x80\x02c" + b"torch._utils\n_rebuild" + b"9" * 5000 + b"\n.")
    with pytest.raises(InputError) as caught:
        checkpoint.load(path)
    assert len(str(caught.value)) < 400
