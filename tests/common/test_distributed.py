"""common/distributed.py without a launcher; with several processes see tests/training/test_two_processes.py."""

import pytest
import torch

from common import distributed
from common.failures import is_loss
from utils import InputError


def test_one_process_is_first_and_alone():
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    rows = torch.arange(6.0).view(3, 2)
    assert distributed.all_gather(rows) is rows
    assert distributed.gather_rows(rows) is rows
    assert distributed.gather_objects("value") == ["value"]


@pytest.mark.parametrize("rank", ["0", "3"])
def test_more_processes_than_gpus_are_refused_by_each_before_they_meet(rank, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(InputError, match=r"4 processes on this machine and 1 GPU\(s\): launch with --nproc_per_node=1"):
        distributed.setup("auto")


def test_the_session_ends_without_a_group():
    with distributed.session("cpu") as device:
        assert device == torch.device("cpu")
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (
            RuntimeError("[/src/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer [::1]:1"),
            True,
        ),
        (RuntimeError("Application timeout caused pair closure"), True),
        (torch.distributed.DistBackendError("NCCL error"), True),
        (torch.distributed.DistStoreError("wait"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (InputError("gloo.npz does not exist"), False),
        (OSError("Connection reset by peer"), False),
    ],
)
def test_what_counts_as_the_loss_of_a_process(error, lost):
    assert is_loss(error) == lost
