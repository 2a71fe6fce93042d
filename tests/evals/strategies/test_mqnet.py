"""MQ-Net: its inputs, its loss, and what it learns from the answers."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
import torch
from scipy.special import softmax

from evals.strategies import STRATEGIES
from evals.strategies.linear import classifier, features
from evals.strategies.mqnet import exp_standardised, meta_inputs, net, ranking_loss, trained
from tests.evals.strategies.points import order_of, random_inputs

MODULE = sys.modules["evals.strategies.mqnet"]


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(MODULE, "STEPS", 1)


def test_inputs_and_the_first_cycles_score_by_the_plain_loop():
    inputs = random_inputs(3)
    bank, purity = inputs.banks["distinctive"], []
    logits = classifier(features(inputs), inputs)
    for point in bank.of(inputs.pool)[:, 0].numpy():
        labeled = bank.of(inputs.labeled)[:, 0].numpy()
        purity.append(max(point @ other / np.linalg.norm(point) / np.linalg.norm(other) for other in labeled))
    doubt = [1 - softmax(row).max() for row in logits]
    values, found = meta_inputs(inputs)
    np.testing.assert_allclose(values, np.stack([purity, doubt], axis=1), atol=1e-4)
    np.testing.assert_array_equal(found, logits)
    expected = np.exp((purity - np.mean(purity)) / np.std(purity)) + doubt  # nothing has been answered
    order = order_of(STRATEGIES["mqnet"].utilities(inputs), inputs)
    assert order == inputs.pool[np.argsort(-expected)].tolist()


def test_inputs_are_standardised_and_then_exponentiated():
    """The deviation of 1, 2, 3 and 6 is sqrt(3.5); what does not vary says nothing."""
    found = exp_standardised(np.array([[1.0, 0.3], [2.0, 0.3], [3.0, 0.3], [6.0, 0.3]]))
    np.testing.assert_allclose(found[:, 0], np.exp(np.array([-2, -1, 0, 3]) / 3.5**0.5))
    assert found[:, 1].tolist() == [1, 1, 1, 1]


def test_the_net_by_hand():
    """Negative weights count as 0, so that its value never falls with an input."""
    weights = [[[1.0, -5.0], [2.0, 1.0]], [0.5, 0.0], [3.0, -1.0], 0.25]
    found = net(torch.tensor([[1.0, 2.0], [-1.0, 0.0]]), *map(torch.tensor, weights))
    expected = [3 / (1 + np.exp(-5.5)) + 0.25, 3 / (1 + np.exp(0.5)) + 0.25]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32))


def test_the_ranking_loss_by_hand():
    """Pairs (0, 4) and (1, 3): a right order by 0.4 costs 0.6, a wrong one by 0.5 costs 1.5."""
    output, loss = torch.tensor([0.9, 0.2, 7.0, 0.7, 0.5]), torch.tensor([2.0, 3.0, 9.0, 1.0, 0.0])
    torch.testing.assert_close(ranking_loss(output, loss), torch.tensor((0.6 + 1.5) / 2))


@pytest.mark.parametrize(("count", "steps", "passes"), [(33, 3, 2), (64, 5, 3), (200, 1, 1)])
def test_an_epoch_has_at_least_so_many_steps(count, steps, passes, monkeypatch):
    """Of 33 images the second batch of a pass is a single one, which has no pair; the rate falls at half the epochs."""
    rates, step = [], torch.optim.SGD.step
    monkeypatch.setattr(MODULE, "STEPS", steps)
    monkeypatch.setattr(MODULE, "EPOCHS", 4)

    def note(optimizer):
        rates.append(optimizer.param_groups[0]["lr"])
        step(optimizer)

    monkeypatch.setattr(torch.optim.SGD, "step", note)
    rng = np.random.default_rng(0)
    trained(rng.normal(size=(count, 2)), rng.random(count), rng)
    half = 2 * passes * (1 if count == 33 else -(-count // 32))
    assert rates == [1e-3] * half + [1e-4] * half


@pytest.mark.parametrize("useful", [0, 1])
def test_the_net_learns_which_input_ranks_the_answers(useful, monkeypatch):
    """At a rate of 0.1, as short batches would else need many epochs."""
    monkeypatch.setattr(MODULE, "RATE", 0.1)
    rng = np.random.default_rng(useful)
    values = rng.normal(size=(200, 2))
    weights = trained(values, values[:, useful] - values[:, useful].min(), rng)
    probes = torch.eye(2)[[useful, 1 - useful]]
    high, low = net(probes, *weights)
    assert high > low + 0.2
    assert not any(part.requires_grad for part in weights)


def test_the_latest_answers_are_scored_as_they_were_before(monkeypatch):
    """Of the last query 3 of the 12 labeled and 2 of the 9 set-aside images; their scores are those of that cycle."""
    inputs = random_inputs(4, history=((8, 1), (5, 3)))
    answered = np.concatenate([inputs.labeled[-3:], inputs.set_aside[-2:]])
    earlier = dataclasses.replace(
        inputs,
        pool=np.sort(np.concatenate([inputs.pool, answered])),
        labeled=inputs.labeled[:-3],
        labeled_classes=inputs.labeled_classes[:-3],
        set_aside=inputs.set_aside[:-2],
    )
    values, logits = meta_inputs(earlier)
    rows = np.searchsorted(earlier.pool, answered)
    p = softmax(logits[rows[:3]], axis=1)[np.arange(3), inputs.labeled_classes[-3:]]
    seen = []
    monkeypatch.setattr(MODULE, "trained", lambda *given: seen.extend(given) or trained(*given))
    utilities = STRATEGIES["mqnet"].utilities(inputs)
    np.testing.assert_allclose(seen[0], exp_standardised(values[rows]), rtol=1e-3)
    np.testing.assert_allclose(seen[1], [*-np.log(p), 0, 0], atol=1e-6)
    weights = trained(seen[0], seen[1], np.random.default_rng(0))
    expected = net(torch.from_numpy(exp_standardised(meta_inputs(inputs)[0])).float(), *weights).numpy()
    assert order_of(utilities, inputs) == inputs.pool[np.argsort(-expected)].tolist()
