"""What the model will see of a row: its text again from the tokens, and which of them are supervised."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from peftlab.data.token_rows import TokenRow
from peftlab.reports import RowView, Span


def view_row(row: TokenRow, tokenizer: Any, labels: list[str] | None = None) -> RowView:
    """Return a row as spans of tokens that are, or are not, supervised; of a row with its own target that."""
    supervised, tokens = row.supervised_tokens.tolist(), row.tokens
    spans = [
        _view_span([int(tokens[i]) for i in places], marked, tokenizer)
        for marked, places in groupby(range(len(supervised)), key=supervised.__getitem__)
    ]
    return RowView(tokens=len(tokens), supervised=row.supervised, spans=spans, label=row.describe(labels))


def _view_span(ids: list[int], supervised: bool, tokenizer: Any) -> Span:
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return Span(text=text, tokens=len(ids), supervised=supervised)
