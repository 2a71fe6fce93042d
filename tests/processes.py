"""Several processes for a test, forked from a server that has the imports behind it."""

import contextlib
import dataclasses
import multiprocessing
import os
import socket
import sys
import time
from pathlib import Path

from common import session

PATIENCE = 120.0  # seconds after which a process counts as hanging
PRELOADED = ["common.distributed", "diffdist.functional", "contrast_main"]


@dataclasses.dataclass
class Ended:
    """How one process ended.

    Attributes:
        status: Exit status, negative for a signal.
        told: All it has printed.
        pid: Its number.
        seconds: Until those that were waited for had ended.
    """

    status: int
    told: str
    pid: int
    seconds: float

    @property
    def lines(self):
        """What the command itself has said, without torch's warnings about connections that are gone."""
        return [line for line in self.told.splitlines() if line.startswith("main.py: ")]


def run_processes(command, folder, *arguments, size=2, port=None, stopped=()):
    """Runs ``command(words, rank, *arguments)`` as the main() of several processes; returns how each ended.

    Args:
        command: A function of a test module.
        folder: For what they print, a file each.
        arguments: Of the command.
        size: Number of processes.
        port: Of the store, which the first process keeps.
        stopped: Processes that end only when they are killed, once the others have ended.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    port = port or free_port()
    start = time.monotonic()
    running = [
        context.Process(target=_work, args=(command, rank, size, port, folder, arguments)) for rank in range(size)
    ]
    for process in running:
        process.start()
    try:
        for rank, process in enumerate(running):
            if rank not in stopped:
                process.join(max(0.0, start + PATIENCE - time.monotonic()))
        seconds = time.monotonic() - start
    finally:
        for process in running:
            process.kill()
    for process in running:
        process.join()
    told = [(Path(folder) / f"told_{rank}").read_text() for rank in range(size)]
    return [Ended(process.exitcode, text, process.pid, seconds) for process, text in zip(running, told)]


def free_port():
    """A port that nobody listens at."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _work(command, rank, size, port, folder, arguments):
    for name in [name for name in os.environ if name.startswith("TORCHELASTIC")]:
        del os.environ[name]
    if size > 1 or rank:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(max(size, rank + 1))}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    told = os.open(Path(folder) / f"told_{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(told, 1)
    os.dup2(told, 2)
    sys.argv = ["main.py"]
    session.PATIENCE = 0.2
    sys.exit(session.run_command(lambda words: command(words, rank, *arguments), []))
