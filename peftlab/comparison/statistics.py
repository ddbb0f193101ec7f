"""What several seeds on one set of rows say about variants: intervals, and differences with their p-values.

The model: a run's metric is its variant's, plus the chance of its seed (own to the run), plus the chance of the
rows (shared by all runs of a comparison), plus what is left between them. So the variance of a variant's mean is

    s² / S                                 of S seeds, with S - 1 degrees of freedom, and
    Var(mean over seeds, rows drawn anew)  by the paired bootstrap, less the part of it that differs from seed to
                                           seed, because s² contains that part already; never below zero

and likewise for the difference of two variants, whose shared rows cancel. The p-value of a difference of t standard
errors is Student's of the seeds (Welch's degrees of freedom) and of the rows, weighted by their shares of the variance;
one joint number of degrees of freedom is too hopeful after Holm's correction, when few seeds lie close by chance (13 %
false among nine equal variants of three seeds, against 4 %). Seeds are not drawn again: the variance of doing so is
known, (S-1)/S·s²/S, and with three seeds it is a third too small and its tails those of three numbers (a percentile
bootstrap over rows and seeds called two equal methods different in a fifth of 1000 comparisons where the seeds decide).
How often this one does is simulated in `tests/comparison/test_statistics.py`. Seeds count as independent between
variants, though they order the data alike: if that makes them move together, the intervals are too wide, not too
narrow. One seed says nothing about others: where a variant has one, its interval is of the rows alone, and a difference
is one of these trained weights on such rows (`Scope`), not of the methods. Without scores of single rows, it is one of
the methods on these rows: equal methods differ by the rows that were drawn, which more seeds do not average out. Fewer
than six rows show no chance of theirs: were all of them to agree on which variant is better, chance alone would do that
in 6 % of cases or more.

A difference's interval and its verdict are one statement: the interval is as much wider than one of 95 % as Holm's
correction asks of that pair, so that it excludes 0 exactly where the difference is significant.

Where rows are right or wrong and few differ, a p-value is at least the exact one (`comparison.exact`), and the interval
contains 0 where that is not significant.

Rows of very different weights (tokens, lengths) are fewer than they look: the variance that they show is uncertain
itself. Their degrees of freedom are those of a variance with that kurtosis, by what each row adds to the difference.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Generic, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from scipy import special
from scipy.optimize import brentq

from peftlab.comparison.exact import exact_p, row_values
from peftlab.evaluation.resampling import LEAST_ROWS, Floats, Sample

LEVEL = 0.95
ROUNDING = 1e-12  # equal runs whose means were summed in another order differ by less
Name = TypeVar("Name", bound=Hashable)
Scope = Literal["methods", "rows", "weights", "nothing"]
"""What a difference speaks of: methods (several seeds, rows drawn anew), methods on these `rows` (seeds alone), the
weights of one seed (rows alone), or nothing (neither, or different rows)."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval; `spread` is the standard deviation of the seeds, None with one.

    `of_rows` and `of_seeds` say which sources of chance the interval covers.
    """

    mean: float
    low: float
    high: float
    spread: float | None
    seeds: int
    of_rows: bool
    of_seeds: bool


@dataclass(frozen=True)
class Difference(Generic[Name]):
    """`first` less `second`, with an interval that excludes 0 exactly where the difference is significant.

    `adjusted` is the p-value after Holm's correction, and `confidence` that of the interval, 95 % or more. `scope` says
    what it speaks of: of what was not covered by chance, nothing is claimed. `of_seeds` and `of_rows` are its variances
    by the two sources of chance, as far as they are known.
    """

    first: Name
    second: Name
    value: float
    low: float
    high: float
    p: float
    adjusted: float
    scope: Scope = "methods"
    confidence: float = LEVEL
    of_seeds: float = 0.0
    of_rows: float = 0.0

    @property
    def seed_share(self) -> float | None:
        """The seeds' part of the variance; None where one seed hides it."""
        variance = self.of_seeds + self.of_rows
        return self.of_seeds / variance if self.scope == "methods" and variance else None

    @property
    def significant(self) -> bool:
        """Whether it is at the 5 % level for any false difference among all pairs of the family, within its scope."""
        return self.scope != "nothing" and self.adjusted < 1 - LEVEL

    def seen_from(self, name: Name) -> Difference[Name]:
        """Return the difference with `name`, one of the two, as the first."""
        if name == self.first:
            return self
        turned = replace(self, first=self.second, second=self.first, value=-self.value)
        return replace(turned, low=-self.high, high=-self.low)


@dataclass(frozen=True)
class _Part:
    """One variant's share of the sample, and the variances that its mean has of its own."""

    values: Floats
    replicates: Floats | None
    rows: int
    without: Floats | None = None
    alike: bool = True

    @property
    def seeds(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def drawn_mean(self) -> Floats | None:
        return None if self.replicates is None else self.replicates.mean(1)

    @property
    def mean_without(self) -> Floats | None:
        """The mean without each row, (rows,)."""
        return None if self.without is None else self.without.mean(1)

    @property
    def of_seeds(self) -> float:
        """The variance of the mean by the seeds; 0 where one seed hides it."""
        return _variance(self.values, self.mean) / self.seeds if self.seeds > 1 else 0.0

    @property
    def of_rows_between_seeds(self) -> float:
        """The part of the rows' variance that differs from seed to seed and so is in `of_seeds` too."""
        if self.replicates is None or self.seeds == 1:
            return 0.0
        own = self.replicates - self.replicates.mean(1, keepdims=True)
        return float(own.var(0, ddof=1).sum()) / (self.seeds * (self.seeds - 1))


def split(sample: Sample, owners: Sequence[Name]) -> dict[Name, _Part]:
    """Return each variant's part of a sample whose runs belong to `owners`; values that are not finite drop out."""
    parts = {}
    for owner in dict.fromkeys(owners):
        columns = [
            run for run, name in enumerate(owners)
            if name == owner and np.isfinite(sample.values[run])
        ]  # fmt: skip
        if columns:
            drawn = None if sample.replicates is None else sample.replicates[:, columns]
            usable = drawn is not None and sample.rows >= LEAST_ROWS and bool(np.isfinite(drawn).all())
            without = None if sample.without is None else sample.without[:, columns]
            values = sample.values[columns]
            parts[owner] = _Part(values, drawn if usable else None, sample.rows, without, sample.alike)
    return parts


def estimate(sample: Sample, owners: Sequence[Name], *, change: bool = False) -> dict[Name, Estimate]:
    """Return the mean and interval of every variant that has a value; of a `change`, 0 means that there is none."""
    return {owner: _estimate(part, change) for owner, part in split(sample, owners).items()}


def _estimate(part: _Part, change: bool) -> Estimate:
    chance = Chance.of([part], part.drawn_mean, part.mean_without)
    half = chance.added_half_width() if part.seeds == 2 else chance.half_width()
    if change and part.replicates is not None and (rows := row_values(part.values, part.without)) is not None:
        half = max(half, reach_of_zero(part.mean, exact_p(rows.mean(1), 1 / part.seeds)))
    return Estimate(
        mean=part.mean,
        low=part.mean - half,
        high=part.mean + half,
        spread=float(part.values.std(ddof=1)) if part.seeds > 1 else None,
        seeds=part.seeds,
        of_rows=part.replicates is not None,
        of_seeds=part.seeds > 1,
    )


def compare_pairs(sample: Sample, owners: Sequence[Name]) -> list[Difference[Name]]:
    """Return the difference of every pair of variants; the pairs are one family for Holm's correction."""
    parts = split(sample, owners)
    pairs = [_Pair(a, b, parts[a], parts[b]) for a, b in combinations(parts, 2)]
    tested = [pair.p for pair in pairs if pair.scope != "nothing"]
    corrected = zip(adjust_holm(tested), holm_factors(tested), strict=True)
    return [pair.difference(*(next(corrected) if pair.scope != "nothing" else (1.0, 1))) for pair in pairs]


@dataclass(frozen=True)
class _Pair(Generic[Name]):
    """Two variants before the correction for the others."""

    first: Name
    second: Name
    one: _Part
    other: _Part

    @property
    def value(self) -> float:
        value = self.one.mean - self.other.mean
        return 0.0 if abs(value) <= ROUNDING * max(abs(self.one.mean), abs(self.other.mean)) else value

    @property
    def scope(self) -> Scope:
        if not self.one.alike:
            return "nothing"
        drawn = self.one.replicates is not None and self.other.replicates is not None
        if min(self.one.seeds, self.other.seeds) > 1:
            return "methods" if drawn else "rows"
        return "weights" if drawn else "nothing"

    @cached_property
    def chance(self) -> Chance:
        drawn = _less(self.one.drawn_mean, self.other.drawn_mean)
        return Chance.of([self.one, self.other], drawn, _less(self.one.mean_without, self.other.mean_without))

    @cached_property
    def exact(self) -> float:
        """The exact p-value of rows that are right or wrong; 0 for others, and where many differ."""
        drawn = self.one.replicates is not None and self.other.replicates is not None
        one, other = (row_values(part.values, part.without) if drawn else None for part in (self.one, self.other))
        if one is None or other is None:
            return 0.0
        return exact_p(one.mean(1) - other.mean(1), 1 / (self.one.seeds * self.other.seeds))

    @cached_property
    def p(self) -> float:
        return max(self.chance.p_value(self.value), self.exact) if self.scope != "nothing" else 1.0

    def difference(self, adjusted: float, factor: int) -> Difference[Name]:
        """Return the difference with its corrected p-value, and an interval as wide as the correction asks."""
        confidence = 1 - (1 - LEVEL) / factor
        half = 0.0
        if self.scope != "nothing":
            half = max(self.chance.half_width(confidence), reach_of_zero(self.value, self.exact, confidence))
        seeds, rows = (self.chance.sources.get(source, (0.0, 0.0))[0] for source in ("seeds", "rows"))
        return Difference(
            self.first, self.second, self.value, self.value - half, self.value + half, self.p, adjusted,
            self.scope, confidence, seeds, rows,
        )  # fmt: skip


@dataclass(frozen=True)
class Chance:
    """The variance of a mean or a difference by its sources, `seeds` and `rows`: (variance, degrees of freedom)."""

    sources: dict[str, tuple[float, float]]

    @classmethod
    def of(cls, parts: Sequence[_Part], drawn: Floats | None, without: Floats | None = None) -> Chance:
        """Take the seeds of the parts, and the rows from `drawn`: the same mean or difference on rows drawn anew.

        `without` is that mean or difference without each row; it says how well the rows show their own variance.
        """
        sources = {}
        several = [part for part in parts if part.seeds > 1]
        seeds = sum(part.of_seeds for part in several)
        if seeds:
            # Two seeds lie close together too often for Welch's sum of freedoms.
            pair = any(part.seeds == 2 for part in several)
            freedom = seeds**2 / sum(part.of_seeds**2 / (part.seeds - 1) for part in several)
            sources["seeds"] = seeds, 1.0 if pair else freedom
        if drawn is not None:
            rows = parts[0].rows
            between = sum(part.of_rows_between_seeds for part in parts)
            # Drawing n rows from n makes their variance too small by (n - 1)/n.
            sources["rows"] = (
                max(0.0, _variance(drawn, max(abs(part.mean) for part in parts)) - between) * rows / (rows - 1),
                freedom_of(without, rows),
            )
        return cls({name: source for name, source in sources.items() if source[0] > 0})

    @property
    def variance(self) -> float:
        return sum(variance for variance, _ in self.sources.values())

    @property
    def error(self) -> float:
        """The standard error."""
        return self.variance**0.5

    def p_value(self, value: float) -> float:
        """Return the two-sided p-value of a value, were the true one 0."""
        if not self.sources:
            return float(value == 0)
        return self._tails(abs(value) / self.error)

    def half_width(self, confidence: float = LEVEL) -> float:
        """Return half of the interval: the value whose p-value is 1 less its confidence."""
        if not self.sources:
            return 0.0
        widest = max(quantile(freedom, confidence) for _, freedom in self.sources.values())
        return self.error * float(brentq(lambda t: self._tails(t) - (1 - confidence), 0.0, widest + 1.0))

    def added_half_width(self) -> float:
        """Return half of an interval whose square is the sum of the squares of each source's own half.

        That is for two seeds, which say too little of their own share of the variance to weight p-values by it: where
        the seeds decide, `half_width` misses the truth in up to 8 % of cases, and this in 1 to 5 % (MOVER: Zou and
        Donner, 2008).
        """
        halves = [variance**0.5 * quantile(freedom) for variance, freedom in self.sources.values()]
        return sum(half**2 for half in halves) ** 0.5

    def _tails(self, t: float) -> float:
        return float(
            mixed_tails(t, [(variance / self.variance, freedom) for variance, freedom in self.sources.values()])
        )


def reach_of_zero(value: float, exact: float, confidence: float = LEVEL) -> float:
    """Return half of the interval around a value that just contains 0, where its exact p-value asks that; else 0."""
    return abs(value) if exact >= 1 - confidence else 0.0


def quantile(freedom: float, confidence: float = LEVEL) -> float:
    """Return the standard errors of half a two-sided interval by Student's distribution."""
    return float(special.stdtrit(freedom, (1 + confidence) / 2))


def mixed_tails(t: ArrayLike, sources: Iterable[tuple[ArrayLike, ArrayLike]]) -> Floats:
    """Return the two-sided p-value of `t` standard errors, from sources of (share of the variance, freedom)."""
    return np.asarray(sum(np.asarray(share) * 2 * special.stdtr(freedom, -np.asarray(t)) for share, freedom in sources))


def _variance(values: Floats, size: float) -> float:
    """Return the variance of values; 0 where they differ by the rounding of numbers of this size alone."""
    return 0.0 if np.ptp(values) <= ROUNDING * abs(size) else float(values.var(ddof=1))


def _less(one: Floats | None, other: Floats | None) -> Floats | None:
    return None if one is None or other is None else one - other


def freedom_of(without: Floats | None, rows: int) -> float:
    """Return the degrees of freedom of the variance that rows show: one less than them, fewer where few decide.

    That is the freedom of a variance as uncertain as one of values with their kurtosis (Satterthwaite); `without` is
    the metric without each of them.
    """
    if without is None or not np.isfinite(without).all():
        return rows - 1.0
    squares = (without - without.mean()) ** 2
    mean = float(squares.mean())
    excess = float((squares**2).mean()) / mean**2 - 3 if mean > 0 else 0.0
    return 2 / (2 / (rows - 1) + max(0.0, excess) / rows)


def adjust_holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down adjusted p-values, in the order given."""
    order = np.argsort(p_values)
    count = len(p_values)
    adjusted = np.empty(count)
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, np.sort(p_values) * (count - np.arange(count))))
    return adjusted.tolist()


def holm_factors(p_values: Sequence[float]) -> list[int]:
    """Return by what Holm's procedure multiplied each p-value when it decided on it, in the order given.

    Those that it rejects come one by one; at the first that it does not, all that are left are kept.
    """
    count, factors = len(p_values), [0] * len(p_values)
    left, stopped = count, False
    for place in np.argsort(p_values):
        factors[place] = left
        stopped = stopped or p_values[place] * left >= 1 - LEVEL
        left -= not stopped
    return factors
