"""The rows that stand for the most that a step can take."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from peftlab.data.batches import EndToEnd, Padded
from peftlab.data.rows import ShuffledRows, longest_rows
from peftlab.data.token_rows import IGNORED, ClassRow, PairRow, TagRow, TextRow


def text(length: int, targets: int, kind: type = TextRow):
    ids = np.arange(1, length + 1, dtype=np.int32)
    return kind(ids, np.where(np.arange(length) >= length - targets, ids, IGNORED).astype(np.int32))


def pair(prompt: int, answer: int) -> PairRow:
    return PairRow(np.arange(prompt, dtype=np.int32), np.arange(answer, dtype=np.int32))


ROWS = {
    "texts": [text(9, 2), text(8, 7), text(5, 1), text(9, 3), text(3, 2)],
    "tags": [text(9, 2, TagRow), text(8, 8, TagRow), text(5, 1, TagRow), text(3, 3, TagRow)],
    "answers": [pair(9, 1), pair(4, 7), pair(6, 6), pair(8, 2), pair(2, 5)],
    "classes": [ClassRow(np.arange(n, dtype=np.int32), n % 2) for n in (4, 9, 2, 9)],
}


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_no_rows_of_a_data_set_are_larger_than_its_longest(kind, count):
    """Every choice of rows is tried: width, tokens, longest answer and targets of the longest ones are at least its."""
    rows = ROWS[kind]
    most = sizes(longest_rows(rows, count))
    for chosen in itertools.combinations(rows, count):
        assert all(one <= other for one, other in zip(sizes(chosen), most, strict=True))


def sizes(rows) -> tuple[int, ...]:
    inputs = [len(row.input_ids) for row in rows]
    return max(inputs), sum(inputs), max(row.answer for row in rows), sum(row.supervised for row in rows)


def test_the_most_targets_and_the_most_tokens_may_be_of_two_rows():
    (row,) = longest_rows(ROWS["texts"], 1)
    assert (len(row.input_ids), row.supervised) == (9, 7)
    assert row.labels.tolist() == [IGNORED, IGNORED, 7, 8, 9, 7, 8, 9, 7]
    (row,) = longest_rows(ROWS["answers"], 1)
    assert (len(row.input_ids), row.answer) == (9, 7)


def test_a_row_that_has_the_most_of_all_is_itself():
    rows = [text(3, 2), text(6, 5), text(4, 1)]
    assert longest_rows(rows, 2)[0] is rows[1] and longest_rows(rows, 3)[1] is not rows[2]


def test_rows_of_one_length_are_padded_where_others_are_shorter():
    """A mask makes some models repeat keys for each query, which takes more than the token that is left out."""
    rows = [text(6, 3) for _ in range(4)]
    assert lengths(longest_rows(rows, 4, padded=2)) == [6, 6, 6, 6], "no batch of these has padding"
    rows.append(text(5, 3))
    assert lengths(longest_rows(rows, 4, padded=2)) == [6, 5, 6, 5]
    assert lengths(longest_rows(rows, 4)) == [6, 6, 6, 6]
    assert [row.supervised for row in longest_rows(rows, 4, padded=2)] == [3, 3, 3, 3]
    for layout, expected in ((Padded(0), [[6, 5], [6, 5]]), (EndToEnd(), [[6, 6], [6, 6]])):
        found = ShuffledRows(rows, layout, 2, 2, 0, 1, seed=3).longest()
        assert [lengths([found.rows[i] for i in numbers]) for numbers in found.numbers(1)] == expected


def lengths(rows) -> list[int]:
    return [len(row.input_ids) for row in rows]


def test_the_longest_rows_do_not_depend_on_the_seed():
    batches = [
        [{name: one.tolist() for name, one in batch.items()} for batch in rows.longest().batches(1)]
        for rows in (ShuffledRows(ROWS["texts"], Padded(0), 2, 3, 0, 1, seed) for seed in range(5))
    ]
    assert all(one == batches[0] for one in batches)
