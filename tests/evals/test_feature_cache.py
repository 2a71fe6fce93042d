"""Features kept on disk: when they are used again, when they are replaced, and what a failure leaves behind."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from common import distributed
from common.acceleration import Precision
from common.files import read_json, write_json
from evals.feature_cache import FORMAT_VERSION, feature_banks, sources_of
from evals.features import Extraction, FeatureBank, MappedFeatures
from models import ContrastiveEncoder, build_encoder
from models.transform_layers import Augmentation

NAME, WIDTH = "distinctive", 5
CHOSEN = np.array([0, 2, 4, 5, 7, 9, 11])
SHAPE = (len(CHOSEN), 4, WIDTH)
EXTRACTION = Extraction(
    augmentation=Augmentation(resize_factor=0.54, resize_fix=True),
    views=2,
    shift="rotation",
    shift_numbers=(0, 1, 2, 3),
    seed=5,
    batch_size=3,
    dtype="float16",
)


@dataclasses.dataclass
class Place:
    """A cache's folder, an encoder that counts its passes, its checkpoint and the images."""

    folder: Path
    checkpoint: Path
    encoder: ContrastiveEncoder
    images: np.ndarray
    passes: list[int] = dataclasses.field(default_factory=list)

    def ask(self, *, indices: np.ndarray = CHOSEN, folder: str | None = "cache", **changes) -> FeatureBank:
        """What a query does: the features of an earlier one, or new ones."""
        self.passes.clear()
        return feature_banks(
            {NAME: self.encoder},
            self.images,
            indices,
            {NAME: dataclasses.replace(EXTRACTION, **changes)},
            sources=sources_of({NAME: self.checkpoint}, {}, self.images, indices),
            folder=folder and self.folder.with_name(folder),
            device=torch.device("cpu"),
        )[NAME]

    @property
    def npy(self) -> Path:
        return self.folder / f"{NAME}.npy"

    @property
    def json(self) -> Path:
        return self.folder / f"{NAME}.json"

    def files(self) -> dict[str, bytes]:
        """All bytes but those of the time that was taken."""
        paths = self.folder.iterdir() if self.folder.is_dir() else ()
        return {path.name: re.sub(rb',\s+"seconds": [0-9.]+', b"", path.read_bytes()) for path in paths}


@pytest.fixture
def place(tmp_path) -> Place:
    encoder = build_encoder("resnet8", num_classes=3, shifts=4, simclr_dim=WIDTH, seed=0)
    images = np.random.default_rng(2).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    checkpoint = tmp_path / "last.model"
    checkpoint.write_bytes(b"any bytes")
    place = Place(tmp_path / "cache", checkpoint, encoder, images)
    encoder.register_forward_pre_hook(lambda module, inputs: place.passes.append(len(inputs[0])))
    return place


# Used again


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_kept_features_are_those_of_memory_and_are_not_made_twice(place, dtype, capsys):
    expected = place.ask(dtype=dtype, folder=None).features
    first = place.ask(dtype=dtype)
    assert place.passes == [12, 12, 12, 12, 4, 4]  # batches of 3, 3 and 1 images, 4 shifts of each, 2 views
    files = place.files()
    assert sorted(files) == [place.json.name, place.npy.name]
    second = place.ask(dtype=dtype, batch_size=100)  # a setting that changes nothing but rounding
    assert place.passes == [] and place.files() == files
    assert f"{NAME} features of 7 images: kept from {place.folder}" in capsys.readouterr().out
    for bank in (first, second):
        assert isinstance(bank.features, MappedFeatures)
        assert bank.indices.tolist() == CHOSEN.tolist()
        assert torch.equal(bank.features[slice(None)], expected)


def test_where_one_process_lacks_kept_features_all_extract_again(place, monkeypatch):
    """As on two machines with folders of their own."""
    place.ask()
    monkeypatch.setattr(distributed, "gather_objects", lambda found: [found, False])
    place.ask()
    assert len(place.passes) == 6


def test_the_record_names_all_that_the_features_depend_on(place):
    place.ask()
    numbers = b"".join(int(number).to_bytes(8, "little") for number in CHOSEN)
    record = read_json(place.json)
    assert 0 < record.pop("seconds") < 60  # since the features were begun
    assert record == {
        "format_version": FORMAT_VERSION,
        "checkpoint": hashlib.sha256(b"any bytes").hexdigest(),
        "network": type(place.encoder).__name__,
        "width": WIDTH,
        "images": hashlib.sha256(place.images[CHOSEN].tobytes()).hexdigest(),
        "indices": hashlib.sha256(numbers).hexdigest(),
        "augmentation": {"resize_factor": 0.54, "resize_fix": True},
        "views": 2,
        "shift": "rotation",
        "shift_numbers": [0, 1, 2, 3],
        "seed": 5,
        "precision": "fp32",
        "dtype": "float16",
        "output": "projection",
    }


# Replaced


def other_checkpoint(place: Place) -> None:
    place.checkpoint.write_bytes(b"any byteS")


def other_pixel(place: Place) -> None:
    place.images[11, 7, 7, 2] ^= 1


OTHER_INDICES = np.array([0, 2, 4, 5, 7, 9, 10])
DIFFERENCES = {
    "checkpoint": (other_checkpoint, {}, "checkpoint"),
    "pixel": (other_pixel, {}, "images"),
    "indices": (None, {"indices": OTHER_INDICES}, "indices"),  # of the same pixels: images 10 and 11 are equal
    "fewer indices": (None, {"indices": CHOSEN[:-1]}, "images, indices"),
    "views": (None, {"views": 3}, "views"),
    "seed": (None, {"seed": 6}, "seed"),
    "shift": (None, {"shift": "cutperm"}, "shift"),
    "shift numbers": (None, {"shift_numbers": (0, 1, 3, 2)}, "shift_numbers"),
    "precision": (None, {"precision": Precision("bf16", "cpu")}, "precision"),
    "dtype": (None, {"dtype": "float32"}, "dtype"),
    "crop": (None, {"augmentation": Augmentation(0.5, True)}, "augmentation"),
    "two things": (other_pixel, {"seed": 6, "views": 1}, "images, views, seed"),
    "format version": (lambda place: write_json(place.json, read_json(place.json) | {"format_version": 1}), {}, "form"),
}


@pytest.mark.parametrize(("change", "asked", "named"), DIFFERENCES.values(), ids=DIFFERENCES)
def test_features_of_something_else_are_named_and_replaced(place, capsys, change, asked, named):
    place.images[10] = place.images[11]
    place.ask()
    if change:
        change(place)
    capsys.readouterr()
    found = place.ask(**asked)
    assert f"the {NAME} features in {place.folder} are replaced: made with another {named}" in capsys.readouterr().out
    fresh = place.ask(**asked, folder="fresh")
    assert torch.equal(found.features[slice(None)], fresh.features[slice(None)])
    place.ask(**asked)
    assert place.passes == []


def npy_bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def with_a_value(value: float) -> bytes:
    array = np.ones(SHAPE, dtype=np.float16)
    array[-1, 2, 1] = value
    return npy_bytes(array)


# What becomes of the npy file, by what is wrong with it.
DAMAGES = {
    "truncated": lambda whole: whole[:-1],
    "garbage": lambda whole: bytes(range(256)) * 9,
    "pickled array": lambda whole: npy_bytes(np.empty(SHAPE, dtype=object)),
    "float64": lambda whole: npy_bytes(np.ones(SHAPE)),
    "float32": lambda whole: npy_bytes(np.ones(SHAPE, dtype=np.float32)),
    "too few rows": lambda whole: npy_bytes(np.ones((6, 4, 5), dtype=np.float16)),
    "not a number": lambda whole: with_a_value(np.nan),
    "gone": None,
}
RECORDS = ["[]", "{", "", "{}"]  # damaged ones


@pytest.mark.parametrize("damage", [*DAMAGES.values(), *RECORDS], ids=[*DAMAGES, *RECORDS])
def test_damaged_features_are_named_and_replaced(place, capsys, damage):
    files = (place.ask(), place.files())[1]
    if isinstance(damage, str):
        place.json.write_text(damage)
    elif damage:
        place.npy.write_bytes(damage(place.npy.read_bytes()))
    else:
        place.npy.unlink()
    capsys.readouterr()
    place.ask()
    assert f"the {NAME} features in {place.folder} are replaced: " in capsys.readouterr().out
    assert place.files() == files


# Unfinished


def test_an_end_in_the_middle_leaves_nothing_new(place):
    place.folder.mkdir()
    place.npy.write_bytes(b"of an extraction that did not end, without a record")
    (place.folder / f".{NAME}.npy.killed.tmp").write_bytes(b"half")

    def fail(module, inputs):
        if len(place.passes) == 4:
            raise KeyboardInterrupt

    hook = place.encoder.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        place.ask()
    assert sorted(place.files()) == [place.npy.name]
    hook.remove()
    place.ask()
    assert sorted(place.files()) == [place.json.name, place.npy.name]


def test_no_record_stands_beside_the_features_of_another(place, monkeypatch):
    """A kill between the two files of a replacement must not leave the old record with the new features."""
    place.ask()

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("evals.feature_cache.write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            place.ask(seed=6)
    assert sorted(place.files()) == [place.npy.name]
    place.ask()
    assert len(place.passes) == 6
