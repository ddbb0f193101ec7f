"""Metrics of one label for each row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftlab.metrics.base import Metric, RowScores, ratio
from peftlab.tasks.base import Need

if TYPE_CHECKING:
    from numpy.typing import NDArray

COLUMNS = ("prediction", "label")
ONE: tuple[Need, ...] = ("classes",)


def _hit_sums(scores: RowScores, classes: NDArray) -> NDArray:
    """Return the rows whose predicted label is the true one, and all rows."""
    import numpy as np

    return np.stack([np.asarray(scores.prediction) == np.asarray(scores.label), np.ones(scores.rows)], axis=1)


def _confusion_sums(scores: RowScores, classes: NDArray) -> NDArray:
    """Return hits, predictions and occurrences of each label: all that F1 and Matthews' correlation need."""
    import numpy as np

    predicted, true = (np.asarray(column)[:, None] == classes for column in (scores.prediction, scores.label))
    return np.concatenate([predicted & true, predicted, true], axis=1)


def f1_of_each(totals: NDArray) -> tuple[NDArray, NDArray]:
    """Return each label's F1, NaN for one that is neither predicted nor true, and how often each is true."""
    import numpy as np

    hits, predicted, true = np.split(totals, 3, axis=-1)
    return ratio(np.stack([2 * hits, predicted + true], axis=-1)), true


def f1_macro(totals: NDArray) -> NDArray:
    """Return the mean F1 of all labels; one that is neither predicted nor true counts as 0, as in scikit-learn."""
    import numpy as np

    scores, _ = f1_of_each(totals)
    return np.nan_to_num(scores).mean(-1)


def f1_weighted(totals: NDArray) -> NDArray:
    """Return the mean of the labels' F1, each weighted by how often it is true."""
    import numpy as np

    scores, true = f1_of_each(totals)
    return ratio(np.stack([(np.nan_to_num(scores) * true).sum(-1), true.sum(-1)], axis=-1))


def f1_micro(totals: NDArray) -> NDArray:
    import numpy as np

    hits, predicted, true = (part.sum(-1) for part in np.split(totals, 3, axis=-1))
    return ratio(np.stack([2 * hits, predicted + true], axis=-1))


def _f1_positive(totals: NDArray) -> NDArray:
    """Return the F1 of the second of two labels; NaN where there are more."""
    import numpy as np

    scores, true = f1_of_each(totals)
    return scores[..., 1] if true.shape[-1] == 2 else np.full(totals.shape[:-1], np.nan)


def _matthews(totals: NDArray) -> NDArray:
    """Return Matthews' correlation of any number of classes."""
    import numpy as np

    hits, predicted, true = np.split(totals, 3, axis=-1)
    rows = true.sum(-1)
    shared = hits.sum(-1) * rows - (predicted * true).sum(-1)
    size = (rows**2 - (predicted**2).sum(-1)) * (rows**2 - (true**2).sum(-1))
    return np.where(size > 0, shared / np.sqrt(np.where(size > 0, size, 1)), np.nan)


NOTHING = "no label is predicted and none is true"
UNIT = (0.0, 1.0)
CLASS_METRICS = (
    Metric("accuracy", ONE, True, UNIT, _hit_sums, ratio, COLUMNS),
    Metric("f1_macro", ONE, True, UNIT, _confusion_sums, f1_macro, COLUMNS, NOTHING),
    Metric("f1_micro", ONE, True, UNIT, _confusion_sums, f1_micro, COLUMNS, NOTHING),
    Metric("f1_weighted", ONE, True, UNIT, _confusion_sums, f1_weighted, COLUMNS, "no label is true in any row"),
    Metric(
        "f1_positive",
        ONE,
        True,
        UNIT,
        _confusion_sums,
        _f1_positive,
        COLUMNS,
        "needs two labels, of which the second is true or predicted in some row",
    ),
    Metric(
        "matthews",
        ONE,
        True,
        (-1.0, 1.0),
        _confusion_sums,
        _matthews,
        COLUMNS,
        "all rows have one true label, or all one predicted label",
    ),
)
