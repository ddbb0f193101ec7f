from __future__ import annotations

import numpy as np

from peftlab.data.token_rows import IGNORED, ClassRow, TextRow
from peftlab.data.view import view_row
from peftlab.models.load import load_tokenizer
from peftlab.recipe.schema import Model


def tokenised(text: str) -> tuple[object, np.ndarray]:
    tokenizer = load_tokenizer(Model(name="builtin:tiny"))
    return tokenizer, np.array(tokenizer(text)["input_ids"], np.int32)


def test_spans_are_the_rows_text_in_order_and_tell_what_is_supervised():
    tokenizer, ids = tokenised("def f():\n    return 1\n# Summary: Return one.")
    half = len(ids) // 2
    labels = np.where(np.arange(len(ids)) < half, IGNORED, ids).astype(np.int32)
    row = TextRow(ids, labels)
    view = view_row(row, tokenizer)
    assert "".join(span.text for span in view.spans) == "def f():\n    return 1\n# Summary: Return one."
    assert [(span.tokens, span.supervised) for span in view.spans] == [(half, False), (len(ids) - half, True)]
    assert (view.tokens, view.supervised) == (len(ids), row.supervised)


def test_a_rows_first_token_is_not_supervised_since_nothing_comes_before_it():
    tokenizer, ids = tokenised("all of it is text")
    view = view_row(TextRow(ids, ids), tokenizer)
    assert [(span.tokens, span.supervised) for span in view.spans] == [(1, False), (len(ids) - 1, True)]
    assert sum(span.tokens for span in view.spans if span.supervised) == view.supervised


def test_a_classified_row_shows_its_label():
    tokenizer, ids = tokenised("a text")
    view = view_row(ClassRow(ids, 1), tokenizer, ["no", "yes"])
    assert view.label == "yes" and [span.supervised for span in view.spans] == [False]
