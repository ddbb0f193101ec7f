"""What generating holds where it holds most: the prompts' forward pass, and the last token of the longest answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from peftlab.parameters.trainable import find_base

READING, WRITING = "reading", "writing"


@dataclass(frozen=True)
class Answers:
    """The largest batch of answers that a run writes: `length` is the longest prompt's, in tokens."""

    rows: int
    length: int
    new_tokens: int
    beams: int = 1


@torch.no_grad()
def write_last_token(
    model: nn.Module,
    ids: torch.Tensor,
    mask: torch.Tensor,
    answers: Answers,
    mark: Callable[[str], Any] = lambda place: None,
) -> None:
    """Read `ids` (rows, length), then write one token as if all but it of the answers were written already.

    As transformers' generate does it, but two passes instead of one for every token. Modes stay as they are.
    """
    base = find_base(model)[1]
    ids, mask = ids.repeat_interleave(answers.beams, 0), mask.repeat_interleave(answers.beams, 0)
    options = {"logits_to_keep": 1} if base._supports_logits_to_keep() else {}
    mark(READING)
    output = model(input_ids=ids, attention_mask=mask, use_cache=True, **options)
    scores = _scores(output)
    cache, output = output.past_key_values, None
    mark(WRITING)
    held = _lengthen(cache, answers.new_tokens - 1)
    del scores
    learned = held - mask.shape[1] - (answers.new_tokens - 1)
    whole = mask.new_ones(len(mask), held + 1)
    whole[:, learned : learned + mask.shape[1]] = mask
    output = base(input_ids=ids[:, :1], attention_mask=whole, past_key_values=cache, use_cache=True, **options)
    scores = _scores(output)
    if answers.beams > 1:
        scores = functional.log_softmax(scores, -1) + scores
        cache.reorder_cache(torch.arange(len(ids), device=ids.device))


def _scores(output: Any) -> torch.Tensor:
    """Return the next token's logits as generate takes them: a copy in float32 beside the model's own.

    None where peft cuts as many from the front as there are virtual tokens at the input.
    """
    return output.logits[:, -1:, :].to(copy=True, dtype=torch.float32)


def _lengthen(cache: Any, tokens: int) -> int:
    """Make room for more tokens in every layer that keeps all of them; return how many the longest holds."""
    for layer in cache.layers:
        if getattr(layer, "is_sliding", False) or layer.keys is None:
            continue
        for name in ("keys", "values"):
            kept = getattr(layer, name)
            rows, heads, length, width = kept.shape
            setattr(layer, name, kept.new_zeros(rows, heads, length + tokens, width))
    return cache.get_seq_length()
