"""contrast_main.py asked to stop, killed, out of disk or started twice: it goes on bit for bit as if uninterrupted."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

import contrast_main
from common import checkpoint
from common.cli import run_cli
from common.lock import folder_lock
from tests.runs import MODES, assert_same_run, environment, launcher_words, log_lines
from utils import Interrupted

SMALL = {"batch_size": 5}  # 10 steps per epoch
STEPS = 10
STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 0}


def signal_in_step(patch, number, *, epoch, step):
    """Has this process get a signal during one step (from 0) of the next run."""
    train = contrast_main.train_one_epoch

    def interrupted(model, forward, *rest, **settings):
        calls = [0] * len(settings["gathered"].rows)

        def sending(*batch):
            if (settings["epoch"], len(calls)) == (epoch, step):
                os.kill(os.getpid(), number)
            calls.append(1)
            return forward(*batch)

        return train(model, sending, *rest, **settings)

    patch.setattr(contrast_main, "train_one_epoch", interrupted)


def stopped(words, patch, number, **place):
    """Runs until the signal stops it; returns what it says."""
    with patch.context() as patched, pytest.raises(Interrupted) as caught:
        signal_in_step(patched, number, **place)
        contrast_main.main(words)
    assert caught.value.status == STATUS[number]
    return str(caught.value)


# Signals and time limits


@pytest.mark.parametrize("mode", list(MODES))
@pytest.mark.parametrize("number", list(STATUS))
def test_a_run_stopped_at_any_step_goes_on_bit_for_bit(mode, number, tmp_path, flags, whole, monkeypatch):
    draw = random.Random(f"{mode} {number}")
    places = [(epoch, draw.randrange(STEPS - 1)) for epoch in (1, 3)]
    words = flags(mode, "--resume", "auto", logdir=tmp_path / "run", **SMALL)
    for epoch, step in places:
        said = stopped(words, monkeypatch, number, epoch=epoch, step=step)
        name = signal.Signals(number).name
        assert said == (
            f"stopped by {name}: epoch {epoch}, step {step + 1} is in {tmp_path}/run/last.ckpt; continue with the same "
            "flags and --resume auto"
        )
        assert len(checkpoint.load(tmp_path / "run" / "last.ckpt")["gathered"][0]["rows"]) == step + 1
        torch.rand(3)  # whatever happened since leaves no trace
    contrast_main.main(words)
    assert_same_run(tmp_path / "run", whole(mode, **SMALL))


@pytest.mark.parametrize("epoch", [1, 2])  # without and with a save at the end of the epoch
def test_a_signal_in_the_last_step_of_an_epoch_stops_behind_its_log_line(epoch, tmp_path, flags, whole, monkeypatch):
    words = flags("semantic", "--resume", "auto", logdir=tmp_path / "run", **SMALL)
    said = stopped(words, monkeypatch, signal.SIGTERM, epoch=epoch, step=STEPS - 1)
    assert f"the end of epoch {epoch} is in" in said
    assert [line["epoch"] for line in log_lines(tmp_path / "run")] == list(range(1, epoch + 1))
    contrast_main.main(words)
    assert_same_run(tmp_path / "run", whole("semantic", **SMALL))


def test_a_signal_in_the_very_last_step_ends_as_a_finished_run(tmp_path, flags, whole, monkeypatch):
    with monkeypatch.context() as patched:
        signal_in_step(patched, signal.SIGTERM, epoch=4, step=STEPS - 1)
        contrast_main.main(flags("semantic", logdir=tmp_path / "run", **SMALL))
    assert_same_run(tmp_path / "run", whole("semantic", **SMALL))


def test_a_time_limit_of_no_time_makes_a_step_each_time(tmp_path, flags, whole):
    words = flags("semantic", "--resume", "auto", logdir=tmp_path / "run", max_minutes=1e-9)
    places = []
    for _ in range(11):  # 4 epochs of 3 steps; after the last one the run is done
        with pytest.raises(Interrupted, match="stopped by --max_minutes 1e-09") as caught:
            contrast_main.main(words)
        assert caught.value.status == 0
        places.append(str(caught.value).split(": ")[1].split(" is in ")[0])
    assert places[:4] == ["epoch 1, step 1", "epoch 1, step 2", "the end of epoch 1", "epoch 2, step 1"]
    contrast_main.main(words)
    assert_same_run(tmp_path / "run", whole("semantic"))


def test_a_time_limit_keeps_the_time_that_saving_takes(tmp_path, flags, monkeypatch):
    """A save of 5 seconds and steps of 1 second leave room for the steps before second 60 - 1.5 * 5 - 1."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    save, train, steps = checkpoint.save_sealed, contrast_main.train_one_epoch, []

    def slow_save(*arguments, **settings):
        now[0] += 5
        save(*arguments, **settings)

    def slow_train(model, forward, *rest, **settings):
        def slow(*batch):
            now[0] += 1
            steps.append(now[0])
            return forward(*batch)

        return train(model, slow, *rest, **settings)

    monkeypatch.setattr(checkpoint, "save_sealed", slow_save)
    monkeypatch.setattr(contrast_main, "train_one_epoch", slow_train)
    words = flags("semantic", logdir=tmp_path / "run", max_minutes=1, epochs=9, save_step=9, **SMALL)
    assert run_cli(contrast_main.main, words) == 0
    assert steps[0] == 6 and steps[-1] == 52 and now[0] == 57  # the rehearsal, 47 steps, the save
    assert not [name for name in os.listdir(tmp_path / "run") if name.startswith(".")]


def start(root, words, **more):
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        env=environment(root, **more),
        cwd=root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_epoch(folder, process, epoch):
    deadline = time.monotonic() + 200
    while not ((folder / "log.jsonl").exists() and len(log_lines(folder)) >= epoch):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    "numbers", [[signal.SIGTERM], pytest.param([*STATUS, signal.SIGKILL], marks=pytest.mark.slow)], ids=["one", "each"]
)
def test_the_command_itself_stopped_from_outside_goes_on_bit_for_bit(numbers, root, tmp_path, flags, whole):
    settings = {"epochs": 12, "batch_size": 4}
    words = {
        number: flags("semantic", "--resume", "auto", logdir=tmp_path / str(int(number)), **settings)
        for number in numbers
    }
    running = {number: start(root, ["contrast_main.py", *words[number]]) for number in numbers}
    for number, process in running.items():
        wait_for_epoch(tmp_path / str(int(number)), process, 2)
        process.send_signal(number)
    for number, process in running.items():
        error = process.communicate(timeout=100)[1]
        assert process.returncode == STATUS.get(number, -number), error
        lines = [line for line in error.splitlines() if "Ctrl-C" not in line]
        assert len(lines) == (number != signal.SIGKILL)
        if lines:
            assert lines[0].startswith(f"contrast_main.py: stopped by {signal.Signals(number).name}: ")
    reference = whole("semantic", **settings)
    for number in words:
        contrast_main.main(words[number])
        assert_same_run(tmp_path / str(int(number)), reference)


# Two processes: rank 1 alone gets the signal, in one step, by way of the objective that KILLED wraps.
SIGNALLED = """
import os, sys
import contrast_main
from common import distributed
from common.cli import run_cli
train = contrast_main.train_one_epoch

def signalled(model, forward, *rest, epoch, gathered, **settings):
    calls = [0] * len(gathered.rows)
    def sending(*batch):
        if distributed.rank() == 1 and f"{epoch} {len(calls)}" == os.environ["AT"]:
            os.kill(os.getpid(), int(os.environ["SIGNAL"]))
        calls.append(1)
        return forward(*batch)
    return train(model, sending, *rest, epoch=epoch, gathered=gathered, **settings)

contrast_main.train_one_epoch = signalled
sys.exit(run_cli(contrast_main.main, sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(MODES))
def test_two_processes_stop_at_one_step_and_go_on_bit_for_bit(mode, root, tmp_path, flags):
    script = tmp_path / "signalled.py"
    script.write_text(SIGNALLED)

    def torchrun(folder, **more):
        words = [script, *flags(mode, "--resume", "auto", logdir=folder, **SMALL)]
        command = launcher_words("torch.distributed.run", words)
        return subprocess.run(
            command, env=environment(root, **more), cwd=root, capture_output=True, text=True, timeout=300
        )

    done = torchrun(tmp_path / "whole", AT="none", SIGNAL="0")
    assert done.returncode == 0, done.stderr
    done = torchrun(tmp_path / "run", AT="1 2", SIGNAL=str(int(signal.SIGTERM)))
    assert done.returncode != 0 and "stopped by SIGTERM: epoch 1, step 3 is in" in done.stderr, done.stderr
    done = torchrun(tmp_path / "run", AT="3 3", SIGNAL=str(int(signal.SIGUSR1)))
    assert done.returncode == 0 and "stopped by SIGUSR1: epoch 3, step 4 is in" in done.stderr, done.stderr
    content = checkpoint.load(tmp_path / "run" / "last.ckpt")
    assert [len(part["rows"]) for part in content["gathered"]] == [4, 4]
    assert not torch.equal(*(part["rows"] for part in content["gathered"]))
    done = torchrun(tmp_path / "run", AT="none", SIGNAL="0")
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_torchruns_own_sigterm_stops_both_processes_behind_a_checkpoint(root, tmp_path, flags, whole):
    folder = tmp_path / "run"
    words = ["contrast_main.py", *flags("semantic", "--resume", "auto", logdir=folder, epochs=300)]
    process = subprocess.Popen(
        launcher_words("torch.distributed.run", words),
        env=environment(root),
        cwd=root,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_epoch(folder, process, 1)
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=100)[1]
    assert process.returncode != 0 and error.count("contrast_main.py: stopped by SIGTERM: ") == 1, error
    content = checkpoint.load(folder / "last.ckpt")
    assert len(content["rng"]) == 2 and content["epoch"] < 300


# Starting and starting again


def test_auto_starts_where_there_is_no_run(tmp_path, flags, whole, monkeypatch, capsys):
    contrast_main.main(flags("semantic", "--resume", "auto", logdir=tmp_path / "run"))
    assert_same_run(tmp_path / "run", whole("semantic"))
    assert "continued" not in capsys.readouterr().out
    contrast_main.main(flags("semantic", "--resume", "auto", logdir=tmp_path / "run"))
    assert_same_run(tmp_path / "run", whole("semantic"))
    assert f"run folder {tmp_path / 'run'}, continued from the end of epoch 4\n" in capsys.readouterr().out


def test_auto_starts_afresh_where_a_run_ended_before_its_first_checkpoint(tmp_path, flags, whole):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(whole("distinctive") / "args.json", folder)
    (folder / "log.jsonl").write_text('{"epoch": 1, "loss": 9}\n{"epoch": 2, "lo')
    (folder / ".last.ckpt.abc123.tmp").write_bytes(b"half a checkpoint")
    contrast_main.main(flags("semantic", "--resume", "auto", logdir=folder))
    assert_same_run(folder, whole("semantic"))
    names = {"args.json", "last.ckpt", "last.prev.ckpt", "last.model", "log.jsonl", "tensorboard"}
    assert set(os.listdir(folder)) == names
    assert '"mode": "semantic"' in (folder / "args.json").read_text()


def test_auto_and_resume_path_exclude_each_other(tmp_path, flags, capsys):
    assert run_cli(contrast_main.main, flags("semantic", "--resume", "auto", resume_path=tmp_path)) == 2
    assert "--resume auto does not: give one of them" in capsys.readouterr().err


@pytest.fixture
def half(tmp_path, flags, monkeypatch):
    """A folder with a run that was stopped within its third epoch, and the words that go on with it."""
    words = flags("semantic", "--resume", "auto", logdir=tmp_path / "run")
    stopped(words, monkeypatch, signal.SIGTERM, epoch=3, step=0)
    return tmp_path / "run", words


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_auto_refuses_other_flags_and_touches_nothing(half, flags, capsys):
    folder, _ = half
    before = files_of(folder)
    assert run_cli(contrast_main.main, flags("semantic", "--resume", "auto", logdir=folder, temperature=0.3)) == 2
    assert "--temperature was 0.5, is 0.3" in capsys.readouterr().err
    assert files_of(folder) == before


def test_a_checkpoint_within_an_epoch_and_another_number_of_processes(half, capsys):
    folder, words = half
    content = checkpoint.load(folder / "last.ckpt")
    content["rng"] *= 2
    content["gathered"] *= 2
    checkpoint.save_sealed(folder / "last.ckpt", content)
    contrast_main.main(words)
    out = capsys.readouterr().out
    assert "the run had 2 processes and now has 1" in out and "epoch 3 starts again at its first step" in out


def test_a_second_run_in_the_folder_stops_and_names_the_first(half, capsys):
    folder, words = half
    with folder_lock(folder):
        before = files_of(folder)
        assert run_cli(contrast_main.main, words) == 2
        assert f"{folder} is in use by process {os.getpid()} on" in capsys.readouterr().err
        assert files_of(folder) == before


# Files that are not whole


def test_a_file_of_version_2_goes_on_with_a_warning(tmp_path, flags, whole, capsys):
    """Such files are from between two epochs, and have no checksum."""
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(Interrupted), pytest.MonkeyPatch.context() as patched:
        signal_in_step(patched, signal.SIGTERM, epoch=2, step=2)
        contrast_main.main(flags("semantic", logdir=folder))
    content = checkpoint.load(folder / "last.ckpt")
    del content["gathered"], content["arguments"]["resume"], content["arguments"]["max_minutes"]
    checkpoint.save(folder / "last.ckpt", {**content, "format_version": 2})
    capsys.readouterr()
    contrast_main.main(flags("semantic", resume_path=folder))
    assert f"warning: {folder}/last.ckpt has no checksum" in capsys.readouterr().out
    assert_same_run(folder, whole("semantic"))


def test_a_damaged_checkpoint_gives_way_to_the_one_before(half, whole, capsys):
    folder, words = half
    last = folder / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1])
    contrast_main.main(words)
    said = capsys.readouterr().out
    assert (
        f"warning: {last} is damaged or no checkpoint (its checksum does not fit); the one before it, {folder}" in said
    )
    assert "continued from the end of epoch 2" in said
    assert_same_run(folder, whole("semantic"))


def test_a_damaged_checkpoint_never_replaces_the_good_one_before(half, flags, monkeypatch):
    folder, words = half
    (folder / "last.ckpt").write_bytes(b"")
    good = (folder / "last.prev.ckpt").read_bytes()
    stopped(words, monkeypatch, signal.SIGTERM, epoch=3, step=1)
    assert (folder / "last.prev.ckpt").read_bytes() == good
    assert checkpoint.load(folder / "last.ckpt")["epoch"] == 2


def test_a_missing_checkpoint_gives_way_to_the_one_before(half, whole, capsys):
    folder, words = half
    (folder / "last.ckpt").unlink()
    contrast_main.main(words)
    assert f"warning: {folder}/last.ckpt is not there; the one before it" in capsys.readouterr().out
    assert_same_run(folder, whole("semantic"))


def test_two_damaged_checkpoints_are_one_line_and_stay(half, capsys):
    folder, words = half
    for name, content in (("last.ckpt", b""), ("last.prev.ckpt", b"PK\x03\x04 nothing")):
        (folder / name).write_bytes(content)
    before = files_of(folder)
    capsys.readouterr()
    assert run_cli(contrast_main.main, words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.count("is damaged or no checkpoint") == 2 and "remove the folder to start anew" in line
    assert files_of(folder) == before


@pytest.mark.parametrize("name", ["last.ckpt", "last.model", "log.jsonl"])
def test_a_full_disk_is_one_line_and_the_earlier_checkpoint_stays(name, half, whole, capsys, monkeypatch):
    folder, words = half
    before = files_of(folder)
    replace, opened = os.replace, open

    def full_at_renaming(source, target):
        if os.fspath(target).endswith(name):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    def full_at_appending(path, mode="r", *more, **settings):
        if mode == "a":
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, mode, *more, **settings)

    capsys.readouterr()
    with monkeypatch.context() as patched:
        # Before a resumed run trains, its last.model is written again.
        if name == "log.jsonl":
            patched.setattr("builtins.open", full_at_appending)
        else:
            patched.setattr(os, "replace", full_at_renaming)
        assert run_cli(contrast_main.main, words) == 3
    assert capsys.readouterr().err.endswith(f": error: No space left on device: {folder / name}\n")
    after = files_of(folder)
    assert after["last.ckpt"] == before["last.ckpt"] and set(after) == set(before)
    contrast_main.main(words)
    assert_same_run(folder, whole("semantic"))


# Numbers that go wrong


def test_a_bad_loss_names_the_last_good_checkpoint(half, capsys, monkeypatch):
    folder, words = half
    train = contrast_main.train_one_epoch

    def spoiled(model, forward, *rest, **settings):
        def bad(*batch):
            loss, stats = forward(*batch)
            return loss * float("nan"), stats

        return train(model, bad, *rest, **settings)

    before = files_of(folder)
    capsys.readouterr()
    with monkeypatch.context() as patched:
        patched.setattr(contrast_main, "train_one_epoch", spoiled)
        assert run_cli(contrast_main.main, words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "the loss is not finite at epoch 3, step 1, learning rate" in line
        assert line.endswith(f"(the last good checkpoint is {folder}/last.ckpt)")
        assert files_of(folder)["last.ckpt"] == before["last.ckpt"]
        shutil.rmtree(folder)
        assert run_cli(contrast_main.main, words) == 2
        assert capsys.readouterr().err.endswith("(there is no checkpoint yet)\n")


def test_weights_that_are_not_finite_are_not_saved(half, capsys, monkeypatch):
    folder, words = half
    train = contrast_main.train_one_epoch

    def spoiling(model, *rest, **settings):
        stats = train(model, *rest, **settings)
        if settings["epoch"] == 4:
            with torch.no_grad():
                model.conv1.weight[0, 0, 0, 0] = float("inf")
        return stats

    before = files_of(folder)
    capsys.readouterr()
    monkeypatch.setattr(contrast_main, "train_one_epoch", spoiling)
    assert run_cli(contrast_main.main, words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the weights are not finite at the end of epoch 4; lower --lr_init" in line
    assert line.endswith(f"(the last good checkpoint is {folder}/last.ckpt)")
    assert files_of(folder)["last.ckpt"] == before["last.ckpt"]
