"""Features kept on disk: when they are used again, when they are refused, and what a failure leaves behind."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import io
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from common import provenance
from common.acceleration import Precision
from common.files import read_json, write_json
from evals import feature_cache
from evals.banks import Sources
from evals.features import Extraction, FeatureBank, MappedFeatures, extract_features
from models import ContrastiveEncoder, build_encoder
from models.transform_layers import Augmentation
from utils import InputError

NAME, WIDTH = "distinctive", 5
CHOSEN = np.array([0, 2, 4, 5, 7, 9, 11])
HOW = Extraction(
    augmentation=Augmentation(resize_factor=0.54, resize_fix=True),
    views=2,
    shift="rotation",
    shift_numbers=(0, 1, 2, 3),
    seed=5,
    batch_size=3,
)


@dataclasses.dataclass
class Place:
    """A cache's folder, an encoder that counts its passes, its checkpoint and the images."""

    folder: Path
    checkpoint: Path
    encoder: ContrastiveEncoder
    images: np.ndarray
    passes: list[int] = dataclasses.field(default_factory=list)

    def ask(self, *, indices: np.ndarray = CHOSEN, how: Extraction = HOW, dtype: str = "float32") -> FeatureBank:
        """What a query does: the features of an earlier run, or new ones."""
        sources = Sources.of({NAME: self.checkpoint}, self.images, indices)
        record = feature_cache.describe(
            checkpoint=sources.checkpoint_digests[NAME],
            images=sources.images_digest,
            indices=indices,
            how=how,
            dtype=dtype,
        )
        found = feature_cache.find(self.folder, NAME, record, indices, width=WIDTH)
        return found or feature_cache.make(self.folder, NAME, record, self.encoder, self.tensor, indices, how)

    @property
    def tensor(self) -> torch.Tensor:
        return torch.from_numpy(self.images).permute(0, 3, 1, 2).contiguous()

    @property
    def npy(self) -> Path:
        return self.folder / f"{NAME}.npy"

    @property
    def json(self) -> Path:
        return self.folder / f"{NAME}.json"

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.folder.iterdir()} if self.folder.is_dir() else {}


@pytest.fixture
def place(tmp_path) -> Place:
    encoder = build_encoder("resnet8", num_classes=3, shifts=4, simclr_dim=WIDTH, seed=0)
    images = np.random.default_rng(2).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    checkpoint = tmp_path / "last.model"
    checkpoint.write_bytes(b"any bytes")
    place = Place(tmp_path / "cache", checkpoint, encoder, images)
    encoder.register_forward_pre_hook(lambda module, inputs: place.passes.append(len(inputs[0])))
    return place


def all_of(bank: FeatureBank) -> torch.Tensor:
    return bank.features[slice(None)]


# Used again


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_features_are_those_of_memory_and_are_not_made_twice(place, dtype):
    expected = extract_features(place.encoder, place.tensor, CHOSEN, HOW, name="features").features
    expected = expected.to(getattr(torch, dtype))
    place.passes.clear()
    first = place.ask(dtype=dtype)
    assert place.passes == [12, 12, 12, 12, 4, 4]  # batches of 3, 3 and 1 images, 4 shifts of each, 2 views
    files = place.files()
    assert sorted(files) == [place.json.name, place.npy.name]
    second = place.ask(dtype=dtype)
    assert len(place.passes) == 6
    assert place.files() == files
    for bank in (first, second):
        assert isinstance(bank.features, MappedFeatures)
        assert bank.indices.tolist() == CHOSEN.tolist()
        assert bank.features.dtype == expected.dtype and bank.features.shape == expected.shape
        assert torch.equal(all_of(bank), expected)
        some = np.array([9, 0, 11, 0])
        assert torch.equal(bank.of(some), expected[[5, 0, 6, 0]].float())


def test_the_record_names_all_that_the_features_depend_on(place):
    place.ask()
    pixels = place.images[CHOSEN].tobytes()
    numbers = b"".join(int(number).to_bytes(8, "little") for number in CHOSEN)
    assert read_json(place.json) == {
        "format_version": feature_cache.FORMAT_VERSION,
        "checkpoint": hashlib.sha256(b"any bytes").hexdigest(),
        "images": hashlib.sha256(pixels).hexdigest(),
        "indices": hashlib.sha256(numbers).hexdigest(),
        "dtype": "float32",
        "augmentation": {"resize_factor": 0.54, "resize_fix": True},
        "views": 2,
        "shift": "rotation",
        "shift_numbers": [0, 1, 2, 3],
        "seed": 5,
        "precision": "fp32",
    }


def test_images_are_hashed_in_order_whatever_the_blocks(place, monkeypatch):
    whole = provenance.image_digest(place.images, CHOSEN)
    monkeypatch.setattr(provenance, "HASH_BLOCK", 3)
    assert provenance.image_digest(place.images, CHOSEN) == whole


def test_the_batch_size_is_no_difference(place):
    first = all_of(place.ask())
    place.passes.clear()
    assert torch.equal(all_of(place.ask(how=dataclasses.replace(HOW, batch_size=100))), first)
    assert place.passes == []


def test_pixels_of_images_that_are_not_asked_for_are_no_difference(place):
    place.ask()
    place.images[1] += 1
    place.passes.clear()
    place.ask()
    assert place.passes == []


# Refused


def other_checkpoint(place: Place) -> None:
    place.checkpoint.write_bytes(b"any byteS")


def other_pixel(place: Place) -> None:
    place.images[11, 7, 7, 2] ^= 1


DIFFERENCES = {
    "checkpoint": (other_checkpoint, {}, "checkpoint"),
    "pixel": (other_pixel, {}, "images"),
    # Another set of images has other pixels, too; the same pixels under other numbers would be a difference as well.
    "indices": (None, {"indices": np.array([0, 2, 4, 5, 7, 9, 10])}, "images, indices"),
    "fewer indices": (None, {"indices": CHOSEN[:-1]}, "images, indices"),
    "views": (None, {"how": dataclasses.replace(HOW, views=3)}, "views"),
    "seed": (None, {"how": dataclasses.replace(HOW, seed=6)}, "seed"),
    "shift": (None, {"how": dataclasses.replace(HOW, shift="cutperm")}, "shift"),
    "shift numbers": (None, {"how": dataclasses.replace(HOW, shift_numbers=(0, 1, 3, 2))}, "shift_numbers"),
    "precision": (None, {"how": dataclasses.replace(HOW, precision=Precision("bf16", "cpu"))}, "precision"),
    "dtype": (None, {"dtype": "float16"}, "dtype"),
    "crop's size": (None, {"how": dataclasses.replace(HOW, augmentation=Augmentation(0.5, True))}, "augmentation"),
    "crop's kind": (None, {"how": dataclasses.replace(HOW, augmentation=Augmentation(0.54, False))}, "augmentation"),
    "two things": (other_pixel, {"how": dataclasses.replace(HOW, seed=6, views=1)}, "images, seed, views"),
}


@pytest.mark.parametrize(("change", "asked", "named"), DIFFERENCES.values(), ids=DIFFERENCES)
def test_features_of_something_else_are_refused_and_kept(place, change, asked, named):
    place.ask()
    files = place.files()
    place.passes.clear()
    if change:
        change(place)
    message = f"the distinctive features in {place.folder} were made with another {named}: give "
    with pytest.raises(InputError, match=re.escape(message)):
        place.ask(**asked)
    assert place.passes == []
    assert place.files() == files


def test_the_same_pixels_under_other_numbers_are_another_set(place):
    place.images[10] = place.images[11]
    place.ask()
    with pytest.raises(InputError, match="made with another indices: give "):
        place.ask(indices=np.array([0, 2, 4, 5, 7, 9, 10]))


def test_features_of_another_format_version_are_refused(place):
    place.ask()
    write_json(place.json, read_json(place.json) | {"format_version": 0})
    with pytest.raises(InputError, match="made with another format_version: give "):
        place.ask()


# Damaged


def npy_bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def npz_bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, array)
    return file.getvalue()


SHAPE = (len(CHOSEN), 4, WIDTH)
# What becomes of the npy file's content, and what the error says.
DAMAGES = {
    "truncated": (lambda whole: whole[:-1], "is damaged"),
    "truncated in its header": (lambda whole: whole[:40], "is damaged"),
    "empty": (lambda whole: b"", "is damaged"),
    "garbage": (lambda whole: bytes(range(256)) * 9, "is damaged"),
    "garbage header": (lambda whole: whole.replace(b": (7", b":((7"), "is damaged"),
    "pickled array": (lambda whole: npy_bytes(np.empty(SHAPE, dtype=object)), "is damaged"),
    "pickle": (lambda whole: pickle.dumps(np.ones(3)), "is damaged"),
    "npz": (lambda whole: npz_bytes(np.ones(SHAPE, dtype=np.float32)), "is damaged"),
    "half an npz": (lambda whole: npz_bytes(np.ones(SHAPE, dtype=np.float32))[:60], "is damaged"),
    "float64": (lambda whole: npy_bytes(np.ones(SHAPE)), r"holds float64 \(7, 4, 5\), not features"),
    "float16": (lambda whole: npy_bytes(np.ones(SHAPE, dtype=np.float16)), "holds torch.float16 .*: remove both"),
    "matrix": (lambda whole: npy_bytes(np.ones((7, 20), dtype=np.float32)), r"holds float32 \(7, 20\), not features"),
    "too few rows": (
        lambda whole: npy_bytes(np.ones((6, 4, 5), dtype=np.float32)),
        r"holds torch.float32 \(6, 4, 5\), not what .* says",
    ),
    "another width": (
        lambda whole: npy_bytes(np.ones((7, 4, 6), dtype=np.float32)),
        r"holds torch.float32 \(7, 4, 6\), not what .* says",
    ),
    "too few shifts": (
        lambda whole: npy_bytes(np.ones((7, 1, 5), dtype=np.float32)),
        r"holds torch.float32 \(7, 1, 5\), not what .* says",
    ),
}


@pytest.mark.parametrize(("change", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_features_are_one_error_and_stay(place, change, message):
    place.ask()
    place.npy.write_bytes(change(place.npy.read_bytes()))
    files = place.files()
    place.passes.clear()
    with pytest.raises(InputError, match=f"{re.escape(str(place.npy))} {message}") as caught:
        place.ask()
    assert "\n" not in str(caught.value) and "remove" in str(caught.value)
    assert place.passes == []
    assert place.files() == files


def test_a_record_without_features_is_an_error(place):
    place.ask()
    place.npy.unlink()
    with pytest.raises(InputError, match=re.escape(f"{place.npy} does not exist")):
        place.ask()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "is no record of features; remove it"),
        ('"text"', "is no record of features; remove it"),
        ("null", "is no record of features; remove it"),
        ("{", "is not valid JSON"),
        ("", "is not valid JSON"),
    ],
)
def test_a_damaged_record_is_one_error_and_stays(place, text, message):
    place.ask()
    place.json.write_text(text)
    files = place.files()
    with pytest.raises(InputError, match=f"{re.escape(str(place.json))} {message}"):
        place.ask()
    assert place.files() == files


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_value_that_is_not_finite_is_one_error_when_it_is_read(place, dtype, value):
    place.ask(dtype=dtype)
    kept = np.load(place.npy)
    kept[3, 2, 1] = value
    np.save(place.npy, kept)
    bank = place.ask(dtype=dtype)
    assert bank.of(CHOSEN[:3]).isfinite().all()
    with pytest.raises(InputError, match=re.escape(f"{place.npy} holds a value that is not finite; remove it")):
        bank.of(CHOSEN[2:5])
    with pytest.raises(InputError, match="not finite"):
        bank.features[slice(0, 4)]


@pytest.mark.parametrize("end", ["npy", "json"])
def test_a_folder_in_their_place_is_refused_before_anything_is_extracted(place, end):
    (place.folder / f"{NAME}.{end}").mkdir(parents=True)
    with pytest.raises(InputError, match=rf"{NAME}.{end} is a directory .* --feature_cache"):
        place.ask()
    assert place.passes == []


# Unfinished


def test_what_a_killed_extraction_left_is_removed_and_that_of_a_living_one_is_not(place):
    place.folder.mkdir()
    dead, living = (place.folder / f".{place.npy.name}.{name}.tmp" for name in ("dead", "living"))
    dead.write_bytes(b"half")
    with open(living, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        place.ask()
        assert sorted(place.files()) == sorted([living.name, place.json.name, place.npy.name])


def test_a_full_disk_names_the_file(place, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(OSError) as caught:
        place.ask()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(place.npy))
    assert place.files() == {}


def test_features_without_a_record_are_replaced(place):
    files = (place.ask(), place.files())[1]
    place.json.unlink()
    place.npy.write_bytes(place.npy.read_bytes()[:50])
    place.passes.clear()
    place.ask()
    assert sum(place.passes) == 2 * 4 * len(CHOSEN)
    assert place.files() == files


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("earlier", [False, True], ids=["empty folder", "unfinished features there"])
def test_an_end_in_the_middle_leaves_nothing_new(place, error, earlier):
    if earlier:
        place.folder.mkdir()
        place.npy.write_bytes(b"unfinished")
    files = place.files()

    def fail(module, inputs):
        if len(place.passes) == 4:
            raise error("stop")

    hook = place.encoder.register_forward_pre_hook(fail)
    with pytest.raises(error, match="stop"):
        place.ask()
    assert place.files() == files
    hook.remove()
    place.ask()
    assert sorted(place.files()) == [place.json.name, place.npy.name]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_feature_that_is_not_finite_is_refused(place, dtype, value):
    with torch.no_grad():
        place.encoder.simclr_layer[-1].bias[3] = value
    with pytest.raises(InputError, match="distinctive features: the feature of image 0 is not finite"):
        place.ask(dtype=dtype)
    assert place.files() == {}


def test_a_value_beyond_float16_is_refused_and_float32_takes_it(place):
    with torch.no_grad():
        place.encoder.simclr_layer[-1].bias[3] = 1e6
    with pytest.raises(InputError, match="beyond the range of float16: keep --feature_dtype float32"):
        place.ask(dtype="float16")
    assert place.files() == {}
    assert all_of(place.ask())[..., 3].min() > 65504


@pytest.mark.parametrize(("value", "kept"), [(65504.0, 65504.0), (65519.0, 65504.0), (1 + 2**-11, 1.0)])
def test_narrowed_rounds_to_the_nearest_half(value, kept):
    narrow = feature_cache.narrowed(torch.tensor([value, -value]), "float16")
    assert narrow.dtype == torch.float16 and narrow.tolist() == [kept, -kept]


@pytest.mark.parametrize("value", [65520.0, -1e9])
def test_narrowed_refuses_what_would_become_infinite(value):
    with pytest.raises(InputError, match="--feature_dtype float32"):
        feature_cache.narrowed(torch.tensor([1.0, value]), "float16")
    assert feature_cache.narrowed(torch.tensor([1.0, value]), "float32").tolist() == [1.0, value]


# Reading from the file


@pytest.fixture(scope="module")
def mapped(tmp_path_factory) -> dict[str, tuple[MappedFeatures, np.ndarray]]:
    found = {}
    for dtype in ("float32", "float16"):
        path = tmp_path_factory.mktemp("mapped") / "features.npy"
        array = np.random.default_rng(3).normal(size=(11, 2, 3)).astype(dtype)
        np.save(path, array)
        found[dtype] = MappedFeatures(path), array
    return found


ROWS = [
    slice(None),
    slice(0, 4),
    slice(8, 11),
    slice(5, 5),
    slice(2, 9, 3),
    np.array([3, 0, 10, 3]),
    np.array([], dtype=np.int64),
    np.arange(11) % 2 == 0,
]


@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_are_the_arrays(mapped, dtype, rows):
    features, array = mapped[dtype]
    assert features.shape == array.shape and features.dtype == getattr(torch, dtype)
    read = features[rows]
    assert read.dtype == features.dtype and read.device == features.device
    np.testing.assert_array_equal(read.numpy(), array[rows])
    read.fill_(7)  # a copy: the file keeps its values
    np.testing.assert_array_equal(features[slice(None)].numpy(), array)
