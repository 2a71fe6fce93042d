"""models/encoder.py, models/resnet.py and build_encoder: names, shapes, normalisation, gradients and seeds."""

import json
import math

import pytest
import torch

from models import BACKBONES, ContrastiveEncoder, build_encoder
from utils import InputError

IGNORED = ("joint_distribution_layer.", "shift_dis.")
FEATURE_DIMS = {"resnet18": 512, "resnet18_imagenet": 512, "resnet20": 64, "resnet8": 64}
SIZES = {"resnet18": 32, "resnet18_imagenet": 64, "resnet20": 32, "resnet8": 32}


class MeanEncoder(ContrastiveEncoder):
    """Penultimate features are each channel's mean of what the backbone is given."""

    feature_dim = 3

    def penultimate(self, images):
        return images.mean(dim=(2, 3))


def test_a_checkpoint_has_the_originals_names_shapes_and_order(shared):
    listed = json.loads((shared / "golden" / "checkpoint_keys.json").read_text())["resnet18_4_shifts_10_classes"]
    expected = {name: tuple(shape) for name, shape in listed if not name.startswith(IGNORED)}
    state = build_encoder("resnet18", num_classes=10, shifts=4).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == expected
    assert {name for name, _ in listed} - set(state) == {name for name, _ in listed if name.startswith(IGNORED)}


@pytest.mark.parametrize("name", list(BACKBONES))
def test_forward_shapes(name):
    encoder = build_encoder(name, num_classes=7, shifts=4, simclr_dim=16, seed=0).eval()
    with torch.no_grad():
        output = encoder(torch.rand(2, 3, SIZES[name], SIZES[name]))
    assert encoder.feature_dim == FEATURE_DIMS[name]
    assert [tuple(value.shape) for value in output] == [(2, FEATURE_DIMS[name]), (2, 16), (2, 4), (2, 7)]
    assert all(value.isfinite().all() for value in output)


@pytest.mark.parametrize(
    ("name", "parameters"),
    # Convolutions and BatchNorm of the CIFAR ResNets, by hand: see the architecture; heads are left out.
    [("resnet18", 11_168_832), ("resnet18_imagenet", 11_176_512), ("resnet20", 271_824), ("resnet8", 77_392)],
)
def test_backbone_sizes(name, parameters):
    heads = ("linear.", "simclr_layer.", "shift_cls_layer.")
    encoder = build_encoder(name, num_classes=10, shifts=4)
    assert sum(p.numel() for n, p in encoder.named_parameters() if not n.startswith(heads)) == parameters


@pytest.mark.parametrize(("value", "normalised"), [(0.0, -1.0), (0.5, 0.0), (0.75, 0.5), (1.0, 1.0)])
def test_images_are_normalised_inside(value, normalised):
    output = MeanEncoder(num_classes=2, shifts=1)(torch.full((1, 3, 2, 2), value))
    assert output.features.tolist() == [[normalised] * 3]


def test_the_heads_are_linear_relu_linear_and_linear():
    encoder = MeanEncoder(num_classes=2, shifts=4, simclr_dim=2)
    with torch.no_grad():
        encoder.simclr_layer[0].weight.copy_(torch.diag(torch.tensor([1.0, -1.0, 2.0])))
        encoder.simclr_layer[2].weight.copy_(torch.tensor([[1.0, 10.0, 100.0], [0.0, 0.0, 1.0]]))
        for head in (encoder.simclr_layer[0], encoder.simclr_layer[2], encoder.linear, encoder.shift_cls_layer):
            head.bias.zero_()
        encoder.linear.weight.copy_(torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, -1.0]]))
        encoder.shift_cls_layer.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [-1.0, 0, 0]]))
    output = encoder(torch.tensor([1.0, 0.75, 0.75]).view(1, 3, 1, 1))  # features 1, 0.5, 0.5
    assert output.projection.tolist() == [[1.0 + 0.0 + 100.0, 1.0]]  # ReLU removes -0.5
    assert output.class_logits.tolist() == [[2.0, -0.5]]
    assert output.shift_logits.tolist() == [[1.0, 0.5, 0.5, -1.0]]


def test_the_probe_gives_the_backbone_no_gradient_and_the_other_heads_do():
    encoder, probe = build_encoder("resnet8", num_classes=3, shifts=4, seed=0), {"linear.weight", "linear.bias"}
    encoder(torch.rand(4, 3, 8, 8)).class_logits.square().sum().backward()
    assert {name for name, p in encoder.named_parameters() if p.grad is not None} == probe
    encoder.zero_grad()
    output = encoder(torch.rand(4, 3, 8, 8))
    (output.projection.square().sum() + output.shift_logits.square().sum()).backward()
    assert {name for name, p in encoder.named_parameters() if p.grad is None} == probe
    assert encoder.conv1.weight.grad.norm() > 0


@pytest.mark.parametrize(("shifts", "trains"), [(1, False), (4, True)])
def test_without_shifts_the_shift_head_is_frozen(shifts, trains):
    encoder = build_encoder("resnet8", num_classes=3, shifts=shifts)
    frozen = {name for name, p in encoder.named_parameters() if not p.requires_grad}
    assert frozen == (set() if trains else {"shift_cls_layer.weight", "shift_cls_layer.bias"})
    assert encoder.shift_cls_layer.weight.shape == (shifts, 64)


@pytest.mark.parametrize("name", ["resnet8", "resnet18_imagenet"])
def test_seeds_decide_the_weights(name):
    first, again, other = (
        build_encoder(name, num_classes=3, shifts=4, simclr_dim=8, seed=seed).state_dict() for seed in (5, 5, 6)
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])
    assert not torch.equal(first["simclr_layer.0.weight"], other["simclr_layer.0.weight"])


def test_initialisation_is_pytorchs_default_and_kaiming_fan_out_for_imagenet():
    default = build_encoder("resnet18", num_classes=10, shifts=1, seed=0).layer4[1].conv2.weight
    bound = 1 / math.sqrt(512 * 9)  # kaiming_uniform with a = sqrt(5)
    assert 0.999 * bound < default.abs().max() <= bound
    assert default.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)
    kaiming = build_encoder("resnet18_imagenet", num_classes=10, shifts=1, seed=0)
    assert kaiming.conv1.weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 49)), rel=0.05)
    assert kaiming.layer4[1].conv2.weight.std().item() == pytest.approx(math.sqrt(2 / (512 * 9)), rel=0.01)


def test_an_unknown_model_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"--model resnet19 is unknown; choose from resnet18, resnet18_imagenet"):
        build_encoder("resnet19", num_classes=10, shifts=1)
