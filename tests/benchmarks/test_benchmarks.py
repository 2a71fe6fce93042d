"""The benchmarks run, and each of their checks sees a difference between the formulations; nothing is timed here."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import torch

from benchmarks import cifar10_npz, harness, plain, pool_scale, query, train_step
from common.acceleration import Precision
from common.session import run_command
from utils import InputError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("benchmark", "said"),
    [
        (query, ["scores: both agree", "features: both agree"]),
        (train_step, ["semantic fp32: both agree", "distinctive fp32: both agree"]),
        (pool_scale, ["the same selection from the file as from memory"]),
    ],
    ids=["query", "train_step", "pool_scale"],
)
def test_the_benchmark_runs_quickly_and_agrees(benchmark, said, capsys):
    assert run_command(benchmark.main, ["--quick", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert all(line in printed for line in said)
    assert "x " not in printed  # no ratio of sizes that mean nothing


def test_query_sees_other_scores(monkeypatch):
    monkeypatch.setattr("evals.scores.distinctive_distance", lambda nearest: torch.zeros(len(nearest.similarity)))
    with pytest.raises(AssertionError):
        query.check_agreement(*query.drawn(5, 6))


def test_query_sees_other_features(monkeypatch):
    monkeypatch.setattr(query, "ours_of", lambda *_, **__: torch.zeros(4, 1, query.WIDTH))
    with pytest.raises(AssertionError):
        query.features("resnet8", 6, 1, device=CPU, quick=True)


def test_pool_scale_sees_another_selection(monkeypatch, tmp_path):
    cycles = iter([np.array([1, 2]), np.array([1, 3])])

    class Other:
        @property
        def result(self):
            return type("Result", (), {"indices": next(cycles)})

    monkeypatch.setattr(pool_scale, "first_cycle", lambda *_, **__: Other())
    with pytest.raises(AssertionError):
        pool_scale.check(50, 12, 2, tmp_path, "ccal", device=CPU)


@pytest.mark.parametrize("mode", ["semantic", "distinctive"])
def test_in_float32_the_training_steps_gradients_agree_to_1e5(mode):
    """On a network small enough that no ReLU falls on another side of its kink."""
    work = train_step.Work(mode, "resnet8", Precision(), 4, 8, CPU)
    plain_step, our_step = work.plain(), work.ours()
    assert float(our_step(0)) == pytest.approx(plain_step(0), rel=1e-5)
    assert train_step.relative_error(our_step.encoder, plain_step.encoder) < 1e-5


@pytest.mark.parametrize("mode", ["semantic", "distinctive"])
def test_a_training_step_on_other_draws_is_seen(mode):
    work = train_step.Work(mode, "resnet8", Precision(), 4, 8, CPU)
    work.draws = [draws.flip(2) for draws in work.draws]
    with pytest.raises(AssertionError):
        work.check_agreement()


@pytest.mark.parametrize("seed", [0, 1])
def test_the_plain_jitter_is_the_originals(shared, seed):
    with np.load(shared / "golden" / "augmentations.npz") as file:
        x = torch.from_numpy(file["x"]).float()
        golden = {
            name.removeprefix(f"jitter_seed{seed}_"): torch.from_numpy(np.asarray(file[name])).float().flatten()
            for name in file.files
            if name.startswith(f"jitter_seed{seed}_")
        }
    draws = torch.zeros(len(x), train_step.DRAWS - 1)
    draws[:, 0] = 1 - golden["mask"]
    draws[:, plain.CONTRAST_FIRST] = 1 - golden["contrast_first"]
    draws[:, plain.CONTRAST] = (golden["contrast_factor"] - 0.6) / 0.8
    draws[:, plain.HUE] = (golden["f_h"] + 0.1) / 0.2
    draws[:, plain.SATURATION] = (golden["f_s"] - 0.6) / 0.8
    draws[:, plain.VALUE] = (golden["f_v"] - 0.6) / 0.8
    torch.testing.assert_close(plain.jitter(x, draws), golden["out"].view_as(x), rtol=0, atol=1e-5)


def comparison(**changes):
    fields = {"work": "w", "plain": [4.0, 2.0, 3.0], "ours": [1.0, 1.5, 9.0], "plain_memory": 10.0, "ours_memory": 5.0}
    return harness.Comparison(**fields | changes)


def test_a_comparison_is_of_medians():
    assert comparison().ratio == pytest.approx(2.0)
    assert comparison().share_of_peak is None
    assert comparison(flop=30.0, peak=100.0).share_of_peak == pytest.approx(0.2)


@pytest.mark.slow
def test_a_worker_that_dies_is_an_error_and_no_wait(capfd):
    with pytest.raises(InputError, match="w: the process of ours ended, see above"):
        harness.compare_processes("w", functools.partial(functools.partial, int), dying, device=CPU, repeats=1)


def dying():
    raise RuntimeError("on purpose")


def test_the_report_writes_table_json_and_figure(tmp_path, capsys):
    harness.report("name", [comparison(note="n"), comparison(flop=1.0, peak=1.0)], device=CPU, out_path=str(tmp_path))
    assert "2.00x" in capsys.readouterr().out
    content = json.loads((tmp_path / "name.json").read_text())
    assert [row["ratio"] for row in content["rows"]] == [2.0, 2.0]
    assert {"torch", "git_commit", "device"} <= set(content["machine"])
    assert (tmp_path / "name.png").read_bytes().startswith(b"\x89PNG")


def test_images_that_went_through_jpeg_are_nearly_the_same():
    images = np.tile(np.linspace(0, 255, 32).astype(np.uint8)[:, None, None], (3, 1, 32, 3))
    images[1] = images[1].transpose(1, 0, 2)
    decoded = cifar10_npz.through_jpeg(images, "images")
    assert decoded.dtype == np.uint8 and decoded.shape == images.shape
    assert np.abs(decoded.astype(int) - images).max() <= 8
    assert (decoded[1] != decoded[0]).any() and (decoded[2] == decoded[0]).all()
