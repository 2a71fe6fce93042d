"""The classifier's benchmark: it runs, and its check sees another training."""

from __future__ import annotations

import pytest
import torch

from benchmarks import classifier
from common.session import run_command
from train_classifier.engine import LabeledImages, draw_epoch, make_training_step, train_one_epoch
from train_classifier.network import build_network

CPU = torch.device("cpu")


def test_the_benchmark_runs_quickly_and_agrees(capsys):
    assert run_command(classifier.main, ["--quick", "--device", "cpu"]) == 0
    assert capsys.readouterr().out == "both agree\n"


def test_losses_of_both_agree_to_1e5_on_the_same_orders_and_flips():
    images, labels = classifier.drawn(10, 16)
    orders, flips = draw_epoch([3], epoch=1, count=10)
    network, other = (build_network(classifier.CLASSES, seed=3) for _ in range(2))
    optimizer = torch.optim.Adam(network.parameters(), lr=classifier.LR)
    expected = classifier.plain_epoch(network, optimizer, images, labels, orders[0], flips[0])
    step = make_training_step([other.train()], LabeledImages(images, labels), lr=classifier.LR)
    found = train_one_epoch(step, orders, flips, batch_size=classifier.BATCH, device=CPU)
    assert found[:, 0].tolist() == pytest.approx(expected, rel=1e-5)


def test_another_learning_rate_is_seen(monkeypatch):
    def other(*arguments, together):
        monkeypatch.setattr(classifier, "LR", 1e-3)
        return classifier_run(*arguments, together=together)

    classifier_run = classifier.our_run
    monkeypatch.setattr(classifier, "our_run", other)
    with pytest.raises(AssertionError, match="weights differ"):
        classifier.check_agreement(seeds=1, images=8, size=8, device=CPU)


def test_each_seed_is_trained_once_in_groups_of_any_size():
    weights = []
    for together in (1, 2, 3):
        run = classifier.our_run(3, 8, 8, 1, CPU, together=together)
        run()
        weights.append(torch.cat([network.fc.weight.detach() for network in run.networks]))
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])


@pytest.mark.gpu
def test_both_agree_on_a_gpu():
    classifier.check_agreement(seeds=2, images=3 * classifier.BATCH, size=32, device=torch.device("cuda"))
