"""The first points of a search, before anything is drawn: what people would try, in their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, inf, log
from typing import Any

from peftlab.comparison.parabola import least_between
from peftlab.comparison.points import Point
from peftlab.comparison.variants import learning_rate_beyond
from peftlab.recipe.comparison import DEFAULT_RATE_EXTENSIONS, LEARNING_RATE
from peftlab.recipe.space import Dimension, Range, has_point

# What the recipe's learning rate is multiplied by, before anything else is changed.
FACTORS = (3.0, 0.3)
MOST_TRIALS = 8
# Learning rates that are tried between the best and its neighbours, and how far from those tried, as a factor.
BETWEEN, NEAREST = 2, 1.15


@dataclass(frozen=True)
class Tried:
    """A point that was tried, and its loss at the end, None where it has none: lower is better, whatever the metric."""

    point: Point
    loss: float | None = None

    @property
    def settings(self) -> dict[str, Any]:
        return self.point.settings


@dataclass(frozen=True)
class Beginning:
    """How a search of `space` begins, where the recipe's own settings are `own`.

    These come first, then the `suggested` learning rate, if there is one. The learning rate decides most: others of it
    alone follow, beyond the best at an end, as without a search, and then between the best and its neighbours. Then
    each value of each list is tried once, with the best settings so far.
    """

    own: Point
    space: Mapping[str, Dimension]
    suggested: float | None = None

    @property
    def has_own(self) -> bool:
        """Whether the recipe's own settings are in the space; otherwise there is no beginning."""
        return has_point(self.space, self.own.settings)

    @property
    def learning_rates(self) -> list[float]:
        """The learning rates to begin with: the recipe's own, the suggested one, and multiples, if in the space."""
        dimension = self.space.get(LEARNING_RATE)
        if not isinstance(dimension, Range) or not self.has_own:
            return []
        own = self.own.settings[LEARNING_RATE]
        others = [*([self.suggested] if self.suggested else []), *(round_learning_rate(own * one) for one in FACTORS)]
        return list(dict.fromkeys([own, *filter(dimension.contains, others)]))

    def has_own_but_learning_rate(self, point: Point) -> bool:
        """Whether a point is the recipe's own settings but for the learning rate."""
        return self.has_own and LEARNING_RATE in self.space and point == self._at(point.settings[LEARNING_RATE])

    def next(self, tried: Sequence[Tried], best: Point) -> Point | None:
        """Return what is tried after `tried`, of which `best` was the best; None after all."""
        if not self.has_own:
            return None
        if not tried:
            return self.own
        following = self._next_learning_rate(tried, best)
        return self._at(following) if following is not None else self._untried_choice(tried, best)

    def _next_learning_rate(self, tried: Sequence[Tried], best: Point) -> float | None:
        """Return the learning rate to try next with the recipe's own settings; None where enough were tried."""
        first, number = self.learning_rates, len(tried)
        if number < len(first):
            return first[number]
        if not first or not all(self.has_own_but_learning_rate(one.point) for one in tried):
            return None
        losses = {one.settings[LEARNING_RATE]: one.loss for one in tried}
        rates, found = sorted(losses), best.settings[LEARNING_RATE]
        following = self._beyond(rates, found) if number < len(first) + DEFAULT_RATE_EXTENSIONS else None
        if following is None and number < len(first) + DEFAULT_RATE_EXTENSIONS + BETWEEN:
            following = _between(rates, [losses[rate] for rate in rates], found)
        return None if following is None else round_learning_rate(following)

    def _beyond(self, rates: Sequence[float], best: float) -> float | None:
        """Return one beyond the best at an end, at most the end of its range; None where that was tried."""
        beyond, dimension = learning_rate_beyond(rates, best), self.space[LEARNING_RATE]
        if beyond is None or not isinstance(dimension, Range):
            return None
        inside = min(max(beyond, float(dimension.low)), float(dimension.high))
        return inside if abs(log(inside / best)) >= log(NEAREST) else None

    def _untried_choice(self, tried: Sequence[Tried], best: Point) -> Point | None:
        """Return the best settings with a value of a list that no trial had; None where all were tried."""
        if len(tried) >= MOST_TRIALS:
            return None
        lists = {key: values for key, values in self.space.items() if not isinstance(values, Range)}
        untried = (
            (key, value)
            for key, values in lists.items()
            for value in values
            if not any(one.settings[key] == value for one in tried)
        )
        found = next(untried, None)
        return None if found is None else Point.of({**best.settings, found[0]: found[1]})

    def _at(self, learning_rate: float) -> Point:
        """Return the recipe's own settings at another learning rate."""
        return Point.of({**self.own.settings, LEARNING_RATE: learning_rate})


def _between(rates: Sequence[float], losses: Sequence[float | None], best: float) -> float | None:
    """Return where the loss is least between the best learning rate's neighbours; None where that was tried.

    Where that is the best itself, it is halfway to the better neighbour.
    """
    place = rates.index(best)
    if not 0 < place < len(rates) - 1:
        return None
    near = slice(place - 1, place + 2)
    places = [log(rate) for rate in rates[near]]
    around = [inf if loss is None else loss for loss in losses[near]]
    least = least_between(places, around)
    if least is not None and abs(least - places[1]) < log(NEAREST):
        least = (places[1] + places[0 if around[0] <= around[2] else 2]) / 2
    if least is None or any(abs(least - log(rate)) < log(NEAREST) for rate in rates):
        return None
    return exp(least)


def round_learning_rate(learning_rate: float) -> float:
    return float(f"{learning_rate:.3g}")
