"""What is said about a cycle."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from evals.cycle_report import flat_warning


@pytest.mark.parametrize(
    ("semantic", "distinctive", "share"),
    [
        ([1.0, 0.5, -0.95, -1.0], True, "50 %"),
        ([1.0, 0.5, 0.0, -0.89, -1.0], True, None),  # a fifth, and no more
        ([np.nan] * 4, True, None),
        ([-1.0] * 4, False, None),  # the strategy semantic ranks by the similarity behind S
        ([], True, None),
    ],
)
def test_a_query_on_the_flat_part_of_the_semantic_score_is_warned_of(semantic, distinctive, share):
    scores = SimpleNamespace(distinctive=torch.zeros(9, 2) if distinctive else None)
    result = SimpleNamespace(semantic=np.array(semantic, dtype=np.float32), indices=np.arange(len(semantic)))
    found = flat_warning(SimpleNamespace(number=3, result=result, inputs=SimpleNamespace(scores=scores)))
    assert (found is None) == (share is None)
    if share:
        assert found.startswith(f"cycle 3: for {share} of the query S(u) is below")
