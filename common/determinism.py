"""Runs that are equal bit for bit on one device."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from common.console import log
from utils import InputError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # cuBLAS reads it before its first product
COST = {
    "cpu": "on the CPU two runs with as many threads are equal anyway, so that it costs nothing here",
    "cuda": "the GPU runs only kernels that add in a fixed order, cuDNN tries none out, and --compile auto stays off: "
    "the same steps take longer",
}


@contextlib.contextmanager
def deterministic(wanted: bool, device: torch.device) -> Iterator[None]:
    """Has torch compute everything within the block in a fixed order, and says what that costs.

    Args:
        wanted: Whether it shall; else the block is as it is.
        device: Where it computes.

    Raises:
        InputError: The block needs an operation that this device has in no fixed order.
    """
    if not wanted:
        yield
        return
    cudnn, filling = torch.backends.cudnn, torch.utils.deterministic.fill_uninitialized_memory
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    os.environ.setdefault(WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a help for finding bugs, which takes time
    cudnn.deterministic, cudnn.benchmark = True, False
    log(f"--deterministic: {COST[device.type]}")
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        reason = str(error).split(". ")[0]
        raise InputError(f"--deterministic cannot be kept on this device ({reason}); leave it out here") from None
    finally:
        torch.use_deterministic_algorithms(before[0])
        cudnn.deterministic, cudnn.benchmark = before[1:]
        torch.utils.deterministic.fill_uninitialized_memory = filling
