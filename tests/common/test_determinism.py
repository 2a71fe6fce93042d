"""common/determinism.py, and that --deterministic changes no bit where runs are equal without it."""

import os

import pytest
import torch

import contrast_main
from common.acceleration import wants_compilation
from common.determinism import WORKSPACE, deterministic
from tests.runs import MODES, assert_same_run
from utils import InputError

CPU = torch.device("cpu")


def settings():
    cudnn = torch.backends.cudnn
    return (
        torch.are_deterministic_algorithms_enabled(),
        cudnn.deterministic,
        cudnn.benchmark,
        torch.utils.deterministic.fill_uninitialized_memory,
    )


@pytest.fixture(autouse=True)
def workspace(monkeypatch):
    monkeypatch.delenv(WORKSPACE, raising=False)
    yield
    os.environ.pop(WORKSPACE, None)


def test_the_block_is_in_a_fixed_order_and_what_is_around_it_as_before(monkeypatch, capsys):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = settings()
    with deterministic(True, CPU):
        assert settings() == (True, True, False, False)
        assert os.environ[WORKSPACE] == ":4096:8"
    assert settings() == before
    assert capsys.readouterr().out == (
        "--deterministic: on the CPU two runs with as many threads are equal anyway, so that it costs nothing here\n"
    )
    with pytest.raises(ZeroDivisionError), deterministic(True, CPU):
        raise ZeroDivisionError
    assert settings() == before


def test_on_a_gpu_it_says_what_is_turned_off(monkeypatch, capsys):
    monkeypatch.setenv(WORKSPACE, ":16:8")
    with deterministic(True, torch.device("cuda", 0)):
        assert os.environ[WORKSPACE] == ":16:8"
    assert "cuDNN tries none out, and --compile auto stays off" in capsys.readouterr().out


def test_unwanted_it_does_nothing(capsys):
    before = settings()
    with deterministic(False, CPU):
        assert settings() == before and WORKSPACE not in os.environ
    assert capsys.readouterr().out == ""


def test_an_operation_in_no_fixed_order_is_one_line():
    message = "cumsum_cuda_kernel does not have a deterministic implementation, but you set 'torch.use_deter...'. Turn"
    with pytest.raises(InputError, match=r"cannot be kept on this device \(cumsum_cuda_kernel .*; leave it out here"):
        with deterministic(True, CPU):
            raise RuntimeError(message)
    with pytest.raises(RuntimeError, match="sizes"), deterministic(True, CPU):
        raise RuntimeError("sizes differ")


@pytest.mark.parametrize(
    ("choice", "device", "wanted"), [("auto", "cuda", False), ("on", "cpu", True), ("off", "cuda", False)]
)
def test_a_gpus_kernels_are_not_chosen_by_their_speed(choice, device, wanted):
    assert wants_compilation(choice, torch.device(device), processes=1, deterministic=True) == wanted


def test_compilation_on_a_gpu_excludes_it():
    with pytest.raises(InputError, match="--deterministic wants the same ones each time: give one of them"):
        wants_compilation("on", torch.device("cuda"), processes=1, deterministic=True)


@pytest.mark.parametrize("mode", list(MODES))
def test_a_training_on_the_cpu_is_the_same_run(mode, tmp_path, flags, whole):
    contrast_main.main(flags(mode, "--deterministic", logdir=tmp_path / "run"))
    assert_same_run(tmp_path / "run", whole(mode))


@pytest.mark.gpu
@pytest.mark.parametrize("mode", list(MODES))
def test_two_trainings_on_a_gpu_are_the_same_run(mode, tmp_path, flags):
    for name in ("one", "other"):
        contrast_main.main(flags(mode, "--deterministic", logdir=tmp_path / name, device="cuda"))
    assert_same_run(tmp_path / "one", tmp_path / "other")
