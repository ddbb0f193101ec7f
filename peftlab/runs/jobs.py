"""Recipes run in other processes: starting one, waiting for it, ending it."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from math import inf
from multiprocessing import forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType

from peftlab.errors import PeftlabError, StorageError, UsageError
from peftlab.files import why
from peftlab.runs.outcomes import ERROR_PREFIX, RecordIdentity, identify_record, read_outcome

GRACE_SECONDS = 60.0
# Time for a run at its limit to save a checkpoint; other runs are not looked after meanwhile.
LATE_GRACE_SECONDS = 20.0
PR_SET_PDEATHSIG = 1

# Modules of a run that are slow to import: a warm job is forked from a server that has imported them.
WARM_MODULES = [
    "peftlab.runs.run", "datasets", "matplotlib.figure", "transformers.models.llama.modeling_llama",
    "peft.tuners.lora.bnb",
]  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A process that runs `recipe` with `overrides` into the run directory `folder`; what it prints goes to `log`.

    `environment` is added to this process's own. `resume` None resumes where something was saved, and overwrites
    otherwise. `title` is its name in reports, `python` the interpreter.
    """

    recipe: Path
    overrides: tuple[str, ...]
    folder: Path
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    resume: bool | None = None
    title: str = ""
    python: str = field(default_factory=lambda: sys.executable)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def resumes(self) -> bool:
        if self.resume is None and not self.folder.exists():
            return False
        from peftlab.runs.resumption import can_resume  # loads torch, which a first attempt need not wait for

        return can_resume(self.folder) if self.resume is None else self.resume

    @property
    def arguments(self) -> list[str]:
        """The overrides, the last of which is the run directory."""
        return [*self.overrides, f"run.output={self.folder.resolve()}"]

    @property
    def command(self) -> list[str]:
        train = [self.python, "-m", "peftlab", "train", str(self.recipe.resolve()), *self.arguments]
        return [*train, "--resume" if self.resumes else "--overwrite"]


@dataclass(frozen=True)
class Ending:
    """How a job ended: `status` and `error` of its record (`failed` and the reason without one), and its seconds."""

    job: Job
    status: str
    error: str | None
    seconds: float


@dataclass
class Running:
    """A job whose process has started; `record_before` identifies the record that was there before."""

    job: Job
    process: subprocess.Popen | BaseProcess
    record_before: RecordIdentity
    started: float

    @property
    def exit_code(self) -> int | None:
        """The exit code, minus the signal's number where one killed it; None while it runs."""
        return self.process.poll() if isinstance(self.process, subprocess.Popen) else self.process.exitcode

    def wait(self, seconds: float | None = None) -> Ending | None:
        """Return how the job ended, None if it still runs after so many seconds."""
        if isinstance(self.process, subprocess.Popen):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
        else:
            self.process.join(seconds)
        return self.ending()

    def ending(self) -> Ending | None:
        """Return how the job ended, None while it runs."""
        code = self.exit_code
        if code is None:
            return None
        status, error = read_outcome(self.job.folder, self.job.log, code, self.record_before)
        return Ending(self.job, status, error, time.monotonic() - self.started)


def run_job(job: Job, warm: bool = False, time_limit: float = inf) -> Ending:
    """Run a job, for `time_limit` seconds at most, and return how it ended."""
    running = start(job, warm)
    try:
        return running.wait(None if time_limit == inf else time_limit) or end_at_limit(running, time_limit)
    except BaseException:
        end_all([running])
        raise


def end_at_limit(one: Running, time_limit: float) -> Ending:
    """End a job that has run for `time_limit` seconds: it is terminated, and killed if that does not end it."""
    seconds = time.monotonic() - one.started
    end_all([one], LATE_GRACE_SECONDS)
    return Ending(one.job, "failed", f"ended at its time limit of {time_limit:g} s (--time-limit)", seconds)


def start(job: Job, warm: bool = False) -> Running:
    """Start a job: as a command line, or `warm`, which saves seconds of imports. Both are a process of their own."""
    before, started = identify_record(job.folder), time.monotonic()
    try:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        job.log.unlink(missing_ok=True)  # a link there would be followed, and a pipe waits for a reader
        return Running(job, fork(job) if warm else spawn(job), before, started)
    except OSError as error:
        raise StorageError(f"{error.filename or job.log}: a run cannot be started: {why(error)}") from None


def spawn(job: Job) -> subprocess.Popen:
    """Start the job's command line; on Linux it gets SIGTERM when this process dies."""
    with open(job.log, "w", encoding="utf-8") as log:
        return subprocess.Popen(
            job.command,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=os.environ | job.environment,
            preexec_fn=die_with_parent if sys.platform == "linux" else None,
            # Ctrl-C is for this process, which asks its jobs to end: two signals would kill them.
            process_group=0,
        )


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent dies, so that no run outlives a killed parent."""
    if _libc:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def fork(job: Job) -> BaseProcess:
    """Run the job in a process forked from a server that has only imported peftlab."""
    process = multiprocessing.get_context("forkserver").Process(target=_train, args=(job, job.resumes))
    with _hidden_main():
        start_server()
        process.start()
    return process


def start_server() -> None:
    """Start the server of warm jobs, unless it runs. Ctrl-C does not reach it, or it would show where it was."""
    # Where there is a CUDA device, importing bitsandbytes opens it, and an open one does not survive a fork.
    forkserver.set_forkserver_preload([] if list_cuda_devices() else [__name__, *WARM_MODULES])
    resource_tracker.ensure_running()  # which the server's start would start, and which unblocks signals
    former = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


@contextlib.contextmanager
def _hidden_main() -> Iterator[None]:
    """Hide the caller's main module: multiprocessing would import it in the job, and a script would start again."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _train(job: Job, resume: bool) -> None:
    """Do in this process what the job's command line does."""
    os.environ.update(job.environment)
    os.setpgid(0, 0)  # as for a command line: Ctrl-C is for the process that started this one
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # the server does not take it
    if sys.platform == "linux":
        die_with_parent()  # the server, which ends with the process that started it
    if threads := job.environment.get("OMP_NUM_THREADS"):
        import torch  # has read the variable already

        torch.set_num_threads(int(threads))
    with open(job.log, "wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    from peftlab.recipe.load import load_recipe
    from peftlab.runs.run import train

    try:
        train(load_recipe(job.recipe, job.arguments), name=job.recipe.stem, resume=resume, overwrite=not resume)
    except PeftlabError as error:
        if not error.reported:
            print(f"{ERROR_PREFIX}{error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


def end_all(running: Sequence[Running], grace_seconds: float = GRACE_SECONDS) -> None:
    """Ask processes to end, and kill those that still run after `grace_seconds`, or when a person asks again."""
    for one in running:
        one.process.terminate()
    until = time.monotonic() + grace_seconds
    try:
        for one in running:
            one.wait(max(0.0, until - time.monotonic()))
    finally:
        for one in running:
            if one.exit_code is None:
                one.process.kill()
                one.wait()


def share_of_machine(place: int, at_once: int) -> dict[str, str]:
    """Return the environment of the job at `place` of `at_once`: its share of the cores, and its CUDA device."""
    share: dict[str, str] = {}
    if at_once > 1 and "OMP_NUM_THREADS" not in os.environ:
        share["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // at_once))
    devices = list_cuda_devices()
    if at_once > 1 and len(devices) > 1:
        share["CUDA_VISIBLE_DEVICES"] = devices[place % len(devices)]
    return share


def list_cuda_devices() -> list[str]:
    """Return the CUDA devices that this process may use, as `CUDA_VISIBLE_DEVICES` names them, without torch.

    An empty variable hides all. CUDA counts its devices from 0, whatever the minor numbers of their files are: a
    container may have `nvidia2` and `nvidia5`.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(number) for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]
    # CUDA ignores what comes after an invalid device, such as -1.
    return list(takewhile(lambda name: name and name != "-1", (name.strip() for name in visible.split(","))))


def choose_devices(text: str) -> list[str]:
    """Return the CUDA devices that `0-3,6` names among those that this process may use. Raises UsageError."""
    here = list_cuda_devices()
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        numbers = [first, last or first]
        if not all(number.isdecimal() for number in numbers) or int(numbers[0]) > int(numbers[1]):
            raise UsageError(f"--devices {text}: {part.strip()!r} is not a number or a range of devices, such as 0-3,6")
        found += range(int(numbers[0]), int(numbers[1]) + 1)
    if max(found) >= len(here):
        have = f"has the CUDA devices 0 to {len(here) - 1}" if here else "has no CUDA device; use --jobs for the CPU"
        raise UsageError(f"--devices {text}: this machine {have}")
    return [here[number] for number in dict.fromkeys(found)]
