"""Quantities that a study measures: a value with its interval, from seeds, from two of them, or exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isfinite

import numpy as np
from scipy import special


@dataclass(frozen=True)
class Quantity:
    """A value and its interval. Where too few seeds were run to know the interval, it is infinite."""

    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> Quantity:
        """Return a value without chance: a count, or bytes."""
        return cls(value, value, value)

    @classmethod
    def of_values(cls, values: Sequence[float], confidence: float) -> Quantity | None:
        """Return the mean of one value a seed with Student's interval; None without a finite value."""
        known = np.array([value for value in values if isfinite(value)], float)
        if not len(known):
            return None
        mean = float(known.mean())
        if len(known) == 1:
            return cls(mean, -inf, inf)
        error = float(known.std(ddof=1)) / len(known) ** 0.5
        half = error * float(special.stdtrit(len(known) - 1, (1 + confidence) / 2))
        return cls(mean, mean - half, mean + half)

    def through(self, function: Callable[[float], float]) -> Quantity:
        """Return the quantity through a function that never changes direction, such as exp or a factor."""
        value, *ends = (function(one) for one in (self.value, self.low, self.high))
        return Quantity(value, min(ends), max(ends))

    @property
    def known(self) -> bool:
        """Whether it has an interval."""
        return isfinite(self.low) and isfinite(self.high)


def number_text(value: float) -> str:
    """Return a number with three or four digits that count, and a true minus sign."""
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}" if abs(value) >= 100 else f"{value:.3g}"
    return text.replace("-", "\u2212", 1) if text.startswith("-") else text
