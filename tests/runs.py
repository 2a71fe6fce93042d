"""What tests of whole training runs share: their settings, other processes, and comparing two runs bit for bit."""

import json
import os
import socket
import subprocess
import sys

import torch

from common import checkpoint
from common.settings import DataSettings
from datasets import load_data_and_split

MODES = {"semantic": ["--mode", "semantic"], "distinctive": ["--mode", "distinctive", "--shift_trans_type", "rotation"]}
COUNT = 50  # training images of run_flags: 6 labeled, 26 more targets and ceil(0.4 * 26 / 0.6) others
CLOCK = ("seconds", "images_per_second")


def run_flags(data, mode="semantic", *more, **settings):
    """The words of a run of contrast_main.py on tiny images, settings over these defaults."""
    given = {
        "dataset": "npz", "data_path": data, "target_classes": "0 1", "initial_budget": 6, "mismatch": 0.4,
        "model": "resnet8", "simclr_dim": 16, "batch_size": 16, "epochs": 4, "warmup": 1, "save_step": 2,
        "error_step": 3, "device": "cpu", **settings,
    }  # fmt: skip
    pairs = [["--" + name, *str(value).split()] for name, value in given.items()]
    return [*MODES[mode], *(word for pair in pairs for word in pair), *more]


def environment(root, **more):
    """Of a process that runs this code, outside of any launcher."""
    kept = {key: value for key, value in os.environ.items() if key not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    return {**kept, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", **more}


def launcher_words(launcher, words):
    """Of two processes of a script."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [sys.executable, "-m", launcher, "--nproc_per_node=2", f"--master_port={port}", *map(str, words)]


def launch(root, launcher, words, **more):
    """Runs a script in two processes to its end."""
    command = launcher_words(launcher, words)
    return subprocess.run(command, env=environment(root, **more), cwd=root, capture_output=True, text=True, timeout=300)


def at_step(patch, action, *, epoch, step):
    """Has the next runs in this process call ``action`` before a step, from 0, of an epoch, from 1."""
    import contrast_main

    train = contrast_main.train_one_epoch

    def train_with_action(model, forward, *rest, **settings):
        steps = []

        def forward_with_action(*batch):
            if (settings["epoch"], len(steps)) == (epoch, step):
                action()
            steps.append(1)
            return forward(*batch)

        return train(model, forward_with_action, *rest, **settings)

    patch.setattr(contrast_main, "train_one_epoch", train_with_action)


def log_lines(folder):
    """Of log.jsonl."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def without_clock(lines):
    """What two equal runs must agree on."""
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in lines]


def equal(one, other):
    """Whether nested values are the same, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def assert_same_run(folder, reference):
    """Weights, optimizers and every logged value but the clock's are the same bit for bit."""
    assert equal(checkpoint.load(folder / "last.model"), checkpoint.load(reference / "last.model"))
    one, other = (checkpoint.load(run / "last.ckpt") for run in (folder, reference))
    for key in ("epoch", "processes", "batch_size", "steps", "identity", "model", "optimizers"):
        assert equal(one[key], other[key]), key
    assert [line["epoch"] for line in log_lines(folder)] == list(range(1, one["epoch"] + 1))
    assert without_clock(log_lines(folder)) == without_clock(log_lines(reference))


def load_split(dataset, data_path="", **settings):
    """load_data_and_split of these settings; a mismatch of None is the default."""
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    return load_data_and_split(DataSettings(dataset=dataset, data_path=str(data_path), **given))
