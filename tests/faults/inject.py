"""Runs a script with a fault in it: a kill at a moment or within a write, a full disk, or a file that ends up torn.

As a program (``inject.py SCRIPT FLAGS...``) it takes the fault from the environment variable CCAL_FAULT and gives it to
one of the processes of a launcher. Nothing outside this folder knows of it: functions of the standard library
through which files are written are replaced in the process, and the script runs as __main__.
"""

from __future__ import annotations

import builtins
import dataclasses
import errno
import importlib
import json
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

VARIABLE = "CCAL_FAULT"


@dataclasses.dataclass(frozen=True)
class Fault:
    """What goes wrong in one launch of a command.

    Attributes:
        kind: ``time`` (a signal after some seconds), ``step`` (a kill or a full disk at a step of writing),
            ``torn`` (half of a file gets its final name, then a kill) or ``none``.
        action: A signal's name, or ``full``.
        when: Seconds from the start; number of the step, or of the file's renaming, from 1.
        file: Of a torn one: the end of its name.
        rank: Of a launcher's processes the one that it happens to; others only record.
    """

    kind: str = "none"
    action: str = "SIGKILL"
    when: float = 0.0
    file: str = ""
    rank: int = 0


class Injector:
    """Counts the steps of writing and lets the fault happen.

    Steps are: a write into a file that is opened for atomic replacement or for appending, a flush to disk, the moment
    before and the moment after a rename, and setting space aside.

    Args:
        fault: What is to happen.
        record: A file of JSON lines: what happened, or at the end how many steps there were and how long it took.
    """

    def __init__(self, fault: Fault, record: Path) -> None:
        self._fault, self._record = fault, record
        self._steps, self._renamed = 0, 0
        self._writing = self._full = False
        self._start = time.monotonic()
        self._replace = os.replace

    def install(self) -> None:
        """Replaces the functions, and starts the clock."""
        for name in ("fsync", "link", "posix_fallocate"):
            setattr(os, name, self._stepwise(name, getattr(os, name)))
        os.fdopen = self._opening(os.fdopen, lambda mode: "w" in mode or "+" in mode)
        builtins.open = self._opening(builtins.open, lambda mode: "a" in mode)
        os.replace = self._rename
        if self._fault.kind == "time":
            threading.Thread(target=self._wait, daemon=True).start()

    def finish(self) -> None:
        """Records that the command ended by itself."""
        self._note(event="end")

    def _wait(self) -> None:
        time.sleep(max(0.0, self._fault.when - (time.monotonic() - self._start)))
        self._happen()

    def _happen(self, where: str = "") -> None:
        self._note(event="fault", writing=bool(where) or self._writing, where=where)
        os.kill(os.getpid(), getattr(signal, self._fault.action))

    def _note(self, **values: Any) -> None:
        values |= {"steps": self._steps, "seconds": time.monotonic() - self._start}
        handle = os.open(self._record, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.write(handle, json.dumps(values).encode() + b"\n")
        os.close(handle)

    def step(self, where: str, before: Callable[[], object] = lambda: None, *, done: bool = False) -> None:
        """Passes a step of writing, or lets the fault happen there after ``before``.

        A disk that is full stays full; what is ``done`` does not fail any more.
        """
        self._steps += 1
        if self._fault.kind == "step" and self._steps == self._fault.when:
            if self._fault.action != "full":
                before()
                self._happen(where)
                time.sleep(60)
            self._full = True
            self._note(event="fault", writing=True, where=where)
        if self._full and not done:
            before()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _stepwise(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **settings: Any) -> Any:
            self.step(name)
            return function(*arguments, **settings)

        return call

    def _opening(self, function: Callable[..., Any], watched: Callable[[str], bool]) -> Callable[..., Any]:
        def call(file: Any, mode: str = "r", *arguments: Any, **settings: Any) -> Any:
            opened = function(file, mode, *arguments, **settings)
            if not watched(mode):
                return opened
            self._writing = True
            return WatchedFile(opened, self, lasting="a" not in mode)

        return call

    def closed(self) -> None:
        """Notes that a file is written."""
        self._writing = False

    def _rename(self, source: Any, target: Any, **settings: Any) -> None:
        self.step("before a rename")
        torn = self._fault.kind == "torn" and str(target).endswith(self._fault.file)
        self._renamed += torn
        if torn and self._renamed == self._fault.when:
            os.truncate(source, os.path.getsize(source) // 2)
        self._replace(source, target, **settings)
        if torn and self._renamed == self._fault.when:
            self._happen(f"torn {Path(target).name}")
            time.sleep(60)
        self.step("after a rename", done=True)
        self._writing = False


class WatchedFile:
    """An open file whose writes are steps: at one that goes wrong, half of the data is written."""

    def __init__(self, file: Any, injector: Injector, *, lasting: bool) -> None:
        self._file, self._injector, self._lasting = file, injector, lasting

    def write(self, data: Any) -> Any:
        def half() -> None:
            self._file.write(data[: len(data) // 2])
            self._file.flush()

        self._injector.step("write", half)
        return self._file.write(data)

    def close(self) -> None:
        self._file.close()
        if not self._lasting:  # an atomic write lasts until its rename
            self._injector.closed()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> WatchedFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def run(script: Path, words: list[str], fault: Fault, record: Path) -> int:
    """Runs a script with a fault and returns its exit status, if it comes to that."""
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
    injector.finish()
    return status


def main() -> int:
    """What each of a launcher's processes does."""
    script = Path(sys.argv[1]).resolve()
    sys.path.insert(0, str(script.parent))
    importlib.import_module(script.stem)  # its imports take longer than all that follows, and are no moment to be drawn
    asked = json.loads(os.environ[VARIABLE])
    fault, record = Fault(**asked["fault"]), Path(asked["record"])
    rank = os.environ["RANK"]
    if int(rank) != fault.rank or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):
        fault = Fault()
    return run(script, sys.argv[2:], fault, record.with_name(f"{record.name}.{rank}"))


if __name__ == "__main__":
    sys.exit(main())
