"""The jobs of a comparison: planned, found from before, run, and how each ended."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from peftlab.comparison.folder import LOGS, RUNS, wait_until_free
from peftlab.comparison.identity import hash_run
from peftlab.comparison.points import Point
from peftlab.comparison.pool import run_locally, run_on_cluster
from peftlab.comparison.variants import Settings
from peftlab.errors import StorageError
from peftlab.recipe.comparison import Variant
from peftlab.reports import NOT_BEGUN, Metrics, RunResult
from peftlab.runs.digests import find_faults
from peftlab.runs.directory import RunDirectory
from peftlab.runs.figures import compare_figures
from peftlab.runs.jobs import Ending, Job, list_cuda_devices
from peftlab.runs.outcomes import read_record
from peftlab.runs.scores import read_scores

# A run that diverged would diverge again; one that failed otherwise may have met a fault of the machine.
SETTLED = ("finished", "diverged")


@dataclass
class Jobs:
    """The jobs in a comparison's folder by variant's place, point and seed; equal runs share a job."""

    folder: Path
    settings: Settings
    metric: str
    planned: dict[tuple[int, Point, int], Job] = field(default_factory=dict)
    endings: dict[str, Ending] = field(default_factory=dict)

    def plan(self, place: int, variant: Variant, point: Point, seed: int, overrides: Sequence[str] = ()) -> Job:
        """Return the job of a trial. The last seed's also measures the result's cost in use: once a variant."""
        last = seed == self.settings.seeds[-1]
        own = [*point.overrides, f"run.seed={seed}", *(["evaluation.latency=true"] if last else [])]
        one = variant.with_overrides([*overrides, *own])
        learning_rate = one.recipe.training.learning_rate
        key, runs = hash_run(one.recipe), self.folder / RUNS
        found = sorted(runs.glob(f"*-{key}"))
        name = found[0].name if found else f"{slug(variant.title)}-rate-{learning_rate:g}-seed-{seed}-{key}"
        same = next((job for job in self.planned.values() if job.name.endswith(key)), None)
        title = f"{variant.title}, {point}, seed {seed}" if point.values else f"{variant.title}, seed {seed}"
        log = self.folder / LOGS / f"{name}.txt"
        job = same or Job(one.path, one.overrides, runs / name, log, title=title)
        self.planned[place, point, seed] = job
        return job

    def execute(self, planned: Sequence[Job], ended: Callable[[], object]) -> None:
        """Run what has not been run yet, and call `ended` after each."""
        jobs = {job.name: job for job in planned}
        waiting = [job for job in jobs.values() if not self.is_settled(job)]
        if found := len(jobs) - len(waiting):
            show(f"{found} of {len(jobs)} runs were finished before")
        for job in waiting:
            wait_until_free(job.folder)
        for number, ending in enumerate(self._start(waiting), start=1):
            self.endings[ending.job.name] = ending
            show(f"[{number}/{len(waiting)}] {ending.job.title}: {self.summarise(ending)}")
            ended()

    def _start(self, jobs: Iterable[Job]) -> Iterator[Ending]:
        if self.settings.cluster:
            options, logs = self.settings.cluster_options, self.folder / LOGS
            return run_on_cluster(jobs, self.settings.cluster, options, logs, self.settings.time_limit)
        return run_locally(jobs, self.settings.jobs, self.settings.time_limit, warm=can_be_warm())

    def summarise(self, ending: Ending) -> str:
        if ending.status != "finished":
            return f"{ending.status}: {ending.error}"
        value = self.value(read_record(ending.job.folder), "validation")
        return f"{ending.seconds:.0f} s" + (f", {self.metric} {value:.4f}" if value is not None else "")

    def is_settled(self, job: Job) -> bool:
        """Return whether a job needs no other attempt; one whose files are missing or damaged does, and is shown."""
        status = self.status(job)[0]
        if status != "finished" or job.name in self.endings:
            return status in SETTLED
        if fault := find_fault_of(job.folder):
            show(f"{fault}; the run is made again")
        return fault is None

    def find_ending(self, job: Job) -> Ending | None:
        """Return how a job of before ended, if it needs no other attempt."""
        wait_until_free(job.folder)
        return Ending(job, *self.status(job), 0.0) if self.is_settled(job) else None

    def status(self, job: Job) -> tuple[str, str | None]:
        """Return status and error of a job: how it ended here, or what its record says from before."""
        ended = self.endings.get(job.name) or read_record(job.folder)
        return (ended.status, ended.error) if ended else (NOT_BEGUN, None)

    def value(self, result: RunResult | None, part: str) -> float | None:
        """Return the metric of a finished run on the rows that choose (`validation`) or that report (`test`)."""
        if result is None or result.status != "finished":
            return None
        keys = ("after", "test_after") if part == "validation" else ("test_after", "after")
        metrics: Metrics = next((result.metrics[key] for key in keys if key in result.metrics), {})
        return metrics.get(self.metric)


def can_be_warm() -> bool:
    """Return whether runs are forked from a server; where there is a CUDA device, it may import nothing."""
    return not list_cuda_devices()


def find_fault_of(folder: Path) -> str | None:
    """Return a line on what is missing or changed of a finished run; None if it is whole."""
    directory = RunDirectory(folder)
    try:
        if faults := find_faults(folder):
            return next(iter(faults.values()))
        if not directory.has_weights():
            return f"{directory.weights}: is missing"
        compare_figures(directory, directory.read_result(), read_scores(directory.scores))
    except StorageError as error:
        return str(error)
    return None


def show(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def slug(text: str) -> str:
    """Return a text as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9._%]+", "-", text).strip("-.")[:80] or "variant"
