"""NEAT by hand and against the plain loop."""

from __future__ import annotations

import numpy as np
import pytest

from evals.strategies import STRATEGIES
from evals.strategies.linear import classifier, features, unit_norm
from evals.strategies.neat import order_by
from tests.evals.strategies.points import order_of, point_inputs, random_inputs


def test_the_order_by_hand():
    """B = 1: of the candidates 0, 1, 2 and 4, the two with the most targets are kept, and one contradicts more."""
    counts = np.array([[9, 0, 1], [10, 0, 0], [3, 3, 4], [2, 3, 5], [0, 8, 2]])
    log_p = np.log([[0.5, 0.5], [0.9, 0.1], [0.1, 0.9], [0.5, 0.5], [0.999, 0.001]])
    inputs = point_inputs(np.zeros((5, 2)), np.eye(2), [0, 1], budget=1)
    # 0: -0.9 log 0.5 = 0.62; 1: -log 0.9 = 0.11; then the other candidates by their targets, and 3, which is none.
    assert order_by(counts, log_p, inputs).tolist() == [0, 1, 4, 2, 3]


@pytest.mark.parametrize("seed", range(3))
def test_neighbours_vote_as_in_the_plain_loop(seed):
    inputs = random_inputs(seed, num_classes=2, budget=6)
    z, unit = features(inputs), features(inputs, unit_norm)
    logits, rows = classifier(z, inputs), []
    for point, row in zip(unit.pool, logits):
        nearest = np.argsort(-(unit.annotated @ point), kind="stable")[:10]
        counts = [int((unit.classes[nearest] == number).sum()) for number in range(3)]
        p = np.exp(row) / np.exp(row).sum()
        contradiction = -sum(count / 10 * np.log(p[number]) for number, count in enumerate(counts[:2]))
        rows.append((counts[0] + counts[1], counts[2], contradiction))
    candidates = [place for place, (known, unknown, _) in enumerate(rows) if known > unknown]
    candidates.sort(key=lambda place: (-rows[place][0], inputs.pool[place]))
    assert len(candidates) > 12
    kept = sorted(candidates[:12], key=lambda place: -rows[place][2])
    order = order_of(STRATEGIES["neat"].utilities(inputs), inputs)
    assert order[:12] == inputs.pool[kept].tolist()
    assert order[12 : len(candidates)] == inputs.pool[candidates[12:]].tolist()
