"""Tokens that were kept: the same data set as a new start makes, one writer, and no trust in what is not whole."""

from __future__ import annotations

import copy
import errno
import json
import os
import threading
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch

from peftlab.data import cached, token_key
from peftlab.data.batches import Padded
from peftlab.data.cached import OFF, TRAIN_EXAMPLES, read_data
from peftlab.data.dataset import load_data
from peftlab.data.rows import ShuffledRows
from peftlab.data.splits import load_examples
from peftlab.data.token_arrays import sizes_of
from peftlab.data.token_store import TokenStore, cache_folder
from peftlab.errors import DataError
from peftlab.recipe.schema import Data
from peftlab.tasks import TASKS
from tests.tasks.answering import word_tokenizer
from tests.tasks.tokenizers_of_words import train_wordpiece

WORDS = "the cat sat on a mat while four even numbers were in the city centre".split()


def text(number, length=9):
    chance = np.random.default_rng(number)
    return " ".join(chance.choice(WORDS, chance.integers(1, length)))


def chat(number):
    turns = [
        {"role": role, "content": text(number * 9 + place)} for place, role in enumerate(("user", "assistant") * 2)
    ]
    begin = [{"role": "system", "content": "user assistant"}] if number % 3 == 0 else []
    return {"messages": [*begin, *turns[: 2 + 2 * (number % 2)]], "source": f"s{number % 4}"}


COMPLETIONS = [{"prompt": f"{text(n // 2)}: ", "completion": text(n + 500)} for n in range(60)]
CHATS = [chat(number) for number in range(40)]
TEXTS = [{"text": text(number, 60)} for number in range(30)]
LABELLED = [{"text": text(n), "label": "ABC"[n % 3]} for n in range(30)]
PAIRED = [{"text": text(n), "text_pair": text(n + 99), "label": n % 2} for n in range(30)]
NUMBERED = [{"text": text(n), "target": n / 7} for n in range(20)]
SETS = [{"text": text(n), "labels": ["a", "b"][: n % 3]} for n in range(20)]
TAGGED = [
    {"words": text(n).split(), "tags": ["B-x" if len(w) > 3 else "O" for w in text(n).split()]} for n in range(20)
]
ANSWERED = [{"prompt": "one two three"[: 3 + n % 10], "completion": "un deux"[: 2 + n % 6]} for n in range(30)]

CASES = {
    "completion": ("causal-lm", COMPLETIONS, {"evaluation": 0.2, "test": 5}),
    "completion by row": ("causal-lm", COMPLETIONS, {"evaluation": 0.2, "group_by": "row", "train_rows": 30}),
    "skipped rows": ("causal-lm", COMPLETIONS, {"evaluation": 9, "max_length": 14, "long": "skip", "allow_dropped": 1}),
    "cut": ("causal-lm", COMPLETIONS, {"evaluation": 9, "max_length": 12, "truncate": "middle", "allow_dropped": 1}),
    "chat": ("causal-lm", CHATS, {"evaluation": 10, "test": 4, "max_length": 80}),
    "chat in groups": ("causal-lm", CHATS, {"evaluation": 8, "group_by": "source", "supervise": "last"}),
    "text in chunks": ("causal-lm", TEXTS, {"evaluation": 3, "max_length": 24, "overlap": 4}),
    "slices": ("causal-lm", COMPLETIONS, {"train": "{0}[train[10:50%]]", "evaluation": "{0}[train[-7:]]"}),
    "other text": ("causal-lm", COMPLETIONS, {"evaluation": "{0}[train[:5]]", "general": "{1}"}),
    "two files": ("causal-lm", COMPLETIONS, {"train": ["{0}", "{0}[train[:3]]"], "evaluation": 6}),
    "mixture": (
        "causal-lm",
        COMPLETIONS,
        {"train": [{"source": "{0}[train[:20]]", "weight": 2}, {"source": "{0}[train[20:]]", "weight": 1}]},
    ),
    "classes": ("sequence-classification", LABELLED, {"evaluation": 0.3}),
    "pairs of texts": ("sequence-classification", PAIRED, {"evaluation": 5, "max_length": 16}),
    "numbers": ("regression", NUMBERED, {"evaluation": 4}),
    "sets of labels": ("multi-label-classification", SETS, {"test": 4}),
    "tags": ("token-classification", TAGGED, {"evaluation": 4, "max_length": 8}),
    "answers": ("sequence-to-sequence", ANSWERED, {"evaluation": 6, "max_length": 4, "max_target_length": 2}),
}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def store(tmp_path):
    return TokenStore(tmp_path / "kept")


@pytest.fixture
def recipe(tmp_path):
    """Make the data section of a case, its rows written to a file."""

    def make(name, **changes):
        task, rows, fields = CASES[name]
        own, other = write(tmp_path / "rows.jsonl", rows), write(tmp_path / "other.jsonl", TEXTS)

        def fill(value):
            if isinstance(value, str):
                return value.format(own, other)
            if isinstance(value, dict):
                return {key: fill(item) for key, item in value.items()}
            return [fill(item) for item in value] if isinstance(value, list) else value

        return Data(**{"train": str(own), **{key: fill(value) for key, value in fields.items()}, **changes}), TASKS[
            task
        ]

    return make


@pytest.fixture(scope="module")
def tokenizers(bpe):
    return {"sequence-to-sequence": word_tokenizer(), "causal-lm": bpe, "other": train_wordpiece()}


def tokenizer_for(task, tokenizers):
    return tokenizers.get(task.name, tokenizers["other"])


def content(row):
    return [
        type(row).__name__,
        row.input_ids.dtype.name,
        row.input_ids.tolist(),
        _plain(row.labels),
        _plain(row.token_type_ids),
    ]


def _plain(value):
    return [value.dtype.name, value.tolist()] if isinstance(value, np.ndarray) else [type(value).__name__, value]


def assert_equal_data(found, expected):
    for part in ("train", "evaluation", "test", "general"):
        rows, wanted = getattr(found, part), getattr(expected, part)
        assert [content(row) for row in rows] == [content(row) for row in wanted], part
        for name in ("inputs", "answers", "supervised", "tokens", "longest"):
            assert getattr(sizes_of(rows), name).tolist() == getattr(sizes_of(list(wanted)), name).tolist()
    assert found.report == expected.report
    assert (list(found.prompts), list(found.test_prompts)) == (list(expected.prompts), list(expected.test_prompts))
    assert (found.labels, found.mixture, found.pad_id) == (expected.labels, expected.mixture, expected.pad_id)
    assert (found.stop_ids, found.stop_texts, found.format) == (expected.stop_ids, expected.stop_texts, expected.format)


def batches_of(dataset):
    rows = ShuffledRows(dataset.train, Padded(dataset.pad_id), 3, 2, 0, 1, 5, dataset.order(5))
    every = [batch for one in (rows, rows.longest()) for step in (1, 2, 9) for batch in one.batches(step)]
    return every, [rows.count(step) for step in range(1, 5)]


@pytest.mark.parametrize("name", CASES)
def test_a_kept_start_has_the_same_data_as_a_new_one(name, recipe, store, tokenizers):
    section, task = recipe(name)
    tokenizer = tokenizer_for(task, tokenizers)
    plain = load_data(section, tokenizer, task, 1)
    made, read = (read_data(section, task, 1, tokenizer, store) for _ in range(2))
    assert (made.origin.state, read.origin.state) == ("made", "read")
    texts = load_examples(section, task, 1)
    for data in (made, read):
        assert_equal_data(data.dataset, plain)
        assert list(data.examples.evaluation) == list(texts.evaluation) and list(data.examples.test) == list(texts.test)
        assert list(data.examples.train) == list(texts.train[:TRAIN_EXAMPLES])
        assert replace(data.examples, **NO_ROWS) == replace(texts, **NO_ROWS)
        (found, counts), (expected, wanted) = batches_of(data.dataset), batches_of(plain)
        assert counts == wanted
        for one, other in zip(found, expected, strict=True):
            assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


NO_ROWS = dict.fromkeys(("train", "evaluation", "test", "general"), ())


def test_the_second_start_reads_no_row_and_no_text(recipe, store, bpe, monkeypatch):
    section, task = recipe("chat")
    made = read_data(section, task, 0, bpe, store)
    monkeypatch.setattr(cached, "load_examples", None)
    monkeypatch.setattr(cached, "tokenise_part", None)
    read = read_data(section, task, 0, bpe, store)
    assert read.dataset.report == made.dataset.report
    arrays = (read.dataset.train._ids, read.dataset.train._labels)
    assert all(isinstance(array.base, np.memmap) for array in arrays)
    assert (
        read.origin.size
        == sum(path.stat().st_size for path in next(store.entries()).folder.iterdir())
        - os.stat(next(store.entries()).folder / "entry.json").st_size
    )


def test_what_tokens_depend_on_is_in_their_key(recipe, store, bpe, tmp_path, monkeypatch):
    section, task = recipe("completion")

    def key(section=section, seed=0, tokenizer=bpe):
        return token_key.find_key(section, task, seed, tokenizer).digest

    first = key()
    assert key() == first
    changed = {
        "max_length": key(section.model_copy(update={"max_length": 99})),
        "allow_dropped": key(section.model_copy(update={"allow_dropped": 0.2})),
        "seed": key(seed=1),
    }
    before = os.stat(section.train)
    path = Path(section.train)
    content = path.read_text()
    path.write_text(content.replace("cat", "mat"))
    os.utime(section.train, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert os.stat(section.train).st_size == before.st_size
    changed["content"] = key()
    path.write_text(content)
    assert key() == first
    other = type(bpe)(tokenizer_object=bpe.backend_tokenizer, eos_token="<|end|>", pad_token="<|eos|>")
    other.chat_template = bpe.chat_template
    changed["tokenizer"] = key(tokenizer=other)
    for name, value in {"truncation_side": "left", "split_special_tokens": True}.items():
        setattr(other := copy.deepcopy(bpe), name, value)
        changed[name] = key(tokenizer=other)
    monkeypatch.setattr(token_key, "_digest_of_code", lambda: "another version")
    changed["code"] = key()
    assert len({first, *changed.values()}) == len(changed) + 1, changed


def test_a_line_of_the_code_that_makes_rows_is_in_the_key(tmp_path, monkeypatch):
    package = tmp_path / "peftlab"
    for name in (
        "data/rows.py",
        "data/chat/a.py",
        "tasks/a.py",
        "models/tokenizer.py",
        "recipe/schema.py",
        "files.py",
        "errors.py",
    ):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("a = 1")
    monkeypatch.setattr(token_key, "PACKAGE", package)
    digests = set()
    for name in ("data/rows.py", "data/chat/a.py", "tasks/a.py"):
        token_key._digest_of_code.cache_clear()
        digests.add(token_key._digest_of_code())
        (package / name).write_text("a = 2")
    token_key._digest_of_code.cache_clear()
    assert len(digests | {token_key._digest_of_code()}) == 4
    token_key._digest_of_code.cache_clear()


@pytest.mark.parametrize(
    "template, kept",
    [
        ("{{ strftime_now('%d %b %Y') }}", True),
        ('{% if strftime_now is defined %}{{ strftime_now("%Y-%m-%d") }}{% endif %}', True),
        ("{{ strftime_now('%H:%M') }}", False),
        ("{{ strftime_now('%Y' + '-%m') }}", False),
    ],
)
def test_tokens_of_a_template_that_writes_the_date_are_of_one_day(template, kept, recipe, store, bpe, monkeypatch):
    section, task = recipe("chat")
    dated = type(bpe)(tokenizer_object=bpe.backend_tokenizer, eos_token="<|eos|>", pad_token="<|eos|>")
    dated.chat_template = bpe.chat_template + template
    assert (read_data(section, task, 0, dated, store).origin.state == "made") == kept
    assert (read_data(section, task, 0, dated, store).origin.state == "read") == kept

    class Tomorrow(date):
        @classmethod
        def today(cls):
            return cls(2099, 1, 1)

    monkeypatch.setattr(token_key, "date", Tomorrow)
    assert read_data(section, task, 0, dated, store).origin.state == ("made" if kept else "not kept")


def test_a_day_in_the_recipe_is_what_the_template_writes_on_every_day(recipe, store, bpe, monkeypatch):
    dated = type(bpe)(tokenizer_object=bpe.backend_tokenizer, eos_token="<|eos|>", pad_token="<|eos|>")
    dated.chat_template = bpe.chat_template.replace("{% for", "{{ strftime_now('%d.%m.%Y') }}{% for", 1)
    section, task = recipe("chat")
    fixed = section.model_copy(update={"date": "1999-12-31"})
    made = read_data(fixed, task, 0, dated, store)
    assert "31.12.1999" in dated.decode(made.dataset.train[0].input_ids)
    assert "dated" not in made.dataset.report and "dated" in read_data(section, task, 0, dated, store).dataset.report

    class Tomorrow(date):
        @classmethod
        def today(cls):
            return cls(2099, 1, 1)

    monkeypatch.setattr(token_key, "date", Tomorrow)
    assert read_data(fixed, task, 0, dated, store).origin.state == "read"


@pytest.mark.parametrize("array", ["train.ids", "train.labels", "evaluation.prompts.jsonl", "entry.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "delete"])
def test_damaged_tokens_are_made_again_and_it_is_said(array, harm, recipe, store, bpe):
    section, task = recipe("completion")
    plain = load_data(section, bpe, task, 0)
    read_data(section, task, 0, bpe, store)
    path = next(store.entries()).folder / array
    content = path.read_bytes()
    place = len(content) // 2
    broken = {
        "flip": content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :],
        "cut": content[:-1],
        "empty": b"",
    }
    path.unlink()
    if harm in broken:
        path.write_bytes(broken[harm])
    again = read_data(section, task, 0, bpe, store)
    assert again.origin.state == "made" and "kept tokens are damaged" in again.origin.notes[0]
    assert_equal_data(again.dataset, plain)
    assert read_data(section, task, 0, bpe, store).origin.state == "read"


def test_a_full_disk_keeps_nothing_and_loses_nothing(recipe, store, bpe, monkeypatch):
    section, task = recipe("completion")
    plain = load_data(section, bpe, task, 0)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cached.RowWriter, "extend", full)
    data = read_data(section, task, 0, bpe, store)
    assert data.origin.state == "not kept" and "free some space" in data.origin.notes[0]
    assert_equal_data(data.dataset, plain)
    assert not list(store.entries()) and not list((store.folder / "building").iterdir())


def test_a_folder_that_cannot_be_written_is_no_reason_to_stop(recipe, bpe, tmp_path):
    section, task = recipe("completion")
    blocked = tmp_path / "file"
    blocked.write_text("")
    data = read_data(section, task, 0, bpe, TokenStore(blocked))
    assert data.origin.state == "not kept" and len(data.origin.notes) == 1
    assert len(data.dataset.train) + len(data.dataset.all_held_out) == 60


@pytest.mark.parametrize("time", ["as it is", "set back"])
def test_rows_that_change_while_they_are_read_are_not_kept(time, recipe, store, bpe, monkeypatch):
    """Also where a program writes as many bytes and sets the file's time back."""
    section, task = recipe("completion")
    real = cached.load_examples

    def load(*arguments):
        found = real(*arguments)
        path, before = Path(section.train), os.stat(section.train)
        if time == "set back":
            path.write_text(path.read_text().replace("cat", "mat"))
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            assert path.stat().st_size == before.st_size
        else:
            path.write_text(path.read_text() + json.dumps(COMPLETIONS[0]) + "\n")
        return found

    monkeypatch.setattr(cached, "load_examples", load)
    data = read_data(section, task, 0, bpe, store)
    assert len(data.dataset.train) + len(data.dataset.evaluation) + len(data.dataset.test) == 60
    assert not list(store.entries())
    monkeypatch.undo()
    assert sum(data.dataset.train[0].input_ids) > 0  # mapped, though its files are deleted


def test_one_process_writes_and_the_others_wait(recipe, store, bpe):
    section, task = recipe("chat")
    states = []

    def start(tokenizer):
        states.append(read_data(section, task, 0, tokenizer, store).origin.state)

    # A tokenizer each, as processes have: one that tokenises meanwhile has other settings for a moment.
    threads = [threading.Thread(target=start, args=(copy.deepcopy(bpe),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(states) == ["made", "read", "read", "read"]
    assert not list((store.folder / "locks").iterdir()) and not list((store.folder / "building").iterdir())


def test_rows_that_are_refused_are_refused_each_time_and_leave_nothing(recipe, store, bpe):
    section, task = recipe("completion", max_length=1)
    for _ in range(2):
        with pytest.raises(DataError, match="none of"):
            read_data(section, task, 0, bpe, store)
    assert not list(store.entries()) and not list((store.folder / "building").iterdir())
    section, task = recipe("completion")
    read_data(section, task, 0, bpe, store)
    for _ in range(2):
        with pytest.raises(DataError, match="the model's vocabulary is 300"):
            read_data(section, task, 0, bpe, store, lambda examples: 300)


def test_what_is_not_kept_says_why(recipe, store, bpe):
    section, task = recipe("completion")
    assert read_data(section, task, 0, bpe, None).origin.reason == OFF
    streamed = section.model_copy(update={"streaming": True, "evaluation": None, "test": None})
    assert "stream" in read_data(streamed, task, 0, bpe, store).origin.reason
    with pytest.raises(DataError, match="no such file"):
        read_data(Data(train="missing.jsonl"), task, 0, bpe, store)


def test_values_that_json_does_not_keep_are_not_kept(store, bpe, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from datetime import datetime

    from pyarrow import parquet

    messages = [
        [{"role": "user", "content": "a", "at": datetime(2020, 1, 1)}, {"role": "assistant", "content": "b"}]
    ] * 9
    parquet.write_table(pyarrow.table({"messages": messages}), tmp_path / "rows.parquet")
    section = Data(train=str(tmp_path / "rows.parquet"), evaluation=2)
    data = read_data(section, TASKS["causal-lm"], 0, bpe, store)
    assert data.origin.state == "not kept" and len(data.dataset.train) == 7


def test_the_folder_is_named_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("PEFTLAB_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("PEFTLAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "peftlab"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "peftlab"
