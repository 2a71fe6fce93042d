"""From what goes wrong in a command to one line and an exit status."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from common.console import clear_progress
from utils import ENVIRONMENT_ERRNOS, InputError, Interrupted, ProcessLost

LONGEST_LINE = 2000  # characters of an error


def run_cli(main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> int:
    """Runs a command and turns what goes wrong into one line and an exit status.

    Returns:
        0 on success, 2 for bad input, 3 for a failing environment (a full disk, a lost process), 130 for Ctrl-C, and
        what ``Interrupted`` says. ``--debug`` among the arguments lets the traceback of an error through instead.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        main(words)
        return 0
    except Interrupted as stop:
        _tell(str(stop), wait=stop.status != 0)
        return stop.status
    except KeyboardInterrupt as error:
        return _fail(error, "stopped by Ctrl-C; what was finished is on disk", 130, words)
    except InputError as error:
        return _fail(error, str(error), 2, words)
    except ProcessLost as error:
        return _fail(error, str(error), 3, words)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        status = 3 if error.errno in ENVIRONMENT_ERRNOS else 2
        return _fail(error, f"{error.strerror or error}{where}", status, words)
    except (MemoryError, RuntimeError) as error:
        # torch says so on a GPU with an error of its own, and on a CPU with a RuntimeError.
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "can't allocate memory" not in str(error):
            raise
        reason = " ".join(str(error).split())[:200]
        message = f"out of memory ({reason or 'no details'}): free some, or give smaller batches or data"
        return _fail(error, message, 3, words)


def mark_speaker(error: BaseException, speaks: bool, *, afterwards: Callable[[], None] = lambda: None) -> None:
    """Settles whether ``run_cli`` shows this error, where several processes have failed and one of them tells why.

    Args:
        error: What the command ends with.
        speaks: Whether this process shows it.
        afterwards: Called once it is shown.
    """
    error.speaks, error.afterwards = speaks, afterwards  # type: ignore[attr-defined]


def _fail(error: BaseException, message: str, status: int, words: Sequence[str]) -> int:
    if "--debug" in words:
        raise
    speaks = getattr(error, "speaks", None)
    if speaks is False or (speaks is None and not _first_here()):
        wait_for_the_first_process()
    if speaks is not False:  # undecided and still here: the first process has not failed, so none has told yet
        _print(f"error: {message}")
    if speaks:
        error.afterwards()  # type: ignore[attr-defined]
    return status


def _tell(message: str, *, wait: bool = True) -> None:
    # Every process of one machine meets the same; one of them says so.
    if _first_here():
        _print(message)
    elif wait:
        wait_for_the_first_process()


def _first_here() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _print(message: str) -> None:
    clear_progress()
    print(f"{Path(sys.argv[0]).name}: {one_line(message)}", file=sys.stderr, flush=True)


def one_line(message: str) -> str:
    """A message in one line of reasonable length, in which what came out of a file cannot steer a terminal."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(message.split()))
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 2 :]}"


def wait_for_the_first_process() -> None:
    """Lets the process that speaks go first: a launcher ends all processes as soon as one has failed."""
    time.sleep(3)
