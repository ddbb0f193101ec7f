"""When a run should end before its last step: a signal, its time, or a step that the recipe names."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Why to stop, as numbers that processes can tell each other: the highest counts, above these 100 + a signal's.
NO, STEP, TIME, SIGNALLED = 0, 1, 2, 100

Handler = Callable[[int, FrameType | None], Any] | int | None


class Stop(AbstractContextManager):
    """Turns SIGTERM and SIGINT into a wish to stop at the next step boundary; a second signal ends at once.

    `max_seconds` counts from the making of this object, which belongs at the start of the run; the wish comes as
    long before as one more step and a checkpoint take. A launcher repeats to its processes what a terminal has
    sent them already: what comes within `echo_seconds` of the first signal is the same one. Signals can only be
    caught in a process's main thread; elsewhere only time and step work.
    """

    def __init__(self, max_seconds: float | None = None, last_step: int | None = None, echo_seconds: float = 0.0):
        self.reason = NO
        self.saving_seconds = 0.0
        self._boundary = time.monotonic()
        self._ends = None if max_seconds is None else self._boundary + max_seconds
        self._last_step = last_step
        self._longest_step: float | None = None
        self._echo_seconds, self._taken = echo_seconds, 0.0
        self._former: dict[int, Handler] = {}

    def __enter__(self) -> Stop:
        for number in SIGNALS:
            try:
                self._former[number] = signal.signal(number, self._take)
            except ValueError:  # not the main thread
                break
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former.clear()

    @property
    def signal(self) -> int | None:
        return self.reason - SIGNALLED if self.reason >= SIGNALLED else None

    @property
    def why(self) -> str:
        return {STEP: "run.stop_after", TIME: "run.max_seconds"}.get(self.reason, f"signal {self.signal}")

    def ask(self, step: int) -> int:
        """Return why to stop at the boundary after `step`, or `NO`; to be asked once at each."""
        now = time.monotonic()
        # What came before the first boundary was more than a step.
        self._longest_step = 0.0 if self._longest_step is None else max(self._longest_step, now - self._boundary)
        self._boundary = now
        if self._ends is not None and now + self._longest_step + self.saving_seconds >= self._ends:
            self.reason = max(self.reason, TIME)
        if step == self._last_step:
            self.reason = max(self.reason, STEP)
        return self.reason

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.reason, self._taken = SIGNALLED + number, time.monotonic()
            if not self._echo_seconds:  # the system itself ends the process then, even one that waits in C code
                self._let_go()
        elif time.monotonic() - self._taken >= self._echo_seconds:
            self._let_go()
            signal.raise_signal(number)

    def _let_go(self) -> None:
        for number in self._former:
            signal.signal(number, signal.SIG_DFL)
