"""k-center greedy (Sener and Savarese, Active Learning for Convolutional Neural Networks: A Core-Set Approach,
ICLR 2018)."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from evals.query import QueryInputs, dealt
from evals.scores import BLOCK, blocks
from evals.strategies.linear import features, leading


def coreset(inputs: QueryInputs) -> Tensor:
    """Repeatedly u = argmax_u min_c |z_u - z_c|, c being all labeled images and those taken before (Algorithm 1).

    Images of other classes are no centres. The paper's z are its network's; ours are the frozen features.
    """
    z = features(inputs)
    return _farthest_first(z.pool, z.labeled, inputs)


def coreset_others(inputs: QueryInputs) -> Tensor:
    """The same, and images that were set aside are centres, too."""
    z = features(inputs)
    return _farthest_first(z.pool, z.annotated, inputs)


def _farthest_first(pool: np.ndarray, centres: np.ndarray, inputs: QueryInputs) -> Tensor:
    rows = np.argsort(inputs.pool)  # so that the first of equals has the lower index
    pool, taken = pool[rows], []
    squares, centre_squares = (np.einsum("nd,nd->n", points, points) for points in (pool, centres))
    distance = np.empty_like(squares)  # squared, to the nearest centre
    for block in blocks(len(pool), BLOCK):
        distance[block] = squares[block] + (centre_squares - 2 * pool[block] @ centres.T).min(1)
    head, rest = leading(pool)
    head_squares = np.einsum("nd,nd->n", head, head)
    while len(taken) < min(inputs.budget, len(pool)):
        a = int(distance.argmax())
        taken.append(a)
        at_least = head_squares + head_squares[a] - 2 * (head @ head[a]) + np.square(rest - rest[a])
        near = np.flatnonzero(at_least < distance)  # a hundredth of the pool: the others keep their distance
        distance[near] = np.minimum(distance[near], squares[near] + squares[a] - 2 * (pool[near] @ pool[a]))
        distance[taken] = -np.inf
    return dealt(rows[taken], inputs)
