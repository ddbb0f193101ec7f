"""Tokens of texts and of completions: the tokenizer's own, with its end token, and the prompt not supervised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from peftlab.data.encoded import Answer, Encoded, long_rows
from peftlab.data.tokens import (
    STOP,
    Rendered,
    as_generated,
    chunks,
    encode_prompt,
    encode_rendered,
    enough_characters,
    mask_spans,
    special_ids,
    split_prompt,
    without_doubled,
)
from peftlab.recipe.schema import Data
from peftlab.tasks.base import Tokenising
from peftlab.tasks.formats import Completion, Text


def encode_texts(examples: Sequence[Text], how: Tokenising) -> Iterator[Encoded]:
    """Yield the tokens of texts, all supervised; `how.counts` gains what `_encode` counts."""
    enough = None if long_rows(how.section, how.format) == "chunk" else enough_characters(how.tokenizer, how.section)
    for chunk in chunks(examples):
        whole = [_render("", one.text) for one in chunk]
        shorter = [_render("", one.text[:enough]) for one in chunk]
        yield from (one for one, _ in _encode(whole, shorter, how))


def encode_completions(examples: Sequence[Completion], how: Tokenising) -> Iterator[Encoded]:
    """Yield the tokens of prompts and their completions, which are supervised.

    `how.counts` gains what `_encode` counts, and straddling (rows in which a token crosses from the prompt into the
    completion; such a token is not supervised).
    """
    enough = enough_characters(how.tokenizer, how.section)
    for chunk in chunks(examples):
        parts = [split_prompt(one) for one in chunk]
        whole = [_render(*one) for one in parts]
        shorter = [_render(*_shorten(*one, enough, how.section)) for one in parts]
        for example, (one, straddles) in zip(chunk, _encode(whole, shorter, how), strict=True):
            how.counts["straddling"] += straddles
            yield one if not how.prompts else _with_answer(one, example, how, straddles=straddles)


def _render(prompt: str, completion: str) -> Rendered:
    return Rendered(prompt + completion, [(len(prompt), len(prompt) + len(completion))])


def _shorten(prompt: str, completion: str, enough: int, section: Data) -> tuple[str, str]:
    """Return what of a prompt and its completion can be left after a cut in tokens."""
    if len(prompt) > 2 * enough:
        prompt = (prompt[:enough] if section.truncate == "middle" else "") + prompt[-enough:]
    return prompt, completion[:enough]


def _with_answer(one: Encoded, example: Completion, how: Tokenising, *, straddles: bool) -> Encoded:
    first = int(one.supervised.argmax()) if one.supervised.any() else len(one.ids)
    # A token that crosses into the answer must not be in the prompt.
    own = encode_prompt(how.tokenizer, example.prompt) if straddles else None
    reference = as_generated(example.completion, lambda: one.ids[one.supervised].tolist(), how.tokenizer)
    answer = Answer(first, len(one.ids), example.prompt.rstrip(" "), reference, own)
    return replace(one, answer=answer)


def _encode(wholes: Sequence[Rendered], shorter: Sequence[Rendered], how: Tokenising) -> Iterator[tuple[Encoded, bool]]:
    """Yield tokens, and whether one crosses the beginning of a span.

    Special tokens at a text's ends that the tokenizer adds too are there once. `how.counts` gains carried (rows with
    special tokens in their own text, anywhere) and each `STOP`.
    """
    tokenizer, counts = how.tokenizer, how.counts
    eos, special = tokenizer.eos_token_id, special_ids(tokenizer)
    encoded = encode_rendered(wholes, tokenizer, shorter, how.section.max_length)
    for whole, (ids, starts, ends, lead, one) in zip(wholes, encoded, strict=True):
        supervised, straddles = mask_spans(starts, ends, one.spans)
        once = without_doubled(ids, lead, tokenizer)
        own_end = len(ids) > lead and ids[-1] == eos
        counts["carried"] += bool(np.isin(ids[lead:], special).any())
        ids, supervised = ids[once], supervised[once]
        if own_end:
            supervised[-1] = True
        elif eos is not None:
            ids, supervised = np.append(ids, eos), np.append(supervised, True)
        if eos is not None:
            counts[f"{STOP}{eos}"] += 1
        yield Encoded(ids, supervised, int(lead), partial=len(one.text) < len(whole.text)), straddles
