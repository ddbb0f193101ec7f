"""Budgets as people write them."""

from __future__ import annotations

import re

import pytest

from peftlab.errors import UsageError
from peftlab.recipe.budget import parse_budget, parse_frontier

GOOD = [
    ("trainable=300k", "trainable", 300_000),
    ("trainable = 1.5M", "trainable", 1_500_000),
    ("trainable=0.3b", "trainable", 300_000_000),
    ("trainable=300_000", "trainable", 300_000),
    ("memory=8GiB", "memory", 8 * 2**30),
    ("memory=RTX 4090", "memory", 24564 * 2**20),
    ("stored=2MB", "stored", 2_000_000),
    ("stored=2MiB", "stored", 2**21),
    ("seconds=600", "seconds", 600),
    ("seconds=1.5h", "seconds", 5400),
    ("seconds=10min", "seconds", 600),
    ("operations=3P", "operations", 3e15),
    ("operations=2.5e12", "operations", 2.5e12),
]
BAD = [
    ("300k", "is not a valid budget; write trainable=300k"),
    ("trainble=300k", "unknown budget 'trainble'; did you mean 'trainable'?"),
    ("method.rank=4", "unknown budget 'method.rank'"),
    ("latency=10ms", "'latency=10ms' is not a valid budget: merged into the base, any size is as fast as the base"),
    ("trainable=", "trainable '' is not a valid amount; write 300k"),
    ("trainable=many", "trainable 'many' is not a valid amount"),
    ("trainable=-3k", "trainable '-3k' is not a valid amount"),
    ("trainable=3GiB", "trainable '3GiB' is not a valid amount"),
    ("trainable=1e400", "trainable '1e400' is not a finite number"),
    ("operations=1e400", "operations '1e400' is not a finite number"),
    ("trainable=0", "trainable '0' must be greater than zero"),
    ("trainable=0%", "must be greater than zero"),
    ("trainable=101%", "trainable '101%' is more than 100 % of the model"),
    ("memory=8", "memory '8' has no unit; write 8GiB"),
    ("memory=0", "memory '0' must be more than zero; write 8GiB"),
    ("parameters=1", "unknown budget 'parameters'; did you mean 'trainable'?"),
    ("time=600", "unknown budget 'time'; did you mean 'seconds'?"),
    ("trainable=1,000", "a comma separates budgets; write 1,000 without one, or with a point"),
    ("memory=8,5GiB", "a comma separates budgets; write 8,5 without one, or with a point"),
    ("seconds=abc", "seconds 'abc' is not a valid amount; write 600, 90s, 10min or 2h"),
    ("memory=RTX 4091", "memory 'RTX 4091' is neither a size such as 24GiB nor a known GPU; did you mean 'RTX-4090'?"),
    ("stored=RTX 4090", "stored 'RTX 4090' is not a size; write 8GiB or 500MB"),
    ("stored=2", "stored '2' has no unit"),
    ("stored=2XB", "stored '2XB': unknown unit 'XB'"),
    ("seconds=6d", "seconds '6d' is not a valid amount; write 600, 90s, 10min or 2h"),
]


@pytest.mark.parametrize(("text", "kind", "amount"), GOOD)
def test_a_budget_is_parameters_bytes_or_seconds(text, kind, amount):
    budget = parse_budget(text)
    assert (budget.kind, budget.amount, budget.is_share) == (kind, amount, False)
    assert parse_budget(str(budget)) == budget


def test_a_percentage_is_a_share_of_the_base():
    budget = parse_budget("trainable=0.5 %")
    assert (budget.amount, budget.is_share) == (0.005, True)


@pytest.mark.parametrize(("text", "told"), BAD)
def test_anything_else_is_refused_in_one_line(text, told):
    with pytest.raises(UsageError) as error:
        parse_budget(text)
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["300k", "x=1", "seconds=abc", "operations=abc", "trainable=x", "stored=x", "memory=8"]
)
def test_every_remedy_is_a_budget(text):
    with pytest.raises(UsageError) as error:
        parse_budget(text)
    kind = text.partition("=")[0]
    written = re.split(", | or ", str(error.value).partition("; write ")[2])
    assert written and all(parse_budget(one if "=" in one else f"{kind}={one}").amount > 0 for one in written)


def test_several_limits_are_one_budget_and_read_back():
    budget = parse_budget("trainable=300k, memory=8GiB,seconds=10min")
    assert [(one.kind, one.amount) for one in (budget, *budget.others)] == [
        ("trainable", 300_000), ("memory", 8 * 2**30), ("seconds", 600),
    ]  # fmt: skip
    assert str(budget) == "trainable=300k,memory=8GiB,seconds=10min" and parse_budget(str(budget)) == budget
    with pytest.raises(UsageError, match="has two budgets of one kind"):
        parse_budget("trainable=1k,trainable=2k")


@pytest.mark.parametrize(
    ("text", "budgets"),
    [
        ("trainable=10k..10M:4", ("trainable=10k", "trainable=100k", "trainable=1M", "trainable=10M")),
        ("trainable=0.1%..10%:3", ("trainable=0.1%", "trainable=1%", "trainable=10%")),
        ("stored=1MiB..4GiB:4", ("stored=1MiB", "stored=16MiB", "stored=256MiB", "stored=4GiB")),
        ("operations=1T..100P:6", tuple(f"operations={one}" for one in ("1T", "10T", "100T", "1P", "10P", "100P"))),
        ("seconds=10..1000:3", ("seconds=10", "seconds=100", "seconds=1000")),
        ("seconds=0.1..0.9:3", ("seconds=0.1", "seconds=0.3", "seconds=0.9")),
        ("stored=256B..4KiB:3", ("stored=256B", "stored=1KiB", "stored=4KiB")),
        ("memory=1TiB..16TiB:3", ("memory=1TiB", "memory=4TiB", "memory=16TiB")),
        ("trainable=0.000001%..0.0001%:3", ("trainable=0.000001%", "trainable=1e-05%", "trainable=0.0001%")),
    ],
)
def test_a_frontier_is_budgets_of_equal_ratios_that_read_back(text, budgets):
    assert parse_frontier(text) == budgets
    assert [str(parse_budget(one)) for one in budgets] == list(budgets)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("trainable=10k", "write trainable=10k..10M"),
        ("trainable=10M..10k", "must go from a smaller to a larger amount"),
        ("trainable=1k..1%", "one end is a share and the other is not"),
        ("trainable=1k..2k:101", "ask for at most 100"),
        ("trainable=1k..10k,memory=1GiB", "has one kind of budget, without commas"),
        ("trainable=1k..2k:1", "in at least 2 points"),
        ("trainble=1..2", "did you mean 'trainable'?"),
        ("memory=1..2", "has no unit"),
    ],
)
def test_a_frontier_that_is_none_is_one_line(text, told):
    with pytest.raises(UsageError, match=re.escape(told)):
        parse_frontier(text)
