"""Metrics of any number of labels for each row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftlab.metrics.base import Metric, RowScores, ratio
from peftlab.metrics.classes import f1_macro, f1_micro, f1_weighted
from peftlab.tasks.multi_label import PREDICTED, TRUE

if TYPE_CHECKING:
    from numpy.typing import NDArray

LABELS = ("label_hits", "label_predicted", "label_true", "label_exact")
"""The columns of rows with several labels: predicted and true, predicted, true, whether the sets are equal."""


def _confusion_sums(scores: RowScores, classes: NDArray) -> NDArray:
    """Return hits, predictions and occurrences of each label, as F1 takes them."""
    import numpy as np

    predicted, true = (
        np.stack([np.asarray(values, float) for name, values in scores.sums.items() if name.startswith(which)], axis=1)
        for which in (PREDICTED, TRUE)
    )
    return np.concatenate([predicted * true, predicted, true], axis=1)


def _match_sums(scores: RowScores, classes: NDArray) -> NDArray:
    import numpy as np

    return np.stack([np.asarray(scores.sums["label_exact"], float), np.ones(scores.rows)], axis=1)


UNIT = (0.0, 1.0)
NOTHING = "no label is predicted and none is true"
LABEL_METRICS = (
    Metric("label_f1_micro", ("label_sets",), True, UNIT, _confusion_sums, f1_micro, LABELS, NOTHING),
    Metric("label_f1_macro", ("label_sets",), True, UNIT, _confusion_sums, f1_macro, LABELS, NOTHING),
    Metric("label_f1_weighted", ("label_sets",), True, UNIT, _confusion_sums, f1_weighted, LABELS, "no label is true"),
    Metric("label_match", ("label_sets",), True, UNIT, _match_sums, ratio, LABELS),
)
