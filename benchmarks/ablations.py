"""CCAL with one thing changed at a time, as strategies of a user's own file: what each part of it is worth.

Usage: python benchmark.py --strategies ccal semantic distinctive benchmarks/ablations.py:unfiltered ... --out RUN
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from evals.query import QueryInputs
from evals.scores import Neighbours, add_labeled, automatic_t, distinctive_distance, min_max, semantic_score
from evals.strategies import Strategy
from evals.strategies.ccal import of_pseudo_class

Ablation = partial(Strategy, needs=("semantic", "distinctive"))


def joint(inputs: QueryInputs, *, k: float = 100.0, t: float | str = 0.9, filtered: bool = True) -> Tensor:
    """The joint score; unless ``filtered``, images are candidates of every class, not of their pseudo class alone."""
    normalised = min_max(inputs.scores.similarity)
    t = automatic_t(normalised, inputs.budget) if t == "auto" else t
    values = semantic_score(normalised, k=k, t=t)[:, None] + inputs.scores.distinctive
    return of_pseudo_class(values, inputs) if filtered else values


def unshifted(inputs: QueryInputs) -> Tensor:
    """The joint score with d(u) of the images as they are, without the mean over their shifts."""
    bank, distances = inputs.banks["distinctive"], []
    pool, labeled = bank.of(inputs.pool)[:, :1], bank.of(inputs.labeled)[:, :1]
    for number in range(inputs.num_classes):
        nearest = Neighbours(len(pool), 1, keep=2)
        add_labeled(pool, [nearest], [labeled[inputs.labeled_classes == number]])
        distances.append(distinctive_distance(nearest))
    values = inputs.scores.semantic[:, None] + 1 - min_max(torch.stack(distances, dim=1))
    return of_pseudo_class(values, inputs)


unfiltered = Ablation(partial(joint, filtered=False))  # as in MQ-Net's and DALBenchmark's code
k_10, k_200, k_1000 = (Ablation(partial(joint, k=k)) for k in (10.0, 200.0, 1000.0))  # 200: as in OpenAL's code
t_80, t_95, t_auto = (Ablation(partial(joint, t=t)) for t in (0.8, 0.95, "auto"))
no_shift = Ablation(unshifted)
