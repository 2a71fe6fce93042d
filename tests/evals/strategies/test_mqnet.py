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
from evals.strategies.mqnet import meta_inputs, net, ranking_loss, trained
from tests.evals.strategies.points import order_of, random_inputs

MODULE = sys.modules["evals.strategies.mqnet"]


def test_purity_and_informativeness_are_standardised_over_the_pool():
    inputs = random_inputs(3)
    bank, columns = inputs.banks["distinctive"], [[], []]
    logits = classifier(features(inputs), inputs)
    for point, row in zip(bank.of(inputs.pool)[:, 0].numpy(), logits):
        labeled = bank.of(inputs.labeled)[:, 0].numpy()
        columns[0].append(max(point @ other / np.linalg.norm(point) / np.linalg.norm(other) for other in labeled))
        columns[1].append(1 - softmax(row).max())
    expected = [(np.array(column) - np.mean(column)) / np.std(column) for column in columns]
    values, found = meta_inputs(inputs)
    np.testing.assert_allclose(values.T, expected, atol=1e-4)
    np.testing.assert_array_equal(found, logits)
    order = order_of(STRATEGIES["mqnet"].utilities(inputs), inputs)  # nothing has been answered: their sum
    assert order == inputs.pool[np.argsort(-values.sum(1))].tolist()


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
    np.testing.assert_allclose(seen[0], values[rows], atol=1e-4)
    np.testing.assert_allclose(seen[1], [*-np.log(p), 0, 0], atol=1e-6)
    weights = trained(seen[0], seen[1], np.random.default_rng(0))
    expected = net(torch.from_numpy(meta_inputs(inputs)[0]).float(), *weights).numpy()
    assert order_of(utilities, inputs) == inputs.pool[np.argsort(-expected)].tolist()
