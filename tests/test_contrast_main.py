"""contrast_main.py end to end on a tiny data set: exact resume, refusals, launchers and what a run writes."""

import json
import os
import signal
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import contrast_main
from common import checkpoint
from common.acceleration import Precision
from common.cli import run_cli
from tests.runs import CLOCK, COUNT, MODES, assert_same_run, environment, equal, launch, log_lines, without_clock
from utils import InputError

# Stops by SIGKILL in the middle of an epoch, after the epochs before it were written to the log.
KILLED = """
import os, signal, sys
import contrast_main
train = contrast_main.train_one_epoch

def train_until_killed(model, objective, *rest, epoch, **settings):
    calls = []
    def dying(*batch):
        calls.append(1)
        if epoch == int(os.environ["KILL_IN_EPOCH"]) and len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return objective(*batch)
    return train(model, dying, *rest, epoch=epoch, **settings)

contrast_main.train_one_epoch = train_until_killed
contrast_main.main(sys.argv[1:])
"""


class Stop(Exception):
    """Interrupts a run in this process."""


def interrupt(monkeypatch, epoch):
    """Makes the next run stop in the second step of an epoch."""
    train = contrast_main.train_one_epoch

    def stopping(model, objective, *rest, **settings):
        calls = []

        def dying(*batch):
            calls.append(1)
            if settings["epoch"] == epoch and len(calls) == 2:
                raise Stop
            return objective(*batch)

        return train(model, dying, *rest, **settings)

    monkeypatch.setattr(contrast_main, "train_one_epoch", stopping)


# Exact resume


def test_runs_killed_after_a_checkpoint_resume_bit_for_bit(root, tmp_path, flags, whole):
    killed = {
        mode: subprocess.Popen(
            [sys.executable, "-c", KILLED, *flags(mode, logdir=tmp_path / mode)],
            env=environment(root, KILL_IN_EPOCH="4"),
            stdout=subprocess.DEVNULL,
        )
        for mode in MODES
    }
    for mode, process in killed.items():
        assert process.wait(timeout=120) == -signal.SIGKILL
        folder = tmp_path / mode
        assert checkpoint.load(folder / "last.ckpt")["epoch"] == 2
        assert [line["epoch"] for line in log_lines(folder)] == [1, 2, 3]  # the third is trained and written again
        contrast_main.main(flags(mode, resume_path=folder))
        assert_same_run(folder, whole(mode))


@pytest.mark.slow
def test_the_command_itself_killed_from_outside_resumes_bit_for_bit(root, tmp_path, flags):
    settings = {"epochs": 30, "batch_size": 4, "logdir": tmp_path / "run"}
    process = subprocess.Popen(
        [sys.executable, str(root / "contrast_main.py"), *flags("semantic", **settings)],
        env=environment(root),
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "last.ckpt").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    assert process.wait(timeout=60) == -signal.SIGKILL
    done = checkpoint.load(tmp_path / "run" / "last.ckpt")["epoch"]
    assert done % 2 == 0 and done < 30
    del settings["logdir"]
    contrast_main.main(flags("semantic", **settings, resume_path=tmp_path / "run"))
    contrast_main.main(flags("semantic", **settings, logdir=tmp_path / "whole"))
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(
    ("mode", "epoch", "settings"),
    [
        ("semantic", 3, {}),
        ("distinctive", 4, {}),
        ("semantic", 3, {"optimizer": "adam", "lr_init": 0.001}),
        ("distinctive", 3, {"optimizer": "lars", "lr_scheduler": "step_decay"}),
        ("semantic", 4, {"warmup": 3}),  # resumed within the warm-up
        ("semantic", 3, {"warmup": 0, "lr_scheduler": "step_decay"}),
    ],
)
def test_interrupted_runs_resume_bit_for_bit(mode, epoch, settings, tmp_path, flags, whole, monkeypatch):
    reference = whole(mode, **settings)
    with monkeypatch.context() as patched, pytest.raises(Stop):
        interrupt(patched, epoch)
        contrast_main.main(flags(mode, logdir=tmp_path / "run", **settings))
    assert checkpoint.load(tmp_path / "run" / "last.ckpt")["epoch"] == 2
    torch.rand(5)  # whatever happened since leaves no trace
    contrast_main.main(flags(mode, resume_path=tmp_path / "run", **settings))
    assert_same_run(tmp_path / "run", reference)


def test_a_run_may_be_resumed_again_and_again_and_by_free_flags(tmp_path, flags, whole, monkeypatch):
    folder = tmp_path / "run"
    for number, epoch in enumerate((2, 3, 4)):
        where = {"resume_path": folder} if number else {"logdir": folder}
        with monkeypatch.context() as patched, pytest.raises(Stop):
            interrupt(patched, epoch)
            contrast_main.main(flags("semantic", "--debug", **where, save_step=1))
    contrast_main.main(flags("semantic", resume_path=folder, save_step=3))
    assert_same_run(folder, whole("semantic"))


def test_a_finished_run_resumes_to_itself(tmp_path, flags, whole):
    folder = tmp_path / "run"
    contrast_main.main(flags("semantic", logdir=folder))
    contrast_main.main(flags("semantic", resume_path=folder))
    assert_same_run(folder, whole("semantic"))


def test_a_kill_between_the_two_files_of_the_last_save_is_repaired(tmp_path, flags, whole, monkeypatch):
    folder, save = tmp_path / "run", checkpoint.save

    def dying(path, content):
        if path.name == "last.model" and checkpoint.load(folder / "last.ckpt")["epoch"] == 4:
            raise Stop
        save(path, content)

    with monkeypatch.context() as patched, pytest.raises(Stop):
        patched.setattr(checkpoint, "save", dying)
        contrast_main.main(flags("semantic", logdir=folder))
    contrast_main.main(flags("semantic", resume_path=folder))
    assert_same_run(folder, whole("semantic"))


def test_the_seed_decides_the_run(tmp_path, flags, whole):
    contrast_main.main(flags("semantic", logdir=tmp_path / "again"))
    contrast_main.main(flags("semantic", logdir=tmp_path / "other", seed=1))
    assert_same_run(tmp_path / "again", whole("semantic"))
    assert not equal(checkpoint.load(tmp_path / "other" / "last.model"), checkpoint.load(tmp_path / "again/last.model"))


def test_another_number_of_processes_is_said(tmp_path, flags, whole, capsys):
    content = checkpoint.load(whole("semantic") / "last.ckpt")
    content["rng"] = content["rng"] * 2
    (tmp_path / "run").mkdir()
    checkpoint.save(tmp_path / "run" / "last.ckpt", content)
    contrast_main.main(flags("semantic", resume_path=tmp_path / "run"))
    assert "warning: the run had 2 processes and now has 1" in capsys.readouterr().out


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
    ("words", "message"),
    [
        (["--mode", "semantic", "--shift_trans_type", "rotation"], "SimCLR, which has no shifts: give --shift_trans_"),
        (["--mode", "senmatic", "--shift_trans_type", "cutperm"], "give --shift_trans_type none, not cutperm"),
        (["--mode", "distinctive"], "give --shift_trans_type rotation or cutperm"),
        (["--mode", "feature", "--shift_trans_type", "none"], "--mode distinctive is CSI"),
    ],
)
def test_mode_and_shift_must_belong_together(words, message, tmp_path):
    with pytest.raises(InputError, match=message):
        contrast_main.main([*words, "--logdir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kept", ["last.ckpt", "last.model"])
def test_a_folder_that_holds_a_run_is_refused(kept, finished, flags):
    (finished / ({"last.ckpt", "last.model"} - {kept}).pop()).unlink()
    before = (finished / kept).read_bytes()
    found = {"last.ckpt": "a run: continue it with --resume auto, or", "last.model": r"a last\.model and no last\.ckpt"}
    with pytest.raises(InputError, match=f"already holds {found[kept]}"):
        contrast_main.main(flags("semantic", logdir=finished))
    assert (finished / kept).read_bytes() == before


@pytest.mark.parametrize("kept", ["args.json", "log.jsonl"])
def test_a_run_without_a_checkpoint_is_not_overwritten(kept, finished, flags):
    for name in {"last.ckpt", "last.model", "args.json", "log.jsonl"} - {kept}:
        (finished / name).unlink(missing_ok=True)
    before = b"what an earlier run wrote"
    (finished / kept).write_bytes(before)
    with pytest.raises(InputError, match="ended before its first checkpoint: start it again with --resume auto, or"):
        contrast_main.main(flags("semantic", logdir=finished))
    assert (finished / kept).read_bytes() == before


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("temperature", 0.3, "--temperature was 0.5, is 0.3"),
        ("batch_size", 8, "--batch_size was 16, is 8"),
        ("epochs", 9, "--epochs was 4, is 9"),
        ("model", "resnet20", "--model was resnet8, is resnet20"),
        ("simclr_dim", 8, "--simclr_dim was 16, is 8"),
        ("optimizer", "adam", "--optimizer was sgd, is adam"),
        ("lr_init", 0.2, "--lr_init was 0.1, is 0.2"),
        ("lr_scheduler", "step_decay", "--lr_scheduler was cosine, is step_decay"),
        ("warmup", 2, "--warmup was 1, is 2"),
        ("weight_decay", 0, "--weight_decay was 1e-06, is 0.0"),
        ("resize_factor", 0.2, "--resize_factor was 0.08, is 0.2"),
        ("seed", 1, "--seed was 0, is 1"),
        ("split_seed", 1, "belongs to another split; give the data and split flags of that run"),
        ("mismatch", 0.2, "belongs to another split"),
    ],
)
def test_a_resume_with_other_flags_is_refused_by_name(name, value, message, finished, flags):
    with pytest.raises(InputError, match=message):
        contrast_main.main(flags("semantic", resume_path=finished, **{name: value}))


def test_a_resume_in_the_other_mode_is_refused_by_name(finished, flags):
    with pytest.raises(InputError, match=r"--mode was semantic, is distinctive; --shift_trans_type was none, is rot"):
        contrast_main.main(flags("distinctive", resume_path=finished))


def test_resume_path_must_hold_a_run_and_stands_for_logdir(finished, tmp_path, flags):
    with pytest.raises(InputError, match=r"--resume_path .*nowhere holds no last\.ckpt; name the folder of a run"):
        contrast_main.main(flags("semantic", resume_path=tmp_path / "nowhere"))
    with pytest.raises(InputError, match="continues a run in its own folder: leave --logdir and --suffix out"):
        contrast_main.main(flags("semantic", resume_path=finished, logdir=tmp_path / "elsewhere"))


def test_a_damaged_or_foreign_checkpoint_is_refused(finished, flags):
    resume_file = finished / "last.ckpt"
    resume_file.write_bytes(resume_file.read_bytes()[:1000])
    with pytest.raises(
        InputError, match=r"last\.ckpt is damaged or no checkpoint .* and .*last\.prev\.ckpt is not there"
    ):
        contrast_main.main(flags("semantic", resume_path=finished))
    resume_file.write_bytes((finished / "last.model").read_bytes())
    with pytest.raises(InputError, match="is no resume checkpoint of format version 3"):
        contrast_main.main(flags("semantic", resume_path=finished))


def test_no_strict_resumes_what_fits(finished, flags):
    content = checkpoint.load(finished / "last.ckpt")
    del content["model"]["bn1.bias"]
    content["epoch"] = 3
    checkpoint.save(finished / "last.ckpt", content)
    with pytest.raises(InputError, match=r"does not fit this encoder \(Missing key.*bn1\.bias"):
        contrast_main.main(flags("semantic", resume_path=finished))
    contrast_main.main(flags("semantic", "--no_strict", resume_path=finished))
    assert checkpoint.load(finished / "last.ckpt")["epoch"] == 4


def one_line_error(words, capsys):
    """The only line on stderr of a run that must end with status 2."""
    assert run_cli(contrast_main.main, [str(word) for word in words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert ": error: " in line
    return line


@pytest.mark.parametrize("below", [False, True])
def test_a_file_in_the_way_of_the_logdir_is_one_line(below, tmp_path, flags, capsys):
    file = tmp_path / "file"
    file.write_text("mine")
    assert str(file) in one_line_error(flags("semantic", logdir=file / "run" if below else file), capsys)
    assert file.read_text() == "mine"


def test_apex_that_is_not_there_is_one_line(tmp_path, flags, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "apex", None)
    monkeypatch.setitem(sys.modules, "apex.parallel", None)
    line = one_line_error(flags("semantic", logdir=tmp_path / "run", parallel="apex"), capsys)
    assert "--parallel apex needs an NVIDIA apex build that still has apex.parallel" in line


def test_a_batch_larger_than_the_data_is_one_line(tmp_path, flags, capsys):
    line = one_line_error(flags("semantic", logdir=tmp_path / "run", batch_size=COUNT + 1), capsys)
    assert f"--batch_size {COUNT + 1} is larger than the {COUNT} training images" in line


def test_a_batch_of_one_image_has_no_negatives_and_is_one_line(tmp_path, flags, capsys):
    assert "--batch_size 1" in one_line_error(flags("semantic", logdir=tmp_path / "run", batch_size=1), capsys)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_gpu_that_is_not_there_is_one_line(tmp_path, flags, capsys):
    line = one_line_error(flags("semantic", logdir=tmp_path / "run", device="cuda"), capsys)
    assert "--device cuda: torch sees no GPU here" in line


def test_a_diverging_run_is_one_line_and_keeps_its_checkpoint(tmp_path, flags, capsys):
    words = flags("semantic", logdir=tmp_path / "run", lr_init=1e30, optimizer="sgd", save_step=1, epochs=3)
    line = one_line_error(words, capsys)
    assert "the loss is not finite at epoch 1, step 1, learning rate 1e+30; lower --lr_init" in line


# Every choice runs


@pytest.mark.parametrize("mode", list(MODES))
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "lars"])
@pytest.mark.parametrize("scheduler", ["cosine", "step_decay"])
def test_every_mode_optimizer_and_schedule_trains(mode, optimizer, scheduler, tmp_path, flags):
    settings = {"optimizer": optimizer, "lr_scheduler": scheduler, "lr_init": 0.001, "epochs": 1, "warmup": 0}
    contrast_main.main(flags(mode, logdir=tmp_path / "run", **settings))
    (line,) = log_lines(tmp_path / "run")
    assert all(np.isfinite(value) for value in line.values())
    # e = 2/3 at the last of three steps; both milestones of one epoch are int(1/2) = int(3/4) = 0.
    factor = {"sgd": 0.1, "lars": 0.1, "adam": 0.3}[optimizer] ** 2 if scheduler == "step_decay" else 0.25
    assert line["lr"] == pytest.approx(0.01 * factor)
    initial = contrast_main.build_encoder(
        "resnet8", num_classes=4, shifts=4 if mode == "distinctive" else 1, simclr_dim=16, seed=0
    ).state_dict()
    trained = checkpoint.load(tmp_path / "run" / "last.model")
    still = {name for name in trained if torch.equal(trained[name], initial[name])}
    assert still == (set() if mode == "distinctive" else {"shift_cls_layer.weight", "shift_cls_layer.bias"})


def test_cutperm_trains(tmp_path, flags, whole):
    contrast_main.main(flags("distinctive", logdir=tmp_path / "run", shift_trans_type="cutperm"))
    lines = log_lines(tmp_path / "run")
    assert len(lines) == 4 and without_clock(lines) != without_clock(log_lines(whole("distinctive")))


def test_the_digits_train(tmp_path):
    words = "--mode senmatic --dataset digits --model resnet8 --epoch 1 --batch_size 683 --device cpu --logdir".split()
    contrast_main.main([*words, str(tmp_path / "run")])
    record = json.loads((tmp_path / "run" / "args.json").read_text())
    assert (record["arguments"]["mode"], record["arguments"]["epochs"]) == ("semantic", 1)
    assert checkpoint.load(tmp_path / "run" / "last.model")["linear.weight"].shape == (10, 64)


# What a run writes


def test_args_json(whole, tiny_data):
    record = json.loads((whole("distinctive") / "args.json").read_text())
    wanted = {
        "mode": "distinctive", "shift_trans_type": "rotation", "dataset": "npz", "data_path": str(tiny_data),
        "target_classes": [0, 1], "mismatch": 0.4, "epochs": 4, "batch_size": 16, "temperature": 0.5, "sim_lambda": 1.0,
    }  # fmt: skip
    assert {name: record["arguments"][name] for name in wanted} == wanted
    assert record["processes"] == 1 and record["versions"]["torch"] == torch.__version__
    assert record["split_digest"] == checkpoint.load(whole("distinctive") / "last.ckpt")["split_digest"]


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


def scalars(folder):
    """{(tag, step): value} of the tensorboard files, read record by record."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            found.update({(value.tag, event.step): value.simple_value for value in event.summary.value})
            content = content[16 + length :]
    return found


def test_tensorboard_has_the_logs_values(whole):
    found = scalars(whole("semantic") / "tensorboard")
    expected = {
        (name, line["epoch"]): value
        for line in log_lines(whole("semantic"))
        for name, value in line.items()
        if name != "epoch"
    }
    assert found == pytest.approx(expected, rel=1e-6)


def test_the_checkpoint_is_the_models_state(whole):
    content = checkpoint.load(whole("distinctive") / "last.ckpt")
    assert set(content) == {
        "format_version", "epoch", "model", "optimizers", "rng", "gathered", "arguments", "split_digest",
    }  # fmt: skip
    assert equal(dict(content["model"]), dict(checkpoint.load(whole("distinctive") / "last.model")))
    assert len(content["optimizers"]) == 2 and len(content["rng"]) == 1


def test_what_is_announced(tmp_path, flags, capsys):
    contrast_main.main(flags("semantic", logdir=tmp_path / "run", epochs=1))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        f"semantic encoder resnet8 on npz: {COUNT} images, 3 steps per epoch, epochs 1 to 1, 1 process(es) on cpu, "
        f"{Precision.resolve('auto', torch.device('cpu')).name}"
    )
    assert lines[1].startswith("effective batch 16 images (16 per process; the paper's recipe is 128), learning rate")
    assert lines[2] == f"run folder {tmp_path / 'run'}"
    assert lines[3].startswith("epoch 1/1  loss ") and "test_probe_accuracy" in lines[3]
    assert lines[4] == f"wrote {tmp_path / 'run' / 'last.model'} and {tmp_path / 'run' / 'last.ckpt'}"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, "logs/npz_0.4_resnet8_semantic_none_seed0"),
        ({"suffix": "b"}, "logs/npz_0.4_resnet8_semantic_none_seed0_b"),
        ({"logdir": "model/semantic/"}, "model/semantic"),
        ({"logdir": "model/semantic", "suffix": "b"}, "model/semantic_b"),
    ],
)
def test_the_runs_folder(more, expected, tmp_path, flags, monkeypatch):
    monkeypatch.chdir(tmp_path)
    contrast_main.main(flags("semantic", epochs=1, **more))
    assert {"args.json", "last.ckpt", "last.model", "log.jsonl", "tensorboard"} == set(os.listdir(tmp_path / expected))


# Launchers


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
    assert len(content["rng"]) == 2 and not any(name.startswith("module.") for name in content["model"])


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(MODES))
def test_two_processes_under_torchrun_resume_bit_for_bit(mode, root, tmp_path, flags):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    done = launch(root, "torch.distributed.run", ["contrast_main.py", *flags(mode, logdir=tmp_path / "whole")])
    assert done.returncode == 0, done.stderr
    words = [script, *flags(mode, logdir=tmp_path / "run")]
    assert launch(root, "torch.distributed.run", words, KILL_IN_EPOCH="4").returncode != 0
    assert checkpoint.load(tmp_path / "run" / "last.ckpt")["epoch"] == 2
    done = launch(root, "torch.distributed.run", ["contrast_main.py", *flags(mode, resume_path=tmp_path / "run")])
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "run", tmp_path / "whole")


# Number formats and compilation


def assert_one_line(capsys, *parts):
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and errors[0].count("error:") == 1, errors
    for part in parts:
        assert part in errors[0], errors[0]


def test_the_format_that_auto_means_is_on_record(tmp_path, flags, capsys):
    expected = Precision.resolve("auto", torch.device("cpu")).name
    contrast_main.main(flags(epochs=1, logdir=tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "args.json").read_text())["arguments"]["precision"] == expected
    assert checkpoint.load(tmp_path / "run" / "last.ckpt")["arguments"]["precision"] == expected
    assert f"1 process(es) on cpu, {expected}\n" in capsys.readouterr().out


def test_tf32_on_the_cpu_is_one_line(tmp_path, flags, capsys):
    assert run_cli(contrast_main.main, flags(logdir=tmp_path / "run", precision="tf32")) == 2
    assert_one_line(capsys, "--precision tf32 is a format of GPUs; on the CPU choose auto, fp32 or bf16")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("first", "then"), [("fp32", "bf16"), ("bf16", "fp32")])
def test_a_run_goes_on_in_its_own_format_alone(first, then, tmp_path, flags, capsys):
    folder = tmp_path / "run"
    contrast_main.main(flags(epochs=1, logdir=folder, precision=first))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run_cli(contrast_main.main, flags(epochs=1, resume_path=folder, precision=then)) == 2
    assert_one_line(capsys, f"trained with other flags (--precision was {first}, is {then}); give the same")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("mode", list(MODES))
def test_a_bf16_run_resumes_bit_for_bit(mode, tmp_path, flags, whole, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt(patch, 3)
        with pytest.raises(Stop):
            contrast_main.main(flags(mode, logdir=folder, precision="bf16"))
    contrast_main.main(flags(mode, resume_path=folder, precision="bf16"))
    assert_same_run(folder, whole(mode, precision="bf16"))


def test_compilation_in_two_processes_is_one_line(tmp_path, flags, capsys, monkeypatch):
    ask = contrast_main.acceleration.wants_compilation
    two = {"processes": 2}
    monkeypatch.setattr(contrast_main.acceleration, "wants_compilation", lambda *a, **kw: ask(*a, **{**kw, **two}))
    assert run_cli(contrast_main.main, flags(logdir=tmp_path / "run", compile="on")) == 2
    assert_one_line(capsys, "--compile on works in one process; with several, leave it at auto")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mode", list(MODES))
def test_a_run_whose_compilation_fails_is_the_plain_run(mode, tmp_path, flags, whole, monkeypatch, capsys):
    """Its trial runs the whole step first, and the run is bit for bit what it is without."""

    def compile(function, **settings):
        def compiled(*arguments):
            loss, _ = function(*arguments)
            loss.backward()
            raise RuntimeError("no compiler\nhere")

        return compiled

    monkeypatch.setattr(torch, "compile", compile)
    reference = whole(mode)
    capsys.readouterr()
    contrast_main.main(flags(mode, logdir=tmp_path / "run", compile="on"))
    warnings = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert warnings == [
        "warning: torch.compile failed (RuntimeError: no compiler here); training goes on without it, with the same "
        "result"
    ]
    assert_same_run(tmp_path / "run", reference)
