"""What identifies the rows that a model gets: their tokens and targets, the tokenizer and the template."""

from __future__ import annotations

import json
from collections.abc import Iterable
from hashlib import sha256
from typing import Any

import numpy as np

from peftlab.data.token_rows import TokenRow

# What a tokenizer's file says of batches, not of texts: it changes with the last call.
OF_BATCHES = ("truncation", "padding")
_FOUND: dict[str, str] = {}


class RowDigest:
    """The sha256 of what a model is given in rows and what it is to predict, in the order in which they are added."""

    def __init__(self) -> None:
        self._digest = sha256()

    def add(self, rows: Iterable[TokenRow]) -> None:
        for row in rows:
            for values in (row.input_ids, row.labels, row.token_type_ids):
                array = np.ascontiguousarray(() if values is None else values)
                kind = "f" if array.dtype.kind == "f" else "i"
                self._digest.update(f"{array.shape}{kind}".encode() + array.astype(f"<{kind}8").tobytes())

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def fingerprint_rows(rows: Iterable[TokenRow]) -> str:
    """Return the `RowDigest` of rows."""
    digest = RowDigest()
    digest.add(rows)
    return digest.hexdigest()


def fingerprint_tokenizer(tokenizer: Any) -> str:
    """Return the sha256 of what a fast tokenizer does with texts, and of its special tokens.

    A run asks several times, and parsing a large vocabulary takes long, so what was found is kept by the file's digest.
    """
    text = tokenizer.backend_tokenizer.to_str()
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    key = sha256(text.encode()).hexdigest() + _hash(special)
    if key not in _FOUND:
        content = {key: value for key, value in json.loads(text).items() if key not in OF_BATCHES}
        _FOUND[key] = _hash([content, special])
    return _FOUND[key]


def fingerprint_template(tokenizer: Any) -> str:
    """Return the sha256 of a tokenizer's chat template, or of all of them where it has several."""
    return _hash(tokenizer.chat_template)


def _hash(content: Any) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
