"""When a run should end before its last step: a signal, its time, or a step that the recipe names."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

# Slurm's users have it send SIGUSR1 before a job's end, which would end a process that does not know it.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# Reasons to stop, as numbers that processes exchange: the highest counts; a signal is 100 plus its number.
NO, STEP, TIME, SIGNALLED = 0, 1, 2, 100

Handler = Callable[[int, FrameType | None], Any] | int | None


class Interruption(KeyboardInterrupt):
    """A signal that arrived where nothing waits for the end of a step."""

    def __init__(self, number: int):
        super().__init__(f"signal {number}")
        self.number = number


class Stop(AbstractContextManager):
    """Turns `SIGNALS` into a request to stop after the present step; a second signal ends the process.

    `max_seconds` counts from the creation of this object, at the start of the run; the request comes early enough
    for one more step and a checkpoint. A launcher repeats to its processes a signal that the terminal has sent them
    already: one that arrives within `echo_seconds` of the first is the same. Signals can only be caught in a
    process's main thread; elsewhere only time and step work. Inside `at_once` a signal raises Interruption.
    """

    def __init__(self, max_seconds: float | None = None, last_step: int | None = None, echo_seconds: float = 0.0):
        self.reason = NO
        self.saving_seconds = 0.0
        self._boundary = time.monotonic()
        self._ends = None if max_seconds is None else self._boundary + max_seconds
        self._last_step = last_step
        self._longest_step: float | None = None
        self._echo_seconds, self._received = echo_seconds, 0.0
        self._former: dict[int, Handler] = {}
        self._at_once = False

    def __enter__(self) -> Stop:
        for number in SIGNALS:
            try:
                self._former[number] = signal.signal(number, self._receive)
            except ValueError:  # not the main thread
                break
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former.clear()

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise Interruption as soon as a signal arrives, or if one has arrived: for work that can be repeated."""
        self._at_once = True
        try:
            if self.signal is not None:
                raise Interruption(self.signal)
            yield
        finally:
            self._at_once = False

    def between_steps(self) -> AbstractContextManager[None]:
        """Return `at_once` for what one process does alone between steps.

        Several must agree on when to stop, or one would wait for another for ever.
        """
        return contextlib.nullcontext() if self._echo_seconds else self.at_once()

    @property
    def signal(self) -> int | None:
        return self.reason - SIGNALLED if self.reason >= SIGNALLED else None

    @property
    def why(self) -> str:
        return {STEP: "run.stop_after", TIME: "run.max_seconds"}.get(self.reason, f"signal {self.signal}")

    def ask(self, step: int) -> int:
        """Return the reason to stop after `step`, or `NO`; must be called once after each step."""
        now = time.monotonic()
        # Before the first boundary there was more than a step: loading, for instance.
        self._longest_step = 0.0 if self._longest_step is None else max(self._longest_step, now - self._boundary)
        self._boundary = now
        if self._ends is not None and now + self._longest_step + self.saving_seconds >= self._ends:
            self.reason = max(self.reason, TIME)
        if step == self._last_step:
            self.reason = max(self.reason, STEP)
        return self.reason

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.reason, self._received = SIGNALLED + number, time.monotonic()
            if not self._echo_seconds:  # a second signal then ends even a process that waits in C code
                self._restore_defaults()
            if self._at_once:
                self._at_once = False
                raise Interruption(number)
        elif time.monotonic() - self._received >= self._echo_seconds:
            self._restore_defaults()
            signal.raise_signal(number)

    def _restore_defaults(self) -> None:
        for number in self._former:
            signal.signal(number, signal.SIG_DFL)
