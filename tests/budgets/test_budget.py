"""Budgets as people write them."""

from __future__ import annotations

import pytest

from peftlab.budgets.budget import parse_budget
from peftlab.errors import UsageError

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
]
BAD = [
    ("300k", "is not a valid budget; write trainable=300k"),
    ("trainble=300k", "unknown budget 'trainble'; did you mean 'trainable'?"),
    ("method.rank=4", "unknown budget 'method.rank'"),
    ("trainable=", "trainable '' is not a valid amount; write 300k"),
    ("trainable=many", "trainable 'many' is not a valid amount"),
    ("trainable=-3k", "trainable '-3k' is not a valid amount"),
    ("trainable=3GiB", "trainable '3GiB' is not a valid amount"),
    ("trainable=0", "trainable '0' must be greater than zero"),
    ("trainable=0%", "must be greater than zero"),
    ("trainable=101%", "trainable '101%' is more than 100 % of the model"),
    ("memory=8", "memory '8' has no unit; write 8GiB"),
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
