"""Checkpoints written beside training by one thread, one after the other."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from peftlab.errors import StorageError


class CheckpointWriter:
    """Writes in a thread of its own what was copied before; what a write raises, the next call here raises again.

    `seconds` is what the writes took in all, `longest_seconds` the longest of them.
    """

    def __init__(self):
        self.seconds = self.longest_seconds = 0.0
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._under_way: Future | None = None

    def start(self, write: Callable[[], None]) -> None:
        """Wait for the former write, then begin this one and return."""
        self.wait()
        self._under_way = self._thread.submit(self._time, write)

    def check(self) -> None:
        """Raise what the write under way has met, if it has ended; do not wait for it."""
        if self._under_way is not None and self._under_way.done():
            self.wait()

    def wait(self) -> None:
        """Return when nothing is under way."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def close(self, quietly: bool = False) -> None:
        """Wait for the last write and end the thread; `quietly` where another error is on its way already."""
        try:
            with contextlib.suppress(StorageError) if quietly else contextlib.nullcontext():
                self.wait()
        finally:
            self._thread.shutdown()

    def _time(self, write: Callable[[], None]) -> None:
        started = time.perf_counter()
        try:
            write()
        finally:
            took = time.perf_counter() - started
            self.seconds += took
            self.longest_seconds = max(self.longest_seconds, took)
