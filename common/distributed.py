"""One process or many: everything that knows the difference lives here.

Without a launcher there is one process, ``rank()`` is 0, ``world_size()`` is 1 and no process group is made.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils import InputError

TIMEOUT = timedelta(minutes=30)


def setup(device: str = "auto") -> torch.device:
    """Joins the launcher's process group, if there is one, and returns this process's device.

    Args:
        device: ``auto`` (a GPU where there is one), ``cpu`` or ``cuda``.

    Raises:
        InputError: ``cuda`` was asked for and is not there, or there are more processes than GPUs.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no GPU here; use --device cpu or leave --device out")
    use_gpu = device != "cpu" and torch.cuda.is_available()
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", local_rank + 1))
    if use_gpu and here > torch.cuda.device_count():
        raise InputError(
            f"{here} processes on this machine and {torch.cuda.device_count()} GPU(s): "
            f"launch with --nproc_per_node={torch.cuda.device_count()} or use --device cpu"
        )
    chosen = torch.device("cuda", local_rank) if use_gpu else torch.device("cpu")
    if use_gpu:
        torch.cuda.set_device(chosen)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if use_gpu else "gloo", timeout=TIMEOUT, device_id=chosen if use_gpu else None)
    return chosen


@contextlib.contextmanager
def session(device: str = "auto") -> Iterator[torch.device]:
    """``setup`` on entering, leaving the process group on the way out."""
    chosen = setup(device)
    try:
        yield chosen
    finally:
        if _joined():
            dist.destroy_process_group()


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number among all, 0 without a launcher."""
    return dist.get_rank() if _joined() else 0


def world_size() -> int:
    """The number of processes, 1 without a launcher."""
    return dist.get_world_size() if _joined() else 1


def is_main() -> bool:
    """Whether this is the process that writes files."""
    return rank() == 0


def barrier() -> None:
    """Waits until every process is here."""
    if _joined():
        dist.barrier()


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """The first process runs the block before the others do."""
    if not is_main():
        barrier()
    try:
        yield
    finally:
        if is_main():
            barrier()


def is_first_here() -> bool:
    """Whether this is the first process of its machine."""
    return not _joined() or int(os.environ.get("LOCAL_RANK", 0)) == 0


@contextlib.contextmanager
def first_here() -> Iterator[None]:
    """The first process of each machine runs the block before the machine's others do."""
    first = is_first_here()
    if not first:
        barrier()
    try:
        yield
    finally:
        if first:
            barrier()


def all_gather(tensor: Tensor, *, dim: int = 0) -> Tensor:
    """Concatenates every process's tensor along ``dim``, in the order of ranks; gradients flow to each of them.

    All tensors must have the same shape. The backward pass sums the processes' gradients, so with a loss that is
    computed in full by each process DistributedDataParallel's mean gives the gradient of the single-process loss.
    """
    if world_size() == 1:
        return tensor
    import diffdist.functional

    tensor = tensor.contiguous()
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    gathered = diffdist.functional.all_gather(parts, tensor, group=dist.group.WORLD)
    for part in gathered:
        if part.requires_grad:
            # diffdist sends a gradient's memory as it lies, and these are slices along ``dim``.
            part.register_hook(Tensor.contiguous)
    return torch.cat(gathered, dim=dim)


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenates every process's rows (their number may differ) in the order of ranks, without gradients."""
    if world_size() == 1:
        return rows
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    longest = int(max(counts))
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts)])


def gather_objects(value: Any) -> list[Any]:
    """Every process's value, in the order of ranks, at every process."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def largest(value: int) -> int:
    """The largest of the processes' numbers, found by the hosts among themselves: no GPU is waited for."""
    if world_size() == 1:
        return value
    number = torch.tensor(value)
    dist.all_reduce(number, op=dist.ReduceOp.MAX, group=_hosts(dist.group.WORLD))
    return int(number)


@functools.lru_cache(maxsize=1)
def _hosts(world: Any) -> Any:
    """The group of all processes whose tensors are in the hosts' memory; made once, by all of them."""
    return world if dist.get_backend() == "gloo" else dist.new_group(backend="gloo", timeout=TIMEOUT)


def mean_over_processes(values: dict[str, float], device: torch.device) -> dict[str, float]:
    """The mean of each named value over the processes."""
    if world_size() == 1:
        return values
    stacked = torch.tensor([values[name] for name in sorted(values)], dtype=torch.float64, device=device)
    dist.all_reduce(stacked)
    return dict(zip(sorted(values), (stacked / world_size()).tolist()))


def wrap(model: nn.Module, device: torch.device, *, parallel: str = "torch") -> nn.Module:
    """Makes a model train on all processes: synchronised BatchNorm (GPUs only) and averaged gradients.

    Args:
        model: The bare model, already on ``device``; keep it, it is what gets saved.
        parallel: ``torch`` (DistributedDataParallel and SyncBatchNorm) or ``apex``.

    Returns:
        The wrapped model, or ``model`` itself where there is one process.
    """
    if parallel == "apex":
        apex_parallel = _require_apex()
    if world_size() == 1:
        return model
    if parallel == "apex":
        return apex_parallel.DistributedDataParallel(apex_parallel.convert_syncbn_model(model), delay_allreduce=True)
    if device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return nn.parallel.DistributedDataParallel(model, device_ids=[device.index])
    return nn.parallel.DistributedDataParallel(model)


def _require_apex() -> Any:
    try:
        import apex.parallel

        apex.parallel.convert_syncbn_model  # noqa: B018  (the attribute is what newer builds lack)
        return apex.parallel
    except (ImportError, AttributeError):
        raise InputError(
            "--parallel apex needs an NVIDIA apex build that still has apex.parallel, built from source "
            "(the PyPI package named apex is something else); leave the flag out to use torch's own"
        ) from None
