"""Metrics of numbers: how far the predicted ones are from the true ones, and how they go together."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from peftlab.metrics.base import Metric, RowScores

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUMBERS = ("number_predicted", "number_true")
"""The columns of rows with a predicted and a true number."""
ROUNDING = 1e-24
"""The part of a mean square below which a variance is rounding."""
CONSTANT = "all true numbers are equal, or all predicted ones"


def _numbers(scores: RowScores) -> tuple[NDArray, NDArray]:
    import numpy as np

    predicted, true = (np.asarray(scores.sums[name], float) for name in NUMBERS)
    return predicted, true


def _error_sums(scores: RowScores, classes: NDArray) -> NDArray:
    """Return squared and absolute errors, and 1 for each row."""
    import numpy as np

    predicted, true = _numbers(scores)
    return np.stack([(predicted - true) ** 2, np.abs(predicted - true), np.ones(len(true))], axis=1)


def _mse(totals: NDArray) -> NDArray:
    return totals[..., 0] / totals[..., 2]


def _rmse(totals: NDArray) -> NDArray:
    import numpy as np

    return np.sqrt(_mse(totals))


def _mae(totals: NDArray) -> NDArray:
    return totals[..., 1] / totals[..., 2]


def _pearson(scores: RowScores, weights: NDArray) -> NDArray:
    """Return Pearson's correlation of rows that count as often as their weights, (drawings,)."""
    predicted, true = _numbers(scores)
    return _correlation(predicted[None], true[None], weights)


def _spearman(scores: RowScores, weights: NDArray) -> NDArray:
    """Return Spearman's correlation: Pearson's of the ranks, where equal numbers share the mean of their ranks."""
    predicted, true = _numbers(scores)
    return _correlation(_ranks(predicted, weights), _ranks(true, weights), weights)


def _ranks(values: NDArray, weights: NDArray) -> NDArray:
    """Return each row's rank among the rows as often as they count, (drawings, rows)."""
    import numpy as np

    different, place = np.unique(values, return_inverse=True)
    counts = np.stack([np.bincount(place, row, minlength=len(different)) for row in weights])
    below = np.cumsum(counts, axis=1) - counts
    return (below + (counts + 1) / 2)[:, place]


def _correlation(one: NDArray, other: NDArray, weights: NDArray) -> NDArray:
    """Return the weighted correlation of (1 or drawings, rows); NaN where one side has no variance but rounding."""
    import numpy as np

    # From a row of its own, so that equal numbers differ by exactly 0.
    one, other = one - one[:, :1], other - other[:, :1]
    total = weights.sum(1, keepdims=True)
    means = [(weights * side).sum(1, keepdims=True) / total for side in (one, other)]
    first, second = (side - mean for side, mean in zip((one, other), means, strict=True))
    variances = [(weights * part**2).sum(1) for part in (first, second)]
    sizes = [(weights * side**2).sum(1) for side in (one, other)]
    known = np.all([v > ROUNDING * size for v, size in zip(variances, sizes, strict=True)], axis=0)
    scale = np.sqrt(np.where(known, variances[0] * variances[1], 1))
    return np.where(known, np.clip((weights * first * second).sum(1) / scale, -1, 1), np.nan)


NUMBER_METRICS = (
    Metric("mse", ("numbers",), False, (0.0, inf), _error_sums, _mse, NUMBERS),
    Metric("rmse", ("numbers",), False, (0.0, inf), _error_sums, _rmse, NUMBERS),
    Metric("mae", ("numbers",), False, (0.0, inf), _error_sums, _mae, NUMBERS),
    Metric("pearson", ("numbers",), True, (-1.0, 1.0), columns=NUMBERS, undefined=CONSTANT, weighted=_pearson),
    Metric("spearman", ("numbers",), True, (-1.0, 1.0), columns=NUMBERS, undefined=CONSTANT, weighted=_spearman),
)
