"""A classifier of the target classes and everything else, trained anew at each cycle on every answer (METHOD 10)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evals.query import QueryInputs
from evals.scores import READ, blocks

HIDDEN, STEPS, BATCH, RATE, WEIGHT_DECAY = 256, 300, 1024, 5e-3, 1e-3
NORM = 8.0  # of a standardised feature vector
UNLABELED_WEIGHT = 0.5  # of an unqueried image as "other"; every answer weighs 1
LABELED_SHARE = 0.25  # of all weight, at least this is the labeled images'
# In the second round, likely targets are no examples of "other": this share of the pool, and whatever is likely at all.
LEFT_OUT, LIKELY = 0.2, 0.1  # the latter of the likelihood that a hundredth of the pool exceeds
LEAST = 0.1  # of the pool: its unlikeliest targets are always examples of "other"
SAMPLE = 100_000  # unqueried images to learn from, at most: a larger pool is only read


def posterior(inputs: QueryInputs) -> Tensor:
    """P(class | features) for each target class, (U, C), by a network whose further output is "other".

    Positive-unlabeled learning: labeled targets by their class, set-aside images as "other", and unqueried ones as
    "other" with a smaller weight. Where the labeled targets are a fair sample of all targets, images rank as by the
    true posterior (Elkan and Noto, KDD 2008). Few others are in some pools, so that a second round drops what the first
    holds for targets from the examples of "other". All features in ``inputs.banks`` are taken, side by side.
    """
    features, negatives = Standardised(inputs), inputs.pool
    for _ in range(2):
        if len(negatives) > SAMPLE:
            negatives = np.sort(inputs.rng.choice(negatives, SAMPLE, replace=False))
        network = _fit(features, inputs, negatives)
        probabilities = [network(features.of(inputs.pool[rows])) for rows in blocks(len(inputs.pool), READ)]
        targets = torch.cat(probabilities).softmax(1)[:, : inputs.num_classes]
        likelihood = targets.sum(1).cpu().numpy()
        top, fifth = np.quantile(likelihood, [0.99, 1 - LEFT_OUT])
        unlikely = likelihood < min(fifth, LIKELY * top)
        if unlikely.mean() < LEAST:  # hardly an image stands apart from the likeliest ones
            unlikely = likelihood <= np.quantile(likelihood, LEAST)
        negatives = inputs.pool[unlikely]
    return targets


class Standardised:
    """Features of unit variance per dimension over all of a query's images, each vector scaled to length NORM.

    Args:
        inputs: Whose ``banks`` stand side by side.
    """

    def __init__(self, inputs: QueryInputs) -> None:
        self._banks, self._device = inputs.banks.values(), inputs.device
        images = np.sort(np.concatenate([inputs.pool, inputs.labeled, inputs.set_aside]))
        sums = torch.zeros(2, 1, dtype=torch.float64, device=self._device)
        for rows in blocks(len(images), READ):
            values = self._raw(images[rows]).double()
            sums = sums + torch.stack([values.sum(0), values.square().sum(0)])
        mean, square = sums / len(images)
        self._mean, self._deviation = mean.float(), (square - mean.square()).clamp(min=1e-12).sqrt().float()

    def of(self, images: np.ndarray) -> Tensor:
        """Features of some images, (n,) to float32 (n, D)."""
        return NORM * F.normalize((self._raw(images) - self._mean) / self._deviation, dim=1)

    def _raw(self, images: np.ndarray) -> Tensor:
        return torch.cat([bank.of(images).flatten(1) for bank in self._banks], dim=1).to(self._device)


def _fit(features: Standardised, inputs: QueryInputs, negatives: np.ndarray) -> nn.Module:
    """The network, trained on batches that are drawn in proportion to the images' weights."""
    classes, others = inputs.num_classes, len(inputs.set_aside) + len(negatives)
    known = features.of(np.concatenate([inputs.labeled, inputs.set_aside, negatives]))
    targets = torch.from_numpy(np.concatenate([inputs.labeled_classes, np.full(others, classes)])).to(known.device)
    weights = torch.ones(len(known))
    weights[len(known) - len(negatives) :] = UNLABELED_WEIGHT
    rest = float(weights[len(inputs.labeled) :].sum())
    balance = LABELED_SHARE / (1 - LABELED_SHARE) * rest / len(inputs.labeled)
    weights[: len(inputs.labeled)] = max(1.0, balance)
    source = torch.Generator().manual_seed(int(inputs.rng.integers(2**63)))
    layers = nn.Linear(known.shape[1], HIDDEN), nn.Linear(HIDDEN, classes + 1)
    for layer in layers:  # PyTorch's own initialisation, from our own stream
        for parameter in layer.parameters():
            bound = layer.in_features**-0.5
            parameter.data = torch.empty_like(parameter).uniform_(-bound, bound, generator=source)
    network = nn.Sequential(layers[0], nn.ReLU(), layers[1]).to(known.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=STEPS)
    with torch.enable_grad():
        for batch in torch.multinomial(weights, STEPS * BATCH, replacement=True, generator=source).split(BATCH):
            batch = batch.to(known.device)
            loss = F.cross_entropy(network(known[batch]), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.requires_grad_(False)
