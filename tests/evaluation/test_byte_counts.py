"""The bytes of supervised text, against the text itself, wherever rows of it are cut."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from peftlab.data.token_rows import PairRow
from peftlab.evaluation.byte_counts import count_bytes
from peftlab.tasks.formats import Completion, Text
from tests.data.tokenising import tokenise

TEXT = "naïve 東京 👩\u200d👧 (\ufffd is real) é\u0301 x"


@pytest.fixture(scope="module")
def fallback() -> PreTrainedTokenizerFast:
    """Letters are tokens, all else is bytes; spaces are written as Llama's and Gemma's tokenizers write them."""
    tokens = ["<unk>", "<s>", *(f"<0x{value:02X}>" for value in range(256)), "▁", *"abcdeilnrsvx()"]
    own = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, [], byte_fallback=True, unk_token="<unk>"))
    own.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    ends = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    own.decoder = decoders.Sequence(ends)
    return PreTrainedTokenizerFast(tokenizer_object=own, unk_token="<unk>", bos_token="<s>")


@pytest.mark.parametrize("length", [2, 3, 5, 8, 64])
@pytest.mark.parametrize("kind", ["tokenizer", "fallback"])
def test_rows_of_a_document_have_its_bytes_however_it_is_cut(request, kind, length):
    """Each token but the first is predicted once: with one token of overlap in a row's context."""
    tokenizer = request.getfixturevalue(kind)
    rows = tokenise([Text(TEXT)], tokenizer, max_length=length, overlap=1).rows
    first = tokenizer.decode(rows[0].input_ids[:1].tolist())
    assert len(rows) > 1 or length == 64
    assert sum(count_bytes(row, tokenizer) for row in rows) == len(TEXT.encode()) - len(first.encode())


@pytest.mark.parametrize("kind", ["tokenizer", "fallback"])
def test_the_space_before_a_completion_is_a_byte_of_it(request, kind):
    (row,) = tokenise([Completion("a 東", " bé")], request.getfixturevalue(kind)).rows
    assert count_bytes(row, request.getfixturevalue(kind)) == len(" bé".encode())


def test_a_decoders_answer_is_a_text_of_its_own(fallback):
    prompt, answer = (np.array(fallback(text, add_special_tokens=False).input_ids) for text in ("a 東", "bé"))
    assert count_bytes(PairRow(prompt, answer), fallback) == len("bé".encode())
