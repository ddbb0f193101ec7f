"""How likely a model finds the tokens that it generates, without keeping its logits."""

from __future__ import annotations

import torch
from transformers import LogitsProcessor


class TokenLikelihoods(LogitsProcessor):
    """Adds up nothing and changes nothing: it notes the log-probability of each token that was chosen.

    The probability is the model's own, before temperature and `top_p`. Not for beams, which change places.
    """

    def __init__(self) -> None:
        self._last: torch.Tensor | None = None
        self._gains: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._note(input_ids)
        self._last = scores.float().log_softmax(-1)
        return scores

    def finish(self, sequences: torch.Tensor) -> torch.Tensor:
        """Return the log-probability of each token that was added to each row of prompts, (rows, tokens)."""
        self._note(sequences)
        return torch.stack(self._gains, dim=1).cpu()

    def _note(self, ids: torch.Tensor) -> None:
        if self._last is not None:
            self._gains.append(self._last.gather(1, ids[:, -1:]).squeeze(1))
