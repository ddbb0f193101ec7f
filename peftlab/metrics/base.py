"""What a metric is, and what a run scored on each row, from which metrics are computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from peftlab.tasks.base import Need

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

Sums = Callable[["RowScores", "NDArray"], "NDArray"]
Value = Callable[["NDArray"], "NDArray"]
Weighted = Callable[["RowScores", "NDArray"], "NDArray"]
Texts = Sequence[str]
References = Sequence[Sequence[str]]


@dataclass(frozen=True)
class RowScores:
    """What a run scored on each row: summed loss, supervised tokens (or 1), for classes the predicted and true one.

    `labels` is the number of the task's labels, also of those that do not occur. `sums` are further columns that a
    metric reads, by name; NaN where a row has no such value. Rows of generated texts have only these.
    """

    loss: ArrayLike | None = None
    count: ArrayLike | None = None
    prediction: ArrayLike | None = None
    label: ArrayLike | None = None
    sums: dict[str, ArrayLike] = field(default_factory=dict)
    labels: int | None = None

    @classmethod
    def of(cls, stored: dict[str, Any]) -> RowScores:
        """Return one entry of a run's `scores.json`. Raises ValueError unless its columns are of one length."""
        import numpy as np

        def read(name: str, kind: Any) -> NDArray | None:
            return None if stored.get(name) is None else np.array(stored[name], kind)

        scores = cls(
            loss=read("loss", float),
            count=read("count", float),
            prediction=read("prediction", np.int64),
            label=read("label", np.int64),
            sums={name: np.array(values, float) for name, values in stored.get("sums", {}).items()},
            labels=stored.get("labels"),
        )
        if len({len(column) for column in scores.columns.values()}) != 1 or not scores.rows:
            raise ValueError("row scores of different lengths")
        return scores

    @property
    def columns(self) -> dict[str, Any]:
        """Every column by name."""
        known = {"loss": self.loss, "count": self.count, "prediction": self.prediction, "label": self.label}
        return {name: column for name, column in (known | self.sums).items() if column is not None}

    @property
    def rows(self) -> int:
        return len(next(iter(self.columns.values())))

    @property
    def classes(self) -> NDArray:
        """Every label of the task, ascending; where their number is not known, those that occur."""
        import numpy as np

        if self.labels is not None:
            return np.arange(self.labels)
        found = [np.asarray(column) for column in (self.prediction, self.label) if column is not None]
        return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)

    def dump(self) -> dict[str, Any]:
        """Return the entry of `scores.json`; NaN, which JSON lacks, is null."""
        known = {"loss": self.loss, "count": self.count, "prediction": self.prediction, "label": self.label}
        stored: dict[str, Any] = {name: column for name, column in known.items() if column is not None}
        if self.sums:
            stored["sums"] = {name: [_or_null(value) for value in column] for name, column in self.sums.items()}  # type: ignore[union-attr]  # columns are sequences here, not numbers
        return stored | ({"labels": self.labels} if self.labels is not None else {})


def _or_null(value: Any) -> Any:
    return None if value != value else value


class TextScores(NamedTuple):
    """What a metric scored on generated texts.

    `columns` are what it sums over rows, `rows` each text's own score (None where it has none), `signature` the
    settings that the value depends on.
    """

    columns: dict[str, list[float]]
    rows: list[float | None]
    signature: str


@dataclass(frozen=True)
class TextSettings:
    """How generated texts are compared: the fields of the recipe's `evaluation.texts`."""

    normalise: tuple[str, ...] = ()
    extract: str | None = None
    bleu_tokenizer: str = "auto"


@dataclass(frozen=True)
class Metric:
    """A metric: a function of sums over rows (`sums` and `value`), or where it is none, of weighted rows (`weighted`).

    `sums` returns what each row adds, (rows, terms); `value` takes the totals, (..., terms). `weighted` takes weights
    (drawings, rows) and returns a value for each drawing. All give NaN where the metric is undefined, for the reason
    `undefined`. `columns` names the columns of `RowScores` that it reads, `needs` what a task must give, any one of
    it. `range` is the smallest and largest possible value. A metric of generated texts makes its columns by `texts`.
    """

    name: str
    needs: tuple[Need, ...]
    higher_is_better: bool
    range: tuple[float, float]
    sums: Sums | None = None
    value: Value | None = None
    columns: tuple[str, ...] = ("loss", "count")
    undefined: str = ""
    weighted: Weighted | None = None
    texts: Callable[[Texts, References, TextSettings], TextScores] | None = None

    def suits(self, scores: RowScores) -> bool:
        """Return whether the metric can be computed from these rows."""
        return set(self.columns) <= set(scores.columns)

    def of_rows(self, scores: RowScores) -> float:
        """Return the metric of scored rows; exactly rounded sums, so their order does not matter."""
        import numpy as np

        if self.weighted is not None:
            return float(self.weighted(scores, np.ones((1, scores.rows)))[0])
        assert self.sums and self.value, f"{self.name} has no value"
        totals = np.array([math.fsum(term) for term in self.sums(scores, scores.classes).T])
        with np.errstate(all="ignore"):
            return float(self.value(totals))

    def draw(self, scores: RowScores, classes: NDArray, weights: NDArray) -> NDArray:
        """Return the metric of rows that count as often as `weights` say, (drawings, rows): one value a drawing."""
        import numpy as np

        with np.errstate(all="ignore"):
            if self.weighted is not None:
                return self.weighted(scores, weights)
            assert self.sums and self.value, f"{self.name} has no value"
            return self.value(weights @ self.sums(scores, classes))

    def without_each(self, scores: RowScores, classes: NDArray) -> NDArray | None:
        """Return the metric of all rows but one, for each row; None for one that has no sums."""
        import numpy as np

        if self.sums is None or self.value is None:
            return None
        with np.errstate(all="ignore"):
            added = self.sums(scores, classes)
            return self.value(added.sum(0) - added)


def ratio(totals: NDArray) -> NDArray:
    """Return the first total by the second; NaN where that is 0."""
    import numpy as np

    hits, of = totals[..., 0], totals[..., 1]
    return np.where(of != 0, hits / np.where(of != 0, of, 1), np.nan)


def mean_of(column: str) -> Sums:
    """Return the sums whose ratio is the mean of a column over the rows that have a value."""

    def sums(scores: RowScores, classes: NDArray) -> NDArray:
        import numpy as np

        values = np.asarray(scores.sums[column], float)
        return np.stack([np.nan_to_num(values), np.isfinite(values)], axis=1)

    return sums
