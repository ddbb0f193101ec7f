"""Sequence classification: one of several classes for a text, or for two texts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from peftlab.tasks.base import LIKELY, Loss, Prediction, TokenRow
from peftlab.tasks.formats import Example, Format, as_label, as_text
from peftlab.tasks.whole_text import WholeText, texts_of

if TYPE_CHECKING:
    from torch import Tensor, nn

WHOLE_NUMBER = re.compile(r"-?\d{1,18}")


@dataclass(frozen=True, slots=True)
class Labelled:
    text: str
    text_pair: str | None
    label: str


CLASSIFICATION = Format(
    "classification",
    "text(s) and a label",
    Labelled,
    {"text": as_text, "text_pair": as_text, "label": as_label},
    optional=frozenset({"text_pair"}),
    template_role="text",
    input_of=texts_of,
)


class SequenceClassification(WholeText):
    name: ClassVar[str] = "sequence-classification"
    title: ClassVar[str] = "sequence classification"
    problem_type = "single_label_classification"
    formats = (CLASSIFICATION,)
    gives = ("loss", "classes")
    default_metric: ClassVar[str] = "accuracy"
    row_columns = ("prediction", "label")
    answer_roles = ("label",)

    @property
    def row_class(self) -> type[TokenRow]:
        from peftlab.data.token_rows import ClassRow

        return ClassRow

    def loss(self, model: nn.Module) -> Loss:
        from peftlab.losses.cross_entropy import RowCrossEntropy

        return RowCrossEntropy()

    def builds(self, model: nn.Module) -> bool:
        """A model that does not name its problem is a classifier of one class a text."""
        named = getattr(getattr(model, "config", None), "problem_type", None)
        return super().builds(model) or (self.model_suffix in type(model).__name__ and named is None)

    def target_of(self, example: Example, labels: Sequence[str]) -> int:
        return labels.index(example.label)

    def without_answer(self, inputs: Mapping[str, Any], labels: Sequence[str]) -> tuple[Example, Sequence[str]]:
        return Labelled(inputs["text"], inputs.get("text_pair"), labels[0]), labels

    def predict(
        self, row: TokenRow, scores: Tensor, inputs: Mapping[str, Any], labels: Sequence[str], threshold: float
    ) -> Prediction:
        probabilities = dict(zip(labels, scores[0].softmax(-1).tolist(), strict=True))
        likeliest = labels[int(scores[0].argmax())]
        return Prediction(likeliest, probabilities[likeliest], probabilities)

    def labels_of(self, example: Example) -> Iterable[str]:
        return (example.label,)

    def list_labels(self, examples: Sequence[Example]) -> list[str]:
        """Return the labels that occur, whole numbers in numeric order, else alphabetically."""
        return sort_labels({example.label for example in examples})

    def score_row(
        self, row: TokenRow, predictions: Sequence[float], labels: Sequence[str] | None, threshold: float = LIKELY
    ) -> tuple[int, ...]:
        return int(predictions[0]), row.labels


def sort_labels(labels: set[str]) -> list[str]:
    """Return labels in numeric order where all are whole numbers, else alphabetically."""
    numeric = all(WHOLE_NUMBER.fullmatch(label) for label in labels)
    return sorted(labels, key=(lambda label: (int(label), label)) if numeric else None)
