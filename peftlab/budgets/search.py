"""Search for the size whose cost is nearest to a budget from below, among sizes in ascending order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil
from typing import Any, Literal

from peftlab.errors import UsageError

MOST_STEPS = 10**12


@dataclass(frozen=True)
class Choice:
    """The chosen size, its cost, and the difference of cost to the next size on the other side of the budget.

    `beyond` says whether the budget is below the cost of the smallest size or above that of the largest.
    """

    size: Any
    cost: float
    step: float | None
    beyond: Literal["smallest", "largest"] | None = None


def possible_steps(most: float, text: str) -> range:
    """Return numbers of steps up to one beyond `most`. Raises UsageError for more than a run can count."""
    if most > MOST_STEPS:
        raise UsageError(f"{text!r} would take {most:.2g} steps; name a smaller budget")
    return range(1, ceil(most) + 2)


def nearest_size(sizes: Sequence[Any], cost: Callable[[Any], float], asked: float, tolerance: float = 0.0) -> Choice:
    """Return the size of the nearest cost within `tolerance`, a share of what is asked, else the largest below it.

    The smallest, where all cost more. By binary search: costs must rise with the sizes.
    """
    cost_at = cache(lambda index: cost(sizes[index]))
    low, high = 0, len(sizes) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost_at(middle) <= asked else (low, middle)
    chosen, other = sorted((low, high), key=lambda index: abs(cost_at(index) - asked))
    if cost_at(chosen) > asked >= cost_at(other) and cost_at(chosen) - asked > tolerance * asked:
        chosen, other = other, chosen
    step = abs(cost_at(other) - cost_at(chosen)) if other != chosen else None
    beyond: Literal["smallest", "largest"] | None = None
    if asked < cost_at(0):
        beyond = "smallest"
    elif asked > cost_at(len(sizes) - 1):
        beyond = "largest"
    return Choice(sizes[chosen], cost_at(chosen), step, beyond)
