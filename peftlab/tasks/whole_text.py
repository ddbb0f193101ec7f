"""What the tasks share that read a text, or two, through a head: the model, the texts, the padding token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from peftlab.tasks.base import Task, Tokenised, Tokenising
from peftlab.tasks.formats import Example

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig


def texts_of(example: Example) -> str:
    """Return the text of an example, or both, as one."""
    return "\n".join(filter(None, (example.text, example.text_pair)))


class WholeText(Task):
    """A task on whole texts. `problem_type` is transformers' name of it, which a saved model keeps."""

    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    model_suffix: ClassVar[str] = "ForSequenceClassification"
    peft_type: ClassVar[str] = "SEQ_CLS"
    head_names = ("classifier", "score")
    has_labels: ClassVar[bool] = True
    reads_last_token: ClassVar[bool] = True
    problem_type: ClassVar[Literal["regression", "single_label_classification", "multi_label_classification"]]

    def target_of(self, example: Example, labels: Sequence[str]) -> Any:
        """Return the `labels` of an example's row."""
        raise NotImplementedError

    def builds(self, model: nn.Module) -> bool:
        config = getattr(model, "config", None)
        return super().builds(model) and getattr(config, "problem_type", None) == self.problem_type

    def tokenise(self, examples: Sequence[Example], how: Tokenising) -> Tokenised:
        from peftlab.data.tokens import tokenise_labelled

        def target_of(example: Example) -> Any:
            return self.target_of(example, how.labels)

        return Tokenised(tokenise_labelled(examples, self.row_class, target_of, how))

    def fit_config(self, config: PreTrainedConfig, labels: Sequence[str] | None) -> None:
        super().fit_config(config, labels)
        config.problem_type = self.problem_type
        text = config.get_text_config()
        if getattr(text, "pad_token_id", None) is None:
            # Decoders read the class from the last token that is not padding; any id will do until the tokenizer
            # names its own (`models.tokenizer.fit_tokenizer`).
            end = getattr(text, "eos_token_id", None)
            text.pad_token_id = end[0] if isinstance(end, list) else (end or 0)
