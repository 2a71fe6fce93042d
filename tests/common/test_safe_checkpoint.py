"""Checkpoints that lie about their sizes or would run code are refused before torch sees them."""

from __future__ import annotations

import io
import os
import pickle
import resource
import traceback
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from common import checkpoint
from common.safe_checkpoint import PICKLE_LIMIT, STORAGES
from models import build_encoder
from tests.hostile import Call, Crafted, Data, Payload, crafted_pickle, write_sequence, write_zip
from training.optim import build_optimizer
from utils import InputError

FOUR = np.arange(4, dtype="<f4").tobytes()
OLD = {"_use_new_zipfile_serialization": False}


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def trained(optimizer_name):
    network = build_encoder("resnet8", num_classes=3, shifts=4, simclr_dim=8, seed=0)
    optimizer = build_optimizer(optimizer_name, network.parameters(), lr=0.1, weight_decay=1e-6)
    network(torch.rand(2, 3, 8, 8)).projection.sum().backward()
    optimizer.step()
    return {"model": network.state_dict(), "optimizer": optimizer.state_dict()}


WHOLE = torch.arange(24.0)
HONEST = {
    "state_dict": lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).state_dict(),
    "sgd": lambda: trained("sgd"),
    "adam": lambda: trained("adam"),
    "lars": lambda: trained("lars"),
    "random states": checkpoint.rng_state,
    "plain values": lambda: {"a": 1.5, "b": [1, None, True, "é", (2, b"3")], 4: -(2**70), "c": {}},
    "parameter": lambda: nn.Parameter(torch.ones(2)),
    "views of one tensor": lambda: [WHOLE[3:9], WHOLE.view(4, 6).T, WHOLE[::5], WHOLE[23], WHOLE[5:5]],
    "empty": lambda: torch.empty(0, 5),
    **{
        name: lambda dtype=dtype: torch.ones(3, dtype=dtype)
        for name, dtype in {
            "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16, "int64": torch.int64,
            "int32": torch.int32, "int16": torch.int16, "int8": torch.int8, "uint8": torch.uint8, "bool": torch.bool,
        }.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("how", [{}, OLD], ids=["zip", "older format"])
@pytest.mark.parametrize("make", HONEST.values(), ids=HONEST)
def test_what_torch_saves_of_a_run_is_read(tmp_path, make, how):
    content = make()
    torch.save(content, tmp_path / "file", **how)
    assert equal(checkpoint.load(tmp_path / "file"), content)


def test_the_crafted_formats_are_those_of_torch(tmp_path):
    """What is refused below is refused for what is wrong with it: the same file with nothing wrong loads."""
    content = crafted_pickle({"w": Crafted(Data())})
    for path in (
        write_zip(tmp_path / "zip", content, {"0": FOUR}),
        write_sequence(tmp_path / "old", crafted_pickle({"w": Crafted(Data())}, view=(None,)), {"0": FOUR}),
    ):
        assert torch.equal(checkpoint.load(path)["w"], torch.arange(4.0))


def tensor(data=None, **sizes):
    return crafted_pickle({"w": Crafted(data or Data(), **sizes)})


def old_tensor(data=None, view=(None,), **sizes):
    return crafted_pickle({"w": Crafted(data or Data(), **sizes)}, view=view)


def deep(value, depth):
    for _ in range(depth):
        value = (value,)
    return value


GIANT = 10**12
# How the file is made, and what the message must hold.
LIES = {
    "a compressed record": (
        lambda path: write_zip(
            path, tensor(Data(count=10**7), size=(10**7,)), {"0": bytes(4 * 10**7)}, compression=zipfile.ZIP_DEFLATED
        ),
        r"archive/data/0 declares 40000000 bytes, made of \d+ in the file",
    ),
    "a tensor larger than its data": (
        lambda path: write_zip(path, tensor(size=(GIANT,)), {"0": FOUR}),
        rf"a tensor of size \({GIANT},\) in it is larger than its data",
    ),
    "one number a billion times": (
        lambda path: write_zip(path, tensor(size=(GIANT,), stride=(0,)), {"0": FOUR}),
        "is larger than its data",
    ),
    "one number repeated within bounds": (
        lambda path: write_zip(path, tensor(size=(5,), stride=(0,)), {"0": FOUR}),
        "is larger than its data",
    ),
    "a step past the data": (
        lambda path: write_zip(path, tensor(size=(2, 2), stride=(3, 1)), {"0": FOUR}),
        "is larger than its data",
    ),
    "an offset past the data": (
        lambda path: write_zip(path, tensor(offset=1), {"0": FOUR}),
        "is larger than its data",
    ),
    "a negative offset": (lambda path: write_zip(path, tensor(offset=-1), {"0": FOUR}), "is larger than its data"),
    "a negative size": (lambda path: write_zip(path, tensor(size=(-1,)), {"0": FOUR}), "is larger than its data"),
    "a size that is no number": (lambda path: write_zip(path, tensor(size=(1.5,)), {"0": FOUR}), "no plain size"),
    "a size that is text": (lambda path: write_zip(path, tensor(size="4"), {"0": FOUR}), "no plain size"),
    "sizes without strides": (lambda path: write_zip(path, tensor(size=(2, 2)), {"0": FOUR}), "no plain size"),
    "a tensor of a number": (
        lambda path: write_zip(path, crafted_pickle({"w": Crafted(4)}), {}),
        "no plain size",
    ),
    "data of another length": (
        lambda path: write_zip(path, tensor(Data(count=3), size=(3,)), {"0": FOUR}),
        r"a tensor's data \(0\) should have 12 bytes and has 16",
    ),
    "data that claims terabytes": (
        lambda path: write_zip(path, tensor(Data(count=GIANT), size=(GIANT,)), {"0": FOUR}),
        rf"should have {4 * GIANT} bytes and has 16",
    ),
    "data below 0": (lambda path: write_zip(path, tensor(Data(count=-4)), {"0": FOUR}), "or one below 0"),
    "data of two sizes": (
        lambda path: write_zip(path, crafted_pickle([Crafted(Data()), Crafted(Data(count=2))]), {"0": FOUR}),
        "has two sizes",
    ),
    "data that is not there": (
        lambda path: write_zip(path, tensor(Data("1")), {"0": FOUR}),
        r"the data of a tensor \(1\) is not there",
    ),
    "data above the archive": (
        lambda path: write_zip(path, tensor(Data("../../../secret")), {"0": FOUR}),
        r"the data of a tensor \(\.\./\.\./\.\./secret\) is not there",
    ),
    "data at an absolute path": (
        lambda path: write_zip(path, tensor(Data("/etc/hostname")), {"0": FOUR}),
        r"the data of a tensor \(/etc/hostname\) is not there",
    ),
    "data named by a number": (lambda path: write_zip(path, tensor(Data(0)), {"0": FOUR}), "no plain data"),
    "data named by a tower of pairs": (
        lambda path: write_zip(path, tensor(Data(deep("0", 50))), {"0": FOUR}),
        "no plain data",
    ),
    "data of half a number": (lambda path: write_zip(path, tensor(Data(count=0.5)), {"0": FOUR}), "no plain data"),
    "data of another kind": (lambda path: write_zip(path, tensor(Data(kind="module")), {"0": FOUR}), "no plain data"),
    "data of a class that is no storage": (
        lambda path: write_zip(path, tensor(Data(storage=OrderedDict)), {"0": FOUR}),
        "no plain data",
    ),
    "two records of one name": (
        lambda path: append(write_zip(path, tensor(), {"0": FOUR}), "archive/data/0", FOUR),
        "holds two members of one name",
    ),
    "a pickle of many megabytes": (
        lambda path: write_zip(path, crafted_pickle("x" * PICKLE_LIMIT), {}),
        "bytes beside its tensors",
    ),
    "a bytearray of terabytes": (
        lambda path: write_zip(path, crafted_pickle([Call(bytearray, GIANT)]), {}),
        "bytearray in it is no plain tensor",
    ),
    "an uninitialised tensor of terabytes": (
        lambda path: write_zip(path, crafted_pickle([Call(torch.Tensor, GIANT)]), {}),
        "Tensor in it is no plain tensor",
    ),
    "a pickle that claims terabytes of text": (
        lambda path: write_zip(path, b"\x80\x04\x8d" + GIANT.to_bytes(8, "little") + b"x.", {}),
        r"damaged or no checkpoint \(",
    ),
    "a pickle that claims terabytes of bytes": (
        lambda path: write_zip(path, b"\x80\x05\x96" + GIANT.to_bytes(8, "little") + b"x.", {}),
        r"damaged or no checkpoint \(KeyError\)",
    ),
    "a frame of terabytes": (
        lambda path: write_zip(path, b"\x80\x04\x95" + GIANT.to_bytes(8, "little") + b"N.", {}),
        r"damaged or no checkpoint \(",
    ),
    "an object numbered 4 billion": (
        lambda path: write_zip(path, b"\x80\x02]r\xff\xff\xff\xff]", {}),
        r"damaged or no checkpoint \(EOFError\)",
    ),
    "no pickle in the archive": (
        lambda path: append(path, "archive/version", b"3\n"),
        r"damaged or no checkpoint \(KeyError\)",
    ),
    "an empty archive": (lambda path: append(path), r"damaged or no checkpoint \("),
    "older format, data that claims terabytes": (
        lambda path: write_sequence(path, old_tensor(Data(count=GIANT), size=(GIANT,)), {"0": FOUR}),
        rf"tensors of {4 * GIANT} bytes in the last 24 of the file",
    ),
    "older format, a tensor larger than its data": (
        lambda path: write_sequence(path, old_tensor(size=(GIANT,), stride=(0,)), {"0": FOUR}),
        "is larger than its data",
    ),
    "older format, a part past the data": (
        lambda path: write_sequence(path, old_tensor(view=(("v", 2, 3),)), {"0": FOUR}),
        "part of too little",
    ),
    "older format, a tensor larger than its part": (
        lambda path: write_sequence(path, old_tensor(view=(("v", 2, 2),)), {"0": FOUR}),
        "is larger than its data",
    ),
    "older format, text that claims gigabytes": (
        lambda path: path.write_bytes(b"\x80\x02X\xff\xff\xff\xffx."),
        r"damaged or no checkpoint \(",
    ),
}


def append(path, name=None, content=b""):
    with zipfile.ZipFile(path, "a") as file:
        if name:
            file.writestr(name, content)
    return path


@pytest.fixture
def never_loads(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("torch began to read the file")

    monkeypatch.setattr(torch, "load", refuse)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(("make", "message"), LIES.values(), ids=LIES)
def test_a_file_that_lies_is_refused_before_torch_reads_it(tmp_path, never_loads, make, message):
    path = tmp_path / "last.ckpt"
    make(path)
    with pytest.raises(InputError, match=message) as caught:
        checkpoint.load(path)
    assert str(path) in str(caught.value)


def test_a_declared_size_beyond_the_file(tmp_path, never_loads):
    """Both fields of a record claim a gigabyte, so that one agrees with the other."""
    path = write_zip(tmp_path / "last.ckpt", tensor(), {"0": FOUR})
    raw = bytearray(path.read_bytes())
    at = raw.rfind(b"PK\x01\x02", 0, raw.find(b"archive/data/0", raw.find(b"PK\x01\x02")))
    raw[at + 20 : at + 28] = (2**30).to_bytes(4, "little") * 2
    path.write_bytes(raw)
    with pytest.raises(InputError, match=r"declares \d+ bytes of members and has \d+"):
        checkpoint.load(path)


# Payloads


class BySetState:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return OrderedDict, (), {"_metadata": Payload(self.trace)}


def as_name(trace):
    """The text protocol's call of a class by its name: os.mkdir(trace)."""
    return b"(V" + str(trace).encode("ascii") + b"\nios\nmkdir\n."


PICKLES = {
    "a value": lambda trace: crafted_pickle({"w": Payload(trace)}),
    "a key": lambda trace: crafted_pickle({"a": [({"b": Payload(trace)},)]}),
    "with protocol 0": lambda trace: pickle.dumps(Payload(trace), 0),
    "with protocol 4": lambda trace: crafted_pickle(Payload(trace), protocol=4),
    "with protocol 5": lambda trace: pickle.dumps(Payload(trace), 5),
    "an attribute of a mapping": lambda trace: crafted_pickle(BySetState(trace)),
    "a tensor's size": lambda trace: crafted_pickle(Crafted(Data(), size=Payload(trace))),
    "a tensor's data": lambda trace: crafted_pickle(Crafted(Payload(trace))),
    "a record's name": lambda trace: crafted_pickle(Crafted(Data(Payload(trace)))),
    "eval": lambda trace: crafted_pickle(Call(eval, f"__import__('os').mkdir({str(trace)!r})")),
    "a class named in text": as_name,
}


@pytest.mark.parametrize("write", [write_zip, write_sequence], ids=["zip", "older format"])
@pytest.mark.parametrize("make", PICKLES.values(), ids=PICKLES)
@pytest.mark.parametrize("name", ["last.model", "last.ckpt", "last.prev.ckpt"])
def test_no_payload_is_executed(tmp_path, never_loads, name, make, write):
    trace = tmp_path / "executed"
    path = write(tmp_path / name, make(trace), {"0": FOUR})
    with pytest.raises(InputError, match=r"damaged or no checkpoint .* in it is no plain tensor"):
        checkpoint.load(path)
    assert not trace.exists()


@pytest.mark.parametrize("make", PICKLES.values(), ids=PICKLES)
def test_the_payloads_work_where_pickles_are_executed(tmp_path, make):
    trace = tmp_path / "executed"

    class Trusting(pickle.Unpickler):
        def persistent_load(self, pid):
            return torch.arange(4.0).untyped_storage()

    unpickler = Trusting(io.BytesIO(make(trace)))
    try:
        unpickler.load()
    except (TypeError, AttributeError, RuntimeError):
        pass  # a tensor of such a size cannot be made, but by then the payload has run
    assert trace.is_dir()


def test_what_a_pickle_calls_itself_cannot_change_what_is_allowed(tmp_path, never_loads):
    """BUILD sets attributes of what stands on the stack; the stand-in for a function has none to set."""
    for state in (b"}X\x01\x00\x00\x00xK\x01s", b"N}X\x08\x00\x00\x00__call__K\x01s\x86"):
        content = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + state + b"b."
        path = write_zip(tmp_path / "last.ckpt", content, {})
        with pytest.raises(InputError, match=r"damaged or no checkpoint \((AttributeError|TypeError)\)"):
            checkpoint.load(path)


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("storage", STORAGES)
def test_the_listed_sizes_are_torchs(storage):
    assert getattr(torch, storage)().dtype.itemsize == STORAGES[storage]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux's /proc")
def test_no_lie_takes_memory(tmp_path):
    """In a process that may have 300 MB more than it has, every lie is an InputError, not an end for want of memory."""
    paths = [tmp_path / str(number) for number in range(len(LIES))]
    for path, (make, _) in zip(paths, LIES.values(), strict=True):
        make(path)
    child = os.fork()
    if not child:
        status = 1
        try:
            pages = int(open("/proc/self/statm").read().split()[0])
            limit = pages * resource.getpagesize() + 300 * 2**20
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            for path in paths:
                with pytest.raises(InputError):
                    checkpoint.load(path)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("end", [b"K\x01s.", b"\x8f(h\x00\x90."], ids=["key", "set"])
def test_nothing_is_hashed_that_takes_for_ever(tmp_path, never_loads, end):
    """A tuple of twice the same tuple ... 40 deep: as a key, or in a set, its hash would take 2^40 steps."""
    nested = b"\x80\x04})" + b"".join(b"q%ch%c\x86" % (level, level) for level in range(40))
    path = tmp_path / "last.model"
    write_zip(path, nested + end, {})
    with pytest.raises(InputError, match="is damaged or no checkpoint"):
        checkpoint.load(path)
