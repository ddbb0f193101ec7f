"""Cross-entropy of the answers that a decoder writes, beside an encoder that reads the prompt."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from peftlab.data.token_rows import ANSWERS
from peftlab.losses.base import Batch
from peftlab.losses.cross_entropy import PositionCrossEntropy, inputs_of
from peftlab.losses.selection import find_head
from peftlab.parameters.shape import find_decoder_start
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
        shifted = self._decoder_inputs(batch[ANSWERS])
        return model(**inputs, decoder_input_ids=shifted, use_cache=False).logits

    def length(self, batch: Batch) -> int:
        return batch[ANSWERS].shape[1]

    def _decoder_inputs(self, answers: torch.Tensor) -> torch.Tensor:
        """Return the answers after a start token, as the model shifts them; some classes leave that to their loss."""
        shift = getattr(self.base, "prepare_decoder_input_ids_from_labels", None)
        if shift is not None and getattr(self.base.config, "decoder_start_token_id", None) is not None:
            return shift(labels=answers)
        start = answers.new_full((len(answers), 1), find_decoder_start(self.base.config) or 0)
        pad = self.base.config.get_text_config(decoder=True).pad_token_id or 0
        return torch.cat([start, answers[:, :-1].masked_fill(answers[:, :-1] < 0, pad)], dim=1)
