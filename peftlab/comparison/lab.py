"""A comparison while it goes: what is run, what was found again, the rate that each variant takes, the report."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from peftlab.checkpoint.lock import RunLock
from peftlab.comparison.folder import PICTURE, SUMMARY, claim, clear, read_result, wait_until_free
from peftlab.comparison.identity import hash_run
from peftlab.comparison.jobs import Ended, Job, run_locally, run_on_cluster
from peftlab.comparison.variants import (
    Entry,
    Settings,
    choose_metric,
    note_differences,
    open_entries,
    rate_beyond,
    round_rates,
)
from peftlab.evaluation.metrics import HIGHER_IS_BETTER
from peftlab.files import write_atomically
from peftlab.recipe.comparison import Candidate
from peftlab.reports import ComparisonReport, RunResult, Trial, VariantReport
from peftlab.runs.picture import draw_memory

# A run that diverged would diverge again; one that failed otherwise may have met a fault of the machine.
SETTLED = ("finished", "diverged")


@dataclass(frozen=True)
class Planned:
    """One run of one entry: the rate and seed, and the job that does it (entries may share a job)."""

    entry: Entry
    learning_rate: float
    seed: int
    job: Job

    @property
    def title(self) -> str:
        return f"{self.entry.label}, rate {self.learning_rate:g}, seed {self.seed}"


@dataclass
class Lab:
    """A comparison in `folder`: `runs/` holds the run directories, `logs/` what each printed."""

    name: str
    folder: Path
    settings: Settings
    entries: list[Entry]
    metric: str
    notes: list[str]
    errors: dict[str, str] = field(default_factory=dict)
    planned: dict[tuple[int, float, int], Planned] = field(default_factory=dict)
    chosen: dict[int, float] = field(default_factory=dict)

    def run(self) -> ComparisonReport:
        """Try the rates with the first seed, choose one for each entry, run the other seeds, report."""
        self.try_rates()
        _, *others = self.settings.seeds
        self.execute([self.plan(i, rate, seed) for seed in others for i, rate in self.chosen.items()])
        report = self.write_report()
        self.draw_memory()
        return report

    def try_rates(self) -> None:
        """Choose a rate for each entry; one that did best at the last on a side tries beyond it, a few times."""
        first, extensions = self.settings.seeds[0], 0 if self.settings.rates else self.settings.rate_extensions
        tries = [self.plan(i, rate, first) for i, entry in self.open_entries() for rate in entry.rates]
        while tries:
            self.execute(tries)
            for i, entry in self.open_entries():
                self.chosen[i] = self.choose_rate(i, entry)
            extensions -= 1
            tries = [self.plan(i, rate, first) for i, rate in self.extend_rates()] if extensions >= 0 else []
            if tries:
                self.tell(f"{len(tries)} of {len(self.chosen)} variants did best at the last rate: one beyond it")

    def extend_rates(self) -> Iterator[tuple[int, float]]:
        """Give each entry whose best rate is the last on a side one more beyond it, and yield those."""
        for i, entry in self.open_entries():
            beyond = rate_beyond(entry.rates, self.chosen[i])
            if beyond and self.status(self.planned[i, self.chosen[i], self.settings.seeds[0]].job) in SETTLED:
                self.entries[i] = replace(entry, rates=round_rates((*entry.rates, beyond)))
                yield i, next(rate for rate in self.entries[i].rates if rate not in entry.rates)

    def open_entries(self) -> Iterator[tuple[int, Entry]]:
        return ((i, entry) for i, entry in enumerate(self.entries) if entry.error is None)

    def plan(self, index: int, rate: float, seed: int) -> Planned:
        """Plan a run. The last seed's also measures what the result costs in use: once a variant is enough."""
        entry, last = self.entries[index], seed == self.settings.seeds[-1]
        overrides = [f"training.learning_rate={rate!r}", f"run.seed={seed}"]
        candidate = entry.candidate.with_overrides([*overrides, *(["evaluation.latency=true"] if last else [])])
        key = hash_run(candidate.recipe)
        found = sorted((self.folder / "runs").glob(f"*-{key}"))
        name = found[0].name if found else f"{slug(entry.label)}-rate-{rate:g}-seed-{seed}-{key}"
        same = next((p.job for p in self.planned.values() if p.job.name.endswith(key)), None)
        job = same or Job(
            name, candidate.path, candidate.overrides, self.folder / "runs" / name, self.folder / "logs" / f"{name}.txt"
        )
        planned = Planned(entry, rate, seed, job)
        self.planned[index, rate, seed] = planned
        return planned

    def execute(self, planned: Sequence[Planned]) -> None:
        """Run what has not been run yet, and write the report as far as it is after each."""
        jobs = {p.job.name: p.job for p in planned}
        waiting = [job for job in jobs.values() if self.status(job) not in SETTLED]
        if found := len(jobs) - len(waiting):
            self.tell(f"{found} of {len(jobs)} runs were done before")
        names = {p.job.name: p.title for p in planned}
        for job in waiting:
            wait_until_free(job.folder)
        for number, ended in enumerate(self.start(waiting), start=1):
            self.take(ended)
            self.tell(f"[{number}/{len(waiting)}] {names[ended.job.name]}: {self.summarise(ended)}")
            self.write_report()

    def start(self, jobs: Iterable[Job]) -> Iterator[Ended]:
        if self.settings.cluster:
            return run_on_cluster(jobs, self.settings.cluster, self.settings.cluster_options, self.folder / "logs")
        return run_locally(jobs, self.settings.jobs)

    def take(self, ended: Ended) -> None:
        """Keep what a process said that ended before it could write a record, or after."""
        self.errors.pop(ended.job.name, None)
        if ended.exit_code:
            line = ended.last_line.removeprefix("peftlab: error: ")
            self.errors[ended.job.name] = line or f"exit code {ended.exit_code}"

    def tell(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def summarise(self, ended: Ended) -> str:
        status = self.status(ended.job)
        if status != "finished":
            return f"{status}: {self.errors.get(ended.job.name, '')}"
        value = self.value(read_result(ended.job.folder), "validation")
        return f"{ended.seconds:.0f} s, {self.metric} {value:.4f}" if value is not None else f"{ended.seconds:.0f} s"

    def status(self, job: Job) -> str:
        result = read_result(job.folder)
        if result is None or (job.name in self.errors and result.status in ("running", "finished")):
            return "failed"
        return result.status

    def value(self, result: RunResult | None, part: str) -> float | None:
        """Return the metric of a finished run on the rows that choose (`validation`) or that report (`test`)."""
        if result is None or result.status != "finished":
            return None
        keys = ("after", "test_after") if part == "validation" else ("test_after", "after")
        metrics = next((result.metrics[key] for key in keys if key in result.metrics), {})
        return metrics.get(self.metric)

    def choose_rate(self, index: int, entry: Entry) -> float:
        """Return the rate of the best value on the validation rows; the entry's own where none finished."""
        values = {
            rate: self.value(read_result(self.planned[index, rate, self.settings.seeds[0]].job.folder), "validation")
            for rate in entry.rates
        }
        finite = {rate: value for rate, value in values.items() if value is not None and math.isfinite(value)}
        if not finite:
            return entry.rates[0]
        return (max if HIGHER_IS_BETTER[self.metric] else min)(finite, key=finite.__getitem__)

    def trial(self, planned: Planned) -> Trial:
        result, job = read_result(planned.job.folder), planned.job
        status = self.status(job)
        error = self.errors.get(job.name) or (result.error if result else None)
        return Trial(
            run=job.name,
            learning_rate=planned.learning_rate,
            seed=planned.seed,
            status=status,
            error=None if status == "finished" else error or "it has not run yet",
            validation=self.value(result, "validation"),
            test=self.value(result, "test"),
        )

    def describe(self, index: int, entry: Entry) -> VariantReport:
        first, rate = self.settings.seeds[0], self.chosen.get(index)
        planned = {(r, seed): p for (i, r, seed), p in self.planned.items() if i == index}
        recipe = entry.candidate.recipe
        return VariantReport(
            name=entry.candidate.name,
            method=recipe.method.type,
            title=recipe.method.title,
            budget=entry.budget,
            solution=entry.solution,
            learning_rate=rate,
            sweep=[self.trial(planned[r, first]) for r in entry.rates if (r, first) in planned],
            trials=[self.trial(planned[rate, seed]) for seed in self.settings.seeds if (rate, seed) in planned],
        )

    def write_report(self) -> ComparisonReport:
        report = ComparisonReport(
            name=self.name,
            metric=self.metric,
            higher_is_better=HIGHER_IS_BETTER[self.metric],
            seeds=list(self.settings.seeds),
            variants=[self.describe(i, entry) for i, entry in enumerate(self.entries)],
            notes=[*self.notes, *self.note_budgets()],
        )
        write_atomically(self.folder / SUMMARY, report.model_dump_json(indent=2) + "\n")
        return report

    def draw_memory(self) -> None:
        """Draw what the runs at the chosen rates took, predicted beside measured."""
        first = self.settings.seeds[0]
        results = [
            (entry.label, read_result(self.planned[i, self.chosen[i], first].job.folder))
            for i, entry in self.open_entries()
        ]
        draw_memory([(label, result.memory) for label, result in results if result], self.folder / PICTURE)

    def note_budgets(self) -> Iterator[str]:
        """Say which budgets are not met, or cannot be solved for."""
        for entry in self.entries:
            if entry.error:
                yield entry.error
            elif entry.solution and not entry.solution.met:
                yield f"{entry.label}: {entry.solution.reason}"


def compare(
    candidates: Sequence[Candidate], settings: Settings, folder: Path, *, name: str, overwrite: bool = False
) -> ComparisonReport:
    """Run a comparison in `folder`, or go on with it, and return its report, which also lies there.

    A run that was done before is found again by the hash of its recipe, data, weights and versions. A run that
    fails is a trial that says so. Raises UsageError for what cannot be compared, StorageError for the folder.
    """
    claim(folder)
    with RunLock(folder / ".lock"):
        if overwrite:
            clear(folder)
        metric = choose_metric([candidate.recipe for candidate in candidates], settings.metric)
        entries = open_entries(candidates, settings, metric, folder)
        return Lab(name, folder, settings, entries, metric, note_differences(entries)).run()


def slug(text: str) -> str:
    """Return a text as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9._%]+", "-", text).strip("-.")[:80] or "variant"
