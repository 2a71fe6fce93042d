"""training/objectives.py: the layout of the views, and both losses from the encoder's outputs by slow loops."""

import math

import pytest
import torch

from models import ContrastiveEncoder
from models.transform_layers import Augmentation, shift_images
from training.objectives import Batch, DistinctiveObjective, SemanticObjective, check_mode
from utils import InputError

OBJECTIVES = {
    "semantic": SemanticObjective(Augmentation(), temperature=0.3),
    "rotation": DistinctiveObjective(Augmentation(), temperature=0.3, shift="rotation", sim_lambda=0.7),
    "cutperm": DistinctiveObjective(Augmentation(), temperature=0.3, shift="cutperm", sim_lambda=0.7),
}
SHIFTS = {"semantic": 1, "rotation": 4, "cutperm": 4}


class LinearEncoder(ContrastiveEncoder):
    """One linear layer on 4 x 4 pixels as backbone; no BatchNorm, so each row's outputs are its own."""

    feature_dim = 6

    def __init__(self, **settings):
        super().__init__(**settings)
        self.layer = torch.nn.Linear(48, 6)

    def penultimate(self, images):
        return self.layer(images.flatten(1))


def make_encoder(shifts):
    torch.manual_seed(0)
    return LinearEncoder(num_classes=3, shifts=shifts, simclr_dim=5)


def make_batch(size=5, labels=None, epoch=1):
    images = torch.rand(size, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(size) % 3 if labels is None else torch.tensor(labels)
    return Batch(images, labels, torch.arange(size) + 100, epoch)


@pytest.fixture
def no_augmentation_after_shift(monkeypatch):
    monkeypatch.setattr(Augmentation, "after_shift", lambda self, images, keys: images)


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def cross_entropy(logits, target):
    return math.log(sum(math.exp(value) for value in logits)) - logits[target]


def slow_similarity(projection, temperature):
    """NT-Xent over (2N, D) un-normalised rows, one pair at a time."""
    rows = projection.detach().double().tolist()
    half = len(rows) // 2

    def cosine(a, b):
        dot = sum(x * y for x, y in zip(a, b))
        return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))

    losses = []
    for i, row in enumerate(rows):
        others = [math.exp(cosine(row, rows[k]) / temperature) for k in range(len(rows)) if k != i]
        losses.append(math.log(sum(others)) - cosine(row, rows[(i + half) % len(rows)]) / temperature)
    return mean(losses)


# Views


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_rows_are_by_view_shift_and_image(name, no_augmentation_after_shift):
    batch, objective = make_batch(24), OBJECTIVES[name]
    views = objective.views(batch)
    shifts = SHIFTS[name]
    assert views.shape == (2 * shifts * 24, 3, 4, 4)
    views = views.view(2, shifts, 24, 3, 4, 4)
    flips = []
    for view in range(2):
        for number in range(24):
            kept = torch.equal(views[view, 0, number], batch.images[number])
            assert kept or torch.equal(views[view, 0, number], batch.images[number].flip(-1))
            flips.append(not kept)
        for k in range(shifts):  # the flip comes before the shift, and all shifts share it
            assert torch.equal(views[view, k], shift_images(views[view, 0], objective.shift, k))
    assert 12 < sum(flips) < 36 and flips[:24] != flips[24:]


def test_shifted_copies_draw_their_own_jitter_and_crop():
    batch = make_batch(16)
    views = OBJECTIVES["rotation"].views(batch).view(2, 4, 16, 3, 4, 4)
    for k in range(1, 4):
        back = torch.rot90(views[:, k], -k, (3, 4))
        differs = (back - views[:, 0]).abs().flatten(2).amax(2) > 1e-3
        assert differs.double().mean() > 0.9
    assert ((views[0] - views[1]).abs().flatten(2).amax(2) > 1e-3).double().mean() > 0.9


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_an_images_views_do_not_depend_on_its_batch(name):
    batch = make_batch(7)
    order = torch.tensor([4, 1, 6])
    part = Batch(batch.images[order], batch.labels[order], batch.indices[order], batch.epoch)
    whole = OBJECTIVES[name].views(batch).view(2, SHIFTS[name], 7, 3, 4, 4)
    alone = OBJECTIVES[name].views(part).view(2, SHIFTS[name], 3, 3, 4, 4)
    assert (whole[:, :, order] - alone).abs().max() < 1e-6


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_views_change_with_epoch_seed_and_index_only(name):
    batch, objective = make_batch(8), OBJECTIVES[name]
    views = objective.views(batch)
    torch.manual_seed(99)
    assert torch.equal(objective.views(batch), views)
    assert torch.equal(objective.views(batch._replace(labels=batch.labels + 1)), views)
    other_seed = type(objective)(objective.augmentation, shift=objective.shift, seed=1)
    for other in (
        objective.views(batch._replace(epoch=2)),
        objective.views(batch._replace(indices=batch.indices + 50)),
        other_seed.views(batch),
    ):
        assert ((other - views).abs().flatten(1).amax(1) > 1e-3).double().mean() > 0.9


# Losses


def test_the_semantic_loss_is_nt_xent_of_both_views():
    encoder, batch, objective = make_encoder(1), make_batch(), OBJECTIVES["semantic"]
    output = encoder(objective.views(batch))
    loss, stats = objective(encoder, batch)
    expected = slow_similarity(output.projection, 0.3)
    assert stats["loss"].item() == pytest.approx(expected, abs=1e-5) == stats["loss_sim"].item()
    assert loss.item() == pytest.approx(expected + stats["loss_probe"].item(), abs=1e-5)
    assert set(stats) == {"loss", "loss_sim", "loss_probe", "train_probe_accuracy"}


@pytest.mark.parametrize("name", ["rotation", "cutperm"])
def test_the_distinctive_loss_is_weighted_nt_xent_and_shift_cross_entropy(name):
    encoder, batch, objective = make_encoder(4), make_batch(), OBJECTIVES[name]
    output = encoder(objective.views(batch))
    loss, stats = objective(encoder, batch)
    similarity = slow_similarity(output.projection, 0.3)
    shift_logits = output.shift_logits.detach().double().view(2, 4, 5, 4).tolist()
    shift = mean(cross_entropy(shift_logits[v][k][i], k) for v in range(2) for k in range(4) for i in range(5))
    hits = mean(
        shift_logits[v][k][i].index(max(shift_logits[v][k][i])) == k
        for v in range(2) for k in range(4) for i in range(5)
    )  # fmt: skip
    assert stats["loss_sim"].item() == pytest.approx(similarity, abs=1e-5)
    assert stats["loss_shift"].item() == pytest.approx(shift, abs=1e-5)
    assert stats["loss"].item() == pytest.approx(0.7 * similarity + shift, abs=1e-5)
    assert loss.item() == pytest.approx(0.7 * similarity + shift + stats["loss_probe"].item(), abs=1e-5)
    assert stats["train_shift_accuracy"].item() == pytest.approx(100 * hits, abs=1e-3)


@pytest.mark.parametrize("name", list(OBJECTIVES))
@pytest.mark.parametrize("labels", [[0, 1, 2, 0, 1], [2, -1, 0, -1, 1]])
def test_the_probe_sees_unshifted_rows_with_a_label_only(name, labels):
    encoder, batch, objective = make_encoder(SHIFTS[name]), make_batch(labels=labels), OBJECTIVES[name]
    logits = encoder(objective.views(batch)).class_logits.detach().double().view(2, SHIFTS[name], 5, 3).tolist()
    _, stats = objective(encoder, batch)
    assert not any(value.requires_grad for value in stats.values())
    known = [(logits[v][0][i], label) for v in range(2) for i, label in enumerate(labels) if label >= 0]
    expected = mean(cross_entropy(row, label) for row, label in known)
    hits = mean(row.index(max(row)) == label for row, label in known)
    assert stats["loss_probe"].item() == pytest.approx(expected, abs=1e-5)
    assert stats["train_probe_accuracy"].item() == pytest.approx(100 * hits, abs=1e-3)


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_without_any_label_the_probe_learns_nothing(name):
    encoder, objective = make_encoder(SHIFTS[name]), OBJECTIVES[name]
    loss, stats = objective(encoder, make_batch(labels=[-1] * 5))
    loss.backward()
    assert math.isnan(stats["loss_probe"].item()) and math.isnan(stats["train_probe_accuracy"].item())  # not logged
    assert encoder.linear.weight.grad.abs().max() == 0
    assert loss.item() == pytest.approx(stats["loss"].item())


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_labels_never_change_what_the_encoder_learns(name):
    gradients, losses, probes = [], [], []
    for labels in ([0, 1, 2, 0, 1], [2, 2, 2, -1, 0], [-1] * 5):
        encoder = make_encoder(SHIFTS[name])
        loss, stats = OBJECTIVES[name](encoder, make_batch(labels=labels))
        loss.backward()
        losses.append([value.item() for key, value in stats.items() if "probe" not in key])
        gradients.append([p.grad for key, p in encoder.named_parameters() if not key.startswith("linear.")])
        probes.append(encoder.linear.weight.grad)
    assert losses[0] == losses[1] == losses[2]
    for other in gradients[1:]:
        for one, two in zip(gradients[0], other):
            assert (one is None and two is None) or torch.equal(one, two)
    assert not torch.equal(probes[0], probes[1])


@pytest.mark.parametrize(
    ("mode", "shift", "message"),
    [
        ("semantic", "rotation", "give --shift_trans_type none, not rotation"),
        ("distinctive", "none", "give --shift_trans_type rotation or cutperm"),
    ],
)
def test_mode_and_shift_must_belong_together(mode, shift, message):
    with pytest.raises(InputError, match=message):
        check_mode(mode, shift)
    check_mode("semantic", "none")
    check_mode("distinctive", "cutperm")
