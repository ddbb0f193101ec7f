"""Segments of tokens that are not the first in a row of one text, as XLNet's and Funnel's: the tokenizer's own."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from tokenizers import processors
from transformers import XLNetConfig, XLNetForSequenceClassification

from peftlab.data.batches import collate
from peftlab.data.pairs import encode_answers
from peftlab.recipe.schema import Data
from peftlab.tasks import TASKS
from peftlab.tasks.base import Tokenising
from peftlab.tasks.sequence_classification import CLASSIFICATION, Labelled
from peftlab.tasks.token_classification import TOKENS, Tagged
from tests.tasks.answering import word_tokenizer
from tests.tasks.tokenizers_of_words import train_wordpiece

TEXT = "open the file"


@pytest.fixture(scope="module")
def last():
    """A tokenizer whose class token is the last one, of segment 2, as XLNet's is."""
    tokenizer = train_wordpiece()
    names = [(tokenizer.convert_ids_to_tokens(one), one) for one in (tokenizer.sep_token_id, tokenizer.cls_token_id)]
    (sep, _), (cls, _) = names
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A:0 {sep}:0 {cls}:2", pair=f"$A:0 {sep}:0 $B:1 {sep}:1 {cls}:2", special_tokens=names
    )
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return tokenizer


def rows_of(example, task: str, layout, labels, tokenizer):
    section = Data(train="-", max_length=16)
    return TASKS[task].tokenise([example], Tokenising(tokenizer, section, layout, Counter(), labels)).rows


@torch.no_grad()
def test_a_classifier_reads_what_its_own_tokenizer_gives(last):
    torch.manual_seed(0)
    config = XLNetConfig(
        vocab_size=len(last), d_model=32, n_layer=2, n_head=2, d_inner=64, num_labels=2, initializer_range=1.0
    )
    model = XLNetForSequenceClassification(config).eval()
    (row,) = rows_of(Labelled(TEXT, None, "a"), "sequence-classification", CLASSIFICATION, ["a", "b"], last)
    own = last(TEXT, return_tensors="pt")
    assert own["token_type_ids"][0].tolist() == row.token_type_ids.tolist() and row.token_type_ids[-1] == 2
    task = TASKS["sequence-classification"]
    mine = task.loss(model).scores(model, collate([row], last.pad_token_id))
    torch.testing.assert_close(mine, model(**own).logits)
    own.pop("token_type_ids")
    assert not torch.equal(mine, model(**own).logits), "the segments make a difference"


def test_tagged_rows_have_them_too(last):
    (row,) = rows_of(Tagged(TEXT.split(), ["a", "b", "a"]), "token-classification", TOKENS, ["a", "b"], last)
    assert row.token_type_ids.tolist() == last(TEXT)["token_type_ids"]


def test_rows_of_one_segment_have_none():
    plain = train_wordpiece()
    (row,) = rows_of(Labelled(TEXT, None, "a"), "sequence-classification", CLASSIFICATION, ["a", "b"], plain)
    assert row.token_type_ids is None


def test_an_answer_that_ends_with_its_language_behind_the_end_token_gets_no_second_end():
    """mBART writes `text </s> language`; its decoder begins with the last of these."""
    tokenizer = word_tokenizer()
    end = tokenizer.eos_token_id
    tokenizer.add_special_tokens({"additional_special_tokens": ["<fr>"]})
    language = tokenizer.convert_tokens_to_ids("<fr>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {tokenizer.eos_token} <fr>", special_tokens=[(tokenizer.eos_token, end), ("<fr>", language)]
    )
    (ids,) = encode_answers(["un deux"], tokenizer)
    assert ids == [*tokenizer.convert_tokens_to_ids(["un", "deux"]), end, language]
