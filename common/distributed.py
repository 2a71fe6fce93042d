"""One process or many: everything that knows the difference lives here.

Without a launcher there is one process, ``rank()`` is 0, ``world_size()`` is 1 and no process group is made.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils import InputError, ProcessLost, is_first_process, launcher

T = TypeVar("T")
DEFAULT_TIMEOUT = 30.0  # minutes

WORDS_OF_LOSS = ("gloo", "nccl", "pair closure", "connection closed", "connection reset", "broken pipe", "timed out")

_timeout = timedelta(minutes=DEFAULT_TIMEOUT)


@contextlib.contextmanager
def process_group(
    device: str = "auto", *, timeout_minutes: float = DEFAULT_TIMEOUT, alone: bool = False
) -> Iterator[torch.device]:
    """Joins the launcher's processes, if there are any, yields this process's device, and leaves them at the end.

    Args:
        device: ``auto`` (a GPU where there is one), ``cpu`` or ``cuda``.
        timeout_minutes: How long this process waits for the others, at the start and in every exchange.
        alone: Whether this process works by itself and joins nobody.

    Raises:
        InputError: ``cuda`` was asked for and is not there, or there are more processes than GPUs.
        ProcessLost: Another process did not come, is gone, or does not answer.
    """
    chosen = choose_device(device)
    try:
        if launcher().world_size > 1 and not alone:
            _join(chosen, timeout_minutes)
        yield chosen
        barrier()
    except RuntimeError as error:
        if not _is_loss(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise ProcessLost(
            f"rank {launcher().rank} lost another process, or waited {timeout_minutes:g} minutes (--timeout_minutes) "
            f"for it in vain: see what that one says, or the launcher's report ({reason})"
        ) from error
    finally:
        _hosts.cache_clear()
        if _joined():
            dist.destroy_process_group()


def choose_device(device: str) -> torch.device:
    """This process's device, for --device; see process_group."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no GPU here; use --device cpu or leave --device out")
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    here, gpus = launcher(), torch.cuda.device_count()
    if here.local_world_size > gpus:
        remedy = f"launch with --nproc_per_node={gpus} or use --device cpu"
        raise InputError(f"{here.local_world_size} processes on this machine and {gpus} GPU(s): {remedy}")
    torch.cuda.set_device(here.local_rank)
    return torch.device("cuda", here.local_rank)


def _join(device: torch.device, timeout_minutes: float) -> None:
    global _timeout
    # Its functions' default arguments keep the group that there is at the import. Kept to the end of the interpreter,
    # gloo's threads abort the process now and then (SIGABRT).
    import diffdist.functional  # noqa: F401

    _timeout = timedelta(minutes=timeout_minutes)
    on_gpu = device.type == "cuda"
    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=_timeout, device_id=device if on_gpu else None)
    except (RuntimeError, TimeoutError, ValueError) as error:  # of a store, a network, or the launcher's environment
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        missed = f"rank {launcher().rank} did not meet the other processes at {address}"
        raise ProcessLost(f"{missed} within {timeout_minutes:g} minutes: {reason}") from error


def _is_loss(error: RuntimeError) -> bool:
    """Whether an exchange has failed; gloo's errors have no class of their own."""
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in WORDS_OF_LOSS)


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
def first_here() -> Iterator[None]:
    """The first process of all runs the block, then the first of each other machine, then all others.

    So what the block fetches is fetched once per machine, and once in all where the machines share the folder.
    """
    turn = 0 if is_main() else 1 if is_first_process(on_this_machine=True) else 2
    for _ in range(turn):
        barrier()
    yield
    for _ in range(2 - turn):
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


def from_first(ask: Callable[[], T]) -> T:
    """At every process what ``ask``, called at the first alone, returns or raises (InputError or OSError) there."""
    answer: list[Any] = [None, None]
    if is_main():
        try:
            answer[0] = ask()
        except (InputError, OSError) as error:
            answer[1] = error
    if world_size() > 1:
        dist.broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def require_same(value: Any, what: str) -> None:
    """Checks that every process has found the same.

    Raises:
        InputError: They have not; every process gets the same message, which says what two of them found.
    """
    values = gather_objects(value)
    for number, found in enumerate(values):
        if found != values[0]:
            raise InputError(f"{what}: rank 0 finds {values[0]} and rank {number} finds {found}; give both the same")


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
    return world if dist.get_backend() == "gloo" else dist.new_group(backend="gloo", timeout=_timeout)


def mean_over_processes(values: dict[str, float], device: torch.device) -> dict[str, float]:
    """The mean of each named value over the processes."""
    if world_size() == 1:
        return values
    stacked = torch.tensor([values[name] for name in sorted(values)], dtype=torch.float64, device=device)
    dist.all_reduce(stacked)
    return dict(zip(sorted(values), (stacked / world_size()).tolist()))


def wrap(model: nn.Module, device: torch.device, *, parallel: str = "torch") -> nn.Module:
    """Makes a model train on all processes: synchronised BatchNorm (GPUs only) and averaged gradients.

    The bare model, on ``device``, is what gets saved; where there is one process, it is returned as it is.

    Raises:
        InputError: ``parallel`` is "apex" instead of "torch", and apex is not there.
    """
    if parallel == "apex":
        try:
            from apex.parallel import DistributedDataParallel, convert_syncbn_model
        except (ImportError, AttributeError):
            raise InputError(
                "--parallel apex needs an NVIDIA apex build that still has apex.parallel, built from source "
                "(the PyPI package named apex is something else); leave the flag out to use torch's own"
            ) from None
    if world_size() == 1:
        return model
    if parallel == "apex":
        return DistributedDataParallel(convert_syncbn_model(model), delay_allreduce=True)
    if device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return nn.parallel.DistributedDataParallel(model, device_ids=[device.index])
    return nn.parallel.DistributedDataParallel(model)
