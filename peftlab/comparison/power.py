"""How many seeds and test rows show a difference: the chance that the report's own test finds it significant."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from peftlab.comparison.statistics import LEVEL, Difference, mixed_tails
from peftlab.evaluation.resampling import LEAST_ROWS

WANTED = 0.8
SIMULATIONS = 4000
MOST_SEEDS = 100
MOST_ROWS = 10_000_000


@dataclass(frozen=True)
class Power:
    """The variances that decide: `of_seed` of one run by its seed, `of_row` of one row's paired difference.

    `rows` are the test rows, and `pairs` those that are corrected together, of which one differs.
    """

    of_seed: float
    of_row: float
    rows: int
    pairs: int = 1

    @classmethod
    def measured(cls, pairs: Sequence[Difference[str]], seeds: Mapping[str, int], rows: int) -> Power | None:
        """Return the medians over pairs of variants with so many `seeds`; None where seeds or rows are not known."""
        known = [pair for pair in pairs if pair.scope == "methods"]
        if not known or not rows:
            return None
        of_seed = median(pair.of_seeds / (1 / seeds[pair.first] + 1 / seeds[pair.second]) for pair in known)
        return cls(of_seed, median(pair.of_rows for pair in known) * rows, rows, len(pairs))

    def chance(self, difference: float, seeds: int, rows: int | None = None) -> float:
        """Return the chance that a true difference is significant with so many seeds (two or more) and rows."""
        rows = rows or self.rows
        random = np.random.default_rng(0)
        of_seeds, of_rows = 2 * self.of_seed / seeds, self.of_row / rows
        values = difference + (of_seeds + of_rows) ** 0.5 * random.standard_normal(SIMULATIONS)
        both = self.of_seed / seeds * random.chisquare(seeds - 1, (2, SIMULATIONS)) / (seeds - 1)
        by_seeds, tiny = both.sum(0), np.finfo(float).tiny
        freedom = (seeds - 1) * (by_seeds**2 + tiny) / ((both**2).sum(0) + tiny)
        by_rows = of_rows * random.chisquare(rows - 1, SIMULATIONS) / (rows - 1)
        variance = np.maximum(by_seeds + by_rows, tiny)
        # With two seeds the report's test counts one degree of freedom (`statistics.Chance`).
        sources = [(by_seeds / variance, 1.0 if seeds == 2 else freedom), (by_rows / variance, rows - 1.0)]
        p = mixed_tails(np.abs(values) / variance**0.5, sources)
        return float((p * self.pairs < 1 - LEVEL).mean())

    def seeds_for(self, difference: float, rows: int | None = None) -> int | None:
        """Return the fewest seeds that find it in 80 % of comparisons; None where 100 do not."""
        return _fewest(lambda seeds: self.chance(difference, seeds, rows), MOST_SEEDS)

    def rows_for(self, difference: float, seeds: int) -> int | None:
        """Return the fewest test rows, rounded up to two digits, that do; None where ten million do not.

        They are as many as show their own chance (`LEAST_ROWS`), or more.
        """
        found = _fewest(lambda rows: self.chance(difference, seeds, rows), MOST_ROWS, LEAST_ROWS)
        digit = 10 ** max(0, len(str(found)) - 2)
        return None if found is None else -(-found // digit) * digit


def _fewest(chance: Callable[[int], float], most: int, least: int = 2) -> int | None:
    """Return the smallest count of `least` to `most` whose chance is enough, by bisection; None where none is."""
    low, high = least - 1, least
    while chance(high) < WANTED:
        if high == most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if chance(middle) >= WANTED else (middle, high)
    return high
