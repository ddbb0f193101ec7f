"""When a run should end before its last step: a signal, or its time."""

from __future__ import annotations

import signal
import time
from contextlib import AbstractContextManager
from types import FrameType


class Stop(AbstractContextManager):
    """Turns SIGTERM and SIGINT into a wish to stop at the next step boundary; a second signal ends at once.

    `max_seconds` counts from the making of this object, which belongs at the start of the run. Signals can
    only be caught in a process's main thread; elsewhere only the time limit works.
    """

    def __init__(self, max_seconds: float | None = None):
        self.signal: int | None = None
        self._ends = None if max_seconds is None else time.monotonic() + max_seconds
        self._former: dict[int, object] = {}

    def __enter__(self) -> Stop:
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._former[number] = signal.signal(number, self._take)
            except ValueError:  # not the main thread
                break
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former.clear()

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.signal = number

    @property
    def out_of_time(self) -> bool:
        return self._ends is not None and time.monotonic() >= self._ends

    @property
    def wanted(self) -> bool:
        return self.signal is not None or self.out_of_time
