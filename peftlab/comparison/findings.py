"""What the runs of a comparison say: each row's quality, cost and forgetting, and which differ significantly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import inf

import numpy as np
from numpy.typing import ArrayLike

from peftlab.comparison.groups import Cost, beaten_by, best_first, letter_groups, letters_of
from peftlab.comparison.rows import Row, Table
from peftlab.comparison.statistics import Difference, Estimate, Scope, compare_pairs, estimate
from peftlab.comparison.trials import Trial
from peftlab.errors import listed
from peftlab.evaluation.resampling import LEAST_ROWS, Sample, draw_metric, row_metrics
from peftlab.metrics import METRICS, RowScores
from peftlab.quantities import number
from peftlab.runs.directory import text_scores

# From the narrowest claim to the widest: that of a family is the narrowest among its tested pairs.
SCOPES: tuple[Scope, ...] = ("weights", "rows", "methods")


@dataclass(frozen=True)
class Family:
    """The rows of one budget: estimates by label, best mean first, their pairs (corrected together) and letters."""

    budget: str | None
    estimates: dict[str, Estimate]
    differences: list[Difference[str]]
    groups: dict[str, list[str]]
    alike: bool = True
    """Whether all runs were measured on the same rows, as far as is known."""

    @property
    def ordered(self) -> list[str]:
        return list(self.estimates)

    @property
    def significant(self) -> list[Difference[str]]:
        return [pair for pair in self.differences if pair.significant]

    @property
    def scope(self) -> Scope:
        """What all tested pairs together speak of: methods only where every variant has several seeds, and rows."""
        scopes = {pair.scope for pair in self.differences}
        return next((scope for scope in SCOPES if scope in scopes), "nothing")

    def between(self, one: str, other: str) -> Difference[str]:
        """Return the difference of two rows, `one` first."""
        return _between(self.differences, one, other)

    def to_best(self) -> dict[str, Difference[str]]:
        """Return each other row's difference to the best mean, itself first."""
        best = next(iter(self.estimates), None)
        pairs = [pair for pair in self.differences if best in (pair.first, pair.second)]
        others = [pair.second if pair.first == best else pair.first for pair in pairs]
        return {other: pair.seen_from(other) for other, pair in zip(others, pairs, strict=True)}


@dataclass(frozen=True)
class Findings:
    """Statistics by the rows' labels. `part` is what they are of: the test rows or, without any, the evaluation's.

    `before` is the base model's metric, `change` what training changed, `general_*` the loss on general text;
    `beaten` lists by cost those that are significantly better and cost no more.
    """

    part: str
    rows: int
    quality: dict[str, dict[str, Estimate]]
    families: list[Family]
    before: dict[str, Estimate]
    change: dict[str, Estimate]
    general_before: dict[str, Estimate]
    general_change: dict[str, Estimate]
    costs: dict[str, dict[str, Cost]]
    beaten: dict[str, dict[str, list[str]]]
    pairs: list[Difference[str]] = field(default_factory=list)
    """All pairs of rows: those of one budget as its family has them, the others corrected together with all."""
    notes: list[str] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """Which rows the statistics are of: `test` or `evaluation`."""
        return "test" if self.part else "evaluation"

    @property
    def letters(self) -> dict[str, str]:
        return {label: letters for family in self.families for label, letters in letters_of(family.groups).items()}

    def between(self, one: str, other: str) -> Difference[str]:
        """Return the difference of two rows of any budgets, `one` first."""
        return _between(self.pairs, one, other)


def _between(pairs: Sequence[Difference[str]], one: str, other: str) -> Difference[str]:
    return next(pair.seen_from(one) for pair in pairs if {pair.first, pair.second} == {one, other})


COSTS: dict[str, Callable[[Trial], float | None]] = {
    "trainable": lambda trial: trial.parameters.trainable if trial.parameters else None,
    "stored": lambda trial: trial.parameters.stored_bytes if trial.parameters else None,
    "memory": lambda trial: trial.peak_bytes("measured"),
    "seconds": lambda trial: trial.training_seconds,
}


def find(table: Table) -> Findings:
    """Return the statistics of a comparison; what too few runs have scored is left out and noted."""
    runs = [(row.label, trial) for row in table.rows for trial in row.finished]
    owners, finished = [label for label, _ in runs], [trial for _, trial in runs]
    notes: list[str] = []
    part = _part(finished)
    after = _samples(finished, f"{part}after", table.metric, notes)
    before = _samples(finished, f"{part}before", table.metric, [])
    general = {when: _samples(finished, f"general_{when}", "loss", []).get("loss") for when in ("before", "after")}
    main = after.get(table.metric)
    lost = set(owners) - set(_estimated(main, owners))
    notes += [f"{label} has no finite {table.metric}" for label in dict.fromkeys(owners) if label in lost]
    notes += _left_out(runs, main, table.metric, part != "")
    if main and 0 < main.rows < LEAST_ROWS:
        notes.append(
            f"{number(main.rows, 'row')} cannot show the chance of rows: the intervals cover that of the seeds"
        )
    families = [_family(table, budget, main, owners) for budget in table.budgets]
    pairs = _all_pairs(families, compare_pairs(main, owners) if main else [])
    costs = {kind: _costs(table.rows, measure) for kind, measure in COSTS.items()}
    return Findings(
        part=part,
        rows=main.rows if main else 0,
        quality={name: within(estimate(sample, owners), name) for name, sample in after.items()},
        families=families,
        before=_estimated(before.get(table.metric), owners),
        change=_estimated(_minus(main, before.get(table.metric)), owners, change=True),
        general_before=_estimated(general["before"], owners),
        general_change=_estimated(_minus(general["after"], general["before"]), owners, change=True),
        costs=costs,
        beaten={kind: beaten_by(known, pairs, table.report.higher_is_better) for kind, known in costs.items()},
        pairs=pairs,
        notes=notes,
    )


def _left_out(runs: Sequence[tuple[str, Trial]], main: Sample | None, metric: str, tested: bool) -> list[str]:
    """Return a note on the seeds that count as having a value, and are in no mean because their rows give none."""
    values = main.values if main else ()
    lost = [
        f"{label} (seed {trial.report.seed})"
        for (label, trial), value in zip(runs, values, strict=False)
        if not np.isfinite(value) and trial.has_value(metric, tested)
    ]
    return [f"the rows of {listed(lost, 3)} give no finite {metric}; the means leave these seeds out"] if lost else []


def _part(finished: Sequence[Trial]) -> str:
    """Return the prefix of the test rows, or none where no run had any: then the evaluation rows count."""
    return "test_" if any("test_after" in trial.metrics for trial in finished) else ""


def _samples(finished: Sequence[Trial], part: str, metric: str, notes: list[str]) -> dict[str, Sample]:
    """Return every metric of one evaluation for all runs: from its rows where all have the same, else as noted."""
    parts = part, text_scores(part)
    by_rows = {name: sample for one in parts for name, sample in _drawn(finished, one).items()}
    alike = all(_alike(finished, one) for one in parts)
    if not alike:
        notes.append("not all runs were measured on the same rows: the differences between them are not tested")
    elif finished and not by_rows:
        notes.append("not all runs have scores of the same rows: the intervals cover the chance of the seeds alone")
    names = dict.fromkeys([metric, *(name for trial in finished for name in trial.metrics.get(part, {}))])
    values = {
        name: Sample(
            np.array([trial.metrics.get(part, {}).get(name, np.nan) for trial in finished], float), alike=alike
        )
        for name in names
    }
    known = {name: sample for name, sample in values.items() if np.isfinite(sample.values).any()}
    if alike and by_rows and metric in known and metric not in by_rows:
        notes.append(f"{metric} has no score of single rows: its intervals cover the chance of the seeds alone")
    # A run's own figure and its rows' agree; where a metric is not asked for, its rows still give it.
    return known | by_rows


def _drawn(finished: Sequence[Trial], part: str) -> dict[str, Sample]:
    """Return every metric that the rows of all runs give; none where not all runs have scores of the same rows."""
    scores = [trial.scores[part] for trial in finished if part in trial.scores]
    if not finished or len(scores) < len(finished) or not _alike(finished, part):
        return {}
    drawn = {name: draw_metric(name, scores) for name in row_metrics(scores)}
    return {name: sample for name, sample in drawn.items() if np.isfinite(sample.values).any()}


def _alike(finished: Sequence[Trial], part: str) -> bool:
    """Return whether all runs were measured on the same rows of a part, as far as their scores and records say."""
    scores = [trial.scores[part] for trial in finished if part in trial.scores]
    return _same_source(finished, part) and (not scores or _same_rows(scores))


def _same_source(finished: Sequence[Trial], part: str) -> bool:
    """Return whether the rows of a part have the same content in all runs, as far as their records say."""
    name = next((name for name in ("test", "general") if part.startswith(f"{name}_")), "evaluation")
    described = [trial.result.data.get(name) or {} for trial in finished if trial.result is not None]
    return len({part["sha256"] for part in described if "sha256" in part}) <= 1


def _same_rows(scores: Sequence[RowScores]) -> bool:
    """Return whether all runs have as many rows and, where rows have a label, the same ones."""
    first = scores[0]
    return all(run.rows == first.rows and _equal(run.label, first.label) for run in scores)


def _equal(first: ArrayLike | None, second: ArrayLike | None) -> bool:
    if first is None or second is None:
        return first is second
    return np.array_equal(first, second)


def _minus(after: Sample | None, before: Sample | None) -> Sample | None:
    return after - before if after and before else None


def within(found: dict[str, Estimate], metric: str) -> dict[str, Estimate]:
    """Return estimates whose intervals end where the metric does."""
    lowest, highest = METRICS[metric].range if metric in METRICS else (-inf, inf)
    return {label: replace(one, low=max(one.low, lowest), high=min(one.high, highest)) for label, one in found.items()}


def _estimated(sample: Sample | None, owners: Sequence[str], *, change: bool = False) -> dict[str, Estimate]:
    return estimate(sample, owners, change=change) if sample else {}


def _family(table: Table, budget: str | None, sample: Sample | None, owners: Sequence[str]) -> Family:
    labels = {row.label for row in table.of_budget(budget)}
    own = [run for run, label in enumerate(owners) if label in labels]
    if sample is None or not own:
        return Family(budget, {}, [], {})
    share = sample.of(own)
    names = [owners[run] for run in own]
    estimates = within(estimate(share, names), table.metric)
    ordered = best_first(estimates, table.report.higher_is_better)
    differences = compare_pairs(share, names)
    tested = len(ordered) == 1 or any(pair.scope != "nothing" for pair in differences)
    groups = letter_groups(ordered, differences) if tested else {}
    return Family(budget, {name: estimates[name] for name in ordered}, differences, groups, share.alike)


def _all_pairs(families: Sequence[Family], pairs: Sequence[Difference[str]]) -> list[Difference[str]]:
    """Return all pairs of rows, those of one budget as their family has them: corrected for that family's alone."""
    own = {frozenset((pair.first, pair.second)): pair for family in families for pair in family.differences}
    return [own.get(frozenset((pair.first, pair.second)), pair) for pair in pairs]


def _costs(rows: Sequence[Row], measure: Callable[[Trial], float | None]) -> dict[str, Cost]:
    costs = {}
    for row in rows:
        values = [value for trial in row.finished if (value := measure(trial)) is not None]
        if values:
            costs[row.label] = Cost(float(np.mean(values)), min(values), max(values))
    return costs
