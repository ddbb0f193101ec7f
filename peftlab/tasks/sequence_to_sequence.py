"""Sequence-to-sequence: an encoder reads the prompt, a decoder writes the answer (T5, BART, Marian)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from peftlab.errors import ModelError
from peftlab.tasks.base import Loss, Task, Tokenised, Tokenising, TokenRow
from peftlab.tasks.formats import COMPLETION, Example

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig


class SequenceToSequence(Task):
    """The decoder starts with the model's own start token, which is never supervised."""

    name: ClassVar[str] = "sequence-to-sequence"
    title: ClassVar[str] = "sequence-to-sequence"
    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"
    model_suffix: ClassVar[str] = "ForConditionalGeneration"
    peft_type: ClassVar[str] = "SEQ_2_SEQ_LM"
    formats = (COMPLETION,)
    gives = ("loss", "next_tokens", "texts")
    generates: ClassVar[bool] = True
    encodes_prompt: ClassVar[bool] = True

    @property
    def row_class(self) -> type[TokenRow]:
        from peftlab.data.token_rows import PairRow

        return PairRow

    def builds(self, model: nn.Module) -> bool:
        """Marian's class has a name of its own, so that the configuration decides."""
        whole = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
        generates: Any = getattr(model, "can_generate", None)
        return bool(whole and generates is not None and generates())

    def loss(self, model: nn.Module) -> Loss:
        from peftlab.losses.answers import AnswerCrossEntropy

        return AnswerCrossEntropy(model)

    def tokenise(self, examples: Sequence[Example], how: Tokenising) -> Tokenised:
        from peftlab.data.pairs import list_prompts, tokenise_pairs

        return Tokenised(tokenise_pairs(examples, how), list_prompts(examples, how) if how.prompts else ())

    def encode_prompt(self, tokenizer: Any, text: str, max_length: int | None = None) -> list[int]:
        from peftlab.data.pairs import encode_source

        return encode_source(tokenizer, text, max_length)

    def cut_prompt(self, ids: Sequence[int], lead: int, max_length: int) -> list[int]:
        """Cut a prompt at its end, before its closing token."""
        return list(ids) if len(ids) <= max_length else [*ids[: max_length - 1], ids[-1]]

    def fit_config(self, config: PreTrainedConfig, labels: Sequence[str] | None) -> None:
        from peftlab.parameters.shape import find_decoder_start

        super().fit_config(config, labels)
        if not config.is_encoder_decoder:
            raise ModelError(
                f"a {config.model_type} model has no encoder that reads a text (those of T5, BART and Marian do); "
                "use task: causal-lm with its language model"
            )
        if find_decoder_start(config) is None:
            raise ModelError(
                f"this {config.model_type} model's config has no decoder_start_token_id, which begins every answer; "
                "add it (T5 and Marian start with the padding token, BART with the end token)"
            )
