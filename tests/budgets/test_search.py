"""The search for the nearest size, against a search through all of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from peftlab.budgets.search import nearest_size


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=300), st.integers(1, 2 * 10**6))
def test_no_size_is_nearer_and_few_are_tried(costs, asked):
    costs, tried = sorted(costs), set()

    def cost(index: int) -> int:
        tried.add(index)
        return costs[index]

    choice = nearest_size(range(len(costs)), cost, asked)
    assert costs[choice.size] == choice.cost
    assert abs(choice.cost - asked) == min(abs(other - asked) for other in costs)
    assert choice.beyond == ("smallest" if asked < costs[0] else "largest" if asked > costs[-1] else None)
    if choice.beyond is None and choice.step is not None:
        assert abs(choice.cost - asked) <= choice.step / 2
    assert len(tried) <= 14
