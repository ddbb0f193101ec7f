"""Columns become examples; templates know columns and nothing else."""

from __future__ import annotations

import pytest

from peftlab.data.examples import fingerprint
from peftlab.data.parts import read_examples
from peftlab.errors import DataError
from peftlab.tables.files import Table
from peftlab.tasks import TASKS
from peftlab.tasks.formats import Chat, Completion, Text
from peftlab.tasks.sequence_classification import Labelled

FACTS = Table("facts.csv", {"mr": ["a{b}", "{mr}"], "ref": ["one", "two"], "year": [1999, 2001.5], "note": ["", "x"]})
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def test_columns_named_like_roles_need_no_mapping(section):
    table = Table("t", {"prompt": ["p"], "completion": ["c"], "extra": [None]})
    assert read_examples(table, section(format="completion")) == [Completion("p", "c")]
    assert read_examples(Table("t", {"text": ["p"]}), section(format="text")) == [Text("p")]
    assert read_examples(Table("t", {"messages": [TURNS]}), section(format="chat")) == [Chat(TURNS)]


def test_template_fills_columns_as_they_are_and_braces_double(section):
    data = section(format="completion", template="{{{mr}}} in {year}:{note}", columns={"completion": "ref"})
    assert read_examples(FACTS, data) == [Completion("{a{b}} in 1999:", "one"), Completion("{{mr}} in 2001.5:x", "two")]


def test_template_makes_the_text_of_texts_and_of_labelled_texts(section):
    assert read_examples(FACTS, section(format="text", template="{ref}!")) == [Text("one!"), Text("two!")]
    data = section(format="classification", template="{ref}!", columns={"label": "year"})
    with pytest.raises(
        DataError, match=r"row 2: column 'year': a label is a text or a whole number, not float 2001\.5"
    ):
        read_examples(FACTS, data)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{mr.__class__}", r"has no column 'mr\.__class__'.*its columns: mr, ref, year, note"),
        ("{mr[0]}", r"has no column 'mr\[0\]'"),
        ("{mrs}", r"has no column 'mrs'; did you mean 'mr'\?"),
        ("{}", "has no column ''"),
        ("{year:>1000000000}", "takes no ':' or '!'"),
        ("{mr!r}", "takes no ':' or '!'"),
        ("{mr", r"expected '}' before end of string; write a brace itself as {{ or }}"),
        ("mr}", r"write a brace itself"),
    ],
)
def test_template_knows_columns_only(section, template, message):
    with pytest.raises(DataError, match=message):
        read_examples(FACTS, section(format="completion", template=template, columns={"completion": "ref"}))


def test_pairs_and_labels_are_read_as_text(section):
    table = Table("t", {"a": ["x", "y"], "b": ["u", "v"], "gold": [1, 0]})
    data = section(format="classification", columns={"text": "a", "text_pair": "b", "label": "gold"})
    assert read_examples(table, data) == [Labelled("x", "u", "1"), Labelled("y", "v", "0")]


def test_a_column_of_the_template_is_not_the_second_text_too(section):
    table = Table("t", {"text": ["x"], "text_pair": ["u"], "label": ["1"]})
    joined = section(format="classification", template="{text} / {text_pair}")
    assert read_examples(table, joined) == [Labelled("x / u", None, "1")]
    both = section(format="classification", template="{text} / {text_pair}", columns={"text_pair": "text_pair"})
    assert read_examples(table, both) == [Labelled("x / u", "u", "1")]
    assert read_examples(table, section(format="classification", template="{text}!")) == [Labelled("x!", "u", "1")]


def listed(examples):
    return TASKS["sequence-classification"].list_labels(examples)


def test_labels_are_ordered_as_numbers_or_as_words():
    assert TASKS["sequence-classification"].list_labels(
        [Labelled("", None, label) for label in ("10", "9", "-1", "9")]
    ) == ["-1", "9", "10"]
    assert listed([Labelled("", None, label) for label in ("b", "10", "9")]) == [
        "10",
        "9",
        "b",
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"columns": {"completion": "refs"}}, r"facts\.csv: has no column 'prompt'.*set data\.columns\.prompt"),
        ({"columns": {"prompt": "mr", "completion": "refs"}}, r"no column 'refs'.*did you mean 'ref'\?; its columns:"),
        ({"columns": {"prompt": "note", "completion": "ref"}}, r"row 1: column 'note' is empty; correct such rows"),
    ],
)
def test_wrong_columns_are_named_with_those_there(section, fields, message):
    with pytest.raises(DataError, match=message):
        read_examples(FACTS, section(format="completion", **fields))


@pytest.mark.parametrize("hole", [None, "", " \n", float("nan")])
def test_empty_cells_are_reported_with_row_and_number(section, hole):
    table = Table("t.jsonl", {"prompt": ["a", "b", "c", "d"], "completion": ["a", hole, "c", hole]})
    with pytest.raises(DataError, match=r"t\.jsonl: row 2: column 'completion' is empty \(1 more of 4 rows are bad\)"):
        read_examples(table, section(format="completion"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("text", "row 2: column 'messages': needs a list of messages"),
        ([{"content": "x"}], "row 2: column 'messages': each message needs a role"),
        ([{"role": "user", "content": None}], "row 2: column 'messages': the content of a 'user' message must be text"),
    ],
)
def test_broken_messages_are_reported_with_their_row(section, value, message):
    with pytest.raises(DataError, match=message):
        read_examples(Table("t", {"messages": [TURNS, value]}), section(format="chat"))


def test_template_that_makes_an_empty_prompt_is_reported(section):
    with pytest.raises(DataError, match=r"facts\.csv: row 1: data\.template makes the prompt, which is empty"):
        read_examples(FACTS, section(format="completion", template="{note} ", columns={"completion": "ref"}))


@pytest.mark.parametrize("form", ["text", "chat"])
def test_half_a_surrogate_pair_is_reported_with_its_place(section, form):
    broken = "ab\ud83d"
    cell = broken if form == "text" else [{"role": "user", "content": broken}]
    table = Table("t", {"text": [cell], "messages": [cell]})
    with pytest.raises(
        DataError, match=r"row 1: column '.*': contains '\\ud83d' at position 2, half of a surrogate pair"
    ):
        read_examples(table, section(format=form))


HALVED = {"role": "user", "content": "q", "name": "\ud83d"}
CALLED = {"function": {"name": "f", "arguments": {"\ude00": 1}}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALLED]}


@pytest.mark.parametrize("cells", [{"messages": [[HALVED]]}, {"messages": [[CALLING]]}, {"tools": [[CALLED]]}])
def test_half_a_surrogate_pair_anywhere_in_a_chat_is_reported(section, cells):
    table = Table("t", {"messages": [TURNS], **cells})
    with pytest.raises(DataError, match=r"row 1: column '.*': contains '\\ud[8e][30][d0]', half of a surrogate pair"):
        read_examples(table, section(format="chat"))


def test_nested_cells_are_no_text(section):
    with pytest.raises(DataError, match="row 1: column 'text': needs text, not dict"):
        read_examples(Table("t", {"text": [{"a": 1}]}), section(format="text"))


def test_fingerprint_tells_content_order_and_borders_apart():
    prints = {
        fingerprint(rows)
        for rows in (
            [Completion("a", "b"), Completion("c", "d")],
            [Completion("c", "d"), Completion("a", "b")],
            [Completion("ab", ""), Completion("c", "d")],
            [Completion("a", "b")],
        )
    }
    assert len(prints) == 4
    assert fingerprint([Text("x")]) == fingerprint([Text("x")])
