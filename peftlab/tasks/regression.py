"""Regression: a number for a text, or for two texts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar

from peftlab.errors import one_line
from peftlab.tasks.base import LIKELY, Loss, Prediction, TokenRow
from peftlab.tasks.formats import Example, Format, as_text
from peftlab.tasks.whole_text import WholeText, texts_of

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedConfig

OUTPUT = "target"


@dataclass(frozen=True, slots=True)
class Measured:
    text: str
    text_pair: str | None
    target: float


def as_number(value: Any) -> float:
    """Return a cell as a finite number. Raises ValueError."""
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
            raise ValueError
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"needs a number, not {type(value).__name__} {one_line(repr(value), 60)}") from None
    if not math.isfinite(number) or abs(number) > LARGEST:
        raise ValueError(f"needs a finite number that fits into 32 bits, not {one_line(value, 60)}")
    return number


# The largest number in float32, in which losses are computed.
LARGEST = 3.4e38

REGRESSION = Format(
    "regression",
    "text(s) and a number",
    Measured,
    {"text": as_text, "text_pair": as_text, "target": as_number},
    optional=frozenset({"text_pair"}),
    template_role="text",
    input_of=texts_of,
)


class Regression(WholeText):
    """The loss is the mean squared error, in the square of the target's own unit."""

    name: ClassVar[str] = "regression"
    title: ClassVar[str] = "regression"
    problem_type = "regression"
    formats = (REGRESSION,)
    gives = ("loss", "numbers")
    default_metric: ClassVar[str] = "rmse"
    fewest_labels: ClassVar[int] = 1
    answer_roles = ("target",)
    row_columns = ("number_predicted", "number_true")

    @property
    def row_class(self) -> type[TokenRow]:
        from peftlab.data.token_rows import NumberRow

        return NumberRow

    def loss(self, model: nn.Module) -> Loss:
        from peftlab.losses.pointwise import SquaredError

        return SquaredError()

    def target_of(self, example: Example, labels: Sequence[str]) -> float:
        return example.target

    def without_answer(self, inputs: Mapping[str, Any], labels: Sequence[str]) -> tuple[Example, Sequence[str]]:
        return Measured(inputs["text"], inputs.get("text_pair"), 0.0), labels

    def predict(
        self, row: TokenRow, scores: Tensor, inputs: Mapping[str, Any], labels: Sequence[str], threshold: float
    ) -> Prediction:
        return Prediction(float(scores[0, 0]))

    def list_labels(self, examples: Sequence[Example]) -> list[str]:
        """Return the name of the head's one output."""
        return [OUTPUT]

    def fit_config(self, config: PreTrainedConfig, labels: Sequence[str] | None) -> None:
        """Give the head one output, without data too."""
        super().fit_config(config, [OUTPUT] if labels is None else labels)

    def score_row(
        self, row: TokenRow, predictions: Sequence[float], labels: Sequence[str] | None, threshold: float = LIKELY
    ) -> tuple[float, ...]:
        return predictions[0], row.labels
