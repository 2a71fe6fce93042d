"""contrast_main.py end to end on a tiny data set: exact resume, refusals, launchers and what a run writes."""

import hashlib
import json
import os
import random
import shlex
import signal
import sys

import numpy as np
import pytest
import torch

import contrast_main
from common import checkpoint
from common.acceleration import Precision
from common.paper import recipe_for
from common.session import run_command
from tests.processes import run_processes
from tests.runs import CLOCK, COUNT, MODES, assert_same_run, at_step, equal, launch, log_lines
from utils import InputError

AUTO = Precision.resolve("auto", torch.device("cpu")).name
OTHER_FORMAT = {"fp32": "bf16", "bf16": "fp32"}[AUTO]


class Stop(Exception):
    """Interrupts a run in this process."""


def interrupt(monkeypatch, words, *, epoch):
    """Runs until the second step of an epoch."""

    def stop():
        raise Stop

    with monkeypatch.context() as patched, pytest.raises(Stop):
        at_step(patched, stop, epoch=epoch, step=1)
        contrast_main.main(words)


def one_line_error(words, capsys, status=2):
    """The only line on stderr of a run that must fail."""
    capsys.readouterr()
    assert run_command(contrast_main.main, [str(word) for word in words]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.count("error:") == 1
    return line


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Exact resume


def train_until_killed(words, rank, training_words):
    """A run that is killed before the second step of its fourth epoch."""
    at_step(pytest.MonkeyPatch(), lambda: os.kill(os.getpid(), signal.SIGKILL), epoch=4, step=1)
    contrast_main.main(training_words)


def test_a_run_killed_after_a_checkpoint_resumes_bit_for_bit(tmp_path, flags, whole):
    folder = tmp_path / "run"
    [ended] = run_processes(
        train_until_killed, tmp_path, [str(word) for word in flags("semantic", logdir=folder)], size=1
    )
    assert ended.status == -signal.SIGKILL
    assert checkpoint.load(folder / "last.ckpt")["epoch"] == 2
    assert [line["epoch"] for line in log_lines(folder)] == [1, 2, 3]  # the third is trained and written again
    contrast_main.main(flags("semantic", resume_path=folder))
    assert_same_run(folder, whole("semantic"))


@pytest.mark.parametrize(
    ("mode", "epoch", "settings"),
    [
        ("semantic", 3, {}),
        ("semantic", 3, {"optimizer": "adam", "lr_init": 0.001}),
        ("distinctive", 4, {"optimizer": "lars", "lr_scheduler": "step_decay"}),
        ("semantic", 4, {"warmup": 3}),  # resumed within the warm-up
        ("distinctive", 3, {"warmup": 0, "lr_scheduler": "step_decay", "precision": "bf16"}),
    ],
)
def test_interrupted_runs_resume_bit_for_bit(mode, epoch, settings, tmp_path, flags, whole, monkeypatch):
    folder = tmp_path / "run"
    interrupt(monkeypatch, flags(mode, logdir=folder, **settings), epoch=epoch)
    assert checkpoint.load(folder / "last.ckpt")["epoch"] == 2
    contrast_main.main(flags(mode, resume_path=folder, **settings))
    assert_same_run(folder, whole(mode, **settings))


def test_a_run_may_be_resumed_again_and_again_with_other_settings_that_change_no_result(
    tmp_path, flags, whole, monkeypatch
):
    folder = tmp_path / "run"
    for number, epoch in enumerate((2, 3, 4)):
        where = {"resume_path": folder} if number else {"logdir": folder}
        interrupt(monkeypatch, flags("semantic", "--debug", **where, save_step=1), epoch=epoch)
    contrast_main.main(flags("semantic", resume_path=folder, save_step=3))
    assert_same_run(folder, whole("semantic"))
    contrast_main.main(flags("semantic", resume_path=folder))  # a finished run stays as it is
    assert_same_run(folder, whole("semantic"))


def test_the_seed_decides_the_run_and_no_global_generator_is_used(tmp_path, flags, whole):
    for other_seed in (1, 2):  # of the global generators
        random.seed(other_seed), np.random.seed(other_seed), torch.manual_seed(other_seed)
        before = random.getstate(), np.random.get_state()[1:3], torch.get_rng_state()
        contrast_main.main(flags("semantic", logdir=tmp_path / str(other_seed)))
        after = random.getstate(), np.random.get_state()[1:3], torch.get_rng_state()
        assert before[0] == after[0] and torch.equal(before[2], after[2])
        assert np.array_equal(before[1][0], after[1][0]) and before[1][1] == after[1][1]
        assert_same_run(tmp_path / str(other_seed), whole("semantic"))
    contrast_main.main(flags("semantic", logdir=tmp_path / "other", seed=1))
    assert not equal(checkpoint.load(tmp_path / "other" / "last.model"), checkpoint.load(tmp_path / "1/last.model"))


# Refusals


@pytest.fixture
def finished(tmp_path, whole):
    """A folder with the checkpoint of a finished semantic run."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("last.ckpt", "last.model"):
        (folder / name).write_bytes((whole("semantic") / name).read_bytes())
    return folder


@pytest.mark.parametrize(
    ("mode", "given", "message"),
    [
        ("semantic", {"temperature": 0.3}, r"\(--temperature was 0\.5, is 0\.3\)"),
        ("semantic", {"precision": OTHER_FORMAT}, f"--precision was {AUTO}, is {OTHER_FORMAT}"),
        ("semantic", {"model": "resnet20", "seed": 1}, "--model was resnet8, is resnet20; --seed was 0, is 1"),
        ("distinctive", {}, "--shift_trans_type was none, is rotation; --mode was semantic, is distinctive"),
        ("semantic", {"split_seed": 1}, "another split"),
        ("semantic", {"batch_size": 8}, "8 images per step and 6 steps per epoch instead of 16 and 3"),
    ],
)
def test_a_resume_with_other_settings_is_refused_by_name(mode, given, message, finished, flags):
    before = files_of(finished)
    with pytest.raises(InputError, match=message):
        contrast_main.main(flags(mode, resume_path=finished, **given))
    assert files_of(finished) == before


def test_other_images_with_the_same_labels_are_refused(finished, tiny_data, tmp_path, flags):
    with np.load(tiny_data) as file:
        content = dict(file)
    content["train_images"] = content["train_images"][::-1]
    np.savez(tmp_path / "other.npz", **content)
    with pytest.raises(InputError, match=r"\(other images\): give that run's --data_path"):
        contrast_main.main(flags("semantic", resume_path=finished, data_path=tmp_path / "other.npz"))


def test_no_strict_resumes_what_fits(finished, flags):
    content = checkpoint.load(finished / "last.ckpt")
    del content["model"]["bn1.bias"]
    content["epoch"] = 3
    checkpoint.save(finished / "last.ckpt", content)
    with pytest.raises(InputError, match=r"does not fit this encoder: it lacks bn1\.bias"):
        contrast_main.main(flags("semantic", resume_path=finished))
    contrast_main.main(flags("semantic", "--no_strict", resume_path=finished))
    assert checkpoint.load(finished / "last.ckpt")["epoch"] == 4


def test_a_run_starts_from_an_encoder_which_is_part_of_its_identity(tmp_path, flags, whole, finished, capsys):
    start, other = whole("semantic") / "last.model", tmp_path / "other.model"
    few = {"epochs": 1, "lr_init": 1e-9, "warmup": 0}
    run = tmp_path / "distinctive"
    contrast_main.main(flags("distinctive", logdir=run, init=start, **few))
    assert f"started from {start}; new are shift_cls_layer" in capsys.readouterr().out
    before, after = checkpoint.load(start), checkpoint.load(run / "last.model")
    torch.testing.assert_close(after["layer3.0.conv2.weight"], before["layer3.0.conv2.weight"], rtol=0, atol=1e-6)
    record = json.loads((run / "args.json").read_text())
    assert record["init_digest"] == hashlib.sha256(start.read_bytes()).hexdigest()
    checkpoint.save(other, {**before, "conv1.weight": before["conv1.weight"] + 1})
    for init in ({"init": other}, {}):
        with pytest.raises(InputError, match="other weights to start from.*give that run's --init"):
            contrast_main.main(flags("distinctive", resume_path=run, **few, **init))
    contrast_main.main(flags("distinctive", resume_path=run, **few, init=start))
    with pytest.raises(InputError, match="other weights to start from"):
        contrast_main.main(flags("semantic", resume_path=finished, init=start))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shift_trans_type": "rotation"}, "SimCLR, which has no shifts"),
        ({"parallel": "apex"}, "--parallel apex needs an NVIDIA apex build that still has apex.parallel"),
        ({"batch_size": COUNT + 1}, f"--batch_size {COUNT + 1} is larger than the {COUNT} training images"),
    ],
)
def test_what_cannot_be_trained_is_one_line_and_leaves_nothing(settings, message, tmp_path, flags, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "apex", None)
    monkeypatch.setitem(sys.modules, "apex.parallel", None)
    assert message in one_line_error(flags("semantic", logdir=tmp_path / "run", **settings), capsys)
    assert not (tmp_path / "run").exists()


# Every choice runs


@pytest.mark.parametrize("mode", list(MODES))
@pytest.mark.parametrize(("optimizer", "scheduler"), [("sgd", "cosine"), ("adam", "step_decay"), ("lars", "cosine")])
def test_every_mode_optimizer_and_schedule_trains(mode, optimizer, scheduler, tmp_path, flags):
    settings = {"optimizer": optimizer, "lr_scheduler": scheduler, "lr_init": 0.001, "epochs": 1, "warmup": 0}
    if mode == "distinctive":
        settings["shift_trans_type"] = "cutperm"
    contrast_main.main(flags(mode, logdir=tmp_path / "run", **settings))
    (line,) = log_lines(tmp_path / "run")
    assert all(np.isfinite(value) for value in line.values())
    # e = 2/3 at the last of three steps; both milestones of one epoch are int(1/2) = int(3/4) = 0.
    assert line["lr"] == pytest.approx(0.01 * (0.25 if scheduler == "cosine" else 0.3**2))
    initial = contrast_main.build_encoder(
        "resnet8", num_classes=4, shifts=4 if mode == "distinctive" else 1, simclr_dim=16, seed=0
    ).state_dict()
    trained = checkpoint.load(tmp_path / "run" / "last.model")
    still = {name for name in trained if torch.equal(trained[name], initial[name])}
    assert still == (set() if mode == "distinctive" else {"shift_cls_layer.weight", "shift_cls_layer.bias"})


# What a run writes


def test_args_json(whole, tiny_data):
    record = json.loads((whole("distinctive") / "args.json").read_text())
    wanted = {
        "mode": "distinctive", "shift_trans_type": "rotation", "dataset": "npz", "data_path": str(tiny_data),
        "target_classes": [0, 1], "mismatch": 0.4, "epochs": 4, "batch_size": 16, "temperature": 0.5, "sim_lambda": 1.0,
        "precision": AUTO, "compile": "off",
    }  # fmt: skip
    assert {name: record["arguments"][name] for name in wanted} == wanted
    assert record["processes"] == 1 and record["versions"]["torch"] == torch.__version__
    content = checkpoint.load(whole("distinctive") / "last.ckpt")
    for name in ("split_digest", "images_digest"):
        assert len(record[name]) == 64 and record[name] == content["identity"][name]
    assert content["identity"]["precision"] == wanted["precision"]


def test_log_jsonl(whole):
    semantic, distinctive = (log_lines(whole(mode)) for mode in MODES)
    assert [line["epoch"] for line in semantic] == [1, 2, 3, 4]
    common = {"epoch", "loss", "loss_sim", "loss_probe", "train_probe_accuracy", "lr", *CLOCK}
    assert set(semantic[0]) == common
    assert set(distinctive[0]) == common | {"loss_shift", "train_shift_accuracy"}
    assert ["test_probe_accuracy" in line for line in semantic] == [False, False, True, True]  # each third, and last
    # b (1 + 9 e) up to e = 1, then 10 b (1 + cos(pi (e - 1) / 4)) / 2, with e = epoch - 1/3
    rates = [0.1 * (1 + 9 * 2 / 3)] + [0.5 * (1 + np.cos(np.pi * (epoch - 4 / 3) / 4)) for epoch in (2, 3, 4)]
    assert [line["lr"] for line in semantic] == pytest.approx(rates)
    for line in distinctive:
        assert line["loss"] == pytest.approx(line["loss_sim"] + line["loss_shift"], abs=1e-5)


def test_the_folder_holds_the_run_and_nothing_else(whole):
    assert set(os.listdir(whole("semantic"))) == {
        "args.json", "last.ckpt", "last.prev.ckpt", "last.model", "log.jsonl", "tensorboard",
    }  # fmt: skip
    content = checkpoint.load(whole("semantic") / "last.ckpt")
    assert equal(content["model"], checkpoint.load(whole("semantic") / "last.model"))
    assert (content["epoch"], content["processes"], content["batch_size"], content["steps"]) == (4, 1, 16, 3)


# The command that follows


def next_words(words, folder, **more):
    settings = contrast_main.PARSER.parse([str(word) for word in words])
    recipe = recipe_for("digits", pool=100, classes=2)
    command = contrast_main.next_command(settings, folder, recipe, **{"annotate": False, **more})
    return shlex.split(command)[1:]


def test_the_first_encoder_is_followed_by_the_other_with_the_same_settings(tmp_path, flags):
    """Word for word what the parser takes, with everything but the mode, the shifts and the folder."""
    words = flags("semantic", logdir=tmp_path / "my_semantic_run", seed=3, resume="auto", resize_factor=0.2)
    script, *found = next_words(words, tmp_path / "my_semantic_run")
    assert script == "contrast_main.py"
    expected = contrast_main.PARSER.parse(
        flags("distinctive", logdir=tmp_path / "my_distinctive_run", seed=3, resize_factor=0.2)
    )
    assert contrast_main.PARSER.parse(found) == expected
    assert next_words(flags("distinctive", logdir=tmp_path / "x"), tmp_path / "x")[1:3] == ["--mode", "semantic"]


@pytest.mark.parametrize("first", list(MODES))
def test_the_second_encoder_is_followed_by_the_query(first, tmp_path, flags):
    for name in MODES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "last.model").touch()
        (tmp_path / f"my_{name}").mkdir()
        (tmp_path / f"my_{name}" / "last.model").touch()
    words = flags(first, mismatch=0.3)
    script, *found = next_words(words, tmp_path / first)
    assert script == "active_main.py"
    pairs = dict(zip(found, found[1:]))
    assert pairs["--load_path"] == str(tmp_path) and pairs["--mismatch"] == "0.3" and "--mode" not in found
    assert pairs["--shift_trans_type"] == "rotation" and pairs["--views"] == "10" and pairs["--resize_factor"] == "0.54"
    assert pairs["--queries_per_class"] == "2" and "--epochs" not in found  # 100 * 1500 / 46001 / 2 rounds to 2
    found = next_words(words, tmp_path / f"my_{first}", annotate=True)
    pairs = dict(zip(found, found[1:]))
    assert "--annotate" in found and "--queries_per_class" not in found
    for name in MODES:
        assert pairs[f"--load_{name}_path"] == str(tmp_path / f"my_{name}" / "last.model")


def test_images_that_people_label_are_queried_with_the_semantic_encoder_alone(tmp_path, flags):
    folder = tmp_path / "semantic"
    script, *found = next_words(flags("semantic"), folder, annotate=True)
    pairs = dict(zip(found, found[1:]))
    assert script == "active_main.py" and pairs["--strategy"] == "posterior"
    assert pairs["--load_semantic_path"] == str(folder / "last.model")
    assert pairs["--index_dir"] == str(tmp_path / "query") and "--annotate" in found and "--views" not in found


# Launchers


@pytest.mark.slow
def test_the_legacy_launcher_runs_two_processes(root, tmp_path, flags):
    words = flags("semantic", epochs=2, logdir=tmp_path / "run")
    done = launch(root, "torch.distributed.launch", ["contrast_main.py", *words])
    assert done.returncode == 0, done.stderr
    assert "effective batch 32 images (16 per process" in done.stdout
    assert done.stdout.count("epoch 2/2") == 1  # one process speaks
    assert [line["epoch"] for line in log_lines(tmp_path / "run")] == [1, 2]
    record = json.loads((tmp_path / "run" / "args.json").read_text())
    assert record["processes"] == 2 and record["arguments"]["mode"] == "semantic"
    content = checkpoint.load(tmp_path / "run" / "last.ckpt")
    assert content["processes"] == 2 and not any(name.startswith("module.") for name in content["model"])
