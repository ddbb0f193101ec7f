"""A comparison while it runs: its jobs, what was found from before, the settings of each variant, the report."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path

from peftlab.checkpoint.lock import RunLock
from peftlab.comparison.columns import missed_text
from peftlab.comparison.folder import (
    LOGS,
    PICTURE,
    RUNS,
    SEARCHES,
    SUMMARY,
    claim,
    clean,
    clear,
    read_comparison,
    wait_until_free,
)
from peftlab.comparison.identity import hash_run
from peftlab.comparison.points import LEARNING_RATE, Point
from peftlab.comparison.pool import run_locally, run_on_cluster
from peftlab.comparison.proposals import require_optuna
from peftlab.comparison.search import Attempt, VariantSearch
from peftlab.comparison.search_pool import run_searches
from peftlab.comparison.variants import (
    Settings,
    best_of,
    choose_metric,
    learning_rate_beyond,
    note_differences,
    open_variants,
    refuse_costly,
    round_learning_rates,
    spare_trial,
)
from peftlab.comparison.words import some
from peftlab.errors import StorageError, UsageError
from peftlab.files import why, write_atomically
from peftlab.metrics import METRICS
from peftlab.recipe.comparison import Variant
from peftlab.reports import STOPPED, ComparisonReport, Metrics, RunResult, TrialReport, VariantReport
from peftlab.runs.digests import find_faults
from peftlab.runs.directory import RunDirectory
from peftlab.runs.figures import compare_figures
from peftlab.runs.jobs import Ending, Job, list_cuda_devices
from peftlab.runs.outcomes import read_record
from peftlab.runs.picture import draw_memory
from peftlab.runs.scores import read_scores

TUNING_SEED = 1000
# A run that diverged would diverge again; one that failed otherwise may have met a fault of the machine.
SETTLED = ("finished", "diverged")


@dataclass
class Lab:
    """A comparison in `folder`. `jobs` are by variant's place, point and seed; equal runs share a job.

    `chosen` is each variant's point: its learning rate, or with `searches` all that was searched.
    """

    name: str
    folder: Path
    settings: Settings
    variants: list[Variant]
    metric: str
    notes: list[str]
    jobs: dict[tuple[int, Point, int], Job] = field(default_factory=dict)
    endings: dict[str, Ending] = field(default_factory=dict)
    chosen: dict[int, Point] = field(default_factory=dict)
    searches: dict[int, VariantSearch] = field(default_factory=dict)

    @property
    def tuning_seed(self) -> int:
        """The seed that settings are tried with, which is not reported: the luck that chooses is not shown."""
        return next(seed for seed in count(TUNING_SEED) if seed not in self.settings.seeds)

    def run(self) -> ComparisonReport:
        """Try settings with a seed of their own, choose those of each variant, run the seeds, report."""
        if self.settings.search:
            self.search()
        else:
            self.try_learning_rates()
        seeds = self.settings.seeds
        self.execute([self.plan(place, point, seed) for seed in seeds for place, point in self.chosen.items()])
        report = self.write_report()
        self.draw_memory()
        return report

    def search(self) -> None:
        """Search each variant's space and choose the point of its best trial."""
        assert self.settings.search is not None
        better = METRICS[self.metric].higher_is_better
        for place, variant in self.runnable():
            self.searches[place] = VariantSearch(
                variant, self.settings.search, self.metric, better, hash_run(variant.recipe), self.folder / SEARCHES,
                plan=partial(self.plan_trial, place), find=self.find_ending,
            )  # fmt: skip
        warm, settings = not list_cuda_devices(), self.settings
        run_searches(self.searches.values(), settings.jobs, settings.time_limit, warm, self.note_trial)
        self.chosen = {place: search.best() for place, search in self.searches.items()}

    def plan_trial(self, place: int, point: Point, overrides: Sequence[str]) -> Job:
        return self.plan(place, point, self.tuning_seed, overrides)

    def find_ending(self, job: Job) -> Ending | None:
        """Return how a job of before ended, if it needs no other attempt."""
        wait_until_free(job.folder)
        if not self.is_settled(job):
            return None
        return Ending(job, *self.status(job), 0.0)

    def note_trial(self, search: VariantSearch, attempt: Attempt, status: str, ending: Ending) -> None:
        """Show how a trial ended, and write the report so far."""
        number = len(search.trials)
        said = status if status == STOPPED else self.summarise(ending)
        show(f"[{number}/{search.settings.trials}] {search.variant.title}, {attempt.point}: {said}")
        if (cap := search.ended_by) and cap != "trials":
            show(f"{search.variant.title}: the cap of {search.caps[cap]:g} {cap.replace('_', ' ')} is reached")
        self.write_report()

    def try_learning_rates(self) -> None:
        """Choose each variant's learning rate; where the best is the smallest or largest, try a few beyond it."""
        extensions = 0 if self.settings.rates else self.settings.rate_extensions
        several = [(place, one) for place, one in self.runnable() if len(one.learning_rates) > 1]
        self.chosen = {
            place: Point.at_learning_rate(one.learning_rates[0])
            for place, one in self.runnable()
            if len(one.learning_rates) == 1
        }
        tries = [self.plan_learning_rate(place, rate) for place, one in several for rate in one.learning_rates]
        while tries:
            self.execute(tries)
            for place, _ in several:
                self.chosen[place] = Point.at_learning_rate(self.choose_learning_rate(place, self.variants[place]))
            extensions -= 1
            beyond = self.extend_learning_rates() if extensions >= 0 else ()
            tries = [self.plan_learning_rate(place, rate) for place, rate in beyond]
            if tries:
                show(
                    f"{len(tries)} of {len(self.chosen)} variants did best at an end of their learning rates: extended"
                )

    def extend_learning_rates(self) -> Iterator[tuple[int, float]]:
        """Give each variant whose best learning rate is at an end another beyond it, and yield place and addition."""
        for place, variant in self.runnable():
            point, tried = self.chosen[place], variant.learning_rates
            beyond = learning_rate_beyond(tried, point.settings[LEARNING_RATE])
            if beyond and self.status(self.jobs[place, point, self.tuning_seed])[0] in SETTLED:
                extended = round_learning_rates((*tried, beyond))
                self.variants[place] = replace(variant, learning_rates=extended)
                yield place, next(rate for rate in extended if rate not in tried)

    def runnable(self) -> Iterator[tuple[int, Variant]]:
        return ((place, variant) for place, variant in enumerate(self.variants) if variant.error is None)

    def plan_learning_rate(self, place: int, learning_rate: float) -> Job:
        """Return the job that tries a learning rate; one of before that measured the test rows too serves as well."""
        point = Point.at_learning_rate(learning_rate)
        former = self.plan(place, point, self.tuning_seed)
        if former.folder.exists():
            return former
        return self.plan(place, point, self.tuning_seed, spare_trial(self.variants[place].recipe))

    def plan(self, place: int, point: Point, seed: int, overrides: Sequence[str] = ()) -> Job:
        """Return the job of a trial. The last seed's also measures the result's cost in use: once a variant."""
        variant, last = self.variants[place], seed == self.settings.seeds[-1]
        own = [*point.overrides, f"run.seed={seed}", *(["evaluation.latency=true"] if last else [])]
        one = variant.with_overrides([*overrides, *own])
        learning_rate = one.recipe.training.learning_rate
        key, runs = hash_run(one.recipe), self.folder / RUNS
        found = sorted(runs.glob(f"*-{key}"))
        name = found[0].name if found else f"{slug(variant.title)}-rate-{learning_rate:g}-seed-{seed}-{key}"
        same = next((job for job in self.jobs.values() if job.name.endswith(key)), None)
        title = f"{variant.title}, {point}, seed {seed}" if point.values else f"{variant.title}, seed {seed}"
        log = self.folder / LOGS / f"{name}.txt"
        job = same or Job(one.path, one.overrides, runs / name, log, title=title)
        self.jobs[place, point, seed] = job
        return job

    def execute(self, planned: Sequence[Job]) -> None:
        """Run what has not been run yet, and write the report so far after each."""
        jobs = {job.name: job for job in planned}
        waiting = [job for job in jobs.values() if not self.is_settled(job)]
        if found := len(jobs) - len(waiting):
            show(f"{found} of {len(jobs)} runs were finished before")
        for job in waiting:
            wait_until_free(job.folder)
        for number, ending in enumerate(self.start(waiting), start=1):
            self.endings[ending.job.name] = ending
            show(f"[{number}/{len(waiting)}] {ending.job.title}: {self.summarise(ending)}")
            self.write_report()

    def start(self, jobs: Iterable[Job]) -> Iterator[Ending]:
        if self.settings.cluster:
            options, logs = self.settings.cluster_options, self.folder / LOGS
            return run_on_cluster(jobs, self.settings.cluster, options, logs, self.settings.time_limit)
        # Where there is a CUDA device, the server may import nothing, and saves nothing.
        return run_locally(jobs, self.settings.jobs, self.settings.time_limit, warm=not list_cuda_devices())

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

    def status(self, job: Job) -> tuple[str, str | None]:
        """Return status and error of a job: how it ended here, or what its record says from before."""
        ended = self.endings.get(job.name) or read_record(job.folder)
        return (ended.status, ended.error) if ended else ("failed", None)

    def value(self, result: RunResult | None, part: str) -> float | None:
        """Return the metric of a finished run on the rows that choose (`validation`) or that report (`test`)."""
        if result is None or result.status != "finished":
            return None
        keys = ("after", "test_after") if part == "validation" else ("test_after", "after")
        metrics: Metrics = next((result.metrics[key] for key in keys if key in result.metrics), {})
        return metrics.get(self.metric)

    def choose_learning_rate(self, place: int, variant: Variant) -> float:
        """Return the one of the best value on the validation rows with the tuning seed."""
        values = {
            rate: self.value(
                read_record(self.jobs[place, Point.at_learning_rate(rate), self.tuning_seed].folder), "validation"
            )
            for rate in variant.learning_rates
        }
        return best_of(values, METRICS[self.metric].higher_is_better)

    def trials(self, place: int, keys: Iterable[tuple[Point, int]]) -> list[TrialReport]:
        """Return what became of a variant's trials, (point, seed), as far as they are planned."""
        planned = [(*key, self.jobs[place, *key]) for key in keys if (place, *key) in self.jobs]
        return [self.describe_trial(place, *known) for known in planned]

    def describe_trial(self, place: int, point: Point, seed: int, job: Job) -> TrialReport:
        result, (status, error) = read_record(job.folder), self.status(job)
        return TrialReport(
            run=job.name,
            learning_rate=self.learning_rate(place, point),
            seed=seed,
            status=status,
            settings=point.settings if self.searches else {},
            error=None if status == "finished" else error or "it has not run yet",
            validation=self.value(result, "validation"),
            test=self.value(result, "test"),
        )

    def learning_rate(self, place: int, point: Point) -> float:
        return point.settings.get(LEARNING_RATE, self.variants[place].recipe.training.learning_rate)

    def describe_variant(self, place: int, variant: Variant) -> VariantReport:
        method, chosen, search = variant.recipe.method, self.chosen.get(place), self.searches.get(place)
        rates = [(Point.at_learning_rate(rate), self.tuning_seed) for rate in variant.learning_rates]
        return VariantReport(
            name=variant.name,
            method=method.type,
            title=method.title,
            budget=variant.budget,
            solution=variant.solution,
            learning_rate=None if chosen is None else self.learning_rate(place, chosen),
            settings=chosen.settings if search and chosen else {},
            search=search.report() if search else None,
            sweep=search.describe_trials(self.tuning_seed) if search else self.trials(place, rates),
            trials=[] if chosen is None else self.trials(place, [(chosen, seed) for seed in self.settings.seeds]),
        )

    def write_report(self) -> ComparisonReport:
        report = ComparisonReport(
            name=self.name,
            metric=self.metric,
            higher_is_better=METRICS[self.metric].higher_is_better,
            seeds=list(self.settings.seeds),
            frontier=self.settings.frontier,
            variants=[self.describe_variant(place, variant) for place, variant in enumerate(self.variants)],
            notes=[*self.notes, *self.note_budgets()],
        )
        write_atomically(self.folder / SUMMARY, report.model_dump_json(indent=2) + "\n")
        return report

    def draw_memory(self) -> None:
        """Draw the predicted and the measured memory of the runs at the chosen learning rates."""
        results = [
            (variant.title, read_record(self.jobs[place, self.chosen[place], self.settings.seeds[0]].folder))
            for place, variant in self.runnable()
        ]
        draw_memory([(title, result.memory) for title, result in results if result], self.folder / PICTURE)

    def note_budgets(self) -> Iterator[str]:
        """Yield which budgets are missed, by how much, or cannot be solved for."""
        for variant in self.variants:
            if variant.error:
                yield variant.error
            elif variant.solution and (not variant.solution.met or missed_text(variant.solution)):
                missed = missed_text(variant.solution)
                yield f"{variant.title}: {f'{missed} off, ' if missed else ''}{variant.solution.reason}"


def compare(
    variants: Sequence[Variant], settings: Settings, folder: Path, *, name: str, overwrite: bool = False
) -> ComparisonReport:
    """Run a comparison in `folder`, or resume it, and return its report, which is also written there.

    A run that was done before is found again by the hash of its recipe, data, weights and versions. A run that
    fails is a trial with its error. Raises UsageError for what cannot be compared, StorageError for the folder.
    """
    if settings.search:
        require_optuna()
        if settings.cluster:
            raise UsageError("a search runs on this machine, where it can stop trials early; leave out --cluster")
    claim(folder)
    try:
        with RunLock(folder / ".lock"):
            clean(folder)
            if overwrite:
                clear(folder)
            refuse_another(folder, variants)
            metric = choose_metric([variant.recipe for variant in variants], settings.metric)
            opened = open_variants(variants, settings, metric, folder)
            refuse_costly(opened, settings.search)
            return Lab(name, folder, settings, opened, metric, note_differences(opened)).run()
    except OSError as error:
        place = error.filename or folder
        raise StorageError(f"{place}: {why(error)}; the same command continues the comparison") from None


def refuse_another(folder: Path, variants: Sequence[Variant]) -> None:
    """Raise StorageError where the folder has a comparison of other variants alone, whose report would be replaced."""
    try:
        former = [variant.name for variant in read_comparison(folder).variants]
    except StorageError:  # there is none, or its report is damaged and is written again
        return
    if former and not {variant.name for variant in variants} & set(former):
        raise StorageError(
            f"{folder} is the comparison of {some(former)}; name another --output, or replace it with --overwrite"
        )


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
