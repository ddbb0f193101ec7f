"""Tool calls are supervised as the template writes them, whatever form the file has them in."""

from __future__ import annotations

import copy
import json

import pytest

from peftlab.data.chat import ChatSettings, encode_chats
from peftlab.tables.arrow_files import read_parquet
from peftlab.tasks.formats import Chat, as_messages

CALLS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ CONTENT }}{% for c in m.tool_calls or [] %}[{{ c.function.name }}"
    " ARGUMENTS]{% endfor %}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WRITTEN = {
    "as JSON": "{{ c.function.arguments | tojson }}",
    "as they are": "{{ c.function.arguments }}",
    "as a part of text": "{{ '' + c.function.arguments }}",
    "one by one": '{"{% for k, v in c.function.arguments.items() %}{{ k }}": "{{ v }}{% endfor %}"}',
}


def template(arguments, content="m.content or ''"):
    return CALLS.replace("ARGUMENTS", arguments).replace("CONTENT", content)


def question(arguments, content=None):
    call = {"id": "1", "type": "function", "function": {"name": "sat", "arguments": arguments}}
    return [
        {"role": "user", "content": "the cat"},
        {"role": "assistant", "content": content, "tool_calls": [call]},
        {"role": "tool", "content": "two"},
        {"role": "assistant", "content": "the mat"},
    ]


def encode(messages, tokenizer, source, tools=None):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = source
    (chat,) = encode_chats([Chat(as_messages(messages), tools)], tokenizer, ChatSettings())
    return chat, [tokenizer.decode(chat.ids[turn.first : turn.last]) for turn in chat.turns]


@pytest.mark.parametrize("content", ["m.content or ''", "m.content", "'' + m.content"])
@pytest.mark.parametrize("arguments", [{"to": "two"}, '{"to": "two"}'], ids=["object", "text"])
@pytest.mark.parametrize("written", WRITTEN)
def test_arguments_are_written_once_as_json_and_null_as_nothing(bpe, written, arguments, content):
    chat, parts = encode(question(arguments), bpe, template(WRITTEN[written], content))
    assert (chat.fault, parts) == (None, ['[sat {"to": "two"}]<|end|>', "the mat<|end|>"])


def test_arguments_that_are_no_json_stay_as_they_are(bpe):
    _, parts = encode(question("two"), bpe, template(WRITTEN["as they are"]))
    assert parts[0] == "[sat two]<|end|>"


def test_a_row_is_dropped_where_the_template_writes_no_calls(bpe):
    for content in ("", "see"):
        chat, parts = encode(question({"to": "two"}, content), bpe, bpe.chat_template)
        assert (chat.fault, parts) == ("the template leaves out the tool calls of an answer", [])
    unsupervised = question({"to": "two"}, "see")
    unsupervised[1]["weight"] = 0
    assert encode(unsupervised, bpe, bpe.chat_template)[1] == ["the mat<|end|>"]


def test_a_result_that_names_its_function_is_no_part_of_the_call(bpe):
    echoing = (
        "{% set ns = namespace(called='') %}{% for m in messages %}{% if m.tool_calls %}"
        "{% set ns.called = m.tool_calls[0].function.name %}<|assistant|>to {{ ns.called }}:"
        "{{ m.tool_calls[0].function.arguments | tojson }}<|end|>{% elif m.role == 'tool' %}from {{ ns.called }}:"
        "{{ m.content }}{% else %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    chat, parts = encode(question({"to": "two"}), bpe, echoing)
    assert (chat.fault, parts) == (None, ['to sat:{"to": "two"}<|end|>', "the mat<|end|>"])


def test_a_call_that_is_written_by_its_id_is_found(bpe):
    numbered = template(WRITTEN["as JSON"]).replace("c.function.name", "c.id")
    chat, parts = encode(question({"to": "two"}, "see"), bpe, numbered)
    assert (chat.fault, parts) == (None, ['see[1 {"to": "two"}]<|end|>', "the mat<|end|>"])


def test_calls_in_place_of_a_content_are_found_without_a_generation_prompt(bpe):
    bare = (
        "{% for m in messages %}{% if m.role == 'user' %}<|user|> {{ m.content }}<|assistant|>{% elif m.tool_calls %}"
        "[{{ m.tool_calls[0].function | tojson }}]<|end|>{% elif m.role == 'tool' %}<|system|>{{ m.content }}"
        "{% else %} {{ m.content }}<|end|>{% endif %}{% endfor %}"
    )
    called = '[{"name": "sat", "arguments": {"to": "two"}}]<|end|>'
    chat, parts = encode(question({"to": "two"}), bpe, bare)
    assert (chat.fault, parts) == (None, [called, " the mat<|end|>"])
    assert chat.text.startswith("<|user|> the cat<|assistant|>" + called)


def test_calls_of_sharegpt_are_calls(bpe):
    turns = [
        {"from": "human", "value": "the cat"},
        {"from": "function_call", "value": json.dumps({"name": "sat", "arguments": {"to": "two"}})},
        {"from": "observation", "value": "two"},
        {"from": "gpt", "value": "the mat"},
    ]
    assert encode(turns, bpe, template(WRITTEN["as JSON"]))[1] == ['[sat {"to": "two"}]<|end|>', "the mat<|end|>"]
    turns[1]["value"] = "sat(two)"
    with pytest.raises(ValueError, match=r"a function_call needs JSON \{name, arguments\}, not sat\(two\)"):
        as_messages(turns)


def test_calls_of_a_parquet_file_have_only_their_own_arguments(tmp_path, bpe):
    import pyarrow
    import pyarrow.parquet

    chats = [question({"to": "two"}), question({"on": "three"}, "see")]
    path = tmp_path / "calls.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"messages": chat} for chat in chats]), path)
    with path.open("rb") as file:
        rows = [row.cells["messages"] for row in read_parquet(file, path)]
    parts = [encode(row, bpe, template(WRITTEN["as JSON"]))[1][0] for row in rows]
    assert parts == ['[sat {"to": "two"}]<|end|>', 'see[sat {"on": "three"}]<|end|>']


@pytest.mark.parametrize("key", ["reasoning_content", "thinking"])
def test_what_the_template_leaves_out_of_a_row_is_named(bpe, key):
    tools = [{"type": "function", "function": {"name": "sat"}}]
    answer = {"role": "assistant", "content": "sat", key: "so it is"}
    messages = [{"role": "user", "content": "the cat"}, answer]
    assert encode(messages, bpe, bpe.chat_template, tools)[0].unwritten == ("tools", "reasoning")
    seeing = "{% if tools %}{{ tools | tojson }}{% endif %}" + bpe.chat_template.replace(
        "{{ m['content'] }}", "{{ m." + key + " or '' }}{{ m['content'] }}"
    )
    chat, parts = encode(messages, bpe, seeing, tools)
    assert (chat.unwritten, parts) == ((), ["so it issat<|end|>"])
