"""Checkpoints written in one background thread, one after the other."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from peftlab.errors import PeftlabError


class CheckpointWriter:
    """Runs writes in a background thread; an error of a write is raised by the next call.

    `seconds` is the time of all writes together, `longest_seconds` that of the longest.
    """

    def __init__(self) -> None:
        self.seconds = self.longest_seconds = 0.0
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        self._writing = threading.Lock()

    def start(self, write: Callable[[], None]) -> None:
        """Start this write after the previous one has ended; return without waiting for it."""
        self.wait()
        self._pending = self._thread.submit(self._time, write)

    def check(self) -> None:
        """Raise the error of the pending write if it has ended; do not wait for it."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the pending write has ended; raise its error."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def finish(self) -> None:
        """Wait until nothing is being written, from any thread; errors are left to the one that writes."""
        with self._writing:
            pass

    def close(self, quietly: bool = False) -> None:
        """Wait for the last write and end the thread; `quietly` drops its error in favour of another one."""
        try:
            with contextlib.suppress(PeftlabError) if quietly else contextlib.nullcontext():
                self.wait()
        finally:
            self._thread.shutdown()

    def _time(self, write: Callable[[], None]) -> None:
        started = time.perf_counter()
        try:
            with self._writing:
                write()
        finally:
            seconds = time.perf_counter() - started
            self.seconds += seconds
            self.longest_seconds = max(self.longest_seconds, seconds)
