"""Tokens of a prompt and its answer, for models with an encoder and a decoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from peftlab.data.prompts import Prompt, merge_prompts
from peftlab.data.token_rows import PairRow, TokenRow
from peftlab.data.tokens import STOP, as_generated, check_room
from peftlab.tasks.base import Tokenising
from peftlab.tasks.formats import Completion

PAIRS_AT_ONCE = 1024


def tokenise_pairs(examples: Sequence[Completion], how: Tokenising) -> list[TokenRow]:
    """Return one row for each example: its prompt as the tokenizer encodes a text, its completion with the end token.

    A prompt longer than `data.max_length` is cut at its end, before the tokenizer's closing tokens; a completion
    longer than `data.max_target_length` at its end, with its end token. `how.counts` gains `truncated` (rows cut),
    `lost_supervised` (rows whose completion is cut), `lost_tokens` (of these completions), `skipped` (rows that are
    left out instead, with `data.long: skip`) and the end token's `STOP`. Raises DataError where a limit leaves no room.
    """
    section, tokenizer, counts = how.section, how.tokenizer, how.counts
    check_room(tokenizer, section.max_length, paired=False)
    rows: list[TokenRow] = []
    for start in range(0, len(examples), PAIRS_AT_ONCE):
        chunk = examples[start : start + PAIRS_AT_ONCE]
        sources = _encode_sources([one.prompt for one in chunk], tokenizer, section.max_length)
        answers = encode_answers([one.completion for one in chunk], tokenizer)
        for (source, cut), answer in zip(sources, answers, strict=True):
            lost = max(len(answer) - section.target_limit, 0)
            if section.long == "skip" and (cut or lost):
                counts["skipped"] += 1
                continue
            counts["truncated"] += bool(cut or lost)
            counts["lost_supervised"] += bool(lost)
            counts["lost_tokens"] += lost
            rows.append(PairRow(np.array(source, np.int32), np.array(answer[: section.target_limit], np.int32)))
    if tokenizer.eos_token_id is not None:
        counts[f"{STOP}{tokenizer.eos_token_id}"] += len(rows)
    return rows


def list_prompts(examples: Sequence[Completion], how: Tokenising) -> list[Prompt]:
    """Return the distinct prompts as the encoder reads them, each with all its answers."""
    return merge_prompts(_prompt(one, how) for one in examples)


def _prompt(example: Completion, how: Tokenising) -> Prompt:
    whole = encode_source(how.tokenizer, example.prompt)
    kept = encode_source(how.tokenizer, example.prompt, how.section.max_length)
    answer = example.completion
    reference = as_generated(answer, lambda: next(encode_answers([answer], how.tokenizer)), how.tokenizer)
    return Prompt(example.prompt, kept, (reference,), cut=len(whole) - len(kept))


def encode_source(tokenizer: Any, text: str, max_length: int | None = None) -> list[int]:
    """Return the ids of a text as an encoder reads it, cut at its end before the tokenizer's closing tokens."""
    limit = {} if max_length is None else {"truncation": True, "max_length": max_length}
    return tokenizer(text, verbose=False, **limit)["input_ids"]


def encode_answers(texts: Sequence[str], tokenizer: Any) -> Iterator[list[int]]:
    """Yield the ids of answers as the tokenizer encodes targets, each with one end token at its end.

    mBART's have the language after it, which its decoder begins with. An end that the text has itself is not doubled.
    """
    end, special = tokenizer.eos_token_id, {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    for ids in tokenizer(text_target=list(texts), verbose=False)["input_ids"]:
        closed = ids[-1:] == [end] or (ids[-2:-1] == [end] and ids[-1] in special)
        if end is not None and (ids[-2:] == [end, end] or ids[-3:-1] == [end, end]):
            del ids[-2]
        yield ids if end is None or closed else [*ids, end]


def _encode_sources(texts: Sequence[str], tokenizer: Any, max_length: int) -> Iterator[tuple[list[int], bool]]:
    """Yield each text's ids and whether they were cut."""
    for text, ids in zip(texts, tokenizer(list(texts), verbose=False)["input_ids"], strict=True):
        cut = len(ids) > max_length
        yield (encode_source(tokenizer, text, max_length) if cut else ids), cut
