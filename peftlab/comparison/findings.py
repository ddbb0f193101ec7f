"""What the runs of a comparison say: each variant's quality, cost and forgetting, and which differ for sure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import inf

import numpy as np

from peftlab.comparison.groups import Cost, beaten_by, best_first, letter_groups, letters_of
from peftlab.comparison.outcome import Outcome, Run, Variant
from peftlab.comparison.resampling import RowScores, Sample, draw_metric, row_metrics
from peftlab.comparison.statistics import Difference, Estimate, compare_pairs, estimate
from peftlab.evaluation.metrics import RANGES


@dataclass(frozen=True)
class Family:
    """The variants of one budget, best mean first, with their pairs (corrected together) and letters."""

    budget: str | None
    ordered: list[str]
    differences: list[Difference[str]]
    groups: dict[str, list[str]]

    @property
    def sure(self) -> list[Difference[str]]:
        return [pair for pair in self.differences if pair.sure]


@dataclass(frozen=True)
class Findings:
    """Statistics by the variants' labels. `part` is what they are of: the test rows or, without any, the evaluation's.

    `before` is the base model's metric, `change` what training made of it, `general_*` the loss on general text;
    `beaten` tells by cost who surely beats whom.
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
    notes: list[str] = field(default_factory=list)

    @property
    def letters(self) -> dict[str, str]:
        return {label: letters for family in self.families for label, letters in letters_of(family.groups).items()}


COSTS: dict[str, Callable[[Run], float | None]] = {
    "trainable": lambda run: run.result.parameters.trainable if run.result.parameters else None,
    "memory": lambda run: peak_bytes(run, "measured"),
    "seconds": lambda run: run.result.seconds.get("training"),
}


def peak_bytes(run: Run | None, source: str) -> int | None:
    report = run.result.memory.get(source) if run and run.result else None
    return report.peak_bytes if report else None


def find(outcome: Outcome) -> Findings:
    """Return the statistics of a comparison; what too few runs have scored is left out and noted."""
    runs = [(variant.label, run) for variant in outcome.variants for run in variant.finished]
    owners, finished = [label for label, _ in runs], [run for _, run in runs]
    notes: list[str] = []
    part = _part(finished)
    after = _samples(finished, f"{part}after", outcome.report.metric, notes)
    before = _samples(finished, f"{part}before", outcome.report.metric, [])
    general = {when: _samples(finished, f"general_{when}", "loss", []).get("loss") for when in ("before", "after")}
    main = after.get(outcome.report.metric)
    lost = set(owners) - set(_estimated(main, owners))
    notes += [f"{label} has no finite {outcome.report.metric}" for label in dict.fromkeys(owners) if label in lost]
    pairs = compare_pairs(main, owners) if main else []
    costs = {kind: _costs(outcome.variants, measure) for kind, measure in COSTS.items()}
    return Findings(
        part=part,
        rows=main.rows if main else 0,
        quality={name: within(estimate(sample, owners), name) for name, sample in after.items()},
        families=[_family(outcome, budget, main, owners) for budget in outcome.budgets],
        before=_estimated(before.get(outcome.report.metric), owners),
        change=_estimated(_minus(main, before.get(outcome.report.metric)), owners),
        general_before=_estimated(general["before"], owners),
        general_change=_estimated(_minus(general["after"], general["before"]), owners),
        costs=costs,
        beaten={kind: beaten_by(known, pairs, outcome.report.higher_is_better) for kind, known in costs.items()},
        notes=notes,
    )


def _part(finished: Sequence[Run]) -> str:
    """Return the prefix of the test rows, or none where no run had any: then the evaluation rows must do."""
    return "test_" if any("test_after" in run.result.metrics for run in finished) else ""


def _samples(finished: Sequence[Run], part: str, metric: str, notes: list[str]) -> dict[str, Sample]:
    """Return every metric of one evaluation for all runs: from its rows where all have the same, else as noted."""
    scores = [run.scores.get(part) for run in finished]
    by_rows: dict[str, Sample] = {}
    if finished and all(scores) and _same_rows(scores):
        by_rows = {name: draw_metric(name, scores) for name in row_metrics(scores)}
    elif finished:
        notes.append("not all runs have scores of the same rows: the intervals hold the chance of the seeds alone")
    names = dict.fromkeys([metric, *(name for run in finished for name in run.result.metrics.get(part, {}))])
    values = {
        name: Sample(np.array([run.result.metrics.get(part, {}).get(name, np.nan) for run in finished], float))
        for name in names
    }
    known = {name: sample for name, sample in values.items() if np.isfinite(sample.values).any()}
    if by_rows and metric in known and metric not in by_rows:
        notes.append(f"{metric} has no score of single rows: its intervals hold the chance of the seeds alone")
    # A run's own figure and its rows' agree; where a metric is not asked for, its rows still give it.
    return known | by_rows


def _same_rows(scores: Sequence[RowScores]) -> bool:
    first = scores[0]
    return all(
        run.rows == first.rows and (run.label is None) == (first.label is None) and _equal(run.label, first.label)
        for run in scores
    )


def _equal(first: np.ndarray | None, second: np.ndarray | None) -> bool:
    return first is None or bool(np.array_equal(first, second))


def _minus(after: Sample | None, before: Sample | None) -> Sample | None:
    return after - before if after and before else None


def within(found: dict[str, Estimate], metric: str) -> dict[str, Estimate]:
    """Return estimates whose intervals end where the metric does."""
    lowest, highest = RANGES.get(metric, (-inf, inf))
    return {label: replace(one, low=max(one.low, lowest), high=min(one.high, highest)) for label, one in found.items()}


def _estimated(sample: Sample | None, owners: Sequence[str]) -> dict[str, Estimate]:
    return estimate(sample, owners) if sample else {}


def _family(outcome: Outcome, budget: str | None, sample: Sample | None, owners: Sequence[str]) -> Family:
    labels = {variant.label for variant in outcome.of_budget(budget)}
    own = [run for run, label in enumerate(owners) if label in labels]
    if sample is None or not own:
        return Family(budget, [], [], {})
    replicates = None if sample.replicates is None else sample.replicates[:, own]
    share = Sample(sample.values[own], replicates, sample.rows)
    names = [owners[run] for run in own]
    ordered = best_first(estimate(share, names), outcome.report.higher_is_better)
    differences = compare_pairs(share, names)
    return Family(budget, ordered, differences, letter_groups(ordered, differences))


def _costs(variants: Sequence[Variant], measure: Callable[[Run], float | None]) -> dict[str, Cost]:
    costs = {}
    for variant in variants:
        values = [value for run in variant.finished if (value := measure(run)) is not None]
        if values:
            costs[variant.label] = Cost(float(np.mean(values)), min(values), max(values))
    return costs
