"""Order as a pure function of seed and step; batches whose masks come from lengths."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.roberta.modeling_roberta import RobertaEmbeddings

from peftlab.data.batches import EndToEnd, Padded, collate, deal_by_length, evaluation_batches, row_at
from peftlab.data.rows import ShuffledRows
from peftlab.data.token_rows import IGNORED, ClassRow, TextRow
from peftlab.tasks.formats import Completion
from tests.data.tokenising import tokenise

SMALL = st.integers(1, 4)


def token_row(*ids, prompt=0):
    ids = np.array(ids, dtype=np.int32)
    return TextRow(ids, np.where(np.arange(len(ids)) < prompt, IGNORED, ids).astype(np.int32))


def rows_of_step(step, batch_size, accumulation, processes, seed, n):
    return Counter(
        row
        for micro in range(accumulation)
        for process in range(processes)
        for row in ShuffledRows([None] * n, Padded(0), batch_size, accumulation, process, processes, seed).indices(
            step + 1, micro, process
        )
    )


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(0, 3))
def test_every_epoch_is_a_permutation(seed, n, epoch):
    assert sorted(row_at(seed, n, epoch * n + place) for place in range(n)) == list(range(n))


def test_epochs_and_seeds_have_their_own_order_and_positions_need_no_history():
    def order(seed, epoch):
        return [row_at(seed, 50, epoch * 50 + place) for place in range(50)]

    orders = [order(0, 0), order(0, 1), order(0, 2), order(1, 0), order(1, 1)]
    assert all(orders[i] != orders[j] for i in range(5) for j in range(i))
    assert row_at(0, 50, 17) == orders[0][17] and row_at(0, 50, 67) == orders[1][17]
    assert orders[0] != sorted(orders[0])


@given(SMALL, SMALL, SMALL, st.integers(0, 9), st.integers(1, 30), st.integers(0, 99))
def test_a_step_takes_the_same_rows_however_it_is_split(batch_size, accumulation, processes, step, n, seed):
    product = batch_size * accumulation * processes
    assert (
        rows_of_step(step, batch_size, accumulation, processes, seed, n)
        == rows_of_step(step, product, 1, 1, seed, n)
        == rows_of_step(step, 1, product, 1, seed, n)
        == rows_of_step(step, 1, 1, product, seed, n)
    )


@given(SMALL, SMALL, st.integers(1, 30), st.integers(0, 99))
def test_steps_go_through_the_rows_without_gap_or_repeat(batch_size, accumulation, n, seed):
    per_step = batch_size * accumulation
    seen = [row for step in range(n) for row in rows_of_step(step, batch_size, accumulation, 1, seed, n).elements()]
    assert Counter(seen) == Counter({row: per_step for row in range(n)})


@given(st.lists(st.integers(1, 9), max_size=40), SMALL, SMALL)
def test_evaluation_takes_every_row_once_over_all_processes(lengths, batch_size, processes):
    rows = [token_row(*range(length)) for length in lengths]
    parts = [evaluation_batches(rows, batch_size, process=p, processes=processes) for p in range(processes)]
    together = sorted(batch for part in parts for batch in part)
    assert together == evaluation_batches(rows, batch_size)
    assert sorted(row for _, batch in together for row in batch) == list(range(len(rows)))
    widths = [lengths[row] for _, batch in together for row in batch]
    assert widths == sorted(widths, reverse=True)


def test_padding_is_at_the_right_and_masked_by_length_though_pad_is_a_real_id():
    batch = collate([token_row(5, 0, 0, prompt=1), token_row(7, 0)], pad_id=0, pad_to=4)
    assert batch["input_ids"].tolist() == [[5, 0, 0, 0], [7, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
    assert batch["positions"].tolist() == [0, 1, 4]  # each predicts the token after it
    assert batch["targets"].tolist() == [0, 0, 0]
    assert {value.dtype for value in batch.values()} == {torch.int64}


def test_end_of_text_is_learned_though_it_is_also_the_padding(bpe):
    assert bpe.pad_token_id == bpe.eos_token_id
    rows = tokenise([Completion("a", " b"), Completion("the cat sat", " on")], bpe).rows
    batch = collate(rows, bpe.pad_token_id)
    width = batch["input_ids"].shape[1]
    predicted = dict(zip(batch["positions"].tolist(), batch["targets"].tolist(), strict=True))
    for number, (row, mask) in enumerate(zip(rows, batch["attention_mask"], strict=True)):
        last = len(row.input_ids) - 1
        assert predicted[number * width + last - 1] == bpe.eos_token_id and mask[last] == 1
        assert not mask[last + 1 :].any()
    assert list(predicted) == [
        number * width + place - 1
        for number, row in enumerate(rows)
        for place in range(1, len(row.labels))
        if row.labels[place] != IGNORED
    ]


def test_classes_are_one_label_a_row_and_segments_are_padded():
    rows = [
        ClassRow(np.array([1, 2, 3]), 2, np.array([0, 1, 1])),
        ClassRow(np.array([4]), 0, np.array([0])),
    ]
    batch = collate(rows, pad_id=9)
    assert batch["targets"].tolist() == [2, 0]
    assert batch["token_type_ids"].tolist() == [[0, 1, 1], [0, 0, 0]]
    assert "positions" not in batch


@pytest.mark.parametrize("rows", [[token_row(1, 2)], [token_row(1, 2), token_row(1, 2, 3, prompt=2)]])
def test_row_and_batch_count_alike(rows):
    assert sum(row.supervised for row in rows) == len(collate(rows, 0)["targets"])


def test_rows_end_to_end_are_numbered_anew_and_their_targets_are_where_they_are_predicted():
    """By hand: the rows of 2 and 3 tokens, the shorter first, and the targets 22, 32 and 33."""
    batch = EndToEnd().batch([token_row(31, 32, 33), token_row(21, 22)])
    assert batch["input_ids"].tolist() == [[21, 22, 31, 32, 33]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2]]
    assert batch["positions"].tolist() == [0, 2, 3]
    assert batch["targets"].tolist() == [22, 32, 33]
    assert batch.groups == ((2, 1), (3, 1))


def test_rows_of_one_length_are_one_group():
    rows = [token_row(*range(1, 1 + length)) for length in (3, 2, 3, 3)]
    assert EndToEnd().batch(rows).groups == ((2, 1), (3, 3))


def test_tokens_without_a_position_of_their_own_get_the_one_before_the_first():
    """RoBERTa's own numbers, with 1 as its padding token."""
    row = token_row(5, 1, 6, 7)
    expected = RobertaEmbeddings.create_position_ids_from_input_ids(torch.tensor([[5, 1, 6, 7]]), 1)
    assert EndToEnd(2, 1).batch([row])["position_ids"].tolist() == expected.tolist() == [[2, 1, 3, 4]]


@given(st.lists(st.integers(1, 9), min_size=12, max_size=12), st.integers(0, 99), st.integers(0, 2))
def test_micro_batches_of_like_length_have_the_rows_of_the_step_and_pad_no_more(lengths, seed, step):
    rows = [token_row(*range(1, 1 + length)) for length in lengths]

    def micro_batches(by_length):
        return ShuffledRows(rows, Padded(0, by_length), 2, 3, 0, 1, seed).numbers(step + 1)

    def padding(numbers):
        return sum(2 * max(lengths[one] for one in micro) for micro in numbers)

    found, plain = micro_batches(True), micro_batches(False)
    assert Counter(sum(found, [])) == Counter(sum(plain, []))
    assert padding(found) <= padding(plain)
    assert found == micro_batches(True)
    assert [len(micro) for micro in found] == [2, 2, 2]
    flat = [lengths[one] for micro in found for one in micro]
    assert flat == sorted(flat, reverse=True)


def test_rows_are_dealt_by_length_worked_out_by_hand():
    """The longest rows share the first micro-batch: 9 to one process, then 8 and 6 to the other, which has fewer."""
    lengths = dict(enumerate([1, 9, 2, 8, 3, 6, 2, 5]))
    assert deal_by_length([[[0, 1], [2, 3]], [[4, 5], [6, 7]]], lengths.__getitem__) == [
        [[1, 7], [3, 5]],
        [[4, 0], [2, 6]],
    ]
    assert deal_by_length([[[0, 1]], [[2, 3]]], lengths.__getitem__) == [[[0, 1]], [[2, 3]]], "one process alone"


@given(st.lists(st.integers(1, 99), min_size=24, max_size=24), st.integers(0, 99), st.integers(2, 4))
def test_processes_share_the_rows_of_a_step_and_none_has_many_more_tokens(lengths, seed, processes):
    """The rows of a step are those in the order; a process has at most one longest row more than another."""
    rows = [token_row(*range(1, 1 + length)) for length in lengths]
    all_rows = [
        ShuffledRows(rows, Padded(0), 2, 24 // 2 // processes, one, processes, seed) for one in range(processes)
    ]
    dealt = [one.numbers(1) for one in all_rows]
    assert sorted(number for one in dealt for micro in one for number in micro) == list(range(24))
    assert dealt == [one.numbers(1) for one in all_rows]
    for micros in zip(*dealt, strict=True):
        tokens = [sum(lengths[number] for number in micro) for micro in micros]
        longest = max(lengths[number] for micro in micros for number in micro)
        assert {len(micro) for micro in micros} == {2} and max(tokens) - min(tokens) <= longest
