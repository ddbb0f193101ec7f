"""Only the assistant's turns, with their end markers, are supervised."""

from __future__ import annotations

import copy
from collections import Counter

import pytest

from peftlab.data.chat import render_prompt
from peftlab.data.tokens import IGNORED, encode_chat_prompt, tokenise_texts
from peftlab.errors import DataError
from peftlab.tasks.formats import Chat

MARKED = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|end|>{% endgeneration %}{% else %}{{ m['content'] }}<|end|>{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
DEFAULT_SYSTEM = "{% if messages[0]['role'] != 'system' %}<|system|>be kind<|end|>\n{% endif %}"
# Shows the reasoning of the last answer only, as some reasoning models' templates do.
FORGETFUL = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] if loop.last else m['content'].split('=')[-1] }}"
    "<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
STRICT = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('must start with user') }}{% endif %}"


def chat(*contents, first="user"):
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return Chat([{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)])


def with_template(tokenizer, template):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    return tokenizer


def tokenise_one(example, tokenizer, max_length=128):
    counts = Counter()
    rows = tokenise_texts([example], tokenizer, max_length, counts)
    return (rows[0] if rows else None), counts


def supervised_parts(row, tokenizer):
    """Return the runs of supervised tokens as texts."""
    parts, last = [], None
    for place in (row.labels != IGNORED).nonzero()[0]:
        if last is None or place != last + 1:
            parts.append([])
        parts[-1].append(row.labels[place])
        last = place
    return [tokenizer.decode(part) for part in parts]


@pytest.mark.parametrize("template", [None, MARKED])
def test_every_assistant_turn_and_its_end_is_supervised(bpe, template):
    tokenizer = with_template(bpe, template) if template else bpe
    example = chat("the cat", "sat on the mat", "the cat", " the city")
    row, _ = tokenise_one(example, tokenizer)
    assert row.input_ids.tolist() == tokenizer.apply_chat_template(example.messages, return_dict=False)
    assert supervised_parts(row, tokenizer) == ["sat on the mat<|end|>", " the city<|end|>"]


def test_same_content_in_both_roles_is_supervised_in_one(bpe):
    row, _ = tokenise_one(chat("sat", "sat", "sat", "sat"), bpe)
    assert supervised_parts(row, bpe) == ["sat<|end|>", "sat<|end|>"]
    first = (row.labels != IGNORED).argmax()
    assert bpe.decode(row.input_ids[:first]) == "<|bos|><|user|>sat<|end|>\n<|assistant|>"


def test_default_system_prompt_of_a_template_is_not_supervised(bpe):
    tokenizer = with_template(bpe, DEFAULT_SYSTEM + bpe.chat_template)
    row, _ = tokenise_one(chat("the cat", "sat"), tokenizer)
    assert supervised_parts(row, tokenizer) == ["sat<|end|>"]


def test_chat_may_begin_with_the_assistant(bpe):
    row, _ = tokenise_one(chat("the cat", "sat", "the mat", first="assistant"), bpe)
    assert supervised_parts(row, bpe) == ["the cat<|end|>", "the mat<|end|>"]


def test_chat_without_an_answer_is_dropped_and_counted(bpe):
    row, counts = tokenise_one(chat("the cat"), bpe)
    assert row is None and counts["dropped"] == 1


def test_what_a_template_leaves_of_earlier_turns_is_supervised_with_and_without_marks(bpe):
    example = chat("the cat", "so = sat", "the cat", "so = sat")
    tokenizer = with_template(bpe, FORGETFUL)
    row, _ = tokenise_one(example, tokenizer)
    assert supervised_parts(row, tokenizer) == [" sat<|end|>", "so = sat<|end|>"]
    marked = FORGETFUL.replace("{{ m['content'] if", "{% generation %}{{ m['content'] if").replace(
        "<|end|>\n", "<|end|>{% endgeneration %}\n"
    )
    tokenizer = with_template(bpe, marked)
    row, _ = tokenise_one(example, tokenizer)
    assert supervised_parts(row, tokenizer) == ["the cat<|end|>", " sat<|end|>", "the cat<|end|>", "so = sat<|end|>"]


def test_what_a_template_refuses_and_a_missing_template_are_one_line(bpe):
    with pytest.raises(DataError, match=r"the chat that begins 'the cat': .* refuses it: must start with user"):
        tokenise_one(chat("the cat", "sat", first="assistant"), with_template(bpe, STRICT + bpe.chat_template))
    with pytest.raises(DataError, match="the model's tokenizer has no chat template; use an instruction-tuned model"):
        tokenise_one(chat("the cat", "sat"), with_template(bpe, None))


def test_long_chat_keeps_its_opening_token_and_the_answer(bpe):
    example = chat("the cat sat on the mat in the city centre", "the cat")
    full, _ = tokenise_one(example, bpe)
    row, counts = tokenise_one(example, bpe, 9)
    assert row.input_ids.tolist() == [bpe.bos_token_id, *full.input_ids[-8:]]
    assert supervised_parts(row, bpe) == ["the cat<|end|>"]
    assert (counts["truncated"], counts["lost_supervised"]) == (1, 0)


def test_generation_prompt_is_the_beginning_of_the_training_row(bpe):
    example = chat("the cat", "sat")
    row, _ = tokenise_one(example, bpe)
    ids = encode_chat_prompt(bpe, render_prompt(example.messages[:1], bpe))
    assert ids == row.input_ids[: len(ids)].tolist()
    assert bpe.decode(ids).endswith("<|assistant|>")
