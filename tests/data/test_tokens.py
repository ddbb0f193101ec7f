"""What is supervised, found from characters by hand, on a real BPE whose end-of-text token is its padding."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizer

from peftlab.data.token_rows import IGNORED
from peftlab.data.tokens import encode_prompt
from peftlab.errors import DataError
from peftlab.tasks.formats import Completion, Text
from peftlab.tasks.sequence_classification import Labelled
from peftlab.tasks.token_classification import Tagged
from tests.data.tokenising import tokenise
from tests.tasks.tokenizers_of_words import train_wordpiece

WORDS = st.text(alphabet="ab \n.é猫", min_size=1, max_size=12)


def tokenise_one(example, tokenizer, max_length=64):
    counts = Counter()
    rows = tokenise([example], tokenizer, counts, max_length=max_length).rows
    return (rows[0] if rows else None), counts


def supervised_text(row, tokenizer):
    return tokenizer.decode(row.labels[row.labels != IGNORED])


@pytest.mark.parametrize("prompt", ["Facts: the cat\nText:", "Facts: the cat\nText: ", "Facts: the cat\nText:   "])
def test_completion_and_its_end_are_supervised_and_nothing_else(bpe, prompt):
    row, counts = tokenise_one(Completion(prompt, "the cat sat" if prompt[-1] == " " else " the cat sat"), bpe)
    spaces = max(len(prompt) - len(prompt.rstrip(" ")), 1)
    assert supervised_text(row, bpe) == " " * spaces + "the cat sat<|eos|>"
    assert bpe.decode(row.input_ids) == f"<|bos|>{prompt.rstrip(' ')}{' ' * spaces}the cat sat<|eos|>"
    assert not counts["straddling"]


def test_space_before_the_completion_joins_its_word_as_in_running_text(bpe):
    row, _ = tokenise_one(Completion("Text: ", "the cat"), bpe)
    assert row.input_ids[1:-1].tolist() == bpe.encode("Text: the cat", add_special_tokens=False)
    first = int((row.labels != IGNORED).argmax())
    assert row.input_ids[:first].tolist() == encode_prompt(bpe, "Text: ")


def test_token_across_the_boundary_is_not_supervised_but_counted(bpe):
    assert len(bpe.encode(" city", add_special_tokens=False)) == 1
    row, counts = tokenise_one(Completion("in the ci", "ty centre"), bpe)
    assert bpe.decode(row.input_ids) == "<|bos|>in the city centre<|eos|>"
    assert supervised_text(row, bpe) == " centre<|eos|>"
    assert counts["straddling"] == 1


@given(WORDS, WORDS)
@settings(max_examples=150, deadline=None)
def test_whole_row_is_tokenised_at_once_and_supervised_from_the_boundary(bpe, prompt, completion):
    row, counts = tokenise_one(Completion(prompt, completion), bpe)
    if row is None:
        return
    encoded = bpe(prompt + completion, return_offsets_mapping=True, add_special_tokens=False)
    assert row.input_ids.tolist() == [bpe.bos_token_id, *encoded["input_ids"], bpe.eos_token_id]
    boundary = len(prompt.rstrip(" "))
    pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    by_hand = [i if start >= boundary else IGNORED for i, (start, _) in pairs]
    assert row.labels.tolist() == [IGNORED, *by_hand, bpe.eos_token_id]


def test_running_text_is_supervised_whole_but_for_the_opening_token(bpe):
    row, _ = tokenise_one(Text("the cat sat"), bpe)
    assert bpe.decode(row.input_ids) == "<|bos|>the cat sat<|eos|>"
    assert row.labels.tolist() == [IGNORED, *row.input_ids[1:]]
    assert row.supervised == len(row.input_ids) - 1


def test_without_opening_token_the_first_token_is_not_counted(bpe_without_specials):
    row, _ = tokenise_one(Text("the cat sat"), bpe_without_specials)
    assert bpe_without_specials.decode(row.input_ids) == "the cat sat"
    assert row.supervised == len(row.input_ids) - 1


def test_long_row_loses_its_prompts_beginning_but_not_its_opening_token(bpe):
    full, _ = tokenise_one(Completion("one two three four five six:", " the cat sat"), bpe)
    supervised = int((full.labels != IGNORED).sum())
    row, counts = tokenise_one(Completion("one two three four five six:", " the cat sat"), bpe, supervised + 4)
    assert row.input_ids.tolist() == [bpe.bos_token_id, *full.input_ids[-supervised - 3 :]]
    assert row.labels.tolist() == [IGNORED, *full.labels[-supervised - 3 :]]
    assert (counts["truncated"], counts["lost_supervised"], counts["dropped"]) == (1, 0, 0)


def test_completion_longer_than_the_limit_is_cut_at_its_end(bpe):
    row, counts = tokenise_one(Completion("one two:", " the cat sat on the mat"), bpe, 4)
    assert row.input_ids[0] == bpe.bos_token_id
    assert len(row.input_ids) == 4
    assert bpe.decode(row.labels[1:]) == " the cat sat"
    assert (counts["truncated"], counts["lost_supervised"]) == (1, 1)


@given(WORDS, WORDS, st.integers(1, 30))
@settings(max_examples=150, deadline=None)
def test_no_row_is_longer_than_the_limit_and_every_kept_row_has_something_to_learn(bpe, prompt, completion, limit):
    row, counts = tokenise_one(Completion(prompt, completion), bpe, limit)
    assert (row is None) == bool(counts["dropped"])
    if row is not None:
        assert len(row.input_ids) == len(row.labels) <= limit
        assert row.supervised > 0
        kept = row.labels != IGNORED
        assert (row.labels[kept] == row.input_ids[kept]).all()


def test_prompt_is_encoded_as_rows_begin_and_cut_at_its_beginning(bpe):
    ids = encode_prompt(bpe, "one two three four  ")
    assert bpe.decode(ids) == "<|bos|>one two three four"
    assert encode_prompt(bpe, "one two three four", 5) == [bpe.bos_token_id, *ids[-4:]]


def test_labelled_texts_are_cut_at_the_end_and_keep_their_class(bpe):
    examples = [Labelled("the cat sat on the mat", None, "b"), Labelled("the", None, "a")]
    counts = Counter()
    rows = tokenise(examples, bpe, counts, max_length=4, labels=["a", "b"]).rows
    assert [row.labels for row in rows] == [1, 0]
    assert rows[0].input_ids.tolist() == bpe("the cat sat on the mat")["input_ids"][:4]
    assert counts["truncated"] == 1
    assert all(row.token_type_ids is None for row in rows)


def test_pairs_carry_their_segments(bpe):
    from transformers import PreTrainedTokenizerFast

    typed = PreTrainedTokenizerFast(
        tokenizer_object=bpe.backend_tokenizer, model_input_names=["input_ids", "token_type_ids", "attention_mask"]
    )
    row = tokenise([Labelled("the", " cat", "a")], typed, labels=["a"]).rows[0]
    second = len(bpe("the")["input_ids"])
    assert row.token_type_ids.tolist() == [0] * second + [1] * (len(row.input_ids) - second)
    assert isinstance(row.input_ids, np.ndarray) and row.input_ids.dtype == np.int32


def test_limit_that_leaves_no_text_is_refused(bpe):
    with pytest.raises(DataError, match=r"data\.max_length: 2 leaves no room for text after 2 special tokens"):
        tokenise([Labelled("the", "cat", "a")], bpe, max_length=2, labels=["a"])


def test_tokenizer_without_offsets_is_refused():
    with pytest.raises(DataError, match="gives no character offsets; data needs a fast tokenizer"):
        tokenise([Text("x")], PreTrainedTokenizer.__new__(PreTrainedTokenizer))


@pytest.mark.parametrize("text", ["<|bos|>the cat", "the cat<|eos|>", "<|bos|>the cat<|eos|>"])
def test_special_tokens_that_a_text_has_already_are_not_doubled(bpe, text):
    counts = Counter()
    doubled, plain = (tokenise([Text(one)], bpe, counts).rows[0] for one in (text, "the cat"))
    assert doubled.input_ids.tolist() == plain.input_ids.tolist()
    assert doubled.labels.tolist() == plain.labels.tolist()
    assert counts["carried"] == 1
    assert encode_prompt(bpe, "<|bos|>the cat") == encode_prompt(bpe, "the cat")


@pytest.mark.parametrize("text", ["the <|end|> cat", "<|user|>the cat", "the cat <|bos|>"])
def test_special_tokens_anywhere_in_a_text_are_counted(bpe, text):
    counts = Counter()
    tokenise([Text(text), Text("the cat")], bpe, counts)
    assert counts["carried"] == 1


def test_special_tokens_that_a_labelled_text_has_already_are_not_doubled(bpe):
    counts = Counter()
    own, plain, inside = tokenise(
        [Labelled(text, None, "a") for text in ("<|bos|>the cat", "the cat", "the <|bos|>cat")],
        bpe,
        counts,
        labels=["a"],
    ).rows
    assert own.input_ids.tolist() == plain.input_ids.tolist()
    assert inside.input_ids.tolist().count(bpe.bos_token_id) == 2 and counts["carried"] == 2


def test_both_texts_of_a_pair_lose_the_tokens_that_they_repeat(bpe):
    def row(text, pair):
        (found,) = tokenise([Labelled(text, pair, "a")], bpe, labels=["a"]).rows
        return found.input_ids.tolist(), None if found.token_type_ids is None else found.token_type_ids.tolist()

    assert row("<|bos|>the", "<|bos|>cat") == row("the", "cat")


@pytest.mark.parametrize("blanks", [0, 20_000])
def test_text_behind_blanks_that_have_no_tokens_is_read(blanks):
    """Of a text that is to be cut only its beginning is tokenised, which may be white space alone."""
    wordpiece = train_wordpiece()
    example = Labelled(" " * blanks + "open the file", None, "a")
    (row,) = tokenise([example], wordpiece, max_length=8, labels=["a", "b"]).rows
    assert row.input_ids.tolist() == wordpiece("open the file", truncation=True, max_length=8)["input_ids"]
    tagged = Tagged([*[" "] * (blanks // 2), "open", "the"], [*["a"] * (blanks // 2), "b", "a"])
    (row,) = tokenise([tagged], wordpiece, max_length=8, labels=["a", "b"]).rows
    assert row.labels[row.labels != IGNORED].tolist() == [1, 0]


def test_a_reference_is_the_answer_as_a_model_that_writes_the_row_is_read(bpe):
    examples = [Completion("the cat", " sat<|eos|>"), Completion("the", " on <|end|> it"), Completion("a", " <b> ")]
    found = [tokenise([example], bpe, prompts=True) for example in examples]
    references = [prompt.references for one in found for prompt in one.prompts]
    supervised = [one.rows[0].labels[one.rows[0].labels != IGNORED] for one in found]
    assert references[0] == ("sat",) and references[2] == ("<b>",)
    assert references == [(bpe.decode(ids, skip_special_tokens=True).strip(),) for ids in supervised]
