"""Several processes of one run on this machine, started and waited for without another launcher."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence

from peftlab.errors import LaunchError
from peftlab.runs.jobs import die_with_parent
from peftlab.training.stop import SIGNALS


def run_processes(command: Sequence[str], count: int, variables: Mapping[str, str]) -> int:
    """Run `count` processes of one command line that train together, and return the exit code of the launch.

    Signals are passed on to all of them, so that a run saves and ends as it would alone. The exit code is that of the
    process that failed by itself; one of those that lost another process where one was killed.
    """
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(count)}
    shared = {**os.environ, "OMP_NUM_THREADS": _threads(count), **variables, **address, "LOCAL_WORLD_SIZE": str(count)}
    started: list[subprocess.Popen] = []

    def pass_on(number: int, _: object) -> None:
        for process in started:
            process.send_signal(number)

    former = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        for rank in range(count):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            started.append(
                subprocess.Popen(
                    command,
                    env=shared | place,
                    preexec_fn=die_with_parent if sys.platform == "linux" else None,
                    process_group=0,  # a signal from the terminal comes through this process, once
                )
            )
        return exit_code([process.wait() for process in started])
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def exit_code(codes: Sequence[int]) -> int:
    """Return the exit code of a launch from those of its processes, negative where a signal ended one."""
    own = [code for code in codes if code > 0 and code != LaunchError.exit_code]
    return own[0] if own else LaunchError.exit_code if any(codes) else 0


def _threads(count: int) -> str:
    """Return the threads of each process: what the user set, else a share of the cores."""
    return os.environ.get("OMP_NUM_THREADS") or str(max(1, len(os.sched_getaffinity(0)) // count))


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
