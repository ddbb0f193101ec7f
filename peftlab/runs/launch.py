"""The processes of one launch: that this one ends, and says why, when another has died."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import psutil
import torch

from peftlab.errors import LaunchError
from peftlab.world.base import World

# A process that fails by itself tells the others by closing its connections, and is gone soon after.
GONE_SECONDS = 10.0
# A process that waits for a dead one in a device's queue never comes back: it is ended after so long.
STUCK_SECONDS = 20.0
POLL_SECONDS = 0.5


class Launch:
    """This process and the others of its launch that run on the same machine.

    While the context lasts, a thread watches them. When one is gone and this process has not left the context
    `STUCK_SECONDS` later, it calls `give_up`, if set, with the error and ends the process.
    """

    def __init__(self, processes: int, others: Mapping[int, psutil.Process]):
        self.processes, self.others = processes, others
        self.give_up: Callable[[LaunchError], object] | None = None
        self._left = threading.Event()
        self._watch = threading.Thread(target=self._end_if_stuck, name="launch", daemon=True)

    def __enter__(self) -> Launch:
        if self.others:
            self._watch.start()
        return self

    def __exit__(self, *_) -> None:
        self._left.set()

    def explain(self, error: BaseException) -> BaseException:
        """Return LaunchError if `error` is what a lost process leaves to those that wait for it, else `error`."""
        if not self.others or not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError):
            return error
        ends = time.monotonic() + GONE_SECONDS
        while not (lost := self.lost()) and time.monotonic() < ends:
            time.sleep(POLL_SECONDS / 10)
        return self._tell(lost) if lost else error

    def lost(self) -> list[int]:
        """Return the numbers of the processes that are gone."""
        return [number for number, process in self.others.items() if not lives(process)]

    def _tell(self, lost: list[int]) -> LaunchError:
        names = " and ".join(map(str, lost))
        return LaunchError(
            f"process {names} of {self.processes} (they count from 0) ended while this one waited for it; look for "
            "what it said, or whether the system killed it; train --resume goes on from the latest checkpoint",
            lost,
        )

    def _end_if_stuck(self) -> None:
        while not self._left.wait(POLL_SECONDS):
            if lost := self.lost():
                if self._left.wait(STUCK_SECONDS):
                    return
                error = self._tell(lost)
                with contextlib.suppress(Exception):
                    if self.give_up is not None:
                        self.give_up(error)
                print(f"peftlab: error: {error}", file=sys.stderr, flush=True)
                os._exit(error.exit_code)


def find_others(world: World) -> dict[int, psutil.Process]:
    """Return the other processes of this launch on this machine by number; all processes must ask together."""
    if world.processes == 1:
        return {}
    host, number = socket.gethostname(), world.process
    everyone = enumerate(world.gather([(host, os.getpid())]))
    found: dict[int, psutil.Process] = {}
    for other, (its_host, pid) in everyone:
        if its_host == host and other != number:
            with contextlib.suppress(psutil.NoSuchProcess):
                found[other] = psutil.Process(pid)
    return found


def lives(process: psutil.Process) -> bool:
    """Whether a process is still there and no zombie; another one that got its number does not count."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def launched(world: World) -> Iterator[Launch]:
    """Give this process's launch, and leave it in the end. Raises LaunchError where another process was lost."""
    with Launch(world.processes, find_others(world)) as launch:
        try:
            yield launch
        except RuntimeError as error:
            raise launch.explain(error) from error
        finally:
            world.close()
