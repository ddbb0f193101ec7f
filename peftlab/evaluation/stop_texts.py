"""Texts at which an answer ends, looked for in what the model wrote and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import StoppingCriteria

# Tokens beside those of a text: special ones and halves of characters may stand for none of it.
MARGIN = 8


class StopTexts(StoppingCriteria):
    """Ends each row whose answer has one of `texts`; `begun` is the number of tokens before every answer.

    Transformers' own criterion reads the prompt too: a text that begins there and ends in the answer would end it.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str], begun: int) -> None:
        self._tokenizer, self._texts, self._begun = tokenizer, texts, begun
        # A token is a byte or more of a text, so that the last ones of an answer are enough.
        self._last = max(len(text.encode()) for text in texts) + MARGIN

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        first = max(self._begun, input_ids.shape[1] - self._last)
        found = [self._has_text(ids) for ids in input_ids[:, first:].tolist()]
        return torch.tensor(found, device=input_ids.device)

    def count(self, answer: Sequence[int]) -> int | None:
        """Return how many tokens of an answer there are up to the end of its first such text; None without one."""
        counts = range(1, len(answer) + 1)
        return next((count for count in counts if self._has_text(answer[max(0, count - self._last) : count])), None)

    def _has_text(self, ids: Sequence[int]) -> bool:
        # A text may be the name of a special token.
        written = self._tokenizer.decode(ids, skip_special_tokens=False)
        return any(text in written for text in self._texts)
