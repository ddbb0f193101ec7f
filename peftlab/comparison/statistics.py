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
narrow. One seed says nothing about others: such a variant has an interval of its rows alone, and is significantly
different from none.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Generic, TypeVar

import numpy as np
from scipy import special, stats
from scipy.optimize import brentq

from peftlab.comparison.resampling import Floats, Sample

LEVEL = 0.95
Name = TypeVar("Name", bound=Hashable)


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
    """`first` less `second`, with its own 95 % interval; `adjusted` is the p-value after Holm's correction.

    `significant` is at the 5 % level for any false difference among all pairs of the family. `tested` is false where
    a variant has one seed. `seed_share` is the seeds' part of the variance, None where that is not known.
    """

    first: Name
    second: Name
    value: float
    low: float
    high: float
    p: float
    adjusted: float
    seed_share: float | None = None
    tested: bool = True

    @property
    def significant(self) -> bool:
        return self.tested and self.adjusted < 1 - LEVEL

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
    def of_seeds(self) -> float:
        """The variance of the mean by the seeds; 0 where one seed hides it."""
        return float(self.values.var(ddof=1)) / self.seeds if self.seeds > 1 else 0.0

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
            usable = drawn is not None and bool(np.isfinite(drawn).all())
            parts[owner] = _Part(sample.values[columns], drawn if usable else None, sample.rows)
    return parts


def estimate(sample: Sample, owners: Sequence[Name]) -> dict[Name, Estimate]:
    """Return the mean and interval of every variant that has a value."""
    return {owner: _estimate(part) for owner, part in split(sample, owners).items()}


def _estimate(part: _Part) -> Estimate:
    half = Chance.of([part], part.drawn_mean).half_width()
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
    found = [_difference(a, b, parts) for a, b in combinations(parts, 2)]
    adjusted = adjust_holm([pair.p for pair in found])
    return [replace(pair, adjusted=p) for pair, p in zip(found, adjusted, strict=True)]


def _difference(a: Name, b: Name, parts: Mapping[Name, _Part]) -> Difference[Name]:
    """Return one pair's difference, not yet corrected for the others; a variant of one seed is not tested."""
    first, second = parts[a], parts[b]
    value = first.mean - second.mean
    one, other = first.drawn_mean, second.drawn_mean
    chance = Chance.of([first, second], None if one is None or other is None else one - other)
    half = chance.half_width()
    tested = min(first.seeds, second.seeds) > 1
    p = chance.p_value(value) if tested else 1.0
    share = chance.seed_share if tested else None
    return Difference(a, b, value, value - half, value + half, p, p, share, tested)


@dataclass(frozen=True)
class Chance:
    """The variance of a mean or a difference by its sources, `seeds` and `rows`: (variance, degrees of freedom)."""

    sources: dict[str, tuple[float, float]]

    @classmethod
    def of(cls, parts: Sequence[_Part], drawn: Floats | None) -> Chance:
        """Take the seeds of the parts, and the rows from `drawn`: the same mean or difference on rows drawn anew."""
        sources = {}
        several = [part for part in parts if part.seeds > 1]
        seeds = sum(part.of_seeds for part in several)
        if seeds:
            # Two seeds lie close together too often for Welch's sum of freedoms.
            pair = any(part.seeds == 2 for part in several)
            freedom = seeds**2 / sum(part.of_seeds**2 / (part.seeds - 1) for part in several)
            sources["seeds"] = seeds, 1.0 if pair else freedom
        if drawn is not None and parts[0].rows > 1:
            rows = parts[0].rows
            between = sum(part.of_rows_between_seeds for part in parts)
            # Drawing n rows from n makes their variance too small by (n - 1)/n.
            sources["rows"] = max(0.0, float(drawn.var(ddof=1)) - between) * rows / (rows - 1), rows - 1.0
        return cls({name: source for name, source in sources.items() if source[0] > 0})

    @property
    def variance(self) -> float:
        return sum(variance for variance, _ in self.sources.values())

    @property
    def error(self) -> float:
        """The standard error."""
        return self.variance**0.5

    @property
    def seed_share(self) -> float | None:
        return self.sources.get("seeds", (0.0,))[0] / self.variance if self.sources else None

    def p_value(self, value: float) -> float:
        """Return the two-sided p-value of a value, were the true one 0."""
        if not self.sources:
            return float(value == 0)
        return self._tails(abs(value) / self.error)

    def half_width(self) -> float:
        """Return half of the 95 % interval: the value whose p-value is 5 %."""
        if not self.sources:
            return 0.0
        widest = max(float(stats.t.ppf((1 + LEVEL) / 2, freedom)) for _, freedom in self.sources.values())
        return self.error * float(brentq(lambda t: self._tails(t) - (1 - LEVEL), 0.0, widest + 1.0))

    def _tails(self, t: float) -> float:
        shares = [(variance / self.variance, freedom) for variance, freedom in self.sources.values()]
        return sum(share * 2 * float(special.stdtr(freedom, -t)) for share, freedom in shares)


def adjust_holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down adjusted p-values, in the order given."""
    order = np.argsort(p_values)
    count = len(p_values)
    adjusted = np.empty(count)
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, np.sort(p_values) * (count - np.arange(count))))
    return adjusted.tolist()
