"""The classifier's benchmark: it runs, and its check sees another training."""

from __future__ import annotations

import pytest
import torch

from benchmarks import classifier
from common.session import run_command

CPU = torch.device("cpu")


def test_the_benchmark_runs_quickly_and_agrees(capsys):
    assert run_command(classifier.main, ["--quick", "--device", "cpu"]) == 0
    assert capsys.readouterr().out == "both agree\n"


def test_another_learning_rate_is_seen(monkeypatch):
    def other(*arguments, together):
        monkeypatch.setattr(classifier, "LR", 1e-3)
        return classifier_run(*arguments, together=together)

    classifier_run = classifier.our_run
    monkeypatch.setattr(classifier, "our_run", other)
    with pytest.raises(AssertionError, match="weights differ"):
        classifier.check_agreement(seeds=1, images=8, size=8, device=CPU)


@pytest.mark.gpu
def test_both_agree_on_a_gpu():
    classifier.check_agreement(seeds=2, images=3 * classifier.BATCH, size=32, device=torch.device("cuda"))
