"""The benchmarks run, and their two formulations agree; nothing is timed here."""

from __future__ import annotations

import pytest
import torch

from benchmarks import query
from utils import run_cli


def test_query_runs_quickly(capsys):
    assert run_cli(query.main, ["--quick"]) == 0
    assert "both agree" in capsys.readouterr().out


def test_query_sees_a_difference(monkeypatch):
    monkeypatch.setattr(query, "distinctive_distance", lambda nearest: torch.zeros(len(nearest.similarity)))
    features = torch.randn(5, query.SHIFTS, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(AssertionError):
        query.check_agreement(features, features + 0.1, torch.tensor([0, 1, 0, 1, 0]))
