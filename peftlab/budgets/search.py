"""The size whose cost is nearest to what a budget asks, among sizes from the smallest to the largest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal


@dataclass(frozen=True)
class Choice:
    """The chosen size, its cost, and how far the next size on the other side of the budget is from it.

    `beyond` says that the budget lies below the smallest or above the largest size.
    """

    size: Any
    cost: float
    step: float | None
    beyond: Literal["smallest", "largest"] | None = None


def nearest_size(sizes: Sequence[Any], cost: Callable[[Any], float], asked: float) -> Choice:
    """Return the nearest of `sizes`, whose costs rise; asks for the cost of a few of them only."""
    cost_at = cache(lambda index: cost(sizes[index]))
    low, high = 0, len(sizes) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost_at(middle) <= asked else (low, middle)
    chosen, other = sorted((low, high), key=lambda index: abs(cost_at(index) - asked))
    step = abs(cost_at(other) - cost_at(chosen)) if other != chosen else None
    beyond = None
    if asked < cost_at(0):
        beyond = "smallest"
    elif asked > cost_at(len(sizes) - 1):
        beyond = "largest"
    return Choice(sizes[chosen], cost_at(chosen), step, beyond)
