"""The processes of one launch: this one ends with an error when another has ended unexpectedly."""

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

from peftlab.errors import LaunchError, one_line
from peftlab.world.base import World
from peftlab.world.meeting import is_lost_connection, meeting

# A process that fails closes its connections, which the others notice, and ends soon after.
GONE_SECONDS = 10.0
# A process whose device waits for a dead one never continues: it is ended after so long.
STUCK_SECONDS = 5.0
POLL_SECONDS = 0.5
UNSEEN = (
    "a process of this launch that is not on this machine ended, or cannot be reached any more ({}); read its output; "
    "train --resume resumes from the latest checkpoint"
)


RESTARTS = "TORCHELASTIC_RESTART_COUNT"


def is_restarted(world: World, written: float | None) -> bool:
    """Return whether torchrun has started the processes of a launch again, after they had begun the run of its folder.

    `written` is when the record of that run was last written, None without one. A record from before the launch is of
    another one: its user says whether it resumes.
    """
    if not world.highest(int(os.environ.get(RESTARTS, "0"))):
        return False
    launcher = psutil.Process().parent()
    started = min(world.gather([launcher.create_time() if launcher else time.time()]))  # of any machine's launcher
    return world.gather([written is not None and written >= started])[0]


class Launch:
    """This process and the others of its launch that run on the same machine.

    Inside the context a thread watches them. If one has ended and this process has not left the context
    `STUCK_SECONDS` later, the thread calls `give_up`, if set, with the error and ends the process.
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
        """Return LaunchError if `error` comes from waiting for a process that has ended, else `error`.

        Libraries that exchange something themselves raise it as well. What runs on another machine cannot be watched:
        there the closed connection tells.
        """
        if self.processes == 1 or not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError):
            return error
        ends = time.monotonic() + GONE_SECONDS
        while self.others and not self.lost() and time.monotonic() < ends:
            time.sleep(POLL_SECONDS / 10)
        if failure := self.lost_error():
            return failure
        return LaunchError(UNSEEN.format(one_line(error)), []) if is_lost_connection(error) else error

    def lost(self) -> list[int]:
        """Return the numbers of the processes that have ended."""
        return [number for number, process in self.others.items() if not lives(process)]

    def lost_error(self) -> LaunchError | None:
        """Return the error of a run that has lost processes; None where all live."""
        lost = self.lost()
        if not lost:
            return None
        names = " and ".join(map(str, lost))
        return LaunchError(
            f"process {names} of {self.processes} (they count from 0) ended while this one waited for it; read its "
            "output, and check whether the system killed it; train --resume resumes from the latest checkpoint",
            lost,
        )

    def _end_if_stuck(self) -> None:
        while not self._left.wait(POLL_SECONDS):
            if error := self.lost_error():
                if self._left.wait(STUCK_SECONDS):
                    return
                with contextlib.suppress(Exception):
                    if self.give_up is not None:
                        self.give_up(error)
                if not error.reported:
                    print(f"peftlab: error: {error}", file=sys.stderr, flush=True)
                os._exit(error.exit_code)


def find_others(world: World) -> dict[int, psutil.Process]:
    """Return the other processes of this launch on this machine by number; all processes must call this together."""
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
    """Return whether a process still runs; a zombie or another process with its number does not count."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def launched(world: World) -> Iterator[Launch]:
    """Yield this process's launch, and leave it at the end. Raises LaunchError if another process was lost."""
    with meeting():
        others = find_others(world)
    with Launch(world.processes, others) as launch:
        try:
            yield launch
        except BaseException as error:
            failure = launch.explain(error)
            with contextlib.suppress(Exception):  # the first error is reported
                world.abort()
            if failure is error:
                raise
            raise failure from error
        else:
            world.close()
