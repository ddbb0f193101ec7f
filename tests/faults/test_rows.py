"""Rows that are broken, empty, too long, too few or in both parts: refused or noted, with the place."""

from __future__ import annotations

import gzip
import json
import os

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from peftlab.data.parts import read_table
from peftlab.data.token_rows import TextRow
from peftlab.errors import DataError
from peftlab.runs.longest import longest_mix

from ..pace import costs_at_most
from .conftest import CHAT_TEMPLATE, CHATS, ROWS, TINY

LINE = json.dumps(ROWS[0]).encode() + b"\n"
FILES = {
    "empty": ("x.jsonl", b"", "x.jsonl: contains no rows"),
    "broken JSON": ("x.jsonl", LINE + b'{"prompt": \n', "x.jsonl:2: is not JSON: Expecting value at column 12"),
    "too deep": ("x.jsonl", LINE + b'{"prompt":' * 100_000, "x.jsonl:2: is nested too deeply for a row"),
    "too deep a list": ("x.json", b"[" * 100_000, "x.json:1: is nested too deeply for a row"),
    "an endless number": ("x.jsonl", b'{"prompt": %s}' % (b"1" * 5000), "x.jsonl:1: contains a number of thousands of"),
    "too many columns": ("x.jsonl", b"".join(b'{"c%d": 1}\n' % n for n in range(2000)), "are those of no format"),
    "bad UTF-8": ("x.jsonl", LINE + b'{"prompt": "\xff"}', "x.jsonl:2: is not UTF-8 (byte 0xff); save the file as"),
    "half a character": ("x.jsonl", b'{"prompt": "\\ud83d", "completion": "x"}', "half of a surrogate pair"),
    "no number": (
        "x.jsonl",
        b'{"prompt": Infinity, "completion": "x"}',
        "x.jsonl:1: column 'prompt': needs text, not float inf",
    ),
    "null": ("x.jsonl", LINE + b'{"prompt": "a"}', "x.jsonl:2: column 'completion' is empty; correct such rows"),
    "wrong columns": ("x.csv", b"question,answer\na,b\n", "its columns (question, answer) are those of no format"),
    "another delimiter": ("x.csv", b"prompt;completion\na;b\n", "its header looks separated by semicolons"),
    "a column of two lines": ("x.csv", b'"a\nb",c\n1,2\n', "its columns (a b, c) are those of no format"),
    "a pickle": ("x.pkl", b"\x80\x04K\x01.", "x.pkl: unknown file type; the name must end in .jsonl, .ndjson, .json"),
    "an archive": ("x.zip", b"PK\x05\x06" + bytes(18), "x.zip: unknown file type"),
    "an archive in disguise": ("x.jsonl", b"PK\x03\x04\x14\xff", "x.jsonl:1: is not UTF-8 (byte 0xff)"),
    "a program in disguise": ("x.parquet", b"\x80\x04cos\nsystem\n", "x.parquet: is not a parquet file"),
    "half a gzip": ("x.jsonl.gz", gzip.compress(LINE * 99)[:-9], "is not a whole gzip file"),
}


@pytest.mark.parametrize(("name", "content", "message"), FILES.values(), ids=FILES)
def test_a_broken_file_is_one_line_with_its_place(user, refused, name, content, message):
    assert message in refused(4, f"data.train={user.write(name, content)}")


def test_a_gzip_that_unpacks_to_a_flood_is_refused_before_it_fills_the_memory(user, refused, monkeypatch):
    monkeypatch.setattr("peftlab.tables.packed.UNSUSPICIOUS_BYTES", 10_000)
    bomb = user.write("x.jsonl.gz", gzip.compress(b" " * 50_000_000))
    assert "x.jsonl.gz: unpacks to more than 200 times its size" in refused(4, f"data.train={bomb}")


def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(user, refused):
    os.mkfifo(user.folder / "x.jsonl")
    assert "x.jsonl: is not a regular file" in refused(4, f"data.train={user.folder / 'x.jsonl'}")


def test_a_file_larger_than_the_memory_is_refused_by_its_size(user, refused):
    path = user.folder / "x.jsonl"
    with path.open("wb") as file:
        file.truncate(10**13)
    assert "has 10,000,000,000,000 bytes and" in refused(4, f"data.train={path}")


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + ".jsonl", "~nobody-is-called-so/x.jsonl"])
def test_a_name_that_no_file_can_have_is_one_line(refused, name):
    assert "cannot be read: " in refused(4, f"data.train={name}")
    assert "cannot be read: " in refused(3, f"model.name={name}")


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(user):
    content = b"\xef\xbb\xbf" + b"".join(json.dumps(row).encode() + b"\r\n" for row in ROWS)
    answer = user.train(f"data.train={user.write('x.jsonl', content)}")
    assert (answer.code, answer.record["data"]["train"]["rows"]) == (0, 6)


def notes(answer, status="finished"):
    assert (answer.code, answer.status) == (0, status)
    assert set(answer.record["notes"]) <= set(answer.lines)
    return "\n".join(answer.record["notes"])


def test_rows_over_the_length_are_counted_and_so_are_those_that_lost_what_is_learned(user):
    rows = [*ROWS, {"prompt": "word " * 90, "completion": "x"}, {"prompt": "a", "completion": "word " * 90}]
    noted = notes(user.train(train=user.rows(rows)))
    cut = "data.train: 2 of 8 rows are longer than data.max_length (64): cut by 57 tokens"
    assert f"{cut}; 1 of them lost supervised tokens (28)" in noted


def test_too_few_rows_for_a_step_are_noted(user):
    noted = notes(user.train("training.batch_size=4", "training.gradient_accumulation=2"))
    assert "training.batch_size: a step takes 8 rows, and there are only 6: rows repeat within a step" in noted


def test_a_mistyped_batch_size_builds_no_list_of_its_length():
    rows = [TextRow(np.arange(n), np.arange(n)) for n in (2, 5, 3)]
    assert [len(row.input_ids) for row in longest_mix(rows, 10**9)] == [5, 3, 2]
    assert [len(row.input_ids) for row in longest_mix(rows, 4)] == [5, 3, 2, 5]


def test_rows_in_both_parts_are_noted(user):
    held_out = user.rows([*ROWS[:2], {"prompt": "new", "completion": "row"}], "held.jsonl")
    noted = notes(user.train(f"data.evaluation={held_out}", f"data.test={held_out}"))
    for part in ("evaluation", "test"):
        assert f"data.{part}: 2 of 3 rows also occur in training, so their loss is too optimistic" in noted


def test_clean_rows_give_no_notes(user):
    assert "data." not in notes(user.train())


UNANSWERED = [{"messages": [{"role": "user", "content": "q"}]}]
FROM_HUMAN = [{"messages": [{"role": "human", "content": "q"}, {"role": "gpt", "content": "a"}]}]


@pytest.fixture
def chat(user):
    """Overrides for chats and a model with a template."""
    return "data.format=chat", f"model.name={user.model(chat_template=CHAT_TEMPLATE)}"


def test_rows_without_anything_to_learn_are_dropped_and_noted_up_to_a_limit(user, refused, chat):
    line = refused(4, *chat, train=user.rows(CHATS + UNANSWERED * 2))
    assert "data.train: 2 of 8 rows have no supervised token, more than data.allow_dropped (0.1)" in line
    noted = notes(user.train(*chat, "data.allow_dropped=0.25", train=user.rows(CHATS + UNANSWERED * 2)))
    assert "data.train: 2 of 8 rows are dropped: no token in them is supervised" in noted


def test_when_no_row_has_anything_to_learn_the_roles_are_named(user, refused, chat):
    line = refused(4, *chat, "data.allow_dropped=1", train=user.rows(FROM_HUMAN))
    assert "data.train: none of 1 rows has a supervised token" in line and "only `assistant` turns are learned" in line


def test_messages_too_deep_to_compare_are_refused(user, refused, chat):
    deep = {"role": "user", "content": "q", "tool": json.loads("[" * 500 + "]" * 500)}
    assert "jsonl:1: column 'messages': messages are nested deeper than 32" in refused(
        4, *chat, train=user.rows([{"messages": [deep]}])
    )


@pytest.mark.parametrize(
    ("code", "overrides", "message"),
    [
        (4, ["data.train={rows}[train[9:]]"], "selects none of 6 rows"),
        (4, ["data.train={rows}[train[:" + "9" * 30 + "]]"], "must have the form from:to in rows or percent"),
        (4, ["data.evaluation=6"], "data.evaluation: holding out 6 leaves no training row of 6"),
        (2, ["training.steps=null", "training.epochs=1", "training.warmup=4"], "4 steps of warm-up do not fit into 3"),
    ],
)
def test_what_shows_only_with_the_rows_is_one_line(user, refused, code, overrides, message):
    assert message in refused(code, *(text.format(rows=user.rows()) for text in overrides))


def test_a_tokenizer_with_ids_beyond_the_models_vocabulary_is_refused(user, refused):
    config = json.loads((TINY / "config.json").read_text()) | {"vocab_size": 300, "eos_token_id": 0}
    overrides = f"model.name={user.model(config=json.dumps(config))}", f"model.tokenizer={TINY}", "model.init=random"
    assert "but the model's vocabulary is 300: use the model's own tokenizer" in refused(4, *overrides)


def test_data_that_changed_since_the_checkpoint_is_refused_and_the_checkpoint_kept(user):
    assert user.train("run.save_every=1", "run.stop_after=1").code == 11
    changed = [*ROWS[:-1], {"prompt": "the number 6 is", "completion": " another"}]
    answer = user.run("train", user.recipe(train=user.rows(changed)), "run.save_every=1", "--resume")
    assert (answer.code, answer.status) == (8, "failed")
    assert "the checkpoint belongs to another run: tokens of data.train: " in answer.error
    answer = user.train("run.save_every=1", "--resume")
    assert (answer.code, answer.status, answer.record["resumes"][0]["exact"]) == (0, "finished", True)


def write_parquet(path, column):
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a", "b", "c"], "completion": column}), path)
    return path


def bad_text():
    offsets = pyarrow.array([0, 1, 2, 3], pyarrow.int32()).buffers()[1]
    return pyarrow.Array.from_buffers(pyarrow.string(), 3, [None, offsets, pyarrow.py_buffer(b"a\xffb")])


PARQUET = {
    "bad text": (bad_text, "is not UTF-8"),
    "a year that no date has": (lambda: pyarrow.array([0, 10**8, 1], pyarrow.int32()).cast(pyarrow.date32()), ""),
    "a time beyond Python's": (lambda: pyarrow.array([0, 2**62, 1], pyarrow.timestamp("us")), ""),
    "a duration beyond Python's": (lambda: pyarrow.array([0, 10**17, 1], pyarrow.duration("ms")), ""),
}


@pytest.mark.parametrize(("make", "told"), PARQUET.values(), ids=PARQUET)
def test_a_parquet_value_that_python_lacks_is_named_by_row_and_column(tmp_path, make, told):
    path = write_parquet(tmp_path / "x.parquet", make())
    with pytest.raises(DataError, match=f"x.parquet: row 2: column 'completion' .*{told}") as caught:
        read_table(str(path))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "text", ["seven words of text " * 500_000, "abcdefghij" * 1_000_000], ids=["words", "one word"]
)
def test_an_answer_of_ten_megabytes_that_is_cut_costs_less_than_two_seconds(user, text):
    """All of it would be millions of tokens, and take half a minute."""
    path = user.rows([{"prompt": "f", "completion": text}, *ROWS], "long.jsonl")
    assert user.run("data", user.recipe(), "--json").code == 0  # imports are not counted
    recipe = user.recipe(train=path)
    with costs_at_most(2):
        answer = user.run("data", recipe, "data.max_length=32", "--json")
    assert answer.code == 0 and json.loads(answer.out)["data"]["train"]["truncated"] == 1
