"""The search for the nearest size from below, against a search through all of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftlab.budgets.search import nearest_size, possible_steps
from peftlab.errors import UsageError


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=300), st.integers(1, 2 * 10**6), st.sampled_from([0, 0.02]))
def test_no_size_is_nearer_from_below_and_few_are_tried(costs, asked, tolerance):
    costs, tried = sorted(costs), set()

    def cost(index: int) -> int:
        tried.add(index)
        return costs[index]

    choice = nearest_size(range(len(costs)), cost, asked, tolerance)
    assert costs[choice.size] == choice.cost
    below = max((other for other in costs if other <= asked), default=costs[0])
    above = min((other for other in costs if other > asked), default=costs[-1])
    nearer = abs(above - asked) < abs(below - asked) and abs(above - asked) <= tolerance * asked
    assert choice.cost == (above if nearer and above > asked else below)
    assert choice.beyond == ("smallest" if asked < costs[0] else "largest" if asked > costs[-1] else None)
    if choice.beyond is None and choice.step is not None:
        assert abs(choice.cost - asked) <= choice.step
    assert len(tried) <= 14


def test_more_steps_than_a_run_can_count_are_refused():
    assert list(possible_steps(2.5, "operations=1G")) == [1, 2, 3, 4]
    with pytest.raises(UsageError, match="'operations=1e30' would take 1.2e\\+20 steps; name a smaller budget"):
        possible_steps(1.2e20, "operations=1e30")
