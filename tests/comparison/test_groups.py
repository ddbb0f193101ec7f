"""Letters and Pareto fronts on cases small enough to see."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftlab.comparison.groups import Cost, beaten_by, best_first, letter_groups, letters_of, point_front, short_letters
from peftlab.comparison.statistics import Difference, Estimate


def pair(first, second, significant, value=-1.0):
    return Difference(first, second, value, value, value, *([0.001] * 2 if significant else [0.5] * 2))


def test_neighbours_that_overlap_share_letters_and_the_ends_do_not():
    pairs = [pair("x", "y", False), pair("y", "z", False), pair("x", "z", True)]
    groups = letter_groups("xyz", pairs)
    assert groups == {"a": ["x", "y"], "b": ["y", "z"]}
    assert letters_of(groups) == {"x": "a", "y": "ab", "z": "b"}


def test_equal_variants_form_one_group_and_different_ones_one_each():
    names = list("xyz")
    alike = [pair(a, b, False) for a, b in combinations(names, 2)]
    assert letter_groups(names, alike) == {"a": names}
    apart = [pair(a, b, True) for a, b in combinations(names, 2)]
    assert letter_groups(names, apart) == {"a": ["x"], "b": ["y"], "c": ["z"]}


@given(st.data())
def test_two_share_a_letter_exactly_when_they_are_not_significantly_different(data):
    names = list(range(data.draw(st.integers(1, 7))))
    pairs = [pair(a, b, data.draw(st.booleans())) for a, b in combinations(names, 2)]
    groups = letter_groups(names, pairs)
    for each in pairs:
        shared = any(each.first in members and each.second in members for members in groups.values())
        assert shared is not each.significant
    assert set(letters_of(groups)) == set(names)


def test_more_groups_than_letters_are_numbered():
    names = list(range(28))
    groups = letter_groups(names, [pair(a, b, True) for a, b in combinations(names, 2)])
    assert list(groups)[25:] == ["z", "a2", "b2"]


@pytest.mark.parametrize("higher", [True, False])
def test_only_a_significantly_better_and_no_dearer_one_beats(higher):
    costs = {"cheap": Cost(1, 1, 1), "dear": Cost(2, 2, 2), "like": Cost(1, 1, 1)}
    better = 1.0 if higher else -1.0
    known = [("cheap", "dear", True), ("cheap", "like", False), ("dear", "like", True)]
    pairs = [pair(*names, better) for names in known]
    assert beaten_by(costs, pairs, higher) == {"cheap": [], "dear": ["cheap"], "like": []}


def test_costs_that_overlap_over_seeds_beat_nothing():
    costs = {"good": Cost(1.0, 0.8, 1.2), "bad": Cost(1.1, 1.1, 1.1)}
    assert beaten_by(costs, [pair("good", "bad", True)], False) == {"good": [], "bad": []}
    costs["bad"] = Cost(1.2, 1.2, 1.3)
    assert beaten_by(costs, [pair("bad", "good", True, 1.0)], False) == {"good": [], "bad": ["good"]}


def test_a_variant_without_a_cost_is_neither_on_the_front_nor_beats():
    assert beaten_by({"a": Cost(2, 2, 2)}, [pair("b", "a", True)], False) == {"a": []}


def test_the_front_of_the_means_rises_with_cost():
    points = {"a": (1.0, 3.0), "b": (2.0, 2.0), "c": (3.0, 2.5), "d": (1.0, 4.0)}
    assert point_front(points, higher_is_better=False) == ["a", "b"]
    assert point_front(points, higher_is_better=True) == ["d"]


def test_best_first_follows_the_metrics_direction():
    estimates = {name: Estimate(mean, 0, 0, None, 1, True, False) for name, mean in (("a", 1.0), ("b", 2.0))}
    assert best_first(estimates, higher_is_better=True) == ["b", "a"]
    assert best_first(estimates, higher_is_better=False) == ["a", "b"]


def test_many_letters_are_shown_by_the_first_few_and_their_number():
    assert short_letters("abcde") == "abcde"
    assert short_letters("abz" + "a2b2c2") == "a b z a2 … (6)"
    assert short_letters("") == ""
