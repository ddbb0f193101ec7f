"""The metrics: for each its name, direction, range, what it is made from, and its value. Adding one is one entry.

Metrics of rows are functions of sums over rows, so that the value of a run and its values on rows drawn again
(`comparison.resampling`) are one definition. Metrics of generated texts come from libraries. Importing this loads
neither torch nor numpy: the recipe's schema reads the names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any

from peftlab.tasks.base import Need
from peftlab.tasks.multi_label import PREDICTED, TRUE

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

Sums = Callable[["RowScores", "NDArray"], "NDArray"]
Value = Callable[["NDArray"], "NDArray"]
Texts = Sequence[str]
References = Sequence[Sequence[str]]
# The columns of rows with spans: predicted and true, predicted, true.
SPANS = ("span_hits", "span_predicted", "span_true")
# The columns of rows with a number: predicted and true.
NUMBERS = ("number_predicted", "number_true")
# The columns of rows with several labels: predicted and true, predicted, true, whether the sets are equal.
LABELS = ("label_hits", "label_predicted", "label_true", "label_exact")


@dataclass(frozen=True)
class RowScores:
    """What a run scored on each row: summed loss, supervised tokens (or 1), for classes the predicted and true one.

    `sums` are further columns that a metric adds up, by name.
    """

    loss: ArrayLike
    count: ArrayLike
    prediction: ArrayLike | None = None
    label: ArrayLike | None = None
    sums: dict[str, ArrayLike] = field(default_factory=dict)

    @classmethod
    def of(cls, stored: dict[str, Any]) -> RowScores:
        """Return one entry of a run's `scores.json`. Raises ValueError unless its columns are of one length."""
        import numpy as np

        prediction, label = (stored.get(name) for name in ("prediction", "label"))
        scores = cls(
            loss=np.array(stored["loss"], float),
            count=np.array(stored["count"], float),
            prediction=None if prediction is None else np.array(prediction, np.int64),
            label=None if label is None else np.array(label, np.int64),
            sums={name: np.array(values, float) for name, values in stored.get("sums", {}).items()},
        )
        if len({len(column) for column in scores.columns}) != 1 or not scores.rows:
            raise ValueError("row scores of different lengths")
        return scores

    @property
    def columns(self) -> list[Any]:
        known = (self.loss, self.count, self.prediction, self.label, *self.sums.values())
        return [column for column in known if column is not None]

    @property
    def rows(self) -> int:
        return len(self.columns[0])

    @property
    def classes(self) -> NDArray:
        """Every class that is predicted or true in some row, ascending."""
        import numpy as np

        found = [column for column in (self.prediction, self.label) if column is not None]
        return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)

    def dump(self) -> dict[str, Any]:
        """Return the entry of `scores.json`."""
        stored = {"loss": self.loss, "count": self.count, "prediction": self.prediction, "label": self.label}
        return stored | ({"sums": self.sums} if self.sums else {})


@dataclass(frozen=True)
class Metric:
    """A metric of rows (`sums` and `value`) or of generated texts (`texts`).

    `sums` returns what each row adds, (rows, terms); `value` takes the totals, (..., terms). `columns` names the
    `RowScores.sums` that it reads. `range` is the smallest and largest possible value.
    """

    name: str
    needs: Need
    higher_is_better: bool
    range: tuple[float, float]
    sums: Sums | None = None
    value: Value | None = None
    texts: Callable[[Texts, References], float] | None = None
    columns: tuple[str, ...] = ()

    def suits(self, scores: RowScores) -> bool:
        """Return whether the metric can be computed from these rows."""
        classes = scores.prediction is not None and scores.label is not None
        return self.sums is not None and (self.needs != "classes" or classes) and set(self.columns) <= set(scores.sums)

    def of_rows(self, scores: RowScores) -> float:
        """Return the metric of scored rows; exactly rounded sums, so their order does not matter."""
        import numpy as np

        assert self.sums and self.value, f"{self.name} is not a metric of rows"
        totals = np.array([math.fsum(term) for term in self.sums(scores, scores.classes).T])
        with np.errstate(all="ignore"):
            return float(self.value(totals))

    def of_texts(self, outputs: Texts, references: References) -> float:
        """Return the metric of generated texts, each with the references that would be right.

        White space around a text does not count.
        """
        assert self.texts, f"{self.name} is not a metric of texts"
        return self.texts([text.strip() for text in outputs], [[one.strip() for one in known] for known in references])


def _loss_sums(scores: RowScores, classes: NDArray) -> NDArray:
    import numpy as np

    return np.stack([scores.loss, scores.count], axis=1)


def _accuracy_sums(scores: RowScores, classes: NDArray) -> NDArray:
    import numpy as np

    return np.stack([np.asarray(scores.prediction) == np.asarray(scores.label), np.ones(scores.rows)], axis=1)


def _confusion_sums(scores: RowScores, classes: NDArray) -> NDArray:
    """Return hits, predictions and labels of each class: all that F1 and Matthews' correlation need."""
    import numpy as np

    predicted, true = (np.asarray(column)[:, None] == classes for column in (scores.prediction, scores.label))
    return np.concatenate([predicted & true, predicted, true], axis=1)


def _ratio(totals: NDArray) -> NDArray:
    return totals[..., 0] / totals[..., 1]


def _perplexity(totals: NDArray) -> NDArray:
    import numpy as np

    return np.exp(_ratio(totals))


def _macro_f1(totals: NDArray) -> NDArray:
    """Return the mean F1 of the classes that occur among labels or predictions."""
    import numpy as np

    hits, predicted, true = np.split(totals, 3, axis=-1)
    occurs = predicted + true > 0
    return (2 * hits / np.where(occurs, predicted + true, 1)).sum(-1) / occurs.sum(-1)


def _matthews(totals: NDArray) -> NDArray:
    """Return Matthews' correlation of any number of classes; 0 where a side has one class only."""
    import numpy as np

    hits, predicted, true = np.split(totals, 3, axis=-1)
    rows = true.sum(-1)
    shared = hits.sum(-1) * rows - (predicted * true).sum(-1)
    size = (rows**2 - (predicted**2).sum(-1)) * (rows**2 - (true**2).sum(-1))
    return np.where(size > 0, shared / np.sqrt(np.where(size > 0, size, 1)), 0.0)


def _span_sums(scores: RowScores, classes: NDArray) -> NDArray:
    """Return the spans that are both predicted and true, those predicted, and those true."""
    import numpy as np

    return np.stack([np.asarray(scores.sums[name], float) for name in SPANS], axis=1)


def _share(hits: NDArray, of: NDArray) -> NDArray:
    """Return hits as a part of `of`; 0 where there is none."""
    import numpy as np

    return np.where(of > 0, hits / np.where(of > 0, of, 1), 0.0)


def _span_f1(totals: NDArray) -> NDArray:
    return _share(2 * totals[..., 0], totals[..., 1] + totals[..., 2])


def _span_precision(totals: NDArray) -> NDArray:
    return _share(totals[..., 0], totals[..., 1])


def _span_recall(totals: NDArray) -> NDArray:
    return _share(totals[..., 0], totals[..., 2])


def _numbers(scores: RowScores) -> NDArray:
    """Return predicted and true numbers, (rows, 2)."""
    import numpy as np

    return np.stack([np.asarray(scores.sums[name], float) for name in NUMBERS], axis=1)


def _error_sums(scores: RowScores, classes: NDArray) -> NDArray:
    """Return the squared and the absolute error of each row, and 1."""
    import numpy as np

    errors = np.diff(_numbers(scores), axis=1)[:, 0]
    return np.stack([errors**2, np.abs(errors), np.ones(scores.rows)], axis=1)


def _rmse(totals: NDArray) -> NDArray:
    import numpy as np

    return np.sqrt(totals[..., 0] / totals[..., 2])


def _mae(totals: NDArray) -> NDArray:
    return totals[..., 1] / totals[..., 2]


def _moment_sums(scores: RowScores, classes: NDArray) -> NDArray:
    return _moments(_numbers(scores))


def _rank_sums(scores: RowScores, classes: NDArray) -> NDArray:
    """Return the moments of ranks among all rows, equal numbers sharing their mean rank."""
    from scipy.stats import rankdata

    return _moments(rankdata(_numbers(scores), axis=0))


def _moments(pairs: NDArray) -> NDArray:
    """Return x, y, x², y², xy and 1 of each row, about the means of all rows, so that no digit is lost."""
    import numpy as np

    x, y = (pairs - pairs.mean(axis=0)).T
    return np.stack([x, y, x * x, y * y, x * y, np.ones(len(x))], axis=1)


def _correlation(totals: NDArray) -> NDArray:
    """Return Pearson's correlation; 0 where a side is constant."""
    import numpy as np

    x, y, xx, yy, xy, rows = (totals[..., i] for i in range(6))
    size = (rows * xx - x * x) * (rows * yy - y * y)
    found = (rows * xy - x * y) / np.sqrt(np.where(size > 0, size, 1))
    return np.where(size > 0, np.clip(found, -1.0, 1.0), 0.0)


def _label_sums(scores: RowScores, classes: NDArray) -> NDArray:
    """Return a row's labels that are both predicted and true, those predicted, those true, and whether all agree."""
    import numpy as np

    return np.stack([*(np.asarray(scores.sums[name], float) for name in LABELS), np.ones(scores.rows)], axis=1)


def _label_confusion_sums(scores: RowScores, classes: NDArray) -> NDArray:
    """Return hits, predictions and occurrences of each label, as `_macro_f1` takes them."""
    import numpy as np

    predicted, true = (
        np.stack([np.asarray(values, float) for name, values in scores.sums.items() if name.startswith(which)], axis=1)
        for which in (PREDICTED, TRUE)
    )
    return np.concatenate([predicted * true, predicted, true], axis=1)


def _label_match(totals: NDArray) -> NDArray:
    return totals[..., 3] / totals[..., 4]


def _exact_match(outputs: Texts, references: References) -> float:
    return sum(output in known for output, known in zip(outputs, references, strict=True)) / len(outputs)


def _bleu(outputs: Texts, references: References) -> float:
    """Return sacrebleu's corpus BLEU, which takes all references."""
    from sacrebleu import corpus_bleu

    most = max(len(known) for known in references)
    # A missing reference is None, which sacrebleu takes although its types do not say so.
    streams: list[Any] = [[known[i] if i < len(known) else None for known in references] for i in range(most)]
    return float(corpus_bleu(outputs, streams).score)


def _rouge(outputs: Texts, references: References) -> float:
    """Return the mean F1 of ROUGE-L to the best reference."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    pairs = zip(outputs, references, strict=True)
    return sum(scorer.score_multi(known, output)["rougeL"].fmeasure for output, known in pairs) / len(outputs)


METRICS = {
    metric.name: metric
    for metric in (
        Metric("loss", "loss", False, (0.0, inf), _loss_sums, _ratio),
        Metric("perplexity", "next_tokens", False, (1.0, inf), _loss_sums, _perplexity),
        Metric("accuracy", "classes", True, (0.0, 1.0), _accuracy_sums, _ratio),
        Metric("f1", "classes", True, (0.0, 1.0), _confusion_sums, _macro_f1),
        Metric("matthews", "classes", True, (-1.0, 1.0), _confusion_sums, _matthews),
        Metric("span_f1", "spans", True, (0.0, 1.0), _span_sums, _span_f1, columns=SPANS),
        Metric("span_precision", "spans", True, (0.0, 1.0), _span_sums, _span_precision, columns=SPANS),
        Metric("span_recall", "spans", True, (0.0, 1.0), _span_sums, _span_recall, columns=SPANS),
        Metric("rmse", "numbers", False, (0.0, inf), _error_sums, _rmse, columns=NUMBERS),
        Metric("mae", "numbers", False, (0.0, inf), _error_sums, _mae, columns=NUMBERS),
        Metric("pearson", "numbers", True, (-1.0, 1.0), _moment_sums, _correlation, columns=NUMBERS),
        Metric("spearman", "numbers", True, (-1.0, 1.0), _rank_sums, _correlation, columns=NUMBERS),
        Metric("label_f1_micro", "label_sets", True, (0.0, 1.0), _label_sums, _span_f1, columns=LABELS),
        Metric("label_f1_macro", "label_sets", True, (0.0, 1.0), _label_confusion_sums, _macro_f1, columns=LABELS),
        Metric("label_match", "label_sets", True, (0.0, 1.0), _label_sums, _label_match, columns=LABELS),
        Metric("exact_match", "texts", True, (0.0, 1.0), texts=_exact_match),
        Metric("bleu", "texts", True, (0.0, 100.0), texts=_bleu),
        Metric("rouge", "texts", True, (0.0, 1.0), texts=_rouge),
    )
}


def names_that_need(*needs: Need) -> tuple[str, ...]:
    """Return the names of the metrics made from any of these."""
    return tuple(name for name, metric in METRICS.items() if metric.needs in needs)
