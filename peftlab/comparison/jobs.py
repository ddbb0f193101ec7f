"""Running many recipes, each in a process of its own: on this machine, or through a cluster's scheduler."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from peftlab.errors import MissingRequirementError, UsageError

POLL_SECONDS = 0.1
GRACE_SECONDS = 60
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Job:
    """One run: its name, the recipe file and the overrides, its folder, and the file for what it prints."""

    name: str
    recipe: Path
    overrides: tuple[str, ...]
    folder: Path
    log: Path

    @property
    def command(self) -> list[str]:
        """The command line, which goes on from a checkpoint where a former attempt left one."""
        way = "--resume" if any(self.folder.glob("checkpoints/*/MANIFEST.json")) else "--overwrite"
        train = [sys.executable, "-m", "peftlab", "train", str(self.recipe.resolve())]
        return [*train, *self.overrides, f"run.output={self.folder.resolve()}", way]


@dataclass(frozen=True)
class Ended:
    """How a job's process ended: its exit code, the last line that it printed, and its wall-clock seconds."""

    job: Job
    exit_code: int
    last_line: str
    seconds: float


def run_locally(jobs: Iterable[Job], at_once: int) -> Iterator[Ended]:
    """Run jobs, `at_once` of them side by side, and yield each as it ends.

    Side by side they share out the CPU's cores and the CUDA devices. Where this process is interrupted or told
    to end, so are they, and each saves what it can first; where it is killed, they are told to end too (Linux).
    """
    waiting, running = list(jobs), {}
    places = list(range(at_once))
    with told_by_signals():
        try:
            while waiting or running:
                while waiting and places:
                    place = places.pop(0)
                    job = waiting.pop(0)
                    running[start(job, share_of_machine(place, at_once))] = (job, place, time.monotonic())
                for process in [process for process in running if process.poll() is not None]:
                    job, place, started = running.pop(process)
                    places.append(place)
                    yield Ended(job, process.returncode, last_line(job.log), time.monotonic() - started)
                time.sleep(POLL_SECONDS)
        finally:
            end_all(list(running))


def open_log(job: Job) -> TextIO:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    return open(job.log, "w", encoding="utf-8")


def start(job: Job, environment: Mapping[str, str]) -> subprocess.Popen:
    with open_log(job) as log:
        return subprocess.Popen(
            job.command,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=os.environ | environment,
            preexec_fn=die_with_parent if sys.platform == "linux" else None,
        )


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent dies, so that a killed comparison leaves no run behind."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def share_of_machine(place: int, at_once: int) -> dict[str, str]:
    """Return the environment of the job at `place` of `at_once`: its share of the cores, and its CUDA device."""
    share: dict[str, str] = {}
    if at_once > 1 and "OMP_NUM_THREADS" not in os.environ:
        share["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // at_once))
    devices = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name] or count_devices()
    if at_once > 1 and len(devices) > 1:
        share["CUDA_VISIBLE_DEVICES"] = devices[place % len(devices)]
    return share


def count_devices() -> list[str]:
    """Return the CUDA devices' numbers, without importing torch."""
    return [path.name.removeprefix("nvidia") for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]


@contextlib.contextmanager
def told_by_signals() -> Iterator[None]:
    """Turn SIGTERM into KeyboardInterrupt's like, so that `finally` blocks run; put the former handler back."""

    def end(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    former = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def end_all(processes: list[subprocess.Popen]) -> None:
    """Ask processes to end, give them time to save, then kill them."""
    for process in processes:
        process.terminate()
    until = time.monotonic() + GRACE_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run_on_cluster(jobs: Iterable[Job], cluster: str, options: Mapping[str, Any], logs: Path) -> Iterator[Ended]:
    """Submit every job through submitit (Slurm, or `local` worker processes) and yield each as it ends.

    `options` are submitit's parameters, such as `slurm_partition`, `gpus_per_node`, `timeout_min`. The folder of
    the comparison must lie on a file system that all machines share. Raises MissingRequirementError, UsageError.
    """
    try:
        import submitit
    except ImportError:
        raise MissingRequirementError("--cluster needs the package submitit: pip install 'peftlab[cluster]'") from None
    try:
        executor = submitit.AutoExecutor(folder=logs, cluster=cluster)
        executor.update_parameters(**options)
    except (ValueError, TypeError, NameError, RuntimeError) as error:
        raise UsageError(f"--cluster {cluster}: {' '.join(str(error).split())}") from None
    waiting = {}
    for job in jobs:
        waiting[executor.submit(run_quietly, job, job.command)] = job
    try:
        while waiting:
            for submitted in [submitted for submitted in waiting if submitted.done()]:
                job = waiting.pop(submitted)
                yield outcome(submitted, job)
            time.sleep(POLL_SECONDS)
    finally:
        for submitted in waiting:
            submitted.cancel(check=False)


def run_quietly(job: Job, command: list[str]) -> tuple[int, float]:
    """Run a job's command where a scheduler put it; return its exit code and seconds."""
    started = time.monotonic()
    with open_log(job) as log:
        code = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=log, check=False).returncode
    return code, time.monotonic() - started


def outcome(submitted: Any, job: Job) -> Ended:
    """Return how a submitted job ended; one that its scheduler lost is a failure with the scheduler's words."""
    failure = submitted.exception()
    if failure is not None:
        words = str(failure).strip().splitlines()
        return Ended(job, 1, words[-1] if words else type(failure).__name__, 0.0)
    code, seconds = submitted.result()
    return Ended(job, code, last_line(job.log), seconds)


def last_line(log: Path) -> str:
    """Return the last line of a log that says anything."""
    with contextlib.suppress(OSError):
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else ""
    return ""
