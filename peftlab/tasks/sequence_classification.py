"""Sequence classification: one of several classes for a text, or for two texts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftlab.tasks.base import Loss, Task, Tokenising, TokenRow
from peftlab.tasks.formats import Example, Format, as_label, as_text

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig

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
)


class SequenceClassification(Task):
    name: ClassVar[str] = "sequence-classification"
    title: ClassVar[str] = "sequence classification"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    model_suffix: ClassVar[str] = "ForSequenceClassification"
    peft_type: ClassVar[str] = "SEQ_CLS"
    formats = (CLASSIFICATION,)
    gives = ("loss", "classes")
    default_metric: ClassVar[str] = "accuracy"
    head_names = ("classifier", "score")
    has_labels: ClassVar[bool] = True
    reads_last_token: ClassVar[bool] = True
    row_columns = ("prediction", "label")

    @property
    def row_class(self) -> type[TokenRow]:
        from peftlab.data.token_rows import ClassRow

        return ClassRow

    def loss(self, model: nn.Module) -> Loss:
        from peftlab.losses.cross_entropy import RowCrossEntropy

        return RowCrossEntropy()

    def tokenise(self, examples: Sequence[Example], how: Tokenising) -> list[TokenRow]:
        from peftlab.data.tokens import tokenise_labelled

        return tokenise_labelled(examples, how.labels, how.tokenizer, how.max_length, how.counts)

    def labels_of(self, example: Example) -> Iterable[str]:
        return (example.label,)

    def list_labels(self, examples: Sequence[Example]) -> list[str]:
        """Return the labels that occur, whole numbers in numeric order, else alphabetically."""
        labels = {example.label for example in examples}
        numeric = all(WHOLE_NUMBER.fullmatch(label) for label in labels)
        return sorted(labels, key=(lambda label: (int(label), label)) if numeric else None)

    def fit_config(self, config: PreTrainedConfig, labels: Sequence[str] | None) -> None:
        super().fit_config(config, labels)
        if labels is not None:
            config.problem_type = "single_label_classification"
        text = config.get_text_config()
        if text.pad_token_id is None:
            # Decoders read the class from the last token that is not padding; any id will do until the tokenizer
            # names its own (`models.tokenizer.fit_tokenizer`).
            end = text.eos_token_id
            text.pad_token_id = end[0] if isinstance(end, list) else (end or 0)

    def score_row(self, row: TokenRow, predictions: Sequence[int], labels: Sequence[str] | None) -> tuple[int, ...]:
        return predictions[0], row.labels
