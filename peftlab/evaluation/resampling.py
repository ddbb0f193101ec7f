"""A metric of several runs on the same rows, and its values when these rows are drawn again (the paired bootstrap)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from peftlab.metrics import METRICS, RowScores

Floats = NDArray[np.float64]
REPLICATES = 2000
LEAST_DEFINED = 0.5
# Fewer rows show no chance of theirs: 2 / 2**6 is below 5 %, 2 / 2**5 above it.
LEAST_ROWS = 6
CHUNK_CELLS = 4_000_000  # of the drawing: 32 MB at a time, however many rows there are


@dataclass(frozen=True)
class Sample:
    """A metric of several runs: its values, and (replicates, runs) of it on rows drawn again for all runs alike.

    `rows` is 0 and `replicates` None where the metric is known without its rows. `without` is the metric of all rows
    but one, (rows, runs), where that is known. `alike` is False where runs are known to have been measured on different
    rows, so that their differences are differences of the rows too.
    """

    values: Floats
    replicates: Floats | None = None
    rows: int = 0
    without: Floats | None = None
    alike: bool = True

    def __sub__(self, other: Sample) -> Sample:
        """Return the difference, run by run: what training changed, where both were drawn from the same rows."""
        if self.replicates is None or other.replicates is None or self.rows != other.rows:
            return Sample(self.values - other.values, alike=self.alike)
        without = None if self.without is None or other.without is None else self.without - other.without
        return Sample(self.values - other.values, self.replicates - other.replicates, self.rows, without, self.alike)

    def of(self, runs: Sequence[int]) -> Sample:
        """Return the sample of some of the runs, by their places."""
        places = list(runs)
        replicates = None if self.replicates is None else self.replicates[:, places]
        without = None if self.without is None else self.without[:, places]
        return Sample(self.values[places], replicates, self.rows, without, self.alike)


def draw_metric(
    name: str, runs: Sequence[RowScores], replicates: int = REPLICATES, random: np.random.Generator | None = None
) -> Sample:
    """Return a metric (a name in METRICS) of every run, and of every run on `replicates` drawings of the rows.

    A drawing is shared by all runs, so that differences between runs are paired by row. The runs must have the
    same rows in the same order.
    """
    metric, rows = METRICS[name], runs[0].rows
    classes = np.unique(np.concatenate([run.classes for run in runs]))
    once = np.ones((1, rows))
    values = np.concatenate([metric.draw(run, classes, once) for run in runs])
    drawn = [
        np.stack([metric.draw(run, classes, weights) for run in runs], axis=1)
        for weights in _drawings(rows, replicates, random or np.random.default_rng(0))
    ]
    parts = [metric.without_each(run, classes) for run in runs]
    known = [part for part in parts if part is not None]
    without = np.stack(known, axis=1) if len(known) == len(parts) else None
    return Sample(values, _defined(np.concatenate(drawn), np.isfinite(values)), rows, without)


def _defined(drawn: Floats, known: NDArray[np.bool_]) -> Floats:
    """Return the drawings without those that leave a metric undefined, such as an F1 without any hit to find.

    All drawings, where most would go; runs that have no value anyway do not count.
    """
    kept = np.isfinite(drawn[:, known]).all(1)
    return drawn[kept] if kept.mean() > LEAST_DEFINED else drawn


def _drawings(rows: int, replicates: int, random: np.random.Generator) -> Iterator[Floats]:
    """Yield how often each row comes in each drawing of `rows` rows with replacement, (some replicates, rows)."""
    left = replicates
    while left:
        part = min(left, max(1, CHUNK_CELLS // rows))
        places = random.integers(rows, size=(part, rows)) + rows * np.arange(part)[:, None]
        yield np.bincount(places.ravel(), minlength=part * rows).reshape(part, rows).astype(float)
        left -= part


def row_metrics(runs: Sequence[RowScores]) -> list[str]:
    """Return the metrics that the rows of all these runs can give."""
    return [name for name, metric in METRICS.items() if all(metric.suits(run) for run in runs)]
