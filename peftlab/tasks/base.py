"""What a task is: the model class, the rows, the loss and the metrics that belong together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from peftlab.tasks.formats import Example, Format

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedConfig

Need = Literal["loss", "next_tokens", "classes", "texts", "spans", "numbers", "label_sets"]
"""What metrics are made from: losses of rows or of next tokens, one class a row, generated texts, spans of tags, one
number a row, any number of labels a row."""
LIKELY = 0.5
TokenRow = Any
"""A `data.token_rows.TokenRow`. That room reads this one, so its types have no names here."""
Loss = Any
"""A `losses.base.Loss`."""


class Tokenising(NamedTuple):
    """How examples of a `format` become rows.

    `section` is the recipe's `data`, `counts` gains what happened to rows, `labels` are the classes in the order of
    their numbers. `prompts` says that prompts are wanted too, where rows have any.
    """

    tokenizer: Any
    section: Any
    format: Format
    counts: Counter[str]
    labels: Sequence[str] = ()
    prompts: bool = False


class Prediction(NamedTuple):
    """What is predicted for a row, and its probability, or that of every label; None where there is none."""

    value: Any
    probability: Any = None
    probabilities: dict[str, float] | None = None


class Tokenised(NamedTuple):
    """The rows of examples, and of those that have a prompt and an answer the distinct prompts (`data.prompts`)."""

    rows: list[TokenRow]
    prompts: Sequence[Any] = ()


class Task(ABC):
    """A task. Its subclass is one file and one line of `TASKS`; nothing else knows a task by its name.

    `auto_class` is the transformers class that builds the model, `model_suffix` what the names of such models' own
    classes contain, `peft_type` PEFT's name of the task, `head_names` the modules that PEFT saves as its head.
    `gives` says what metrics can be made from (`Metric.needs`). `reads_last_token` says that a decoder's head reads
    the last token that is not padding, `encodes_prompt` that an encoder reads the prompt and a decoder writes the
    answer, so that the two have lengths of their own. A task that `has_labels` needs at least `fewest_labels` of them.
    `row_columns` names the numbers that `score_row` returns for a row, `answer_roles` what a row to predict lacks.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    auto_class: ClassVar[str]
    model_suffix: ClassVar[str]
    peft_type: ClassVar[str]
    formats: ClassVar[tuple[Format, ...]]
    gives: ClassVar[tuple[Need, ...]]
    default_metric: ClassVar[str] = "loss"
    head_names: ClassVar[tuple[str, ...]] = ()
    generates: ClassVar[bool] = False
    encodes_prompt: ClassVar[bool] = False
    has_labels: ClassVar[bool] = False
    fewest_labels: ClassVar[int] = 2
    reads_last_token: ClassVar[bool] = False
    row_columns: ClassVar[tuple[str, ...]] = ()
    answer_roles: ClassVar[tuple[str, ...]] = ()

    @property
    def usual_metrics(self) -> tuple[str, ...]:
        """What is measured where a recipe names no metrics."""
        return tuple(dict.fromkeys(("loss", self.default_metric)))

    def takes(self, format_name: str | None) -> bool:
        return any(one.name == format_name for one in self.formats)

    @property
    @abstractmethod
    def row_class(self) -> type[TokenRow]:
        """The kind of tokenised rows."""

    @abstractmethod
    def loss(self, model: nn.Module) -> Loss:
        """Return the loss that training minimises on `model`."""

    @abstractmethod
    def tokenise(self, examples: Sequence[Example], how: Tokenising) -> Tokenised:
        """Return the examples' rows and prompts; `how.counts` gains what was cut and dropped. Raises DataError."""

    def builds(self, model: nn.Module) -> bool:
        """Return whether a plain transformers model is built for this task."""
        return self.model_suffix in type(model).__name__

    def encode_prompt(self, tokenizer: Any, text: str, max_length: int | None = None) -> list[int]:
        """Return the ids of a prompt as the rows of this task begin; only where the task `generates`."""
        from peftlab.data.tokens import encode_prompt

        return encode_prompt(tokenizer, text, max_length)

    def cut_prompt(self, ids: Sequence[int], lead: int, max_length: int) -> list[int]:
        """Return a prompt that the model has positions for; its first `lead` tokens are kept where they can be."""
        from peftlab.data.tokens import cut_prompt

        return cut_prompt(ids, lead, max_length)

    def labels_of(self, example: Example) -> Iterable[str]:
        """Return the labels of one example; only where the task `has_labels`."""
        return ()

    def list_labels(self, examples: Sequence[Example]) -> list[str] | None:
        """Return the classes in the order of their numbers; None for a task without classes."""
        return None

    def doubt(self, labels: Sequence[str]) -> str | None:
        """Return what is unusual about the labels of the training rows, and what follows from it; None if nothing."""
        return None

    def fit_config(self, config: PreTrainedConfig, labels: Sequence[str] | None) -> None:
        """Give a model's configuration what the task needs: the classes of its head, where it has any."""
        if labels is not None:
            config.id2label = dict(enumerate(labels))
            config.label2id = {label: index for index, label in enumerate(labels)}

    def without_answer(self, inputs: Mapping[str, Any], labels: Sequence[str]) -> tuple[Example, Sequence[str]]:
        """Return an example with any answer, and the labels to tokenise it with; only for a task with a head.

        `inputs` are the roles of a row without `answer_roles`.
        """
        raise NotImplementedError

    def predict(
        self, row: TokenRow, scores: Tensor, inputs: Mapping[str, Any], labels: Sequence[str], threshold: float
    ) -> Prediction:
        """Return what the head says of one row: `scores` are its outputs (lines, classes) in float32."""
        raise NotImplementedError

    def name_columns(self, labels: Sequence[str] | None) -> tuple[str, ...]:
        """Return the names of what `score_row` returns: `row_columns`, and more where each label has its own."""
        return self.row_columns

    def score_row(
        self,
        row: TokenRow,
        predictions: Sequence[float],
        labels: Sequence[str] | None,
        threshold: float = LIKELY,
    ) -> tuple[float, ...]:
        """Return the row's columns from what the loss predicts at each of its targets.

        That is a number, a probability (a label is predicted where it is above `threshold`), or the likeliest class.
        """
        return ()
