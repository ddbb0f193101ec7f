"""Many jobs at once: on this machine, or through a cluster's scheduler."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from math import ceil, inf
from pathlib import Path
from typing import Any

from peftlab.errors import MissingRequirementError, UsageError
from peftlab.recipe.comparison import DEFAULT_TIME_LIMIT
from peftlab.runs.jobs import Ending, Job, Running, end_all, end_at_limit, run_job, share_of_machine, start
from peftlab.runs.outcomes import RecordIdentity, identify_record, read_record

POLL_SECONDS = 0.1
# What ends this process and its runs: Ctrl-C, a scheduler's signals, and that of a terminal that is closed.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
# Time for a submitted run to load its libraries and to end by itself at its limit, before its scheduler ends it.
SCHEDULER_MINUTES = 5


def run_locally(jobs: Iterable[Job], at_once: int, time_limit: float = inf, warm: bool = False) -> Iterator[Ending]:
    """Run jobs, `at_once` of them side by side, and yield how each ended as it ends.

    `warm` forks each from a server that has imported what a run needs: a process of its own, without its start.

    One that takes longer than `time_limit` seconds is terminated, and killed if it does not end then: it failed.
    Side by side they share out the CPU's cores and the CUDA devices. Where this process is interrupted or
    terminated, so are they, and each saves what it can first; where it is killed, they are terminated too (Linux).
    """
    waiting = list(jobs)
    running: dict[int, Running] = {}
    with exit_on_signals() as check:
        try:
            while waiting or running:
                check()
                for place in range(at_once):
                    if waiting and place not in running:
                        running[place] = start(
                            replace(waiting.pop(0), environment=share_of_machine(place, at_once)), warm
                        )
                for place, one in list(running.items()):
                    if ending := one.ending() or end_late(one, time_limit):
                        del running[place]
                        yield ending
                time.sleep(POLL_SECONDS)
        finally:
            end_all(list(running.values()))


def end_late(one: Running, time_limit: float) -> Ending | None:
    """End a job that has run for longer than `time_limit` seconds and return how; None before that."""
    return end_at_limit(one, time_limit) if time.monotonic() - one.started > time_limit else None


@contextlib.contextmanager
def exit_on_signals() -> Iterator[Callable[[], None]]:
    """Turn `ENDING` into SystemExit, so that `finally` blocks run; put the former handlers back.

    Yield a function that raises again what was lost: Python ignores an exception in its hooks around a fork. A signal
    that is ignored, as SIGHUP under nohup, stays so. Only the main thread can do this.
    """
    received: list[int] = []

    def check() -> None:
        if received:
            raise KeyboardInterrupt if received[0] == signal.SIGINT else SystemExit(128 + received[0])

    def end(number: int, frame: Any) -> None:
        received.append(number)
        check()

    former = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [one for one in ENDING if signal.getsignal(one) is not signal.SIG_IGN]
        former = {one: signal.signal(one, end) for one in numbers}
    try:
        yield check
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def run_on_cluster(
    jobs: Iterable[Job], cluster: str, options: Mapping[str, Any], logs: Path, time_limit: float = DEFAULT_TIME_LIMIT
) -> Iterator[Ending]:
    """Submit every job through submitit (Slurm, or `local` worker processes) and yield how each ended as it ends.

    Each ends itself after `time_limit` seconds of its own, whatever it waited for. The scheduler is asked for a few
    minutes more, unless `options`, submitit's parameters such as `slurm_partition`, `gpus_per_node`, name a
    `timeout_min`. The folder of the comparison must be on a file system that all machines share.
    Raises MissingRequirementError, UsageError.
    """
    try:
        import submitit
    except ImportError:
        raise MissingRequirementError("--cluster needs the package submitit: pip install 'peftlab[cluster]'") from None
    try:
        executor = submitit.AutoExecutor(folder=logs, cluster=cluster)
        executor.update_parameters(**scheduler_limit(options, time_limit), **options)
    except (ValueError, TypeError, NameError, RuntimeError) as error:
        raise UsageError(f"--cluster {cluster}: {' '.join(str(error).split())}") from None
    waiting = {executor.submit(run_job, job, False, time_limit): (job, identify_record(job.folder)) for job in jobs}
    with exit_on_signals() as check:
        try:
            while waiting:
                check()
                for submitted in [submitted for submitted in waiting if submitted.done()]:
                    yield read_submitted(submitted, *waiting.pop(submitted))
                time.sleep(POLL_SECONDS)
        finally:
            for submitted in waiting:
                submitted.cancel(check=False)


def scheduler_limit(options: Mapping[str, Any], time_limit: float) -> dict[str, int]:
    """Return submitit's limit of a job (5 minutes where none is given); nothing where `options` have one."""
    named = any(name.endswith(("timeout_min", "_time")) for name in options)
    return {} if named or time_limit == inf else {"timeout_min": ceil(time_limit / 60) + SCHEDULER_MINUTES}


def read_submitted(submitted: Any, job: Job, record_before: RecordIdentity) -> Ending:
    """Return how a submitted job ended; one that its scheduler lost has its own record, else the scheduler's error."""
    failure = submitted.exception()
    if failure is None:
        return submitted.result()
    record = read_record(job.folder) if identify_record(job.folder) != record_before else None
    if record and record.status != "running":
        return Ending(job, record.status, record.error, 0.0)
    lines = str(failure).strip().splitlines()
    return Ending(job, "failed", lines[-1] if lines else type(failure).__name__, 0.0)
