"""training/losses.py: NT-Xent against the original's values, a slow loop and hand-worked numbers."""

import doctest
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import training.losses
from training.losses import nt_xent


def slow_nt_xent(views, temperature):
    """Eq. 1 of SimCLR, one pair at a time."""
    rows = views.tolist()
    half = len(rows) // 2

    def weight(i, k):
        return math.exp(sum(a * b for a, b in zip(rows[i], rows[k])) / temperature)

    total = 0.0
    for i in range(len(rows)):
        positive = (i + half) % len(rows)
        total -= math.log(weight(i, positive) / sum(weight(i, k) for k in range(len(rows)) if k != i))
    return total / len(rows)


def unit_rows(n, dim, dtype=torch.float64):
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(0), dtype=dtype), dim=1)


@pytest.mark.parametrize("name", ["sem16", "sem64", "dist16"])
def test_loss_and_gradient_equal_the_originals(shared, name):
    # The stored features have unit norm. dist16 is (view, shift, image) flattened, so that row i + 8 is the same
    # rotation of the other view, each rotated copy being an instance of its own.
    with np.load(shared / "golden" / "nt_xent.npz") as file:
        views = torch.from_numpy(file[f"{name}_feat_f64"]).requires_grad_()
        loss, gradient = file[f"{name}_loss_f64"].item(), torch.from_numpy(file[f"{name}_grad_f64"])
        temperature = float(file["temperature"])
    assert torch.allclose(views.norm(dim=1), torch.ones(len(views), dtype=torch.float64), atol=1e-6)
    ours = nt_xent(views, temperature=temperature)
    ours.backward()
    assert ours.item() == pytest.approx(loss, abs=1e-6)
    assert (views.grad - gradient).abs().max() < 1e-6


def test_the_order_of_the_instances_does_not_matter_but_the_pairing_does(shared):
    with np.load(shared / "golden" / "nt_xent.npz") as file:
        views, loss = torch.from_numpy(file["dist16_feat_f64"]), file["dist16_loss_f64"].item()
    order = torch.tensor([3, 1, 4, 0, 5, 7, 2, 6])
    assert nt_xent(torch.cat([views[:8][order], views[8:][order]])).item() == pytest.approx(loss, abs=1e-6)
    assert abs(nt_xent(torch.cat([views[:8], views[8:][order]])).item() - loss) > 1e-3


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("rows", [4, 10, 32])
def test_loss_equals_a_slow_loop(rows, temperature):
    views = unit_rows(rows, 5)
    assert nt_xent(views, temperature=temperature).item() == pytest.approx(slow_nt_xent(views, temperature), abs=1e-9)


def test_the_default_temperature_is_the_papers():
    views = unit_rows(8, 3)
    assert nt_xent(views).item() == nt_xent(views, temperature=0.5).item()


@pytest.mark.parametrize(
    ("views", "temperature", "expected"),
    [
        ([[1, 0], [0, 1], [1, 0], [0, 1]], 1.0, math.log(math.e + 2) - 1),
        ([[1, 0], [0, 1], [1, 0], [0, 1]], 0.5, math.log(math.e**2 + 2) - 2),
        ([[1, 0], [1, 0], [0, 1], [0, 1]], 1.0, math.log(math.e + 2)),  # each positive is as far as can be
        ([[1, 0], [1, 0], [1, 0], [1, 0]], 0.5, math.log(3)),
        ([[1, 0], [-1, 0], [1, 0], [-1, 0]], 1.0, math.log(math.e + 2 / math.e) - 1),
    ],
)
def test_loss_by_hand(views, temperature, expected):
    assert nt_xent(torch.tensor(views, dtype=torch.float64), temperature=temperature).item() == pytest.approx(expected)


def test_a_low_temperature_does_not_overflow():
    views = torch.eye(2).repeat(2, 1)
    assert nt_xent(views, temperature=1e-3).item() == pytest.approx(0, abs=1e-6)
    assert nt_xent(views.roll(1, 0)[[0, 1, 3, 2]], temperature=1e-3).item() == pytest.approx(1000, rel=1e-5)


def test_the_docstrings_example():
    outcome = doctest.testmod(training.losses)
    assert outcome.attempted == 1 and outcome.failed == 0


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 5, 7])
def test_too_few_or_an_odd_number_of_rows_is_an_error(rows):
    with pytest.raises(ValueError, match=f"views must be two per instance, of at least two instances; got {rows} rows"):
        nt_xent(torch.ones(rows, 3))


def test_everything_is_made_where_the_views_are():
    """Where tensors without a device would land elsewhere, here on one that holds no data, the loss is the same."""
    views = unit_rows(8, 3)
    expected = nt_xent(views)
    with torch.device("meta"):
        assert nt_xent(views).item() == expected.item()
