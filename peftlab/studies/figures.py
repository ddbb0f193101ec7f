"""What several studies show of a comparison: its variants' metrics as a table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence

from peftlab.studies.charts import Intervals
from peftlab.studies.compared import Compared
from peftlab.studies.quantity import Quantity
from peftlab.studies.study import Table


def text_of(found: Quantity | None, form: str = ".3f") -> str:
    """Return `1.234 [1.2, 1.3]`, the value alone where its interval is not known, a dash without one."""
    if found is None:
        return "–"
    ends = f" [{found.low:{form}}, {found.high:{form}}]" if found.known else ""
    return f"{found.value:{form}}{ends}".replace("-", "\u2212")


def metric_table(title: str, compared: Compared, metrics: Sequence[str] = ("loss",)) -> Table:
    """Return each variant's trainable parameters, learning rate, and mean of the metrics over its seeds."""
    rows = [
        [label, f"{arm.trainable:,}", f"{arm.learning_rate:g}",
         *(text_of(compared.mean(metric, label)) for metric in metrics), f"{arm.seconds:.0f}"]
        for label, arm in compared.arms.items()
    ]  # fmt: skip
    columns = ["variant", "trainable", "learning rate", *metrics, "seconds"]
    return Table(title, columns, rows, "Means over the seeds with 95 % intervals, which cover seeds and rows.")


def metric_picture(title: str, compared: Compared, metric: str = "loss") -> Intervals:
    """Return each variant's mean with its interval."""
    found = {label: compared.mean(metric, label) for label in compared.arms}
    lines = {label: (one.value, one.low, one.high) for label, one in found.items() if one}
    return Intervals(metric, title, "Means over the seeds, with 95 % intervals over seeds and rows.", metric, lines)
