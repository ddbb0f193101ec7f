"""The memory of generating at its two highest moments: the prompts' forward pass, the longest answer's last token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutput

from peftlab.errors import ModelError
from peftlab.memory.private import count_cached, explain_failure, find_cache, last_logits_only, lengthen
from peftlab.memory.shortage import is_shortage
from peftlab.parameters.trainable import find_base
from peftlab.tasks import task_of

READING, WRITING = "reading", "writing"


class UnmeasuredError(ModelError):
    """A phase whose memory cannot be measured, for a reason in one line; a run continues without that number."""


@dataclass(frozen=True)
class Answers:
    """The largest batch of answers that a run writes: `length` is the longest prompt's, in tokens."""

    rows: int
    length: int
    new_tokens: int
    beams: int = 1


def write_last_token(
    model: nn.Module,
    ids: torch.Tensor,
    mask: torch.Tensor,
    answers: Answers,
    mark: Callable[[str], Any] = lambda place: None,
) -> None:
    """Read `ids` (rows, length), then write the answers' last token with a cache as long as at that point.

    The same memory as transformers' generate, in two passes instead of one for each token. Modes stay as they
    are. Raises UnmeasuredError where the model or its cache cannot do this, and any shortage of memory.
    """
    try:
        with torch.no_grad():
            _write_last_token(model, ids, mask, answers, mark)
    except Exception as error:
        if is_shortage(error):
            raise
        reason = explain_failure(error)
        raise UnmeasuredError(
            f"The memory of generation cannot be measured for this model ({reason}); plan and measurement leave it out."
        ) from error


def _write_last_token(
    model: nn.Module, ids: torch.Tensor, mask: torch.Tensor, answers: Answers, mark: Callable[[str], Any]
) -> None:
    base = find_base(model)[1]
    if task_of(model).encodes_prompt:
        return _write_beside_encoder(model, base, ids, mask, answers, mark)
    ids, mask = ids.repeat_interleave(answers.beams, 0), mask.repeat_interleave(answers.beams, 0)
    options = last_logits_only(base)
    mark(READING)
    output = model(input_ids=ids, attention_mask=mask, use_cache=True, **options)
    scores = _scores(output)
    name, cache = find_cache(output)
    output = None
    mark(WRITING)
    learned = (count_cached(cache) or mask.shape[1]) - mask.shape[1]
    lengthen(cache, answers.new_tokens - 1)
    del scores
    whole = mask.new_ones(len(mask), learned + mask.shape[1] + answers.new_tokens)
    whole[:, learned : learned + mask.shape[1]] = mask
    output = base(input_ids=ids[:, :1], attention_mask=whole, use_cache=True, **{name: cache}, **options)
    scores = _scores(output)
    if answers.beams > 1:
        scores = functional.log_softmax(scores, -1) + scores
        cache.reorder_cache(torch.arange(len(ids), device=ids.device))


def _write_beside_encoder(
    model: nn.Module,
    base: Any,
    ids: torch.Tensor,
    mask: torch.Tensor,
    answers: Answers,
    mark: Callable[[str], Any],
) -> None:
    """Do the same where an encoder reads the prompts once: its states are repeated for beams, answers have a cache."""
    mark(READING)
    start = ids[:, :1]
    with _kind_of_states(base) as kinds:
        encoded = model(input_ids=ids, attention_mask=mask, decoder_input_ids=start, use_cache=False)
    states = encoded.encoder_last_hidden_state
    encoded = None
    mask = torch.cat([mask.new_ones(len(mask), states.shape[1] - mask.shape[1]), mask], dim=1)
    states, mask, start = (one.repeat_interleave(answers.beams, 0) for one in (states, mask, start))
    inputs = {"encoder_outputs": kinds[-1](last_hidden_state=states), "attention_mask": mask, "use_cache": True}
    output = base(**inputs, decoder_input_ids=start)
    scores = _scores(output)
    name, cache = find_cache(output)
    output = None
    mark(WRITING)
    lengthen(cache.self_attention_cache, answers.new_tokens - 1)
    del scores
    output = base(**inputs, decoder_input_ids=start, **{name: cache})
    scores = _scores(output)
    if answers.beams > 1:
        scores = functional.log_softmax(scores, -1) + scores
        cache.reorder_cache(torch.arange(len(start), device=start.device))


@contextmanager
def _kind_of_states(base: Any) -> Iterator[list[Any]]:
    """Collect the classes of what a model's encoder returns while the context is open: some have routers' logits."""
    kinds: list[Any] = [BaseModelOutput]
    handle = base.get_encoder().register_forward_hook(lambda one, inputs, output: kinds.append(type(output)))
    try:
        yield kinds
    finally:
        handle.remove()


def _scores(output: Any) -> torch.Tensor:
    """Return the next token's logits as generate copies them, in float32.

    None where peft cuts as many from the front as there are virtual tokens at the input.
    """
    return output.logits[:, -1:, :].to(copy=True, dtype=torch.float32)
