"""Runs a script with a fault in it: a signal at a moment, or a kill, a full disk or a torn file at a step of writing.

The functions of the standard library through which files are written are replaced in this process, and the script runs
as __main__; the code under test knows nothing of it.
"""

import builtins
import errno
import json
import math
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Fault:
    """What goes wrong in one launch of a command.

    Attributes:
        action: The name of a signal; ``full``: the disk; ``torn``: half of a file gets its final name, then a kill.
        seconds: When, from the start; or
        step: at which step of writing, or at which renaming of the file to be torn, from 1.
        file: The end of that file's name.
        rank: Of several processes, the one that it happens to.
    """

    action: str = ""
    seconds: float = math.inf
    step: int = 0
    file: str = ""
    rank: int = 0


class Injector:
    """Counts the steps of writing, notes them in a file of JSON lines, and makes the fault happen.

    Steps are writes into a file that is appended to, flushes to disk, links, setting space aside, and renames.
    """

    def __init__(self, fault: Fault, record: Path) -> None:
        self._fault, self._record = fault, record
        self._steps, self._renamed, self._full = 0, 0, False
        self._start, self._open, self._replace = time.monotonic(), builtins.open, os.replace

    def install(self) -> None:
        """Replaces the functions, and starts the clock."""
        for function in (os.fsync, os.link, os.posix_fallocate):
            setattr(os, function.__name__, lambda *words, do=function: (self.step(do.__name__), do(*words))[1])
        builtins.open, os.replace = self._open_watched, self._rename
        if self._fault.seconds < math.inf:
            timer = threading.Timer(self._fault.seconds, self._kill, [f"after {self._fault.seconds:.2f} s"])
            timer.daemon = True
            timer.start()

    def note(self, event: str, where: str = "") -> None:
        """Adds a line to the record: the event is ``fault`` or ``end``."""
        line = {"event": event, "where": where, "steps": self._steps, "seconds": time.monotonic() - self._start}
        with self._open(self._record, "a") as file:
            file.write(json.dumps(line) + "\n")

    def step(self, where: str, half: Callable[[], object] = lambda: None) -> None:
        """Counts a step of writing; if the fault happens there, ``half`` of it is done. A full disk stays full."""
        self._steps += 1
        if self._steps == self._fault.step and self._fault.action != "torn":
            if self._fault.action != "full":
                half()
                self._kill(where)
            self._full = True
            self.note("fault", where)
        if self._full:
            half()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _kill(self, where: str) -> None:
        self.note("fault", where)
        os.kill(os.getpid(), signal.SIGKILL if self._fault.action == "torn" else signal.Signals[self._fault.action])

    def _open_watched(self, file: Any, mode: str = "r", *arguments: Any, **settings: Any) -> Any:
        opened = self._open(file, mode, *arguments, **settings)
        if "a" in mode:
            write = opened.write

            def write_in_a_step(data: str) -> Any:
                self.step("write", lambda: (write(data[: len(data) // 2]), opened.flush()))
                return write(data)

            opened.write = write_in_a_step
        return opened

    def _rename(self, source: Any, target: Any, **settings: Any) -> None:
        self.step("rename")
        counts = self._fault.action == "torn" and str(target).endswith(self._fault.file)
        self._renamed += counts
        torn = counts and self._renamed == self._fault.step
        if torn:
            os.truncate(source, os.path.getsize(source) // 2)
        self._replace(source, target, **settings)
        if torn:
            self._kill(Path(target).name)


def run(script: Path, words: list[str], fault: Fault, record: Path) -> int:
    """Runs a script with a fault and returns its exit status, if it gets that far."""
    injector = Injector(fault, record)
    sys.argv = [str(script), *words]
    sys.path.insert(0, str(script.parent))
    injector.install()
    try:
        runpy.run_path(str(script), run_name="__main__")
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        status = 130
    injector.note("end")
    return status
