"""A metric of several runs on the same rows, and its values when these rows are drawn again (the paired bootstrap)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
REPLICATES = 2000
CHUNK_CELLS = 4_000_000  # of the drawing: 32 MB at a time, however many rows there are


@dataclass(frozen=True)
class RowScores:
    """What one run scored on each row: summed loss, supervised tokens, and for classes the predicted and true one."""

    loss: Floats
    count: Floats
    prediction: NDArray[np.int64] | None = None
    label: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, stored: dict[str, list | None]) -> RowScores:
        """Take one entry of a run's `scores.json`. Raises ValueError unless all its lists are of one length."""
        classes = [stored.get(name) for name in ("prediction", "label")]
        scores = cls(
            np.array(stored["loss"], float),
            np.array(stored["count"], float),
            *(None if values is None else np.array(values, np.int64) for values in classes),
        )
        if len({len(column) for column in scores.columns}) != 1 or not scores.rows:
            raise ValueError("row scores of different lengths")
        return scores

    @property
    def columns(self) -> list[NDArray]:
        return [column for column in (self.loss, self.count, self.prediction, self.label) if column is not None]

    @property
    def rows(self) -> int:
        return len(self.loss)


@dataclass(frozen=True)
class Sample:
    """A metric of several runs: its values, and (replicates, runs) of it on rows drawn again for all runs alike.

    `rows` is 0 and `replicates` None where the metric is known without its rows.
    """

    values: Floats
    replicates: Floats | None = None
    rows: int = 0

    def __sub__(self, other: Sample) -> Sample:
        """The difference, run by run: what training changed, where both were drawn from the same rows."""
        together = self.replicates is not None and other.replicates is not None and self.rows == other.rows
        replicates = self.replicates - other.replicates if together else None
        return Sample(self.values - other.values, replicates, self.rows if together else 0)


def draw_metric(
    name: str, runs: Sequence[RowScores], replicates: int = REPLICATES, random: np.random.Generator | None = None
) -> Sample:
    """Return a metric (a key of METRICS) of every run, and of every run on `replicates` drawings of the rows.

    A drawing is shared by all runs, so that differences between runs are paired by row. The runs must have the
    same rows in the same order.
    """
    metric = METRICS[name]
    rows = runs[0].rows
    classes = _classes(runs)
    tables = [metric.sums(run, classes) for run in runs]
    weights = _drawings(rows, replicates, random or np.random.default_rng(0))
    with np.errstate(all="ignore"):
        values = metric.value(np.stack([table.sum(0, dtype=float) for table in tables]))
        drawn = [metric.value(np.stack([part @ table for table in tables], axis=1)) for part in weights]
    return Sample(values, np.concatenate(drawn), rows)


def _drawings(rows: int, replicates: int, random: np.random.Generator) -> Iterator[Floats]:
    """Yield how often each row comes in each drawing of `rows` rows with replacement, (some replicates, rows)."""
    left = replicates
    while left:
        part = min(left, max(1, CHUNK_CELLS // rows))
        places = random.integers(rows, size=(part, rows)) + rows * np.arange(part)[:, None]
        yield np.bincount(places.ravel(), minlength=part * rows).reshape(part, rows).astype(float)
        left -= part


def _classes(runs: Sequence[RowScores]) -> NDArray[np.int64]:
    seen = [column for run in runs for column in (run.prediction, run.label) if column is not None]
    return np.unique(np.concatenate(seen)) if seen else np.zeros(0, np.int64)


@dataclass(frozen=True)
class Metric:
    """A metric as a function of sums over rows: what each row adds, (rows, sums), and the value of (..., sums)."""

    sums: Callable[[RowScores, NDArray[np.int64]], Floats | NDArray[np.bool_]]
    value: Callable[[Floats], Floats]
    higher_is_better: bool


def _loss_sums(run: RowScores, classes: ArrayLike) -> Floats:
    return np.stack([run.loss, run.count], axis=1)


def _accuracy_sums(run: RowScores, classes: ArrayLike) -> Floats:
    return np.stack([(run.prediction == run.label).astype(float), np.ones(run.rows)], axis=1)


def _confusion_sums(run: RowScores, classes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Hits, predictions and labels of each class: all that F1 and Matthews' correlation need."""
    predicted, true = run.prediction[:, None] == classes, run.label[:, None] == classes
    return np.concatenate([predicted & true, predicted, true], axis=1)


def _ratio(sums: Floats) -> Floats:
    return sums[..., 0] / sums[..., 1]


def _macro_f1(sums: Floats) -> Floats:
    """Return the mean F1 of the classes that occur among labels or predictions."""
    hits, predicted, true = np.split(sums, 3, axis=-1)
    occurs = predicted + true > 0
    return (2 * hits / np.where(occurs, predicted + true, 1)).sum(-1) / occurs.sum(-1)


def _matthews(sums: Floats) -> Floats:
    """Return Matthews' correlation of any number of classes; 0 where a side has one class only."""
    hits, predicted, true = np.split(sums, 3, axis=-1)
    rows = true.sum(-1)
    shared = hits.sum(-1) * rows - (predicted * true).sum(-1)
    size = (rows**2 - (predicted**2).sum(-1)) * (rows**2 - (true**2).sum(-1))
    return np.where(size > 0, shared / np.sqrt(np.where(size > 0, size, 1)), 0.0)


METRICS = {
    "loss": Metric(_loss_sums, _ratio, higher_is_better=False),
    "perplexity": Metric(_loss_sums, lambda sums: np.exp(_ratio(sums)), higher_is_better=False),
    "accuracy": Metric(_accuracy_sums, _ratio, higher_is_better=True),
    "f1": Metric(_confusion_sums, _macro_f1, higher_is_better=True),
    "matthews": Metric(_confusion_sums, _matthews, higher_is_better=True),
}


def row_metrics(runs: Sequence[RowScores]) -> list[str]:
    """Return the metrics that the rows of these runs can give."""
    classes = all(run.prediction is not None and run.label is not None for run in runs)
    return list(METRICS) if classes else ["loss", "perplexity"]
