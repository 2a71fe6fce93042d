"""Requests to stop: SIGTERM, SIGINT, SIGUSR1 and --max_minutes, served where a command can save its work."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, ClassVar

from common import distributed
from utils import Interrupted

# Exit status by what asked for the stop; where several did, the later one here counts.
STATUS = {"--max_minutes": 0, "SIGUSR1": 0, "SIGINT": 130, "SIGTERM": 143}
REASONS = ("", *STATUS)  # the processes compare a reason's position here
SIGNALS = (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM)
# A launcher passes Ctrl-C on to processes that the terminal has told already: two so close together are one.
ONE_REQUEST = 2.0  # seconds


class Interruption:
    """Turns signals and a time limit into a request that the command serves when it is ready to.

    with Interruption(max_minutes=args.max_minutes) as interruption:
        for step in ...:
            ...
            if interruption.agreed():
                save()
                raise interruption.stop("continue with --resume auto")

    The time limit counts as reached when what comes before the next question (the longest time between two questions
    so far) and the ``margin`` would no longer fit. A second SIGINT or SIGTERM, more than two seconds after the first,
    ends the command at once. Handlers are those from before once the block is left. Within another Interruption's
    block the other's time limit and request count, too, and it takes over a request that is not served here. Off the
    main thread, where Python takes no handlers, only the time limit works.

    Attributes:
        margin: Seconds that saving takes.

    Args:
        max_minutes: Time limit, from now; None for none.
    """

    _innermost: ClassVar[Interruption | None] = None

    def __init__(self, *, max_minutes: float | None = None) -> None:
        self.margin = 0.0
        self._max_minutes = max_minutes
        self._deadline = math.inf if max_minutes is None else time.monotonic() + 60 * max_minutes
        self._last_question: float | None = None
        self._longest = 0.0  # seconds between two questions
        self._asked = 0  # position of the signal's name in REASONS
        self._since = 0.0
        self._agreed = 0
        self._outer: Interruption | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is not threading.main_thread():
            return self
        if outer := Interruption._innermost:
            self._outer, self._asked, self._since = outer, outer._asked, outer._since
            if outer._deadline < self._deadline:
                self._deadline, self._max_minutes = outer._deadline, outer._max_minutes
        Interruption._innermost = self
        for number in SIGNALS:
            self._handlers[number] = signal.signal(number, self._note) or signal.SIG_DFL
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._handlers:
            Interruption._innermost = self._outer
        if self._outer and not isinstance(error, Interrupted):
            self._outer._asked, self._outer._since = self._asked, self._since

    def _note(self, number: int, frame: FrameType | None) -> None:
        now, name = time.monotonic(), signal.Signals(number).name
        # A queue's SIGUSR1 is no sign of impatience.
        insists = number != signal.SIGUSR1 and REASONS[self._asked] in ("SIGINT", "SIGTERM")
        if insists and now - self._since > ONE_REQUEST:
            raise Interrupted(f"ended at once by a second {name}: what was saved before is on disk", STATUS[name])
        if number == signal.SIGINT and not insists and os.environ.get("LOCAL_RANK", "0") == "0":
            # print() must not be called within a print() that the signal came into.
            os.write(2, b"Ctrl-C: stopping as soon as the work is saved; once more stops at once\n")
        if number != signal.SIGUSR1 and not insists:
            self._since = now
        self._asked = max(self._asked, REASONS.index(name))

    @property
    def limited(self) -> bool:
        """Whether there is a time limit, for which the margin matters."""
        return self._deadline < math.inf

    def due(self) -> bool:
        """Whether this process was asked to stop."""
        return self._own() > 0

    def _own(self) -> int:
        now = time.monotonic()
        if self._last_question is not None:
            self._longest = max(self._longest, now - self._last_question)
        self._last_question = now
        return max(self._asked, int(now + self._longest + self.margin >= self._deadline))

    def agreed(self) -> bool:
        """Whether any process was asked to stop, with the same answer at all of them, which must all ask.

        The processes' hosts agree among themselves, without waiting for a GPU.
        """
        self._agreed = distributed.largest(self._own())
        return self._agreed > 0

    def stop(self, saved: str) -> Interrupted:
        """What to raise once everything is saved.

        Args:
            saved: What is on disk now and how to continue, for the one line that the user gets.
        """
        reason = REASONS[self._agreed or self._own()]
        over = "--max_minutes" if self._max_minutes is None else f"--max_minutes {self._max_minutes:g}"
        return Interrupted(f"stopped by {over if reason == '--max_minutes' else reason}: {saved}", STATUS[reason])


def never_stop() -> None:
    """Stands in for the question whether to stop where nobody can ask for it."""
