"""Cross-entropy of the answers that a decoder writes, beside an encoder that reads the prompt."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from peftlab.data.token_rows import ANSWERS
from peftlab.losses.base import Batch
from peftlab.losses.cross_entropy import PositionCrossEntropy, inputs_of
from peftlab.losses.selection import find_head
from peftlab.parameters.trainable import find_base


class AnswerCrossEntropy(PositionCrossEntropy):
    """Each token of an answer is predicted from the prompt and from the answer before it.

    The decoder reads the answer one position late, as the model itself shifts it: after its start token.
    """

    def __init__(self, model: nn.Module):
        super().__init__(find_head(model), predicts=False)
        self.base: Any = find_base(model)[1]

    def call(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        inputs = {name: value for name, value in inputs_of(batch).items() if name != ANSWERS}
        shifted = self.base.prepare_decoder_input_ids_from_labels(labels=batch[ANSWERS])
        return model(**inputs, decoder_input_ids=shifted, use_cache=False).logits

    def length(self, batch: Batch) -> int:
        return batch[ANSWERS].shape[1]
