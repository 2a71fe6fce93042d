"""What every layer may use: the errors that end a command with one line, and what a launcher says of this process."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import NamedTuple

# Errors of the system that no other input would avoid: a full disk, a failing one, too little memory.
ENVIRONMENT_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENOMEM}


def program() -> str:
    """The name under which this command was started: contrast_main.py, or evals.report for a package with a main."""
    name = Path(sys.argv[0]).name
    if name != "__main__.py":
        return name
    return getattr(sys.modules["__main__"].__spec__, "name", name).removesuffix(".__main__")


class InputError(ValueError):
    """Something the user gave cannot be used; the message says what was wrong and what would be right."""


class Diverged(InputError):
    """Training went wrong with the settings given."""


class ProcessLost(Exception):
    """This process cannot go on because another process of the run is gone, hangs or has failed."""


class Interrupted(BaseException):
    """A command stops because it was asked to; the message says by what, and what is on disk.

    Like KeyboardInterrupt it is not an Exception: a signal may raise it anywhere, past the handlers of damaged files.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status  # exit status of the command


class Launcher(NamedTuple):
    """This process among those that a launcher started; the defaults are those of a process without a launcher."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1


def launcher() -> Launcher:
    """Reads RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE, which torchrun and torch.distributed.launch set.

    Raises:
        InputError: They are incomplete, not whole numbers, or contradict each other, as leftovers in a shell do.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    found = {name: os.environ[name] for name in (*names, "LOCAL_WORLD_SIZE") if name in os.environ}
    if not any(name in found for name in names):
        return Launcher()
    listing = " ".join(f"{name}={value}" for name, value in found.items())
    remedy = "start the command with torchrun, or unset " + ", ".join(found)
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(f"the environment has {listing} but no {missing[0]}, a leftover of a launcher: {remedy}")
    wrong = [f"{name}={value}" for name, value in found.items() if not (value.isascii() and value.isdecimal())]
    if wrong:
        raise InputError(f"the environment has {wrong[0]!r}, which is not a whole number: {remedy}")
    rank, world_size, local_rank = (int(found[name]) for name in names)
    local_world_size = int(found.get("LOCAL_WORLD_SIZE", world_size))
    if not (rank < world_size and local_rank < local_world_size <= world_size):
        raise InputError(f"the environment has {listing}, which cannot all be true: {remedy}")
    return Launcher(rank, world_size, local_rank, local_world_size)


def is_first_process(*, on_this_machine: bool = False) -> bool:
    """Whether this process speaks for all, or for its machine; true where the launcher's variables are wrong."""
    try:
        here = launcher()
    except InputError:
        return True
    return (here.local_rank if on_this_machine else here.rank) == 0
