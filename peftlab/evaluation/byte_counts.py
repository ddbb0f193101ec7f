"""How many bytes of UTF-8 the supervised text of a row has, exactly also where a row begins or ends in a character."""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

import numpy as np

from peftlab.data.token_rows import TokenRow

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""A byte of its own, as tokenizers with `byte_fallback` write it."""


def count_bytes(row: TokenRow, tokenizer: Any) -> int:
    """Return the bytes of a row's supervised text, without special tokens.

    A span of it has as many as the text to its end has more than the text before it: a decoder removes a space at the
    beginning of what it decodes, which within a text is a part of it.
    """
    first = len(row.tokens) - (row.answer or len(row.tokens))  # a decoder's answer is a text of its own
    ids, marked = row.tokens[first:].tolist(), row.supervised_tokens[first:]
    edges = np.flatnonzero(np.diff(marked.astype(np.int8), prepend=0, append=0)).tolist()
    sizes = [_size_of(ids[:edge], tokenizer) for edge in edges]
    return sum(sizes[1::2]) - sum(sizes[::2])


def _size_of(ids: list[int], tokenizer: Any) -> int:
    """Return the bytes of the text of tokens that may end within a character, which is decoded as U+FFFD."""
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    if REPLACEMENT not in text:
        return len(text.encode())
    added = tokenizer.added_tokens_decoder
    tokens = tokenizer.convert_ids_to_tokens(
        [number for number in ids if number not in added or not added[number].special]
    )
    if "ByteLevel" in repr(tokenizer.backend_tokenizer.decoder):
        return sum(map(len, tokens))  # each character of such a token is a byte
    return len(text.encode()) - (len(REPLACEMENT.encode()) - 1) * _count_replaced(tokens)


def _count_replaced(tokens: list[str]) -> int:
    """Return how many bytes are decoded as U+FFFD each: all of a run that does not make whole characters."""
    values = [int(match[1], 16) if (match := BYTE.fullmatch(token)) else None for token in tokens]
    runs = [
        bytes(value for value in run if value is not None) for _, run in groupby(values, key=lambda one: one is None)
    ]
    return sum(len(run) for run in runs if run.decode(errors="ignore").encode() != run)
