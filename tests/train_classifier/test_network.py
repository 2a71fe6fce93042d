"""Starting from an encoder: which one a file holds, its features, and the head on them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from common import checkpoint
from common.settings import ClassifierSettings
from models import build_encoder
from train_classifier.engine import LabeledImages, normalize, probabilities, train_together
from train_classifier.network import EncoderClassifier, Head, build_network, encode, load_encoder, start_networks
from utils import InputError

SETTINGS = ClassifierSettings(epochs=2, batch_size=4)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "last.model"
    checkpoint.save(path, build_encoder("resnet8", num_classes=7, shifts=4, simclr_dim=16, seed=3).state_dict())
    return path


def images(count: int) -> LabeledImages:
    pixels = torch.randint(0, 256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return LabeledImages(pixels, torch.arange(count) % 2)


def test_features_are_the_encoders_own_of_images_and_mirrored_ones(saved: Path) -> None:
    whole = build_encoder("resnet8", num_classes=7, shifts=4, simclr_dim=16, seed=3).eval()
    data = images(5)
    found = encode(load_encoder(saved), data)
    with torch.no_grad():
        torch.testing.assert_close(found.images, whole(data.images / 255).features)
        torch.testing.assert_close(found.mirrored, whole(data.images.flip(3) / 255).features)
    flips = torch.tensor([True, False])
    assert torch.equal(found.batch(torch.tensor([4, 1]), flips), torch.stack([found.mirrored[4], found.images[1]]))


def test_what_is_no_encoder_is_refused(saved: Path) -> None:
    state = torch.load(saved, weights_only=True)
    for content in ({**state, "conv1.weight": torch.zeros(5, 3, 3, 3)}, {"epoch": 1}, [1]):
        checkpoint.save(saved, content)
        with pytest.raises(InputError, match="is not (an encoder of contrastive training|a state_dict)"):
            load_encoder(saved)
    checkpoint.save(saved, {**state, "conv1.weight": state["conv1.weight"] * float("nan")})
    with pytest.raises(InputError, match=r"not finite \(conv1.weight\)"):
        load_encoder(saved)


def test_the_cifar_network_is_the_encoders_backbone_with_a_linear_layer() -> None:
    state = torch.get_rng_state()
    first, other = start_networks("cifar_resnet18", images(2), outputs=10, seeds=[3, 4])
    assert torch.equal(torch.get_rng_state(), state)
    encoder, inputs = build_encoder("resnet18", num_classes=10, shifts=1, seed=3).eval(), torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(first.eval()(inputs), encoder.linear(encoder.penultimate(inputs)))
    assert sum(value.numel() for value in first.parameters()) == 11_173_962
    assert not torch.equal(first.linear.weight, other.linear.weight)
    assert torch.equal(first.conv1.weight, build_network(10, seed=3, name="cifar_resnet18").conv1.weight)


def test_a_head_standardises_and_starts_at_zero() -> None:
    # The first feature has mean 2 and deviation 1, the second deviation 0, of which a tenth of the mean, 0.05, is made.
    head = Head(torch.tensor([[1.0, 5.0], [3.0, 5.0]]), 3)
    assert head(torch.ones(1, 2)).tolist() == [[0.0, 0.0, 0.0]]
    torch.nn.init.ones_(head.linear.weight)
    assert head(torch.tensor([[4.0, 5.1]])).tolist() == [[pytest.approx(2 + 0.1 / 0.05)] * 3]


@pytest.mark.parametrize("frozen", [True, False])
def test_a_head_alone_leaves_the_encoder_as_it_is_and_fine_tuning_does_not(saved: Path, frozen: bool) -> None:
    encoder, data = load_encoder(saved), images(8)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    train = encode(encoder, data) if frozen else data
    networks = start_networks(encoder, train, outputs=3, seeds=[0, 1])
    trained = [network.head for network in networks] if frozen else networks
    train_together(trained, train, train, seeds=[0, 1], settings=SETTINGS, targets=2)
    changed = [name for name, value in networks[0].encoder.state_dict().items() if not torch.equal(value, before[name])]
    assert bool(changed) is not frozen
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())  # it starts the next
    assert not torch.equal(networks[0].head.linear.weight, networks[1].head.linear.weight)
    if frozen:  # what was measured on features is what the whole network says of the images
        whole = EncoderClassifier(encoder, networks[0].head)
        assert probabilities(whole, data.images) == pytest.approx(probabilities(trained[0], train.images), abs=1e-6)


def test_the_accuracy_looks_at_the_targets_outputs_alone() -> None:
    head, data = Head(torch.eye(3), 3), LabeledImages(torch.eye(3)[:2], torch.tensor([0, 1]), torch.eye(3)[:2])
    with torch.no_grad():
        head.linear.bias[2] = 1e3  # "other" is always the largest
        head.linear.weight[:2, :2] = 10 * torch.eye(2)
    [accuracies] = train_together([head], data, data, seeds=[0], settings=SETTINGS, targets=2)
    assert accuracies == [100.0, 100.0]
    assert normalize(data.images) is data.images
