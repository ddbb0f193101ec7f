"""Rows are held out and drawn in whole groups, as a plain loop over the groups does."""

from __future__ import annotations

import numpy as np
import pytest

from peftlab.data.keys import Keys
from peftlab.data.splits import Pool, permute


def split_plainly(groups, count, seed, purpose):
    members = {}
    for place, group in enumerate(groups):
        members.setdefault(group, []).append(place)
    ordered = [list(members.values())[number] for number in permute(len(members), seed, purpose)]
    taken, others = [], []
    for group in ordered:
        (taken if len(taken) + len(group) <= count else others).extend(group)
    return (taken, others) if taken else (ordered[0], [place for group in ordered[1:] for place in group])


@pytest.mark.parametrize("kinds", [1, 2, 7, 40, 1000])
@pytest.mark.parametrize("count", [1, 5, 39])
def test_a_split_takes_whole_groups_in_the_order_of_the_seed(kinds, count):
    names = [f"group {number}" for number in np.random.default_rng(kinds).integers(0, kinds, 40)]
    pool = Pool.of(list(range(100, 140)), Keys.of(names).numbers())
    taken, others = pool.split(count, 3, 1)
    assert (taken.tolist(), others.tolist()) == split_plainly(names, count, 3, 1)
    assert pool.take(taken).rows == [100 + place for place in taken]
    assert pool.repeated == sum(names.count(name) > 1 for name in names)


def test_rows_of_their_own_group_are_drawn_as_permuted():
    pool = Pool.of(list("abcdefgh")).alone()
    taken, others = pool.split(3, 0, 2)
    assert [*taken, *others] == permute(8, 0, 2).tolist() and len(taken) == 3
    assert pool.repeated == 0


def test_keys_are_equal_for_equal_texts_alone():
    first, second = Keys.of(["a", "b", "a", "\ud800", ""]), Keys.of(["b", "c", ""])
    numbers = first.numbers()
    assert numbers[0] == numbers[2] and len(set(numbers.tolist())) == 4
    assert second.among(first).tolist() == [True, False, True]
    assert Keys.of([]).among(first).tolist() == []
