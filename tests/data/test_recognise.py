"""Formats are recognised from columns and first rows; layouts of public data become the same examples."""

from __future__ import annotations

import json

import pytest

from peftlab.data import parts
from peftlab.data.parts import DataReader, read_examples
from peftlab.data.splits import load_examples
from peftlab.errors import DataError
from peftlab.recipe.schema import Data
from peftlab.tables.files import Table
from peftlab.tasks import TASKS
from peftlab.tasks.formats import Chat, Completion, Text
from peftlab.tasks.sequence_classification import Labelled
from peftlab.world import hardware

CAUSAL, CLASSES = TASKS["causal-lm"], TASKS["sequence-classification"]


def read(rows, task=CAUSAL, **fields):
    """Return the examples of rows, each a dict of the same keys, in a table."""
    table = Table("t", {name: [row[name] for row in rows] for name in rows[0]})
    return read_examples(table, Data.model_validate({"train": "-", **fields}), task)


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **flags):
    return {"role": "assistant", "content": text, **flags}


SHARE_GPT = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]}
OPEN_AI = {"messages": [user("hi"), assistant("yo")]}


@pytest.mark.parametrize(
    ("row", "example"),
    [
        ({"text": "a", "id": 1}, Text("a")),
        ({"prompt": "a", "completion": "b", "source": "x"}, Completion("a", "b")),
        (OPEN_AI, Chat([user("hi"), assistant("yo")])),
        (SHARE_GPT, Chat([user("hi"), assistant("yo")])),
        (SHARE_GPT | {"system": "s"}, Chat([{"role": "system", "content": "s"}, user("hi"), assistant("yo")])),
        ({"conversations": OPEN_AI["messages"]}, Chat([user("hi"), assistant("yo")])),
        ({"prompt": [user("a")], "completion": [assistant("b")]}, Chat([user("a"), assistant("b")])),
        (
            {"prompt": [user("a"), assistant("b"), user("c")], "completion": [assistant("d")]},
            Chat([user("a"), assistant("b", weight=0), user("c"), assistant("d")]),
        ),
    ],
)
def test_a_format_is_recognised_by_its_columns(row, example):
    assert read([row]) == [example]


def test_alpaca_leaves_out_the_part_about_an_input_that_is_empty():
    rows = [
        {"instruction": "Say hi", "input": "", "output": "hi", "text": "all of it"},
        {"instruction": "Add", "input": "1 and 2", "output": "3", "text": "all of it"},
    ]
    without, having = read(rows)
    assert without.completion == "hi" and having.completion == "3"
    assert "Input" not in without.prompt and "provides further context" not in without.prompt
    assert without.prompt.endswith("### Instruction:\nSay hi\n\n### Response:\n")
    assert having.prompt.endswith("### Instruction:\nAdd\n\n### Input:\n1 and 2\n\n### Response:\n")
    chats = read(rows, format="chat")
    assert chats == [Chat([user("Say hi"), assistant("hi")]), Chat([user("Add\n\n1 and 2"), assistant("3")])]


def test_turns_before_an_instruction_are_kept_in_a_chat_and_refused_in_a_text_prompt():
    row = {"instruction": "c", "input": "", "output": "d", "system": "s", "history": [["a", "b"]]}
    system = {"role": "system", "content": "s"}
    assert read([row], format="chat") == [Chat([system, user("a"), assistant("b"), user("c"), assistant("d")])]
    with pytest.raises(DataError, match=r"t: row 1: has a history or a system text.*set data\.format: chat"):
        read([row])


def test_messages_may_be_json_text_as_in_a_csv_file():
    assert read([{"messages": json.dumps(OPEN_AI["messages"])}]) == read([OPEN_AI])


def as_csv(row):
    """Return a row with its lists as JSON text, as in a CSV file."""
    return {name: json.dumps(cell) if isinstance(cell, list) else cell for name, cell in row.items()}


@pytest.mark.parametrize(
    "row",
    [
        SHARE_GPT | {"system": "s"},
        {"prompt": [user("a"), assistant("b"), user("c")], "completion": [assistant("d")]},
    ],
)
def test_layouts_of_messages_are_read_from_json_text_too(row):
    assert read([as_csv(row)]) == read([row])


def test_turns_before_an_instruction_may_be_json_text():
    row = {"instruction": "c", "input": "", "output": "d", "history": [["a", "b"]]}
    assert read([as_csv(row)], format="chat") == read([row], format="chat")
    assert read([as_csv(row | {"history": []})]) == read([row | {"history": []}])


def test_a_prompt_that_is_a_json_list_of_other_objects_stays_a_text():
    assert read([{"prompt": '[{"a": 1}]', "completion": "b"}]) == [Completion('[{"a": 1}]', "b")]


def test_an_earlier_answer_of_a_sharegpt_prompt_is_not_supervised():
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}]
    (found,) = read([{"prompt": turns, "completion": [assistant("d")]}])
    assert [message.get("weight") for message in found.messages if message["role"] == "assistant"] == [0, None]


def test_keys_that_parquet_adds_to_messages_are_left_out():
    message = assistant("yo", tool_calls=None, name=None)
    assert read([{"messages": [user("hi"), message]}]) == read([OPEN_AI])


@pytest.mark.parametrize(
    ("row", "fits"),
    [
        ({"text": "a", "prompt": "b", "completion": "c"}, "completion or text"),
        ({"text": "a", "messages": []}, "chat or text"),
        ({"messages": [], "prompt": "b", "completion": "c"}, "chat or completion"),
        ({"instruction": "a", "output": "b", "messages": []}, r"chat or completion \(Alpaca"),
    ],
)
def test_columns_of_two_formats_are_refused_with_the_field_to_set(row, fits):
    with pytest.raises(DataError, match=rf"fit {fits}.*; set data\.format$"):
        read([row])


def test_columns_of_no_format_are_refused_with_those_there_and_those_known():
    with pytest.raises(DataError, match=r"t: its columns \(q, a\) are those of no format \(completion: prompt, comp"):
        read([{"q": 1, "a": 2}])


def test_named_columns_choose_the_format_that_has_such_roles():
    row = {"q": "a", "a": "b", "text": "c"}
    assert read([row], columns={"prompt": "q", "completion": "a"}) == [Completion("a", "b")]
    assert read([row], columns={"completion": "a"}, template="{q}?") == [Completion("a?", "b")]
    assert read([{"body": "c"}], columns={"text": "body"}) == [Text("c")]
    assert read([{"body": "c", "label": 1}], CLASSES, columns={"text": "body"}) == [Labelled("c", None, "1")]


def test_a_template_alone_does_not_make_running_text_unless_the_recipe_says_so():
    with pytest.raises(DataError, match="has no column 'completion' for 'completion'"):
        read([{"q": "a"}], template="{q}")
    assert read([{"q": "a"}], template="{q}", format="text") == [Text("a")]


def test_an_unknown_speaker_is_named_with_those_known():
    turns = [{"from": "human", "value": "hi"}, {"from": "robot", "value": "yo"}]
    with pytest.raises(DataError, match="t: row 1: a turn is from 'robot'; known speakers: human, user, gpt"):
        read([{"conversations": turns}])


def test_nested_columns_are_found_by_dotted_names():
    rows = [{"data": {"q": "a", "answers": {"text": ["b", "c"]}}, "x.y": "z"}]
    columns = {"prompt": "data.q", "completion": "data.answers.text.1"}
    assert read(rows, columns=columns) == [Completion("a", "c")]
    assert read(rows, columns={"prompt": "x.y", "completion": "data.q"}) == [Completion("z", "a")]
    assert read(rows, columns={"completion": "data.q"}, template="{data.answers.text.0}!") == [Completion("b!", "a")]
    with pytest.raises(DataError, match=r"t: row 1: column 'data\.answers\.text\.7' is empty"):
        read(rows, columns=columns | {"completion": "data.answers.text.7"})
    with pytest.raises(DataError, match=r"t: has no column 'dada\.q' for 'prompt'; did you mean 'data'\?"):
        read(rows, columns=columns | {"prompt": "dada.q"})


def test_what_was_recognised_is_in_the_facts_of_a_part(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(SHARE_GPT) + "\n")
    examples = load_examples(Data(train=str(path)), CAUSAL, 0)
    assert examples.section.format == "chat"
    assert examples.read["train"]["read_as"] == ["chat (ShareGPT: conversations)"]


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


GOOD = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(30)]


def test_a_bad_row_stops_with_its_line_or_is_skipped_and_counted(tmp_path):
    rows = [*GOOD[:3], {"prompt": "x", "completion": " "}, *GOOD[3:], '{"prompt": "y"', {"prompt": 1}]
    path = write(tmp_path / "x.jsonl", *rows)
    fault = r"x\.jsonl:4: column 'completion' is empty \(2 more of 33 rows are bad\)"
    with pytest.raises(DataError, match=fault) as one:
        DataReader(Data(train=path), CAUSAL).read_part("train")
    assert "set data.on_error: skip" in str(one.value)
    reader = DataReader(Data(train=path, on_error="skip"), CAUSAL)
    assert reader.read_part("train").examples == [Completion(row["prompt"], row["completion"]) for row in GOOD]
    facts = reader.facts["train"]
    assert facts["bad"] == 3 and facts["faults"][1].startswith(f"{path}:32: is not JSON")
    strict = Data(train=path, on_error="skip", allow_dropped=0.05)
    with pytest.raises(DataError, match=r"3 of 33 rows are bad, more than data\.allow_dropped \(0\.05\)"):
        DataReader(strict, CAUSAL).read_part("train")


def test_rows_without_any_content_are_skipped_and_counted_whatever_on_error_says(tmp_path):
    path = write(tmp_path / "x.jsonl", GOOD[0], {}, {"prompt": None, "completion": ""}, {"id": 7}, GOOD[1])
    reader = DataReader(Data(train=path), CAUSAL)
    assert len(reader.read_part("train").examples) == 2
    assert reader.facts["train"]["empty"] == 3 and "bad" not in reader.facts["train"]
    with pytest.raises(DataError, match="all of 1 rows are empty"):
        DataReader(Data(train=write(tmp_path / "e.jsonl", {"prompt": "", "completion": ""})), CAUSAL).read_part("train")


def test_labels_keep_the_zeros_with_which_they_begin_from_every_kind_of_file(tmp_path):
    (tmp_path / "rows").mkdir()
    found = []
    for name, text in [
        ("x.csv", "text,label\na,01\nb,02\n"),
        ("rows/train.csv", "text,label\na,01\nb,02\n"),
        ("x.tsv", "text\tlabel\na\t01\nb\t02\n"),
        ("x.jsonl", '{"text": "a", "label": "01"}\n{"text": "b", "label": "02"}\n'),
    ]:
        (tmp_path / name).write_text(text)
        source = str((tmp_path / name).parent if "/" in name else tmp_path / name)
        found.append(load_examples(Data(train=source), CLASSES, 0).labels)
    assert found == [["01", "02"]] * 4


def test_a_part_that_lacks_the_second_text_is_refused_in_one_line(tmp_path):
    train = write(tmp_path / "train.jsonl", *({"text": "a", "text_pair": "b", "label": i} for i in range(2)))
    other = write(tmp_path / "other.jsonl", *({"text": "a", "label": i} for i in range(2)))
    fault = r"other\.jsonl: has no column for 'text_pair', and .*train\.jsonl has one"
    with pytest.raises(DataError, match=fault):
        load_examples(Data(train=train, evaluation=other), CLASSES, 0)
    with pytest.raises(DataError, match=r"train\.jsonl: has a column for 'text_pair', and .*other\.jsonl has none"):
        load_examples(Data(train=other, evaluation=train), CLASSES, 0)
    with pytest.raises(DataError, match="has no column for 'text_pair'"):
        load_examples(Data.model_validate({"train": [train, other]}), CLASSES, 0)


def test_a_second_text_in_later_rows_only_is_a_bad_row(tmp_path):
    rows = [{"text": "a", "label": i % 2} for i in range(150)]
    path = write(tmp_path / "x.jsonl", *rows, {"text": "a", "text_pair": "b", "label": 1})
    with pytest.raises(DataError, match=r"x\.jsonl:151: column 'text_pair' is in this row and not in the first ones"):
        load_examples(Data(train=path), CLASSES, 0)


def test_sources_of_one_part_may_each_have_their_own_columns_and_template(tmp_path):
    first, second = write(tmp_path / "a.jsonl", GOOD[0]), write(tmp_path / "b.jsonl", {"q": "x", "a": "y"})
    entry = {"source": second, "columns": {"completion": "a"}, "template": "{q}?"}
    section = Data.model_validate({"train": [first, entry]})
    assert DataReader(section, CAUSAL).read_part("train").examples == [Completion("p0", "c0"), Completion("x?", "y")]


def test_a_header_with_another_separator_is_noticed(tmp_path):
    (tmp_path / "x.csv").write_text("prompt;completion\na;b\n")
    with pytest.raises(DataError, match="its header looks separated by semicolons: save it with commas"):
        load_examples(Data(train=str(tmp_path / "x.csv")), CAUSAL, 0)


def test_files_that_fill_the_memory_are_refused_with_the_field_that_reads_them(tmp_path, monkeypatch):
    path = write(tmp_path / "x.jsonl", *GOOD)
    monkeypatch.setattr(parts, "LARGE_BYTES", 10)
    monkeypatch.setattr(hardware, "available_host_bytes", lambda: 100)
    with pytest.raises(DataError, match=r"x\.jsonl: has .* and 100 of memory are free; set data\.streaming to true"):
        load_examples(Data(train=path), CAUSAL, 0)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            r"t: has pairs of a chosen and a rejected answer .*\{completi",
        ),
        (SHARE_GPT | {"chosen": assistant("b"), "rejected": assistant("c")}, "has pairs of a chosen and a rejected"),
        ({"prompt": "a", "completion": "b", "label": False}, "has answers that its column `label` calls good or bad"),
        ({"prompt": "a", "completion": "b", "label": "true"}, "has answers that its column `label` calls good or bad"),
        (OPEN_AI | {"label": True}, "the bad ones would be learned too; remove them and the column"),
        (OPEN_AI | {"images": ["a.png"]}, "has pictures, videos or sounds beside its texts"),
    ],
)
def test_rows_whose_answers_are_not_to_be_learned_as_they_are_are_refused(row, fault):
    for fields in ({}, {"format": "chat" if {"messages", "conversations"} & row.keys() else "completion"}):
        with pytest.raises(DataError, match=fault):
            read([row], **fields)


def test_a_later_row_with_a_picture_is_refused_or_skipped_and_never_read_without_it():
    rows = [OPEN_AI | {"images": []}, OPEN_AI | {"images": ["a.png"]}]
    with pytest.raises(DataError, match=r"t: row 2: has pictures, videos or sounds beside its texts"):
        read(rows)
    assert read(rows, on_error="skip", allow_dropped=0.5) == read([OPEN_AI])
    assert len(read(rows, columns={"messages": "messages"})) == 2


@pytest.mark.parametrize(
    ("row", "fields"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, {"columns": {"completion": "chosen"}}),
        ({"prompt": "a", "completion": "b", "label": True}, {"columns": {"completion": "completion"}}),
        ({"prompt": "a", "completion": "b", "label": 3, "images": []}, {}),
    ],
)
def test_named_columns_are_learned_whatever_is_beside_them(row, fields):
    assert read([row], **fields) == [Completion("a", "b")]


def test_messages_beside_preferences_are_read_and_so_is_a_text_beside_a_true_label():
    assert read([OPEN_AI | {"chosen": [], "rejected": []}]) == read([OPEN_AI])
    assert read([{"text": "a", "label": True}]) == [Text("a")]


def test_functions_and_their_calls_are_tools_and_tool_calls():
    function, called = {"name": "f", "parameters": {}}, {"name": "f", "arguments": "{}"}
    tool = {"type": "function", "function": function}
    for content in (None, ""):
        earlier = [user("a"), assistant(content, function_call=called), {"role": "function", "content": "5"}]
        expected = [
            user("a"),
            assistant(content, tool_calls=[{"type": "function", "function": called}]),
            {"role": "tool", "content": "5"},
        ]
        for fields in ({}, {"format": "chat"}):
            assert read([{"messages": earlier, "functions": [function]}], **fields) == [Chat(expected, [tool])]
        assert read([{"messages": earlier}]) == [Chat(expected)]


@pytest.mark.parametrize("name", ["system", "system_prompt"])
def test_a_system_text_beside_messages_is_their_first_message(name):
    system = {"role": "system", "content": "s"}
    for rows in (OPEN_AI, SHARE_GPT, as_csv(OPEN_AI)):
        for fields in ({}, {"format": "chat"}):
            assert read([rows | {name: "s"}], **fields) == [Chat([system, user("hi"), assistant("yo")])]
        assert read([rows | {name: None}]) == read([OPEN_AI])
    assert read([SHARE_GPT | {"tools": ""}]) == read([SHARE_GPT | {"tools": "[]"}]) == read([SHARE_GPT])
    assert read([{"messages": [system, *OPEN_AI["messages"]], name: "other"}]) == read([OPEN_AI | {name: "s"}])


@pytest.mark.parametrize(
    ("row", "fields", "unread"),
    [
        ({"prompt": "a", "completion": "b", "id": 1, "context": "c"}, {}, ["id", "context"]),
        ({"prompt": "a", "completion": "b", "context": "c"}, {"template": "{context}: {prompt}"}, None),
        (SHARE_GPT | {"source": "x", "tools": "[]"}, {}, ["source"]),
        ({"instruction": "a", "context": "c", "output": "b"}, {}, ["context"]),
    ],
)
def test_columns_of_which_nothing_is_read_are_named(tmp_path, row, fields, unread):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    reader = DataReader(Data.model_validate({"train": str(path), **fields}), CAUSAL)
    reader.read_part("train")
    assert reader.facts["train"].get("unread") == unread
