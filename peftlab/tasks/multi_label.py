"""Multi-label classification: any number of several labels for a text, or for two texts, each decided by itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from peftlab.errors import one_line
from peftlab.files import decode_json
from peftlab.tasks.base import LIKELY, Loss, Prediction, TokenRow
from peftlab.tasks.formats import Example, Format, as_label, as_text
from peftlab.tasks.sequence_classification import sort_labels
from peftlab.tasks.whole_text import WholeText

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

SEPARATOR = ","
# The beginnings of the columns that each label has among a run's scores.
PREDICTED, TRUE = "predicted: ", "true: "


@dataclass(frozen=True, slots=True)
class LabelSet:
    text: str
    text_pair: str | None
    labels: list[str]


def as_labels(value: Any) -> list[str]:
    """Return a cell as the labels of a row, each once: a list, the same as JSON, or a text with commas between them.

    An empty cell has none. Raises ValueError.
    """
    if value is None or value != value:  # NaN differs from itself: an empty cell of some readers
        return []
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _read_list(value)
    if isinstance(value, str | int):
        value = [part for part in str(value).split(SEPARATOR) if part.strip()]
    if not isinstance(value, list):
        raise ValueError(f"needs a list of labels, or a text with commas between them, not {type(value).__name__}")
    labels = [as_label(label) for label in value]
    if "" in labels:
        raise ValueError("one of its labels is empty")
    if any(isinstance(label, bool) for label in value) or _are_indicators(labels):
        raise ValueError(f"has a 0 or 1 for each label, {one_line(value, 60)}; list the names of the row's own labels")
    return list(dict.fromkeys(labels))


def _are_indicators(labels: Sequence[str]) -> bool:
    """Return whether labels are 0 and 1 alone, one of them twice: whether the row has each of all labels."""
    return set(labels) <= {"0", "1"} and len(labels) > len(set(labels))


def _read_list(text: str) -> list[Any]:
    try:
        found = decode_json(text)
    except ValueError:
        found = None
    if not isinstance(found, list):
        raise ValueError(f'begins like a list and is not valid JSON, such as ["a", "b"]: {one_line(text, 60)!r}')
    return found


LABEL_SETS = Format(
    "multi-label",
    "text(s) and any number of labels",
    LabelSet,
    {"text": as_text, "text_pair": as_text, "labels": as_labels},
    optional=frozenset({"text_pair"}),
    nullable=frozenset({"labels"}),
    template_role="text",
)


class MultiLabelClassification(WholeText):
    """Each label is predicted where its probability is above `evaluation.threshold`.

    `true: LABEL` and `predicted: LABEL` of each row are kept among a run's scores.
    """

    name: ClassVar[str] = "multi-label-classification"
    title: ClassVar[str] = "multi-label classification"
    problem_type = "multi_label_classification"
    formats = (LABEL_SETS,)
    gives = ("loss", "label_sets")
    default_metric: ClassVar[str] = "label_f1_micro"
    fewest_labels: ClassVar[int] = 1
    answer_roles = ("labels",)
    row_columns = ("label_hits", "label_predicted", "label_true", "label_exact")

    @property
    def row_class(self) -> type[TokenRow]:
        from peftlab.data.token_rows import LabelSetRow

        return LabelSetRow

    def loss(self, model: nn.Module) -> Loss:
        from peftlab.losses.pointwise import BinaryCrossEntropy

        return BinaryCrossEntropy()

    def target_of(self, example: Example, labels: Sequence[str]) -> np.ndarray:
        import numpy as np

        return np.array([label in example.labels for label in labels], np.int8)

    def without_answer(self, inputs: Mapping[str, Any], labels: Sequence[str]) -> tuple[Example, Sequence[str]]:
        return LabelSet(inputs["text"], inputs.get("text_pair"), []), labels

    def predict(
        self, row: TokenRow, scores: Tensor, inputs: Mapping[str, Any], labels: Sequence[str], threshold: float
    ) -> Prediction:
        probabilities = dict(zip(labels, scores[0].sigmoid().tolist(), strict=True))
        return Prediction([label for label, one in probabilities.items() if one > threshold], None, probabilities)

    def labels_of(self, example: Example) -> Iterable[str]:
        return example.labels

    def list_labels(self, examples: Sequence[Example]) -> list[str]:
        """Return the labels that occur, whole numbers in numeric order, else alphabetically."""
        return sort_labels({label for example in examples for label in example.labels})

    def name_columns(self, labels: Sequence[str] | None) -> tuple[str, ...]:
        own = labels or ()
        return (*self.row_columns, *(PREDICTED + label for label in own), *(TRUE + label for label in own))

    def score_row(
        self, row: TokenRow, predictions: Sequence[float], labels: Sequence[str] | None, threshold: float = LIKELY
    ) -> tuple[int, ...]:
        predicted = [int(probability > threshold) for probability in predictions]
        true = row.labels.tolist()
        hits = sum(one and other for one, other in zip(predicted, true, strict=True))
        return (hits, sum(predicted), sum(true), int(predicted == true), *predicted, *true)
