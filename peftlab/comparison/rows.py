"""A comparison's table read back from its folder: one row a variant under one budget, with its trials."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from peftlab.comparison.folder import RUNS, read_comparison
from peftlab.comparison.trials import Trial, as_now, read_trial
from peftlab.reports import ComparisonReport, InferenceReport, ParameterReport, TrialReport, VariantReport


@dataclass(frozen=True)
class Row:
    """One line of the table: a variant under one budget, with `trials` of all seeds at the chosen learning rate.

    `label` is the variant's name, with the budget where the comparison has several; no other row has it. `metric` is
    the one that the comparison reports, on the test rows where any run has some (`tested`).
    """

    label: str
    variant: VariantReport
    trials: list[Trial]
    sweep: list[Trial]
    metric: str = "loss"
    tested: bool | None = None

    @property
    def name(self) -> str:
        return self.variant.name

    @property
    def budget(self) -> str | None:
        return self.variant.budget

    @property
    def finished(self) -> list[Trial]:
        """The finished seeds at the chosen learning rate."""
        return [trial for trial in self.trials if trial.finished]

    @property
    def valued(self) -> list[Trial]:
        """The finished seeds that have a finite value: those in the mean."""
        return [trial for trial in self.finished if self.why_lost(trial) is None]

    @property
    def all_trials(self) -> list[Trial]:
        """All trials, seeds first, each run once."""
        return list({trial.report.run: trial for trial in (*self.trials, *self.sweep)}.values())

    @property
    def example(self) -> Trial | None:
        """A trial that stands for the row's costs: the first finished one, or else the first that has a record."""
        return next((one for one in (*self.finished, *self.trials, *self.sweep) if one.result is not None), None)

    @property
    def status(self) -> str:
        """How many of the seeds have a value, and what became of the others."""
        trials = self.trials or self.sweep
        lost = [why for trial in trials if (why := self.why_lost(trial))]
        count = f"{len(trials) - len(lost)} of {len(trials)}"
        return f"{count} ({', '.join(dict.fromkeys(lost)).replace('_', ' ')})" if lost else count

    def why_lost(self, trial: Trial) -> str | None:
        """Return in a word or two why a trial has no value; None where it has one."""
        if not trial.finished:
            return trial.report.status
        # Trials that only choose measure no test rows.
        if trial.has_value(self.metric, self.tested if self.trials else None):
            return None
        return "no test rows" if self.tested and not trial.tested else "not finite"

    @property
    def parameters(self) -> ParameterReport | None:
        return self.example.parameters if self.example else None

    @property
    def inference(self) -> InferenceReport | None:
        """What the result costs in use, of the first seed that measured it."""
        results = [trial.result for trial in self.finished if trial.result]
        return next((result.inference for result in results if result.inference), None)

    def latency(self, state: str) -> float | None:
        """Return a forward pass's time `unmerged` or `merged` as a multiple of the base model's."""
        seconds = self.inference.seconds if self.inference else {}
        return seconds[state] / seconds["base"] if state in seconds and seconds.get("base") else None


@dataclass(frozen=True)
class Table:
    """A comparison as its folder has it; `problems` are lines on what could not be read."""

    folder: Path
    report: ComparisonReport
    rows: list[Row]
    problems: list[str]

    @property
    def metric(self) -> str:
        return self.report.metric

    @property
    def budgets(self) -> list[str | None]:
        return list(dict.fromkeys(row.budget for row in self.rows))

    def of_budget(self, budget: str | None) -> list[Row]:
        return [row for row in self.rows if row.budget == budget]

    def trials(self) -> Iterator[tuple[Row, Trial, str]]:
        """Yield each row's runs once and what for: a `seed` at the chosen learning rate, or the `sweep`."""
        for row in self.rows:
            seeds = {trial.report.run for trial in row.trials}
            yield from ((row, trial, "seed") for trial in row.trials)
            yield from ((row, trial, "sweep") for trial in row.sweep if trial.report.run not in seeds)


def read_table(folder: Path, verify: bool = True) -> Table:
    """Return the table in a comparison's folder. Raises StorageError where there is none, or it is damaged.

    A run of which a file is damaged counts as lost; `verify` compares files with the digests that the runs wrote.
    """
    report = read_comparison(folder)
    problems: list[str] = []
    known: dict[str, Trial] = {}

    def read(reports: list[TrialReport]) -> list[Trial]:
        once = {one.run: one for one in reports}  # one run twice would be a seed that agrees with itself
        return [_read_once(folder / RUNS, one, known, problems, verify) for one in once.values()]

    labels = zip(_labels(report), report.variants, strict=True)
    rows = [Row(label, variant, read(variant.trials), read(variant.sweep), report.metric) for label, variant in labels]
    tested = any(trial.tested for row in rows for trial in row.finished)
    return Table(folder, report, [replace(row, tested=tested) for row in rows], problems)


def _labels(report: ComparisonReport) -> list[str]:
    """Return a name for every variant that no other has."""
    several = len({variant.budget for variant in report.variants}) > 1
    names = [f"{v.name} ({v.budget})" if several and v.budget else v.name for v in report.variants]
    count = Counter(names)
    return [name if count[name] == 1 else f"{name} #{place}" for place, name in enumerate(names, start=1)]


def _read_once(folder: Path, report: TrialReport, known: dict[str, Trial], problems: list[str], verify: bool) -> Trial:
    """Return a trial; a run directory that several trials share is read once, and none outside `folder`."""
    path = folder / report.run
    if "\0" in report.run or not path.resolve().is_relative_to(folder.resolve()):
        problems.append(f"run {report.run!r} is outside {folder} and is not read")
        return Trial(report)
    report = as_now(path, report)
    if report.run not in known:
        known[report.run] = read_trial(path, report, problems, verify)
    return known[report.run].reported_as(report)
