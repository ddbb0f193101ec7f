"""A comparison while it runs: the settings of each variant are chosen, its seeds are run, the report is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path

from peftlab.checkpoint.lock import RunLock
from peftlab.comparison.columns import missed_text
from peftlab.comparison.folder import PICTURE, SEARCHES, SUMMARY, claim, clean, clear, read_comparison
from peftlab.comparison.identity import hash_run
from peftlab.comparison.jobs import Jobs, can_be_warm, show
from peftlab.comparison.learning_rates import LearningRates
from peftlab.comparison.points import Point
from peftlab.comparison.proposals import require_optuna
from peftlab.comparison.search import Attempt, VariantSearch
from peftlab.comparison.search_pool import run_searches
from peftlab.comparison.variants import Settings, choose_metric, note_differences, open_variants, refuse_costly
from peftlab.comparison.words import join, some
from peftlab.errors import StorageError, UsageError
from peftlab.files import why, write_atomically
from peftlab.metrics import METRICS
from peftlab.recipe.comparison import LEARNING_RATE, Variant
from peftlab.reports import STOPPED, UNENDED, ComparisonReport, TrialReport, VariantReport
from peftlab.runs.jobs import Ending, Job
from peftlab.runs.outcomes import read_record
from peftlab.runs.picture import draw_memory

TUNING_SEED = 1000


@dataclass
class Lab:
    """A comparison in `folder`.

    `chosen` is each variant's point: its learning rate, or with `searches` all that was searched.
    """

    name: str
    folder: Path
    settings: Settings
    variants: list[Variant]
    metric: str
    notes: list[str]
    jobs: Jobs = field(init=False)
    chosen: dict[int, Point] = field(default_factory=dict)
    searches: dict[int, VariantSearch] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.jobs = Jobs(self.folder, self.settings, self.metric)

    @property
    def tuning_seed(self) -> int:
        """The seed that settings are tried with, which is not reported: the luck that chooses is not shown."""
        return next(seed for seed in count(TUNING_SEED) if seed not in self.settings.seeds)

    def run(self) -> ComparisonReport:
        """Try settings with a seed of their own, choose those of each variant, run the seeds, report."""
        if self.settings.search:
            self.search()
        else:
            extensions = 0 if self.settings.rates else self.settings.rate_extensions
            LearningRates(self.jobs, self.variants, self.chosen, self.tuning_seed).choose(extensions, self.write_report)
        seeds = self.settings.seeds
        self.jobs.execute(
            [self.plan(place, point, seed) for seed in seeds for place, point in self.chosen.items()],
            self.write_report,
        )
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
                plan=partial(self.plan_trial, place), find=self.jobs.find_ending,
            )  # fmt: skip
        settings = self.settings
        run_searches(self.searches.values(), settings.jobs, settings.time_limit, can_be_warm(), self.note_trial)
        self.chosen = {place: search.best() for place, search in self.searches.items()}

    def plan_trial(self, place: int, point: Point, overrides: Sequence[str]) -> Job:
        return self.plan(place, point, self.tuning_seed, overrides)

    def plan(self, place: int, point: Point, seed: int, overrides: Sequence[str] = ()) -> Job:
        return self.jobs.plan(place, self.variants[place], point, seed, overrides)

    def note_trial(self, search: VariantSearch, attempt: Attempt, status: str, ending: Ending) -> None:
        """Show how a trial ended, and write the report so far."""
        number = len(search.trials)
        said = status if status == STOPPED else self.jobs.summarise(ending)
        show(f"[{number}/{search.settings.trials}] {search.variant.title}, {attempt.point}: {said}")
        if (cap := search.ended_by) and cap != "trials":
            show(f"{search.variant.title}: the cap of {search.caps[cap]:g} {cap.replace('_', ' ')} is reached")
        self.write_report()

    def runnable(self) -> Iterator[tuple[int, Variant]]:
        return ((place, variant) for place, variant in enumerate(self.variants) if variant.error is None)

    def trials(self, place: int, keys: Iterable[tuple[Point, int]]) -> list[TrialReport]:
        """Return what became of a variant's trials, (point, seed), as far as they are planned."""
        known = self.jobs.planned
        planned = [(*key, known[place, *key]) for key in keys if (place, *key) in known]
        return [self.describe_trial(place, *one) for one in planned]

    def describe_trial(self, place: int, point: Point, seed: int, job: Job) -> TrialReport:
        result, (status, error) = read_record(job.folder), self.jobs.status(job)
        return TrialReport(
            run=job.name,
            learning_rate=self.learning_rate(place, point),
            seed=seed,
            status=status,
            settings=point.settings if self.searches else {},
            error=None if status in ("finished", *UNENDED) else error or "no reason is known",
            validation=self.jobs.value(result, "validation"),
            test=self.jobs.value(result, "test"),
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
            same_size=list(variant.same_size),
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
            (variant.title, read_record(self.jobs.planned[place, self.chosen[place], self.settings.seeds[0]].folder))
            for place, variant in self.runnable()
        ]
        draw_memory([(title, result.memory) for title, result in results if result], self.folder / PICTURE)

    def note_budgets(self) -> Iterator[str]:
        """Yield which budgets are missed, by how much, cannot be solved for, or give a size that another gives too."""
        for variant in self.variants:
            if variant.same_size:
                yield f"{variant.title}: {join(variant.same_size)} would give the same size, which is run once"
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
