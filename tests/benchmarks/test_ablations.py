"""The ablations' unchanged form is CCAL, and each change is the one that its name says."""

from __future__ import annotations

import dataclasses

import torch

from benchmarks import ablations
from evals.query import select
from evals.scores import min_max, semantic_score
from evals.strategies import find_strategy
from evals.strategies.ccal import ccal
from tests.evals.test_cycles import make_world


def inputs_of_a_query():
    """With the paper's k and t, which such a small world does not have by itself."""
    inputs = make_world(3).cycles("ccal", cycles=2)[-1].inputs
    semantic = semantic_score(min_max(inputs.scores.similarity), k=100.0, t=0.9)
    return dataclasses.replace(inputs, scores=dataclasses.replace(inputs.scores, semantic=semantic))


def test_without_a_change_the_joint_score_is_ccals():
    inputs = inputs_of_a_query()
    assert torch.equal(ablations.joint(inputs), ccal(inputs))
    assert not torch.equal(ablations.t_80.utilities(inputs), ccal(inputs))


def test_k_and_t_are_those_of_the_semantic_score():
    inputs = inputs_of_a_query()
    semantic = semantic_score(min_max(inputs.scores.similarity), k=10.0, t=0.9)
    found, own = ablations.k_10.utilities(inputs), inputs.scores.pseudo_class
    rows = torch.arange(len(own))
    torch.testing.assert_close(found[rows, own], semantic + inputs.scores.distinctive[rows, own])


def test_without_the_filter_every_image_is_a_candidate_of_every_class():
    inputs = inputs_of_a_query()
    found = ablations.unfiltered.utilities(inputs)
    assert found.isfinite().all() and (ccal(inputs) == -torch.inf).any()
    kept = ccal(inputs) > -torch.inf
    assert torch.equal(found[kept], ccal(inputs)[kept])


def test_shift_0_alone_is_what_a_bank_of_shift_0_gives():
    world = make_world(3)
    bank = world.banks["distinctive"]
    world.banks["distinctive"] = type(bank)(bank.indices, bank.features[:, :1])
    expected = world.cycles("ccal", cycles=1)[0]
    inputs = make_world(3).cycles("ccal", cycles=1)[0].inputs
    found = select(ablations.no_shift.utilities(inputs), inputs, queries_per_class=len(expected.result.indices) // 3)
    torch.testing.assert_close(ablations.no_shift.utilities(inputs), expected.utilities)
    assert len(found.indices)


def test_they_are_strategies_of_a_file(root):
    for name in ("unfiltered", "k_10", "k_200", "k_1000", "t_80", "t_95", "t_auto", "no_shift"):
        assert set(find_strategy(f"{root / 'benchmarks/ablations.py'}:{name}").needs) == {"semantic", "distinctive"}
