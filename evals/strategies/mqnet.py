"""MQ-Net (Park et al., Meta-Query-Net: Resolving Purity-Informativeness Dilemma in Open-set Active Learning,
NeurIPS 2022)."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from scipy.special import log_softmax, softmax
from torch import Tensor

from evals.query import QueryInputs, best_first, dealt
from evals.scores import Neighbours, add_labeled
from evals.strategies.linear import classifier, features

UNITS, EPOCHS, STEPS, BATCH, RATE, MARGIN = 64, 100, 100, 32, 1e-3, 1.0


def mqnet(inputs: QueryInputs) -> Tensor:
    """The net's value of (purity, informativeness); before the first answers, exp(z) of purity + informativeness as is.

    Purity is the largest cosine of the distinctive (CSI) encoder's projection, without shift, to a labeled image's.
    Informativeness is 1 - max p. The net takes exp(z) of both, z being standardised over the images that it is given:
    the pool, and in training the latest query. This is the authors' code (kaist-dmlab/MQNet, mode CONF).

    The paper's classifier is a network, and its CSI encoder is trained on the query's own pool; ours are the linear
    model on frozen features and the encoder that is given.
    """
    values, _ = meta_inputs(inputs)
    if not inputs.history:
        return dealt(best_first(inputs, exp_standardised(values[:, 0]) + values[:, 1]), inputs)
    queried, found = inputs.history[-1]
    known, others = len(inputs.labeled) - found, len(inputs.set_aside) - (queried - found)
    before = dataclasses.replace(
        inputs,
        pool=np.concatenate([inputs.labeled[known:], inputs.set_aside[others:], inputs.pool]),
        labeled=inputs.labeled[:known],
        labeled_classes=inputs.labeled_classes[:known],
        set_aside=inputs.set_aside[:others],
    )
    values_then, logits = meta_inputs(before)
    loss = np.zeros(queried)  # of the classifier for known images, 0 for others
    loss[:found] = -log_softmax(logits[:found], axis=1)[np.arange(found), inputs.labeled_classes[known:]]
    weights = trained(exp_standardised(values_then[:queried]), loss, inputs.rng)
    output = net(torch.from_numpy(exp_standardised(values)).float(), *weights)
    return dealt(best_first(inputs, output.numpy()), inputs)


def meta_inputs(inputs: QueryInputs) -> tuple[np.ndarray, np.ndarray]:
    """Purity and informativeness of the pool, (U, 2), and the classifier's logits, (U, C)."""
    bank, nearest = inputs.banks["distinctive"], Neighbours(len(inputs.pool), 1, keep=1)
    add_labeled(bank.of(inputs.pool)[:, :1], [nearest], [bank.of(inputs.labeled)[:, :1].cpu()])
    logits = classifier(features(inputs), inputs)
    return np.stack([nearest.similarity[:, 0, 0].numpy(), 1 - softmax(logits, axis=1).max(1)], axis=1), logits


def exp_standardised(values: np.ndarray) -> np.ndarray:
    """exp((v - mean) / deviation), by column, (n, ...); 1 where nothing varies."""
    deviation = values.std(0)
    return np.exp((values - values.mean(0)) / np.where(deviation > 1e-9, deviation, np.inf))


def net(values: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """sigmoid(x relu(W1) + b1) relu(W2) + b2, (n, 2) to (n,): it rises with both of its inputs."""
    return torch.sigmoid(values @ w1.relu() + b1) @ w2.relu() + b2


def ranking_loss(output: Tensor, loss: Tensor) -> Tensor:
    """mean max(0, 1 - sign(l_i - l_j) (o_i - o_j)) over pairs: the first with the last, and so on inwards."""
    half = len(output) // 2
    outputs, losses = (values[:half] - values.flip(0)[:half] for values in (output, loss))
    return (MARGIN - torch.where(losses > 0, 1.0, -1.0) * outputs).relu().mean()


def trained(values: np.ndarray, loss: np.ndarray, rng: np.random.Generator) -> list[Tensor]:
    """Weights with which the net ranks images, (n, 2), as their losses do, (n,); at first all are drawn from U(0, 1).

    An epoch is as many passes over the images as make 100 steps.
    """
    initial = [rng.random(shape) for shape in ((2, UNITS), UNITS, UNITS, ())]
    weights = [torch.tensor(part, dtype=torch.float32, requires_grad=True) for part in initial]
    optimizer = torch.optim.SGD(weights, lr=RATE)
    values, loss = torch.from_numpy(values).float(), torch.from_numpy(loss).float()
    passes = math.ceil(STEPS / math.ceil(len(values) / BATCH))
    with torch.enable_grad():
        for number in range(EPOCHS * passes):
            optimizer.param_groups[0]["lr"] = RATE if number < EPOCHS // 2 * passes else 0.1 * RATE
            for batch in torch.from_numpy(rng.permutation(len(values))).split(BATCH):
                if len(batch) > 1:
                    optimizer.zero_grad()
                    ranking_loss(net(values[batch], *weights), loss[batch]).backward()
                    optimizer.step()
    return [part.detach() for part in weights]
