"""The metrics: for each its name, direction, range, what it is made from, and its value. Adding one is one entry.

A metric is a function of sums over rows, so that the value of a run and its values on rows drawn again
(`evaluation.resampling`) are one definition. Generated texts are no exception: they are scored row by row, by the
libraries that define a metric. Importing this loads neither torch nor numpy: the recipe's schema reads the names.
"""

from __future__ import annotations

from peftlab.metrics.base import Metric, RowScores, TextScores, TextSettings
from peftlab.metrics.classes import CLASS_METRICS
from peftlab.metrics.edits import EDIT_METRICS
from peftlab.metrics.labels import LABEL_METRICS
from peftlab.metrics.match import MATCH_METRICS
from peftlab.metrics.numbers import NUMBER_METRICS
from peftlab.metrics.overlap import OVERLAP_METRICS
from peftlab.metrics.spans import SPAN_METRICS
from peftlab.metrics.tokens import TOKEN_METRICS
from peftlab.tasks.base import Need

__all__ = ["METRICS", "RENAMED", "Metric", "RowScores", "TextScores", "TextSettings", "names_that_need"]

METRICS = {
    metric.name: metric
    for metric in (
        *TOKEN_METRICS,
        *CLASS_METRICS,
        *LABEL_METRICS,
        *SPAN_METRICS,
        *NUMBER_METRICS,
        *MATCH_METRICS,
        *OVERLAP_METRICS,
        *EDIT_METRICS,
    )
}
RENAMED = {"f1": "f1_macro", "rouge": "rougeL"}
"""Names of earlier versions, which recipes may still use, and the present ones."""


def names_that_need(*needs: Need) -> tuple[str, ...]:
    """Return the names of the metrics made from any of these."""
    return tuple(name for name, metric in METRICS.items() if set(metric.needs) & set(needs))
