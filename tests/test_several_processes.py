"""contrast_main.py with another number of processes at each start, and with a run folder that only one of them sees."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

import contrast_main
from common import checkpoint, distributed
from common.session import run_command
from models import ContrastiveEncoder
from models.transform_layers import Augmentation
from tests.processes import run_processes
from tests.runs import assert_same_run, at_step, equal, log_lines, without_clock
from training.engine import Batches, make_forward, train_one_epoch
from training.objectives import SemanticObjective

GLOBAL = 16  # images per step: 3 steps per epoch of the 50 images


def train(words, rank, flags, record, stop_at):
    """contrast_main.py, which notes the images of each step and gets SIGUSR1 in one of them, (epoch, step from 0)."""
    make = contrast_main.make_forward

    def noting(*settings, **more):
        forward = make(*settings, **more)

        def step(chosen, epoch):
            with open(f"{record}.{rank}", "a") as file:
                file.write(json.dumps([int(epoch), chosen.tolist()]) + "\n")
            count = sum(json.loads(line)[0] == int(epoch) for line in open(f"{record}.{rank}"))
            if stop_at == (int(epoch), count - 1) and rank == distributed.world_size() - 1:
                os.kill(os.getpid(), signal.SIGUSR1)
            return forward(chosen, epoch)

        return step

    contrast_main.make_forward = noting
    contrast_main.main(flags)


def seen(record, size):
    """Epoch and images of each step, all processes together."""
    parts = [[json.loads(line) for line in Path(f"{record}.{rank}").read_text().splitlines()] for rank in range(size)]
    assert len({tuple(epoch for epoch, _ in part) for part in parts}) == 1
    return [(step[0][0], [image for _, images in step for image in images]) for step in zip(*parts)]


def global_flags(flags, folder, **settings):
    words = flags("semantic", "--resume", "auto", logdir=folder, batch_size=GLOBAL, **settings)
    words[words.index("--batch_size")] = "--global_batch_size"
    return words


def test_one_then_two_then_one_process_see_the_same_images_at_the_same_rates(tmp_path, flags):
    folder, whole, steps = tmp_path / "run", tmp_path / "whole", []
    for number, (size, stop_at) in enumerate([(1, (2, 1)), (2, (4, 0)), (1, None)]):
        record, words = tmp_path / f"images_{number}", global_flags(flags, folder, error_step=4)
        ended = run_processes(train, tmp_path, words, record, stop_at, size=size)
        assert [process.status for process in ended] == [0] * size, ended[0].told
        # The epoch that is stopped is dropped.
        steps += [(epoch, images) for epoch, images in seen(record, size) if not stop_at or epoch < stop_at[0]]
        if number:
            change = f"the run had {3 - size} process(es) and now has {size}, for the same images per step"
            assert change in ended[0].told
            assert f"effective batch 16 images ({16 // size} per process" in ended[0].told
    words = global_flags(flags, whole, error_step=4)
    assert run_processes(train, tmp_path, words, tmp_path / "images", None, size=1)[0].status == 0
    assert [epoch for epoch, _ in steps] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert steps == seen(tmp_path / "images", 1)
    one, other = log_lines(folder), log_lines(whole)
    assert [line["lr"] for line in one] == [line["lr"] for line in other]


def test_a_global_batch_of_one_process_is_its_batch_bit_for_bit(tmp_path, flags, whole):
    contrast_main.main(global_flags(flags, tmp_path / "run"))
    assert_same_run(tmp_path / "run", whole("semantic"))
    record = json.loads((tmp_path / "run" / "args.json").read_text())
    assert record["arguments"]["global_batch_size"] == 16


def test_a_run_with_a_batch_per_process_goes_on_with_that_global_batch_and_no_other(tmp_path, flags, whole, capsys):
    folder = tmp_path / "run"
    contrast_main.main(flags("semantic", logdir=folder, epochs=4))
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    words = global_flags(flags, folder)
    contrast_main.main(words)  # nothing is left to train, and nothing has been refused
    assert_same_run(folder, whole("semantic"))
    words[words.index("--global_batch_size") + 1] = "20"
    assert run_command(contrast_main.main, words) == 2
    assert "20 images per step and 2 steps per epoch instead of 16 and 3" in capsys.readouterr().err
    assert (folder / "last.ckpt").read_bytes() == before["last.ckpt"]


def test_a_global_batch_that_two_processes_cannot_share_is_one_line_and_makes_no_folder(tmp_path, flags):
    words = global_flags(flags, tmp_path / "run")
    words[words.index("--global_batch_size") + 1] = "15"
    ended = run_processes(train, tmp_path, words, tmp_path / "images", None)
    assert [process.status for process in ended] == [2, 2]
    message = "error: --global_batch_size 15 does not divide among 2 processes: give a multiple of 2, such as 16"
    assert message in ended[0].lines[0] and len(ended[0].lines) == 1
    assert not (tmp_path / "run").exists()


def train_here(words, rank, flags, folders, stop):
    """contrast_main.py with a run folder of this process's own, as on machines that share none."""
    words = [str(folders[rank]) if word == "FOLDER" else str(word) for word in flags]
    if stop:
        at_step(pytest.MonkeyPatch(), lambda: os.kill(os.getpid(), signal.SIGUSR1), epoch=3, step=1)
    contrast_main.main(words)


def test_the_first_processs_folder_is_the_runs_and_others_need_none(tmp_path, flags):
    """Two machines without a shared folder: the second resumes from what the first one reads."""
    own = [tmp_path / "first", tmp_path / "second"]
    shared = [tmp_path / "both"] * 2
    for where, stop in (("logdir", True), ("resume_path", False)):
        for folders in (own, shared):
            words = flags("semantic", **{where: "FOLDER"})
            ended = run_processes(train_here, tmp_path, words, folders, stop)
            assert [process.status for process in ended] == [0, 0], ended[0].told + ended[1].told
    assert equal(checkpoint.load(own[0] / "last.ckpt")["model"], checkpoint.load(shared[0] / "last.ckpt")["model"])
    assert without_clock(log_lines(own[0])) == without_clock(log_lines(shared[0]))
    assert not own[1].exists()


def train_with(words, rank, flags, data):
    """contrast_main.py on data of this process's own."""
    flags = [str(word) for word in flags]
    flags[flags.index("--data_path") + 1] = str(data[rank])
    contrast_main.main(flags)


def test_other_data_on_one_machine_are_noticed(tmp_path, flags, tiny_data):
    arrays = dict(np.load(tiny_data))
    arrays["train_labels"] = arrays["train_labels"][::-1]
    np.savez(tmp_path / "other.npz", **arrays)
    words = flags("semantic", logdir=tmp_path / "run")
    ended = run_processes(train_with, tmp_path, words, [tiny_data, tmp_path / "other.npz"])
    assert [process.status for process in ended] == [2, 2]
    assert len(ended[0].lines) == 1
    assert "the data set is not the same at every process: rank 0 finds " in ended[0].lines[0]
    assert not (tmp_path / "run").exists()


def train_until_killed(words, rank, flags):
    """contrast_main.py, of which the second process is killed in the second epoch."""
    if rank == 1:
        at_step(pytest.MonkeyPatch(), lambda: os.kill(os.getpid(), signal.SIGKILL), epoch=2, step=0)
    contrast_main.main(flags)


def test_a_training_that_loses_a_process_ends_with_one_line_and_keeps_its_checkpoint(tmp_path, flags):
    words = flags("semantic", logdir=tmp_path / "run", save_step=1, timeout_minutes=0.5)
    ended = run_processes(train_until_killed, tmp_path, words)
    assert [process.status for process in ended] == [3, -signal.SIGKILL], ended[0].told
    assert len(ended[0].lines) == 1 and "Traceback" not in ended[0].told, ended[0].told
    assert "rank 0 lost another process" in ended[0].lines[0]
    assert checkpoint.load(tmp_path / "run" / "last.ckpt")["epoch"] == 1
    assert not list((tmp_path / "run").glob("*.tmp"))


class LinearEncoder(ContrastiveEncoder):
    """One linear layer as backbone: without BatchNorm another number of processes only rounds differently."""

    feature_dim = 6

    def __init__(self, **settings):
        super().__init__(**settings)
        self.layer = torch.nn.Linear(48, 6)

    def penultimate(self, images):
        return self.layer(images.flatten(1))


class NoRate:
    value = 0.0

    def set(self, e):
        pass


def train_linear(words, rank, path, epochs):
    """Some epochs of a linear encoder on 21 images in global batches of 8, from the weights in a file on."""
    with distributed.process_group("cpu") as device:
        generator = torch.Generator().manual_seed(3)
        images = torch.randint(0, 256, (21, 3, 4, 4), dtype=torch.uint8, generator=generator)
        torch.manual_seed(0)
        encoder = LinearEncoder(num_classes=3, shifts=1, simclr_dim=5)
        optimizer = torch.optim.SGD(encoder.parameters(), lr=0.5, momentum=0.9)
        if path.exists():
            content = torch.load(path, weights_only=True)
            encoder.load_state_dict(content["model"])
            optimizer.load_state_dict(content["optimizer"])
        model = distributed.wrap(encoder, device)
        forward = make_forward(model, SemanticObjective(Augmentation()), images, torch.arange(21) % 3)
        batches = Batches(21, 8 // distributed.world_size(), distributed.world_size(), whole=True)
        for epoch in epochs:
            train_one_epoch(
                model, forward, torch.arange(21), batches,
                optimizers=(optimizer,), learning_rate=NoRate(), epoch=epoch, seed=1,
            )  # fmt: skip
        if distributed.is_main():
            torch.save({"model": encoder.state_dict(), "optimizer": optimizer.state_dict()}, path)


def test_weights_of_one_then_two_then_one_process_are_those_of_one_up_to_rounding(tmp_path):
    whole, changing = tmp_path / "whole.pt", tmp_path / "changing.pt"
    for path, parts in ((whole, [(1, range(1, 7))]), (changing, [(1, [1, 2]), (2, [3, 4]), (1, [5, 6])])):
        for size, epochs in parts:
            ended = run_processes(train_linear, tmp_path, path, list(epochs), size=size)
            assert [process.status for process in ended] == [0] * size, ended[0].told
    one, other = (torch.load(path, weights_only=True)["model"] for path in (whole, changing))
    start = LinearEncoder(num_classes=3, shifts=1, simclr_dim=5)
    for key, value in one.items():
        assert (value - other[key]).abs().max() < 1e-5, key
    assert not equal(one, dict(start.state_dict()))
