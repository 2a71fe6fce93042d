"""Feature extraction against one image, view and shift at a time, and the bank that holds the result."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch

from common import distributed
from evals.features import (
    Extraction,
    FeatureBank,
    MappedFeatures,
    default_batch,
    extract_features,
    feature_blocks,
    given_features,
)
from models import ContrastiveEncoder, EncoderOutput, build_encoder
from models.counter_random import Purpose, make_keys
from models.transform_layers import Augmentation, shift_images
from utils import InputError

WIDTH = 5
CROP = Augmentation(resize_factor=0.54, resize_fix=True)
CHOSEN = np.array([11, 2, 7, 5, 0, 9, 4])


@pytest.fixture(scope="module")
def encoder() -> ContrastiveEncoder:
    """A small encoder whose BatchNorm statistics are not those of any batch."""
    encoder = build_encoder("resnet8", num_classes=3, shifts=4, simclr_dim=WIDTH, seed=0)
    generator = torch.Generator().manual_seed(1)
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return encoder


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def extract(encoder, images, indices=CHOSEN, name="features", **changes) -> FeatureBank:
    settings = {
        "augmentation": CROP,
        "views": 3,
        "shift": "rotation",
        "shift_numbers": (0, 1, 2, 3),
        "seed": 5,
        "batch_size": 3,
    }
    return extract_features(encoder, images, indices, Extraction(**settings | changes), name=name)


@torch.no_grad()
def slow_feature(encoder, images, index, *, augmentation, views, shift, shift_numbers, seed) -> torch.Tensor:
    """(K, D) of one image: every view and shift alone, averaged in double precision."""
    encoder.eval()
    rows = []
    for number in shift_numbers:
        total = torch.zeros(WIDTH, dtype=torch.float64)
        for view in range(views):
            key = make_keys(seed, Purpose.QUERY, torch.tensor([index]), view, number)
            pixels = images[index : index + 1].float() / 255
            copy = shift_images(augmentation.flip(pixels, key), shift, number)
            total += encoder(augmentation.after_shift(copy, key)).projection[0].double()
        rows.append(total / views)
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("shift", "shift_numbers", "views"),
    [
        ("rotation", (0, 1, 2, 3), 1),
        ("rotation", (0, 1, 2, 3), 3),
        ("rotation", (3, 1), 2),
        ("cutperm", (0, 1, 2, 3), 2),
        ("none", (0,), 4),
    ],
)
def test_features_are_those_of_a_loop_over_image_view_and_shift(encoder, images, shift, shift_numbers, views):
    settings = {"augmentation": CROP, "views": views, "shift": shift, "shift_numbers": shift_numbers, "seed": 5}
    bank = extract(encoder, images, **settings)
    assert bank.indices.tolist() == sorted(CHOSEN.tolist())
    assert bank.indices.dtype == np.int64
    assert bank.features.dtype == torch.float32
    assert bank.features.shape == (len(CHOSEN), len(shift_numbers), WIDTH)
    expected = torch.stack([slow_feature(encoder, images, int(index), **settings) for index in bank.indices])
    torch.testing.assert_close(bank.features.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 100])
def test_the_batch_size_changes_nothing(encoder, images, batch_size):
    expected = extract(encoder, images).features
    torch.testing.assert_close(extract(encoder, images, batch_size=batch_size).features, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("indices", [CHOSEN[::-1], np.sort(CHOSEN), np.array([9, 2]), np.array([4])], ids=str)
def test_neither_order_nor_company_of_an_image_changes_its_feature(encoder, images, indices):
    expected = extract(encoder, images).of(indices)
    torch.testing.assert_close(extract(encoder, images, indices).of(indices), expected, rtol=0, atol=1e-6)


def test_equal_pixels_at_two_indices_get_draws_of_their_own(encoder, images):
    twins = images[:1].expand(2, -1, -1, -1)
    first, second = extract(encoder, twins, np.array([0, 1])).features
    assert (first - second).abs().max() > 1e-4
    again = extract(encoder, twins, np.array([0, 1])).features
    assert torch.equal(again, torch.stack([first, second]))


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_processes_share_whole_batches_in_order(encoder, images, monkeypatch, processes):
    settings = {"views": 1, "shift": "none", "shift_numbers": (0,), "seed": 0, "batch_size": 2}
    whole = extract(encoder, images, **settings).of(CHOSEN)
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    blocks = []
    for rank in range(processes):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        blocks += feature_blocks(encoder, images, CHOSEN, Extraction(CROP, **settings), name="features")
    assert [len(block) for block in blocks] == [2, 2, 2, 1]
    torch.testing.assert_close(torch.cat(blocks), whole, rtol=0, atol=1e-6)


def test_images_in_another_layout_give_the_same_bits(encoder, images):
    view = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # as data sets hold them
    assert torch.equal(extract(encoder, view).features, extract(encoder, images).features)


def test_the_encoder_is_frozen(encoder, images):
    encoder.train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    bank = extract(encoder, images)
    assert not encoder.training
    assert not bank.features.requires_grad
    after = encoder.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("views", [1, 8])
def test_memory_does_not_grow_with_the_number_of_views(encoder, images, views):
    """The forward batch is K * B rows at any V, and no view's output outlives the next."""
    rows, outputs, alive = [], [], []

    def record(module, inputs, output):
        rows.append(len(inputs[0]))
        alive.append(sum(reference() is not None for reference in outputs))
        outputs.append(weakref.ref(output.projection))

    handle = encoder.register_forward_hook(record)
    extract(encoder, images, views=views)
    handle.remove()
    assert rows == [4 * 3] * 2 * views + [4 * 1] * views
    assert max(alive) <= 1


class Reciprocal(torch.nn.Module):
    """Projects an image to 1 / brightness: infinite for a black one."""

    def __init__(self, at_black: float) -> None:
        super().__init__()
        self.simclr_layer = torch.nn.Sequential(torch.nn.Linear(1, 1))
        self.at_black = at_black

    def forward(self, images):
        mean = images.mean((1, 2, 3))[:, None]
        value = torch.where(mean == 0, torch.tensor(self.at_black), 1 / mean)
        return EncoderOutput(value, value, value, value)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize(
    ("dtype", "remedy"), [("float32", "the checkpoint is unusable"), ("float16", "in float16: give")]
)
def test_a_feature_that_is_not_finite_is_an_error_that_names_the_image(images, value, dtype, remedy):
    with_black = images.clone()
    with_black[[4, 9]] = 0
    encoder = Reciprocal(value)
    assert extract(encoder, with_black, np.array([2, 11]), dtype=dtype).features.isfinite().all()
    with pytest.raises(InputError, match=rf"^semantic features: the feature of image 4 is not finite.*{remedy}"):
        extract(encoder, with_black, name="semantic features", dtype=dtype)


def test_a_value_beyond_half_precision_is_an_error_and_float32_takes_it(images):
    black = torch.zeros_like(images)
    with pytest.raises(InputError, match="--feature_dtype float32"):
        extract(Reciprocal(65520.0), black, dtype="float16")
    assert extract(Reciprocal(65520.0), black).features.unique().tolist() == [65520.0]


def test_the_bank_gives_features_in_the_order_asked_for():
    bank = FeatureBank(np.array([3, 10, 11, 40]), torch.arange(8.0).view(4, 1, 2))
    assert bank.of(np.array([40, 3, 11, 3])).tolist() == [[[6.0, 7.0]], [[0.0, 1.0]], [[4.0, 5.0]], [[0.0, 1.0]]]
    assert bank.of(np.array([], dtype=np.int64)).shape == (0, 1, 2)


@pytest.mark.parametrize("stranger", [-1, 0, 4, 12, 41, 10**12])
def test_an_image_that_the_bank_does_not_hold_is_an_error(stranger):
    bank = FeatureBank(np.array([3, 10, 11, 40]), torch.zeros(4, 1, 2))
    with pytest.raises(ValueError, match="not in this feature bank"):
        bank.of(np.array([3, stranger]))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_of_a_file_are_the_arrays(tmp_path, dtype):
    array = np.random.default_rng(3).normal(size=(11, 2, 3)).astype(dtype)
    np.save(tmp_path / "features.npy", array)
    features = MappedFeatures(tmp_path / "features.npy")
    assert features.shape == array.shape and features.dtype == getattr(torch, dtype)
    for rows in (
        slice(None),
        slice(8, 11),
        slice(5, 5),
        slice(2, 9, 3),
        np.array([3, 0, 10, 3]),
        np.arange(11) % 2 == 0,
    ):
        read = features[rows]
        assert read.dtype == features.dtype
        np.testing.assert_array_equal(read.numpy(), array[rows])
        read.fill_(7)  # a copy: the file keeps its values
    np.testing.assert_array_equal(features[slice(None)].numpy(), array)


def test_batches_are_smaller_where_images_are_larger():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    sizes = [default_batch(device, size) for device in (cpu, gpu) for size in ((32, 32), (64, 64), (224, 224))]
    assert sizes == [100, 100, 100, 1000, 250, 100]


class TestGivenFeatures:
    """Features from a file; images 1, 4 and 6 of 8 (and 2 test images) are pool and labeled set."""

    INDICES = np.array([1, 4, 6])
    VALUES = np.arange(20, dtype=np.float64).reshape(10, 2)

    def bank(self, path, values, numbers=None):
        np.save(path / "features.npy", values)
        if numbers is not None:
            np.save(path / "numbers.npy", numbers)
        file = None if numbers is None else path / "numbers.npy"
        return given_features(path / "features.npy", self.INDICES, train=8, test=2, numbers_file=file)

    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
    @pytest.mark.parametrize("rows", [range(8), range(10), INDICES])
    def test_rows_may_be_all_images_or_those_of_pool_and_labeled_set(self, tmp_path, rows, dtype):
        bank = self.bank(tmp_path, self.VALUES[list(rows)].astype(dtype))
        assert bank.indices.tolist() == [1, 4, 6] and tuple(bank.features.shape) == (3, 1, 2)
        assert bank.of(np.array([6, 1])).tolist() == [[[12, 13]], [[2, 3]]]

    def test_rows_may_be_in_any_order_that_is_said(self, tmp_path):
        order = np.array([6, 0, 1, 7, 4])
        bank = self.bank(tmp_path, self.VALUES[order][:, None].repeat(4, 1), order)
        assert tuple(bank.features.shape) == (3, 4, 2)
        assert bank.of(np.array([4]))[0].tolist() == [[8, 9]] * 4

    @pytest.mark.parametrize(
        ("values", "numbers", "phrase"),
        [
            (VALUES[:7], None, r"7 rows; 8 \(all train images\), 10 \(all train, then all test images\) or 3"),
            (VALUES[:3], [1, 4], "3 rows must be of the 2 images"),
            (VALUES[:3], [1, 4, 4], "each there once"),
            (VALUES[:3], [1, 4, 5], "all 3 images of pool and labeled set among them"),
            (np.full((8, 2), np.nan), None, "not finite"),
            (VALUES[:8].astype(np.int64), None, r"int64 \(8, 2\), not features"),
            (VALUES[:8, 0], None, r"float64 \(8,\), not features"),
            (np.empty((8, 0)), None, "not features"),
            (np.array([{}] * 8), None, "features.npy: "),
        ],
    )
    def test_other_files_are_refused(self, tmp_path, values, numbers, phrase):
        with pytest.raises(InputError, match=phrase):
            self.bank(tmp_path, values, None if numbers is None else np.array(numbers))

    def test_a_missing_file_and_a_text_are_refused(self, tmp_path):
        with pytest.raises(InputError, match="No such file"):
            given_features(tmp_path / "features.npy", self.INDICES, train=8, test=2)
        (tmp_path / "features.npy").write_text("1 2 3")
        with pytest.raises(InputError, match="features.npy: "):
            given_features(tmp_path / "features.npy", self.INDICES, train=8, test=2)


def test_penultimate_features_are_those_of_the_image_as_it_is():
    encoder = build_encoder("resnet8", num_classes=2, shifts=1, simclr_dim=5, seed=1).eval()
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain = Extraction(Augmentation(0.08, False), 0, "none", (0,), seed=3, batch_size=4, output="features")
    bank = extract_features(encoder, images, np.array([5, 0, 3]), plain)
    with torch.no_grad():
        expected = encoder(images[[0, 3, 5]].float() / 255).features
    assert bank.indices.tolist() == [0, 3, 5] and tuple(bank.features.shape) == (3, 1, encoder.feature_dim)
    torch.testing.assert_close(bank.features[:, 0], expected, rtol=0, atol=1e-5)
