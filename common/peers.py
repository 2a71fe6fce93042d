"""What the processes of one run tell each other beside their collectives: who is where, who failed first, who has left.

They talk through the launcher's store, which answers while a collective hangs or is broken.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

from torch.distributed import PrefixStore, Store

ANSWER_WITHIN = 5.0  # seconds; a store whose host is stopped does not answer at all
SIGNS_WITHIN = 2.0  # seconds in which the processes that live notice that one is lost
LEAVE_WITHIN = 10.0  # seconds in which all leave that have passed the last barrier


def meet(store: Store, rank: int, size: int, *, within: float) -> Store:
    """The part of a store that these processes share with no others; returns once all of them have come.

    Where torchrun restarts its processes, the store and what those before have left in it stay: the addresses of dead
    processes, at which this torch waits for ever. No variable of the environment tells the restarts apart on all
    machines. So each process leaves a word of its own, the first one answers with all the words that it finds and a
    name for the part, until each has found its own word in the answer.

    Args:
        store: Of the launcher or of the first process.
        rank: Of this process.
        size: Number of processes.
        within: Seconds.

    Raises:
        TimeoutError: Not all came.
    """
    own, end = uuid.uuid4().hex, time.monotonic() + within
    store.set(f"word/{rank}", own)
    if rank == 0:
        name, missing = own, list(range(1, size))
        while missing:
            words = [_text(store, f"word/{number}") for number in range(size)]
            store.set("answer", json.dumps([name, *words]))
            missing = [number for number in missing if not store.check([f"{name}/heard/{number}"])]
            _pause(end, missing)
        return PrefixStore(name, store)
    while True:
        name, *words = json.loads(_text(store, "answer") or "[null]")
        if words[rank : rank + 1] == [own]:
            store.set(f"{name}/heard/{rank}", "yes")
            return PrefixStore(name, store)
        _pause(end, [0])


def _text(store: Store, key: str) -> str | None:
    return store.get(key).decode() if store.check([key]) else None


def _pause(end: float, missing: list[int]) -> None:
    if missing and time.monotonic() > end:
        raise TimeoutError(f"no word from rank {', '.join(map(str, missing))}")
    time.sleep(0.02 if missing else 0)


class Failure(NamedTuple):
    """The first failure of a run.

    Attributes:
        rank: Of the process that failed.
        place: Its process number and host.
        host: Its host's name.
        message: What it says of it.
    """

    rank: int
    place: str
    host: str
    message: str


class Peers:
    """One process's view of all processes of the run.

    Args:
        store: Of the launcher or of the first process.
        rank: Of this process.
        size: Number of processes.
    """

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self._store = PrefixStore("peers", store)
        self._answers = True
        self.rank = rank
        self.size = size
        self.host = socket.gethostname()
        self._place = f"process {os.getpid()} on {self.host}"
        self._ask(lambda: self._store.set(f"place/{rank}", self._place))

    def first_failure(self, message: str) -> Failure:
        """Puts a failure of this process on record, unless another was before it, and returns the first one."""
        own = Failure(self.rank, self._place, self.host, message)
        found = self._ask(lambda: self._store.compare_set("failure", "", json.dumps(own)))
        return Failure(*json.loads(found)) if found else own

    def silent(self) -> list[str]:
        """Those that give no sign of life within a moment; each process must ask that notices a loss."""
        self._ask(lambda: self._store.set(f"sign/{self.rank}", "here"))
        end = time.monotonic() + SIGNS_WITHIN
        missing = [rank for rank in range(self.size) if rank != self.rank]
        while missing and self._answers and time.monotonic() < end:
            time.sleep(0.1)
            missing = [rank for rank in missing if not self._has(f"sign/{rank}")]
        return [self._name(rank) for rank in missing]

    def leave(self, *, within: float = LEAVE_WITHIN) -> None:
        """Tells that this process needs the store no more; the first one, which may keep it, stays until all have."""
        left = self._ask(lambda: self._store.add("left", 1))
        end = time.monotonic() + within
        while self.rank == 0 and self._answers and left != self.size and time.monotonic() < end:
            time.sleep(0.02)
            left = self._ask(lambda: self._store.add("left", 0))

    def _name(self, rank: int) -> str:
        place = self._ask(lambda: self._store.get(f"place/{rank}")) if self._has(f"place/{rank}") else None
        return f"rank {rank} ({place.decode()})" if place else f"rank {rank}"

    def _has(self, key: str) -> bool:
        return bool(self._ask(lambda: self._store.check([key])))

    def _ask(self, question: Callable[[], Any]) -> Any:
        """The store's answer; None where it is gone or hangs, which then counts for all later questions."""
        answers: list[Any] = []

        def ask() -> None:
            try:
                answers.append(question())
            except RuntimeError:  # torch's errors of a store
                self._answers = False

        if self._answers:
            thread = threading.Thread(target=ask, daemon=True)
            thread.start()
            thread.join(ANSWER_WITHIN)
            self._answers = self._answers and not thread.is_alive()
        return answers[0] if answers else None
