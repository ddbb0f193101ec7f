"""Metrics of spans of tags: hits among those predicted and those true, over all rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftlab.metrics.base import Metric, RowScores, ratio

if TYPE_CHECKING:
    from numpy.typing import NDArray

SPANS = ("span_hits", "span_predicted", "span_true")
"""The columns of rows with spans: predicted and true, predicted, true."""


def _span_sums(scores: RowScores, classes: NDArray) -> NDArray:
    import numpy as np

    return np.stack([np.asarray(scores.sums[name], float) for name in SPANS], axis=1)


def _f1(totals: NDArray) -> NDArray:
    import numpy as np

    return ratio(np.stack([2 * totals[..., 0], totals[..., 1] + totals[..., 2]], axis=-1))


def _precision(totals: NDArray) -> NDArray:
    return ratio(totals[..., [0, 1]])


def _recall(totals: NDArray) -> NDArray:
    return ratio(totals[..., [0, 2]])


UNIT = (0.0, 1.0)
SPAN_METRICS = (
    Metric("span_f1", ("spans",), True, UNIT, _span_sums, _f1, SPANS, "no span is predicted and none is true"),
    Metric("span_precision", ("spans",), True, UNIT, _span_sums, _precision, SPANS, "no span is predicted"),
    Metric("span_recall", ("spans",), True, UNIT, _span_sums, _recall, SPANS, "no span is true"),
)
