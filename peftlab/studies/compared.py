"""What a comparison's finished runs scored, as plain values from which a study computes its quantities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from math import inf, nan
from pathlib import Path

import numpy as np

from peftlab.comparison.folder import SUMMARY
from peftlab.comparison.rows import Row, read_table
from peftlab.comparison.statistics import Chance, split
from peftlab.comparison.trials import Trial
from peftlab.evaluation.resampling import Floats, Sample, draw_metric, row_metrics
from peftlab.metrics import METRICS, RowScores
from peftlab.studies.quantity import Quantity

FORGETTING = "forgetting"
"""The metric of what training added to the loss on general text."""


@dataclass(frozen=True)
class Arm:
    """One variant's costs, of its first finished run; bytes by category for `predicted` and `measured` memory.

    `at_edge` says that its learning rate is the lowest or highest of those tried.
    """

    trainable: int = 0
    total: int = 0
    learning_rate: float = nan
    seconds: float = nan
    peak_bytes: Mapping[str, int] = field(default_factory=dict)
    categories: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    at_edge: bool = False


@dataclass(frozen=True)
class Compared:
    """The finished runs of a comparison: each one's variant, a sample of every metric, and each variant's costs.

    `targets` is how many supervised tokens (or rows) a run was scored on. `seconds` are those of all runs, also of
    those that only chose a learning rate; `failures` name the runs that did not finish, `notes` what limits the others.
    """

    owners: Sequence[str]
    samples: Mapping[str, Sample]
    arms: Mapping[str, Arm] = field(default_factory=dict)
    targets: float = nan
    seconds: float = 0.0
    failures: Sequence[str] = ()
    notes: Sequence[str] = ()

    def values(self, metric: str, label: str) -> Floats:
        """Return the metric of each seed of a variant; nothing of one without a finished run."""
        if metric not in self.samples:
            return np.array([])
        places = [place for place, owner in enumerate(self.owners) if owner == label]
        return self.samples[metric].values[places]

    def contrast(self, metric: str, plus: Sequence[str], minus: Sequence[str], confidence: float) -> Quantity | None:
        """Return the sum of some variants' means less that of others, with the chance of seeds and rows.

        None where a variant has no finite value. With one seed of any of them the interval is not known. Where a better
        learning rate may be beyond those tried, it has no end on the side to which that would move the value.
        """
        if metric not in self.samples:
            return None
        parts = split(self.samples[metric], self.owners)
        if any(label not in parts for label in (*plus, *minus)):
            return None
        signed = [(1.0, parts[label]) for label in plus] + [(-1.0, parts[label]) for label in minus]
        value = sum(sign * part.mean for sign, part in signed)
        if min(part.seeds for _, part in signed) < 2:
            return Quantity(value, -inf, inf)
        drawn = _sum([(sign, part.drawn_mean) for sign, part in signed])
        without = _sum([(sign, part.mean_without) for sign, part in signed])
        half = Chance.of([part for _, part in signed], drawn, without).half_width(confidence)
        open_low, open_high = self._open_ends(metric, plus, minus) if minus else (False, False)
        return Quantity(value, -inf if open_low else value - half, inf if open_high else value + half)

    def _open_ends(self, metric: str, plus: Sequence[str], minus: Sequence[str]) -> tuple[bool, bool]:
        edges = [any(self.arms[label].at_edge for label in labels if label in self.arms) for labels in (plus, minus)]
        if metric not in METRICS:  # not what learning rates are chosen by: it may move either way
            return any(edges), any(edges)
        up, down = edges if METRICS[metric].higher_is_better else reversed(edges)
        return down, up

    def mean(self, metric: str, label: str, confidence: float = 0.95) -> Quantity | None:
        """Return a variant's mean over its seeds."""
        return self.contrast(metric, [label], [], confidence)

    def difference(self, metric: str, first: str, second: str, confidence: float) -> Quantity | None:
        """Return the first variant's mean less the second's."""
        return self.contrast(metric, [first], [second], confidence)


def _sum(terms: Sequence[tuple[float, Floats | None]]) -> Floats | None:
    """Return a signed sum of what all terms have; None where one has nothing."""
    known = [sign * values for sign, values in terms if values is not None]
    return reduce(np.add, known) if len(known) == len(terms) else None


def read_compared(folder: Path) -> Compared:
    """Return what the comparison in a folder scored: on its test rows or, without any, on its evaluation rows."""
    table = read_table(folder)
    runs = [(row.label, trial) for row in table.rows for trial in row.finished]
    finished = [trial for _, trial in runs]
    part = "test_" if any("test_after" in trial.metrics for trial in finished) else ""
    samples = _samples(finished, f"{part}after")
    general = [_samples(finished, f"general_{when}").get("loss") for when in ("after", "before")]
    if general[0] is not None and general[1] is not None:
        samples[FORGETTING] = general[0] - general[1]
    edges = [row.label for row in table.rows if row.variant.at_edge]
    beyond = (
        "did best at the lowest or highest learning rate tried, so that a better one may be beyond it, and differences "
        "from it are open on that side"
    )
    every = {trial.report.run: trial for _, trial, _ in table.trials()}.values()
    return Compared(
        owners=[label for label, _ in runs],
        samples=samples,
        arms={row.label: _arm(row) for row in table.rows},
        targets=_count_targets(finished, f"{part}after"),
        seconds=sum(trial.result.seconds.get("total", 0.0) for trial in every if trial.result),
        failures=[
            *(f"{row.label}: {trial.report.error}" for row, trial, use in table.trials()
              if use == "seed" and not trial.finished),
            *(f"{row.label}: was not run; {SUMMARY} says why" for row in table.rows if not row.trials),
        ],
        notes=[*table.report.notes, *([f"{', '.join(edges)}: {beyond}"] if edges else [])],
    )  # fmt: skip


def _samples(finished: Sequence[Trial], part: str) -> dict[str, Sample]:
    """Return every metric of one evaluation for all runs: from its rows where all runs have them."""
    found = {
        name: Sample(np.array([trial.metrics.get(part, {}).get(name, nan) for trial in finished], float))
        for name in dict.fromkeys(name for trial in finished for name in trial.metrics.get(part, {}))
    }
    for scores in (_scores(finished, part), _scores(finished, f"{part}_texts")):
        found |= {name: draw_metric(name, scores) for name in row_metrics(scores)} if scores else {}
    return found


def _scores(finished: Sequence[Trial], part: str) -> list[RowScores]:
    """Return the rows' scores of all runs; none where not all have as many."""
    scores = [trial.scores[part] for trial in finished if part in trial.scores]
    return scores if len(scores) == len(finished) and len({one.rows for one in scores}) == 1 else []


def _count_targets(finished: Sequence[Trial], part: str) -> float:
    scores = _scores(finished, part)
    return float(np.sum(scores[0].count)) if scores and scores[0].count is not None else nan


def _arm(row: Row) -> Arm:
    example, parameters = row.example, row.parameters
    if example is None or example.result is None or parameters is None:
        return Arm()
    memory = example.result.memory
    return Arm(
        trainable=parameters.trainable,
        total=parameters.total,
        learning_rate=row.variant.learning_rate or nan,
        at_edge=row.variant.at_edge,
        seconds=example.training_seconds or nan,
        peak_bytes={source: report.peak_bytes for source, report in memory.items()},
        categories={source: report.categories for source, report in memory.items()},
    )
