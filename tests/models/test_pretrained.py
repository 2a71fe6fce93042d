"""models/pretrained.py: torchvision's weights give what they give in torchvision; encoders of ours stay as they are."""

import pytest
import torch
import torchvision

from models import build_encoder
from models.pretrained import start_from
from tests.runs import equal
from utils import InputError

MEAN, DEVIATION = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def network():
    """A ResNet-18 of torchvision whose running statistics are not those of a new one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torchvision.models.resnet18(weights=None)
        for _ in range(2):
            network(torch.rand(8, 3, 64, 64) * 3 - 1)
        return network.eval()


def encoder_of(name="resnet18_imagenet", **heads):
    return build_encoder(name, **{"num_classes": 3, "shifts": 4, "simclr_dim": 8, "seed": 1} | heads).eval()


@torch.no_grad()
def test_torchvisions_weights_give_the_same_first_layers_but_at_the_border(network, tmp_path, capsys):
    torch.save(network.state_dict(), tmp_path / "resnet18.pth")
    encoder, fresh = encoder_of(), encoder_of()
    start_from(tmp_path / "resnet18.pth", encoder)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    normalised = torchvision.transforms.functional.normalize(images, MEAN, DEVIATION)
    expected, found = network.bn1(network.conv1(normalised)), encoder.bn1(encoder.conv1((images - 0.5) / 0.5))
    torch.testing.assert_close(found[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], rtol=1e-4, atol=1e-4)
    for name in ("layer1", "layer2", "layer3", "layer4"):
        assert equal(getattr(encoder, name).state_dict(), getattr(network, name).state_dict())
    for name in ("linear", "simclr_layer", "shift_cls_layer"):
        assert equal(getattr(encoder, name).state_dict(), getattr(fresh, name).state_dict())
    printed = capsys.readouterr().out
    assert "ImageNet's normalisation went into conv1 and bn1" in printed
    assert "new are linear, shift_cls_layer, simclr_layer" in printed
    network.fc, features = torch.nn.Identity(), encoder(images).features
    assert torch.nn.functional.cosine_similarity(features, network(normalised)).min() > 0.99


def test_an_encoder_of_ours_is_taken_with_the_heads_that_fit(tmp_path, capsys):
    before, other, fresh = encoder_of("resnet8", shifts=1, seed=3), encoder_of("resnet8"), encoder_of("resnet8")
    torch.save(before.state_dict(), tmp_path / "last.model")
    start_from(tmp_path / "last.model", other)
    expected = before.state_dict() | {
        key: value for key, value in fresh.state_dict().items() if key.startswith("shift_cls_layer.")
    }
    assert equal(dict(other.state_dict()), dict(expected))
    assert capsys.readouterr().out.endswith("; new are shift_cls_layer\n")


def test_weights_of_another_network_are_refused(network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(InputError, match="torchvision's go with --model resnet18_imagenet"):
        start_from(tmp_path / "resnet18.pth", encoder_of("resnet18"))
    torch.save(encoder_of("resnet8").state_dict(), tmp_path / "last.model")
    with pytest.raises(InputError, match="does not fit this encoder: it lacks layer1.1.conv1.weight"):
        start_from(tmp_path / "last.model", encoder_of("resnet20"))
    torch.save({"weight": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="does not fit this encoder"):
        start_from(tmp_path / "other.pth", encoder_of())
