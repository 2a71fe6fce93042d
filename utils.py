"""What every layer may use: the errors that end a command with one line, and the seeds."""

from __future__ import annotations

import errno
import random

import numpy as np
import torch


class InputError(ValueError):
    """Something the user gave cannot be used; the message says what was wrong and what would be right."""


class Diverged(InputError):
    """Training went wrong with the settings given."""


class ProcessLost(Exception):
    """This process cannot go on because another one of the run is gone, hangs or has failed."""


class Interrupted(Exception):
    """A command stops because it was asked to; the message says by what, and what is on disk.

    Attributes:
        status: Exit status of the command.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status

    @property
    def reason(self) -> str:
        """The message without what is on disk."""
        return str(self).split(":")[0]


ENVIRONMENT_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENOMEM}


def set_seed(seed: int, *, rank: int = 0) -> None:
    """Seeds Python, NumPy and torch (all devices), each process with a stream of its own; for main() functions only."""
    if rank:
        seed = int(np.random.SeedSequence([seed, rank]).generate_state(1, np.uint64)[0]) >> 1
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
