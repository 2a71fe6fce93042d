"""training/run.py: the folder of a run, what is saved when, and what a checkpoint is refused for."""

import os
import signal

import pytest
import torch
from torch import nn

from common import checkpoint
from common.session import StopRequest
from common.settings import TrainingSettings
from tests.runs import equal
from training.engine import Batches
from training.optim import LearningRate
from training.run import TrainingRun, find_run, run_folder
from utils import Diverged, InputError, Interrupted

LAST, PREVIOUS, MODEL = checkpoint.RESUME_FILE, checkpoint.PREVIOUS_FILE, checkpoint.MODEL_FILE


def settings(**given):
    return TrainingSettings(mode="semantic", **{name: value and str(value) for name, value in given.items()})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "logs/name"),
        ({"suffix": "b"}, "logs/name_b"),
        ({"logdir": "model/semantic/"}, "model/semantic"),
        ({"logdir": "model/semantic", "suffix": "b"}, "model/semantic_b"),
    ],
)
def test_the_runs_folder(given, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(run_folder(settings(**given), name="name")) == expected
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"resume_path": "nowhere"}, rf"--resume_path nowhere holds no {LAST}"),
        ({"resume_path": "run", "logdir": "other"}, "leave --logdir and --suffix out"),
        ({"resume_path": "run", "suffix": "b"}, "leave --logdir and --suffix out"),
        ({"suffix": "a/b"}, "must be part of a folder's name"),
        ({"logdir": "run/file"}, "run/file"),
    ],
)
def test_a_folder_that_cannot_be_a_runs_is_refused(given, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").touch()
    (tmp_path / "run" / PREVIOUS).touch()
    with pytest.raises(InputError, match=message):
        run_folder(settings(**given), name="name")
    assert str(run_folder(settings(resume_path="run", logdir="./run/"), name="name")) == "run"


@pytest.mark.parametrize(
    ("files", "resume", "expected"),
    [
        ([], False, False),
        ([], True, False),
        ([LAST], True, True),
        ([PREVIOUS], True, True),
        ([LAST], False, "already holds a run: continue it with --resume auto"),
        ([PREVIOUS], False, "already holds a run"),
        ([MODEL], False, f"holds a {MODEL}, and no {LAST}"),
        ([MODEL], True, f"holds a {MODEL}, and no {LAST}"),
        (["args.json"], False, "without a checkpoint: start it with --resume auto"),
        (["log.jsonl"], False, "without a checkpoint"),
        (["args.json", "log.jsonl"], True, False),
    ],
)
def test_what_a_folder_may_hold(files, resume, expected, tmp_path):
    for name in [*files, f".{LAST}.abc.tmp", f".{MODEL}.abc.tmp", ".other.abc.tmp"]:
        (tmp_path / name).write_text("before")
    if isinstance(expected, bool):
        assert find_run(tmp_path, resume=resume) is expected
        assert set(os.listdir(tmp_path)) == {*files, ".other.abc.tmp"}  # half-written files go, others' stay
    else:
        with pytest.raises(InputError, match=expected):
            find_run(tmp_path, resume=resume)
        assert len(os.listdir(tmp_path)) == len(files) + 3
    assert all(path.read_text() == "before" for path in tmp_path.iterdir())


# Saving and resuming


def make_run(folder, *, seed=0, batches=None, identity=None):
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1, momentum=0.9)
    rate = LearningRate(optimizer, optimizer_name="sgd", kind="cosine", epochs=20, warmup=10)
    batches, identity = batches or Batches(12, 4), identity or {"seed": 0, "split_digest": "a" * 64}
    return TrainingRun(folder, encoder, (optimizer,), rate, batches, identity, StopRequest())


def train(run, epochs=1):
    """Changes the weights and finishes epochs."""
    for _ in range(epochs):
        for optimizer in run.optimizers:
            optimizer.zero_grad()
        run.encoder(torch.rand(4, 3)).square().sum().backward()
        for optimizer in run.optimizers:
            optimizer.step()
        run.finish_epoch()


def epochs(folder):
    return [checkpoint.load(folder / name)["epoch"] for name in (LAST, PREVIOUS) if (folder / name).exists()]


def test_what_is_saved_is_the_last_finished_epoch_not_the_one_under_way(tmp_path):
    run = make_run(tmp_path)
    train(run, 2)
    finished = {key: value.clone() for key, value in run.encoder.state_dict().items()}
    momenta = [state["momentum_buffer"].clone() for state in run.optimizers[0].state.values()]
    run.encoder(torch.rand(4, 3)).sum().backward()
    run.optimizers[0].step()
    run.save()
    assert equal(checkpoint.load(tmp_path / MODEL), finished)
    resumed = make_run(tmp_path, seed=1)
    resumed.resume(strict=True)
    assert resumed.epoch == 2 and equal(dict(resumed.encoder.state_dict()), finished)
    assert equal([state["momentum_buffer"] for state in resumed.optimizers[0].state.values()], momenta)
    # The next update has the rate that was set after the last of epoch 2's three steps: 0.1 (1 + 9 (1 + 2/3) / 10).
    assert resumed.learning_rate.value == pytest.approx(0.1 * (1 + 0.9 * (1 + 2 / 3)))


def test_a_damaged_checkpoint_never_replaces_the_good_one_before(tmp_path):
    run = make_run(tmp_path)
    for _ in range(2):
        train(run)
        run.save()
    (tmp_path / LAST).write_bytes(b"")
    resumed = make_run(tmp_path)
    resumed.resume(strict=True)
    train(resumed, 2)
    resumed.save()
    assert epochs(tmp_path) == [3, 1]


def test_an_older_last_model_is_written_again_at_a_resume(tmp_path):
    """A kill between the two files of a save leaves one."""
    run = make_run(tmp_path)
    train(run)
    run.save()
    (tmp_path / MODEL).unlink()
    make_run(tmp_path, seed=1).resume(strict=True)
    assert equal(checkpoint.load(tmp_path / MODEL), checkpoint.load(tmp_path / LAST)["model"])


def test_a_stop_saves_the_last_finished_epoch_once(tmp_path):
    run = make_run(tmp_path)
    with StopRequest() as run.stop:
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted, match="no epoch was finished, so nothing is saved"):
        run.save_and_stop()
    assert os.listdir(tmp_path) == []
    train(run)
    for _ in range(2):
        with pytest.raises(Interrupted, match=rf"epoch 1 is in {tmp_path / LAST}; continue with the same flags"):
            run.save_and_stop()
    assert epochs(tmp_path) == [1]  # a second save would have kept the first file


def test_a_time_limit_keeps_free_one_and_a_half_times_the_longest_save(tmp_path, monkeypatch):
    run, now, reserved = make_run(tmp_path), [0.0], []
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr(run.stop, "reserve", reserved.append)
    for seconds in (4.0, 10.0, 2.0):
        monkeypatch.setattr(checkpoint, "save", lambda *_, seconds=seconds, **__: now.append(now.pop() + seconds / 2))
        train(run)
        run.save()  # two files
    assert reserved == [6.0, 15.0, 15.0]


def test_weights_that_are_not_finite_are_not_saved_and_the_last_good_checkpoint_is_named(tmp_path):
    run = make_run(tmp_path)
    with pytest.raises(Diverged, match=r"gone wrong \(the last good checkpoint: none yet\)"):
        with run.naming_its_checkpoint():
            raise Diverged("gone wrong")
    train(run)
    run.save()
    with torch.no_grad():
        run.encoder[0].weight[0, 0] = float("inf")
    run.finish_epoch()
    with pytest.raises(Diverged, match=rf"after epoch 2 \(0\.weight\).*the last good checkpoint: {tmp_path / LAST}"):
        with run.naming_its_checkpoint():
            run.save()
    assert epochs(tmp_path) == [1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 3}, "format_version has a wrong type or value; start a new run"),
        ({"epoch": -1}, "epoch has a wrong type"),
        ({"epoch": None}, "lacks epoch"),
        ({"steps": "3"}, "steps has a wrong type"),
        ({"identity": []}, "identity has a wrong type"),
        ({"identity": {"seed": 1, "split_digest": "b" * 64}}, r"--seed was 1, is 0; another split"),
        ({"model": {"0.weight": 3}}, "model has a wrong type"),
        ({"model": {}}, r"does not fit this encoder: it lacks 0\.weight"),
        ({"optimizers": []}, "does not fit this encoder and its optimizers"),
        ({"optimizers": [{"state": {}, "param_groups": []}]}, "does not fit this encoder and its optimizers"),
        ({"optimizers": 7}, "does not fit this encoder and its optimizers"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(change, message, tmp_path):
    run = make_run(tmp_path)
    train(run)
    run.save()
    content = {**checkpoint.load(tmp_path / LAST), **change}
    checkpoint.save(tmp_path / LAST, {name: value for name, value in content.items() if value is not None})
    with pytest.raises(InputError, match=message):
        make_run(tmp_path).resume(strict=True)


@pytest.mark.parametrize(
    ("earlier", "now", "message"),
    [
        (Batches(12, 4, 2), Batches(12, 4, 2), ""),
        (Batches(12, 2, 2), Batches(12, 4, 1), "the run had 2 process(es) and now has 1, for the same images per step"),
        (Batches(12, 4, 1), Batches(12, 4, 2), "warning: the run had 1 process(es) and now has 2: 8 images per step"),
        # Several processes keep the short last batch: 13 images are 3 steps of 4 with one process, and 4 with two.
        (Batches(13, 4, 1), Batches(13, 2, 2), "4 images per step and 4 steps per epoch instead of 4 and 3"),
        (Batches(13, 4, 1), Batches(13, 2, 2, whole=True), "for the same images per step"),
    ],
)
def test_another_number_of_processes_is_said(earlier, now, message, tmp_path, capsys):
    run = make_run(tmp_path, batches=earlier)
    train(run)
    run.save()
    make_run(tmp_path, batches=now).resume(strict=True)
    out = capsys.readouterr().out
    assert message in out if message else out == ""


def test_another_batch_with_as_many_processes_is_refused(tmp_path):
    run = make_run(tmp_path)
    train(run)
    run.save()
    with pytest.raises(InputError, match="6 images per step and 2 steps per epoch instead of 4 and 3"):
        make_run(tmp_path, batches=Batches(12, 6)).resume(strict=True)
