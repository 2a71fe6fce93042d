"""Where one of several processes fails: which of them says what, and how a loss of another one is told."""

from __future__ import annotations

import functools

import torch.distributed as dist

from common.cli import mark_speaker
from common.peers import Peers
from utils import InputError, ProcessLost

WORDS_OF_LOSS = ("gloo", "nccl", "pair closure", "connection closed", "connection reset", "broken pipe", "timed out")
SEE_OFF = 3.0  # seconds that the first process gives the others to end after it has failed


def judged(error: Exception, peers: Peers, *, local_rank: int, stage: str, minutes: float) -> Exception:
    """The error for this process to end with, marked with whether it is the one to show it.

    The first failure of all is shown, by the process that had it and by one of each other machine.

    Args:
        error: What has come up in this process: its own failure, or that an exchange failed.
        peers: All processes.
        local_rank: Of this process on its machine.
        stage: What this process was about to do.
        minutes: The time-out of an exchange.
    """
    shown = ProcessLost(describe_loss(str(error), peers, stage=stage, minutes=minutes)) if is_loss(error) else error
    first = peers.first_failure(str(shown) or type(shown).__name__)
    leave = functools.partial(peers.leave, within=SEE_OFF)
    if peers.rank:
        leave()
    if first.rank == peers.rank:
        # The first process may keep the store, in which the others read whose failure is the first.
        mark_speaker(shown, True, afterwards=leave if peers.rank == 0 else lambda: None)
        return shown
    if not isinstance(shown, (InputError, OSError)):
        shown = ProcessLost(f"rank {first.rank} ({first.place}) failed: {first.message}")
    mark_speaker(shown, first.host != peers.host and local_rank == 0)
    return shown


def is_loss(error: Exception) -> bool:
    """Whether an error is that of an exchange; gloo's have no class of their own."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in WORDS_OF_LOSS)


def describe_loss(reason: str, peers: Peers, *, stage: str, minutes: float) -> str:
    """Who waited where, who gives no answer any more, and where to look."""
    who = ", ".join(peers.silent()) or "another process"
    if "timed out" in reason.lower() or "timeout" in reason.lower():
        return (
            f"rank {peers.rank} waited {minutes:g} minutes (--timeout_minutes) in {stage} and {who} gave no answer: "
            "see there whether it is stopped, out of memory or cut off from the network"
        )
    return (
        f"rank {peers.rank} lost {who} in {stage}: it ended without a word; see there whether it was killed or the "
        f"memory ran out, and start again ({' '.join(reason.split())[:160]})"
    )
