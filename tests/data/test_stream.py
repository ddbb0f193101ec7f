"""Streams: every row of an epoch once, in a random order within a buffer, and exactly the same after a resume."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from peftlab.data import stream
from peftlab.data.batches import Padded
from peftlab.data.dataset import load_data
from peftlab.data.orders import SourceDraws
from peftlab.data.parts import DataReader
from peftlab.data.stream import Stream, StreamedRows, StreamedSources
from peftlab.data.token_rows import IGNORED, ClassRow, LabelSetRow, PairRow, TextRow
from peftlab.errors import DataError, StorageError
from peftlab.recipe.schema import Data
from peftlab.tasks import TASKS
from tests.tasks.answering import word_tokenizer

CAUSAL = TASKS["causal-lm"]


def tokenise(example):
    """Return as many rows as a text has words that are numbers, each of the number and of one token before it."""
    ids = [np.array([1, int(word), int(word)], np.int32) for word in example.text.split() if word.isdecimal()]
    return [TextRow(one, np.where(np.arange(3) < 1, IGNORED, one).astype(np.int32)) for one in ids]


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def stream_of(train, buffer=4, **fields):
    section = Data.model_validate({"train": train, "streaming": True, "shuffle_buffer": buffer, **fields})
    opened = StreamedSources.open(DataReader(section, CAUSAL))
    return Stream(opened, tokenise, [], section.max_length, section.target_limit)


def rows_of(stream, batch_size=2, accumulation=1, process=0, processes=1, seed=0):
    return StreamedRows(stream, Padded(0), batch_size, accumulation, process, processes, seed)


def values(rows, steps):
    """Return the numbers of the texts that each step takes."""
    return [[int(ids[1]) for batch in rows.batches(step) for ids in batch["input_ids"]] for step in steps]


@pytest.fixture
def ten(tmp_path):
    return write(tmp_path / "ten.jsonl", [str(n) for n in range(10)])


def test_an_epoch_has_every_row_once_and_the_next_one_another_order(ten):
    found = values(rows_of(stream_of(ten)), range(1, 11))
    first, second = (sum(found[begin : begin + 5], []) for begin in (0, 5))
    assert sorted(first) == sorted(second) == list(range(10)) and first != second
    for place, value in enumerate(first):
        assert value // 4 == place // 4  # it stays within its buffer


def test_a_buffer_of_one_keeps_the_order_and_a_seed_changes_that_of_a_large_one(ten):
    assert sum(values(rows_of(stream_of(ten, buffer=1)), range(1, 6)), []) == list(range(10))
    orders = [sum(values(rows_of(stream_of(ten, buffer=100), seed=seed), range(1, 6)), []) for seed in (0, 1, 0)]
    assert orders[0] != orders[1] and orders[0] == orders[2]
    assert sorted(orders[0]) == list(range(10))


MANY = ["3", "none", "5 6 7 8 9", "", "10 11", *[str(n) for n in range(12, 40)]]


@pytest.mark.parametrize("batch_size", [1, 3, 4])
@pytest.mark.parametrize("stopped", range(1, 12))
def test_a_resumed_stream_takes_the_rows_of_one_that_never_stopped(tmp_path, batch_size, stopped):
    path, other = write(tmp_path / "a.jsonl", MANY), write(tmp_path / "b.jsonl", [str(n) for n in range(50, 57)])
    train = [{"source": path, "weight": 2}, {"source": other, "weight": 1}]
    straight = rows_of(stream_of(train, allow_dropped=1), batch_size)
    expected = values(straight, range(1, 20))
    interrupted = rows_of(stream_of(train, allow_dropped=1), batch_size)
    values(interrupted, range(1, stopped + 2))  # the next step was collated ahead
    state = json.loads(json.dumps(interrupted.state(stopped)))
    resumed = rows_of(stream_of(train, allow_dropped=1), batch_size)
    resumed.restore(state)
    assert values(resumed, range(stopped + 1, 20)) == expected[stopped:]
    assert resumed.state(19) == straight.state(19)


@pytest.mark.parametrize(("before", "after"), [((2, 1), (2, 2)), ((2, 2), (2, 1)), ((3, 1), (1, 2))])
@pytest.mark.parametrize("stopped", [1, 4, 9])
def test_steps_of_other_rows_take_the_next_ones(tmp_path, before, after, stopped):
    """By (rows of a micro-batch, processes). Oracle: a stream that never stopped, its rows one by one."""
    path = write(tmp_path / "a.jsonl", MANY)

    def taken(sizes, steps, state=None):
        found, (batch_size, processes) = [], sizes
        shares = [rows_of(stream_of(path, allow_dropped=1), batch_size, 1, one, processes) for one in range(processes)]
        for share in shares if state else ():
            share.restore(state)
        for step in steps:
            found.append(sorted(value for share in shares for value in values(share, [step])[0]))
        return found, json.loads(json.dumps(shares[0].state(steps[-1])))

    first, state = taken(before, range(1, stopped + 1))
    rest, _ = taken(after, range(stopped + 1, stopped + 9), state)
    every = iter(sum(values(rows_of(stream_of(path, allow_dropped=1), 1), range(1, 100)), []))
    assert first + rest == [sorted(islice(every, len(step))) for step in first + rest]


def test_sources_are_drawn_by_weight_as_interleave_datasets_draws_them(tmp_path):
    low = write(tmp_path / "a.jsonl", [str(n) for n in range(100, 110)])
    high = write(tmp_path / "b.jsonl", [str(n) for n in range(200, 230)])
    train = [{"source": low, "weight": 1}, {"source": high, "weight": 3}]
    found = sum(values(rows_of(stream_of(train), seed=5), range(1, 101)), [])
    draws = SourceDraws((1.0, 3.0), 5)
    assert [value // 100 - 1 for value in found] == [draws.draw(position)[0] for position in range(200)]


def test_files_without_weights_follow_one_another(tmp_path):
    parts = [write(tmp_path / f"{n}.jsonl", [str(n)]) for n in range(4)]
    assert sum(values(rows_of(stream_of(parts, buffer=1)), (1, 2)), []) == [0, 1, 2, 3]
    assert sum(values(rows_of(stream_of(str(tmp_path / "*.jsonl"), buffer=1)), (1, 2)), []) == [0, 1, 2, 3]


def test_processes_and_micro_batches_share_out_the_same_step(ten):
    whole = values(rows_of(stream_of(ten), 8), (1, 2))
    shared = [values(rows_of(stream_of(ten), 2, 2, process, 2), (1, 2)) for process in (0, 1)]
    for step in (0, 1):
        assert Counter(shared[0][step] + shared[1][step]) == Counter(whole[step])
    counts = [rows_of(stream_of(ten), 2, 2, process, 2).count(1) for process in (0, 1)]
    assert counts[0] == counts[1] == (16, 24)  # two targets and three tokens a row, on all processes


def test_numbers_are_the_rows_of_the_file(ten):
    rows = rows_of(stream_of(ten), 3)
    assert [numbers for step in (1, 2) for numbers in rows.numbers(step)] == [[], []]
    found = values(rows, (1, 2))
    assert [numbers for step in (1, 2) for numbers in rows.numbers(step)] == found


def test_a_checkpoint_of_another_order_is_refused(ten):
    state = rows_of(stream_of(ten)).state(0)
    for other in (rows_of(stream_of(ten), seed=1), rows_of(stream_of(ten, buffer=5))):
        with pytest.raises(StorageError, match="another order of rows"):
            other.restore(state)


def test_a_bad_row_stops_a_stream_with_its_line_or_is_skipped(tmp_path):
    path = write(tmp_path / "x.jsonl", [*map(str, range(6)), ["6"], *map(str, range(7, 9))])
    with pytest.raises(DataError, match=r"x\.jsonl:7: column 'text': needs text, not list"):
        values(rows_of(stream_of(path), 3), range(1, 4))


def test_skipped_rows_of_a_stream_are_counted_and_limited(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(f'{{"text": "{n}"}}\n' if n % 5 else "broken\n" for n in range(2000)))
    assert len(values(rows_of(stream_of(str(path), 100, on_error="skip"), 2), range(1, 50))) == 49
    with pytest.raises(DataError, match=r"x\.jsonl:1: is not JSON.*rows are bad, more than data\.allow_dropped"):
        values(rows_of(stream_of(str(path), 100, on_error="skip"), 20), range(1, 80))


def test_a_stream_without_supervised_tokens_ends(tmp_path):
    path = write(tmp_path / "x.jsonl", ["none"] * 50)
    with pytest.raises(DataError, match=r"rows have no supervised token, more than data\.allow_dropped"):
        values(rows_of(stream_of(path)), (1,))


def test_the_memory_of_a_stream_does_not_grow_with_its_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "REMEMBERED_STEPS", 10)

    def peak(rows):
        path = write(tmp_path / f"{rows}.jsonl", (f"{n} " + "x" * 200 for n in range(rows)))
        streamed = rows_of(stream_of(path, 50), 10)
        tracemalloc.start()
        for step in range(1, rows // 10 + 1):
            streamed.batches(step)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(20_000) < peak(5_000) + 200_000  # 15,000 more rows are 3 MB of text


def test_lengthened_rows_repeat_tokens_and_targets():
    row = TextRow(np.array([5, 6, 7], np.int32), np.array([IGNORED, 6, 7], np.int32)).lengthened(7, 3)
    assert row.input_ids.tolist() == [5, 6, 7, 5, 6, 7, 5]
    assert row.labels.tolist() == [IGNORED, 6, 7, IGNORED, 6, 7, IGNORED]
    labelled = ClassRow(np.array([5, 6], np.int32), 1).lengthened(5, 3)
    assert (labelled.input_ids.tolist(), labelled.labels) == ([5, 6, 5, 6, 5], 1)
    pair = PairRow(np.array([5, 6], np.int32), np.array([7, 8], np.int32)).lengthened(5, 3)
    assert (pair.input_ids.tolist(), pair.labels.tolist()) == ([5, 6, 5, 6, 5], [7, 8, 7])
    marked = LabelSetRow(np.array([5, 6], np.int32), np.array([1, 0, 1, 0], np.int8)).lengthened(5, 3)
    assert marked.labels.tolist() == [1, 0, 1, 0]


def test_reports_are_of_the_first_rows_and_plans_of_the_longest_that_can_come(tmp_path, bpe):
    path = write(tmp_path / "x.jsonl", [f"row {n}" for n in range(1500)])
    section = Data.model_validate({"train": path, "streaming": True, "max_length": 40})
    dataset = load_data(section, bpe, CAUSAL, 0)
    assert len(dataset.train) == 1000 and dataset.report["train"]["streamed"]
    assert {len(row.input_ids) for row in dataset.longest_train} == {40}
    rows = StreamedRows(dataset.stream, Padded(dataset.pad_id), 4, 1, 0, 1, 0)
    assert rows.longest().batches(1)[0]["input_ids"].shape == (4, 40)
    batch = rows.batches(1)[0]["input_ids"]
    texts = [bpe.decode(ids[ids != bpe.pad_token_id], skip_special_tokens=True) for ids in batch]
    assert texts == [f"row {number}" for number in rows.numbers(1)[0]]


def test_labels_of_a_stream_are_those_of_all_its_rows(tmp_path, bpe):
    path = tmp_path / "x.csv"
    path.write_text("text,label\n" + "".join(f"t{n},{'rare' if n == 1400 else n % 2}\n" for n in range(1500)))
    section = Data.model_validate({"train": str(path), "streaming": True})
    assert load_data(section, bpe, TASKS["sequence-classification"], 0).labels == ["0", "1", "rare"]


def test_another_content_of_a_stream_has_another_fingerprint(tmp_path, bpe):
    def fingerprint(rows):
        path = write(tmp_path / "x.jsonl", [f"row {n}" for n in range(rows)])
        section = Data.model_validate({"train": path, "streaming": True})
        return load_data(section, bpe, CAUSAL, 0).report["train"]["sha256"]

    assert fingerprint(1200) == fingerprint(1200) != fingerprint(1201)


def test_a_step_that_is_past_cannot_be_taken_again(ten):
    rows = rows_of(stream_of(ten))
    ahead = rows.batches(2)
    assert torch.equal(rows.batches(2)[0]["input_ids"], ahead[0]["input_ids"])
    values(rows, range(3, 9))
    with pytest.raises(ValueError, match="step 2 of a stream was taken already; it is at step 8"):
        rows.batches(2)


def test_a_streams_micro_batches_of_like_length_have_the_rows_of_the_step(tmp_path):
    train = write(tmp_path / "twelve.jsonl", [str(number) for number in range(12)])
    grown = replace(
        stream_of(train), tokenise=lambda example: [tokenise(example)[0].lengthened(3 + len(example.text) * 2, 0)]
    )
    plain, found = (StreamedRows(grown, Padded(0, by), 2, 3, 0, 1, 0) for by in (False, True))
    for step in (1, 2):
        widths = [batch["input_ids"].shape[1] for batch in found.batches(step)]
        assert widths == sorted(widths, reverse=True)
        plain.batches(step)
        assert sorted(sum(found.numbers(step), [])) == sorted(sum(plain.numbers(step), []))
        shown = [int(ids[1]) for batch in found.batches(step) for ids in batch["input_ids"]]
        assert shown == sum(found.numbers(step), [])


def test_a_step_of_a_stream_counts_the_answers_of_a_decoder_too(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "one two", "completion": "un deux"}\n' * 8)
    section = Data.model_validate({"train": str(path), "streaming": True, "max_length": 9})
    dataset = load_data(section, word_tokenizer(), TASKS["sequence-to-sequence"], 0)
    rows = StreamedRows(dataset.stream, Padded(dataset.pad_id), 2, 2, 0, 1, 0)
    assert rows.count(1) == (4 * 3, 4 * (3 + 3))  # two words and the end token on each side
