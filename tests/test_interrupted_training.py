"""contrast_main.py asked to stop, killed or out of disk: it goes on bit for bit as if uninterrupted."""

import os
import shutil
import signal

import pytest

import contrast_main
from common import checkpoint, distributed
from common.session import run_command
from tests.processes import run_processes
from tests.runs import assert_same_run, at_step, log_lines
from utils import Interrupted

STEPS = 3  # per epoch
STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 0}


def stopped(words, monkeypatch, number=signal.SIGTERM, **place):
    """Runs until a signal during one step stops it; returns the last line that it prints."""
    with monkeypatch.context() as patched, pytest.raises(Interrupted) as caught:
        at_step(patched, lambda: os.kill(os.getpid(), number), **place)
        contrast_main.main(words)
    assert caught.value.status == STATUS[number]
    return str(caught.value)


# Signals and time limits


@pytest.mark.parametrize(
    ("number", "mode"), [(signal.SIGTERM, "semantic"), (signal.SIGINT, "distinctive"), (signal.SIGUSR1, "semantic")]
)
def test_a_run_stopped_within_an_epoch_goes_on_after_the_one_before_bit_for_bit(
    number, mode, tmp_path, flags, whole, monkeypatch
):
    folder, name = tmp_path / "run", signal.Signals(number).name
    words = flags(mode, "--resume", "auto", logdir=folder)
    line = stopped(words, monkeypatch, number, epoch=1, step=1)
    assert line.startswith(f"stopped by {name}: no epoch was finished, so nothing is saved")
    for epoch, step in ((2, 0), (4, 1)):
        line = stopped(words, monkeypatch, number, epoch=epoch, step=step)
        assert line == (
            f"stopped by {name}: epoch {epoch - 1} is in {folder}/last.ckpt; continue with the same flags and "
            "--resume auto"
        )
        assert checkpoint.load(folder / "last.ckpt")["epoch"] == epoch - 1
        assert [line["epoch"] for line in log_lines(folder)] == list(range(1, epoch))
    contrast_main.main(words)
    assert_same_run(folder, whole(mode))


@pytest.mark.parametrize("epoch", [1, 2])  # without and with a save at the end of the epoch
def test_a_signal_in_the_last_step_of_an_epoch_lets_it_finish(epoch, tmp_path, flags, whole, monkeypatch):
    words = flags("semantic", "--resume", "auto", logdir=tmp_path / "run")
    assert f": epoch {epoch} is in " in stopped(words, monkeypatch, epoch=epoch, step=STEPS - 1)
    assert [line["epoch"] for line in log_lines(tmp_path / "run")] == list(range(1, epoch + 1))
    contrast_main.main(words)
    assert_same_run(tmp_path / "run", whole("semantic"))


def test_a_signal_in_the_very_last_step_ends_as_a_finished_run(tmp_path, flags, whole, monkeypatch):
    with monkeypatch.context() as patched:
        at_step(patched, lambda: os.kill(os.getpid(), signal.SIGTERM), epoch=4, step=STEPS - 1)
        contrast_main.main(flags("semantic", logdir=tmp_path / "run"))
    assert_same_run(tmp_path / "run", whole("semantic"))


def test_a_time_limit_saves_the_last_finished_epoch_and_ends_with_status_0(tmp_path, flags, whole, monkeypatch, capsys):
    """The limit is that of 5 seconds before its end, in the middle of the third epoch."""
    folder = tmp_path / "run"
    words = flags("semantic", "--resume", "auto", logdir=folder)
    with monkeypatch.context() as patched:
        at_step(patched, lambda: os.kill(os.getpid(), signal.SIGALRM), epoch=3, step=1)
        assert run_command(contrast_main.main, [*words, "--max_minutes", "60"]) == 0
    line = capsys.readouterr().err
    assert f"stopped by --max_minutes 60: epoch 2 is in {folder}/last.ckpt" in line
    contrast_main.main(words)
    assert_same_run(folder, whole("semantic"))


# Two processes


def train_with_signal(words, rank, training_words, number, epoch):
    """What each process does; rank 1 alone gets the signal, during the second step of an epoch."""
    if rank == 1 and number:
        at_step(pytest.MonkeyPatch(), lambda: os.kill(os.getpid(), number), epoch=epoch, step=1)
    contrast_main.main(training_words)
    assert distributed.world_size() == 1  # the group was left


def test_two_processes_stop_at_one_step_and_go_on_bit_for_bit(tmp_path, flags):
    def run(folder, number=0, epoch=0):
        words = flags("semantic", "--resume", "auto", logdir=folder, batch_size=8)
        ended = run_processes(train_with_signal, tmp_path, list(map(str, words)), number, epoch)
        return [process.status for process in ended], "".join(process.told for process in ended)

    assert run(tmp_path / "whole")[0] == [0, 0]
    statuses, text = run(tmp_path / "run", int(signal.SIGTERM), 3)
    assert statuses == [143, 143] and "stopped by SIGTERM: epoch 2 is in" in text
    assert run(tmp_path / "run")[0] == [0, 0]
    assert checkpoint.load(tmp_path / "run" / "last.ckpt")["processes"] == 2
    assert_same_run(tmp_path / "run", tmp_path / "whole")


# Starting and starting again


def test_auto_starts_where_there_is_no_run_and_stays_at_the_end_of_a_finished_one(tmp_path, flags, whole, capsys):
    words = flags("semantic", "--resume", "auto", logdir=tmp_path / "run")
    contrast_main.main(words)
    assert "continued" not in capsys.readouterr().out
    contrast_main.main(words)
    assert_same_run(tmp_path / "run", whole("semantic"))
    assert f"run folder {tmp_path / 'run'}, continued after epoch 4\n" in capsys.readouterr().out


def test_auto_starts_afresh_where_a_run_ended_before_its_first_checkpoint(tmp_path, flags, whole):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(whole("distinctive") / "args.json", folder)
    (folder / "log.jsonl").write_text('{"epoch": 1, "loss": 9}\n{"epoch": 2, "lo')
    (folder / ".last.ckpt.abc123.tmp").write_bytes(b"half a checkpoint")
    contrast_main.main(flags("semantic", "--resume", "auto", logdir=folder))
    assert_same_run(folder, whole("semantic"))
    assert set(os.listdir(folder)) == set(os.listdir(whole("semantic")))
    assert '"mode": "semantic"' in (folder / "args.json").read_text()


def test_a_diverging_run_is_one_line_and_keeps_its_checkpoint(tmp_path, flags, capsys):
    words = flags("semantic", logdir=tmp_path / "run", lr_init=1e30, save_step=1)
    assert run_command(contrast_main.main, words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the loss is not finite at epoch 1, step 1, learning rate 1e+30; lower --lr_init" in line
    assert line.endswith("(the last good checkpoint: none yet)")
