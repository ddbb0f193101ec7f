"""Causal language modelling: predict the next token of texts, answers and chats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from peftlab.errors import ModelError
from peftlab.family_traits import ENCODERS
from peftlab.tasks.base import Loss, Task, Tokenised, Tokenising, TokenRow
from peftlab.tasks.formats import CHAT, COMPLETION, TEXT, Example

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig


class CausalLM(Task):
    name: ClassVar[str] = "causal-lm"
    title: ClassVar[str] = "causal language modelling"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    model_suffix: ClassVar[str] = "ForCausalLM"
    peft_type: ClassVar[str] = "CAUSAL_LM"
    formats = (COMPLETION, TEXT, CHAT)
    gives = ("loss", "next_tokens", "texts")
    generates: ClassVar[bool] = True

    @property
    def row_class(self) -> type[TokenRow]:
        from peftlab.data.token_rows import TextRow

        return TextRow

    def loss(self, model: nn.Module) -> Loss:
        from peftlab.losses.cross_entropy import PositionCrossEntropy
        from peftlab.losses.selection import find_head

        return PositionCrossEntropy(find_head(model), predicts=False)

    def fit_config(self, config: PreTrainedConfig, labels: Sequence[str] | None) -> None:
        """Raise ModelError for an encoder, which sees the tokens that it should predict."""
        super().fit_config(config, labels)
        if config.model_type in ENCODERS and not getattr(config, "is_decoder", False):
            raise ModelError(
                f"a {config.model_type} model reads the tokens on both sides, so it would see each token that it "
                "predicts; use another task or a decoder, or set is_decoder in its config.json if it was trained as one"
            )

    def tokenise(self, examples: Sequence[Example], how: Tokenising) -> Tokenised:
        from peftlab.data.encoded import tokenise_encoded

        return tokenise_encoded(examples, how)
