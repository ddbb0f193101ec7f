"""Causal language modelling: predict the next token of texts, answers and chats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from peftlab.tasks.base import Loss, Task, Tokenised, Tokenising, TokenRow
from peftlab.tasks.formats import CHAT, COMPLETION, TEXT, Example

if TYPE_CHECKING:
    from torch import nn


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

    def tokenise(self, examples: Sequence[Example], how: Tokenising) -> Tokenised:
        from peftlab.data.encoded import tokenise_encoded

        return tokenise_encoded(examples, how)
