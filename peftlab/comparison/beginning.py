"""The first points of a search, before anything is drawn: what people would try, in their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, inf, log
from typing import Any

from peftlab.comparison.parabola import least_between
from peftlab.comparison.points import Point
from peftlab.recipe.comparison import LEARNING_RATE
from peftlab.recipe.space import Dimension, Range, has_point

# What the best learning rate is multiplied by where it is at an end, and how often at most.
HIGHER, LOWER, MOST_BEYOND = 3.0, 0.3, 4
# A learning rate within this factor of one that was tried tells nothing new.
NEAREST = 1.15
MOST_TRIALS = 8
SCHEDULE = "training.schedule"
# The mean of each schedule, as a part of its peak, without a warm-up.
MEANS = {"constant": 1.0, "linear": 0.5, "cosine": 0.5}


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
    follow, each beyond the best, until that has neighbours on both sides. Then each value of each list is tried once
    with the best settings so far (another schedule with the same mean learning rate), and at last learning rates
    between the best and its neighbours.
    """

    own: Point
    space: Mapping[str, Dimension]
    suggested: float | None = None

    @property
    def has_own(self) -> bool:
        """Whether the recipe's own settings are in the space; otherwise there is no beginning."""
        return has_point(self.space, self.own.settings)

    @property
    def learning_rates(self) -> Range | None:
        """The learning rates of which it tries some; None where it tries none."""
        found = self.space.get(LEARNING_RATE)
        return found if self.has_own and isinstance(found, Range) else None

    def next(self, tried: Sequence[Tried], best: Point) -> Point | None:
        """Return what is tried after `tried`, of which `best` was the best; None after all."""
        if not self.has_own or not tried:
            return self.own if self.has_own else None
        if len(tried) >= MOST_TRIALS:
            return None
        return self._wider(tried, best) or self._untried_choice(tried, best) or self._nearer(tried, best)

    def _wider(self, tried: Sequence[Tried], best: Point) -> Point | None:
        """Return the recipe's own settings at the next learning rate; None where the best is between two others."""
        if (space := self.learning_rates) is None:
            return None
        losses = _losses_beside(self.own, tried)
        if self.suggested and self.suggested not in losses and space.contains(self.suggested):
            return self._at_learning_rate(self.own, self.suggested)
        if len(losses) < len(tried) or len(losses) > MOST_BEYOND + (self.suggested in losses):
            return None
        learned = any(loss is not None for loss in losses.values())
        beyond = _beyond(space, sorted(losses), best.settings[LEARNING_RATE], learned)
        return None if beyond is None else self._at_learning_rate(self.own, beyond)

    def _untried_choice(self, tried: Sequence[Tried], best: Point) -> Point | None:
        """Return the best settings with a value of a list that no trial had; None where all were tried."""
        lists = {key: values for key, values in self.space.items() if not isinstance(values, Range)}
        for key, values in lists.items():
            for value in values:
                if not any(one.settings[key] == value for one in tried):
                    changed = Point.of({**best.settings, key: value})
                    return self._with_mean(changed, best) if key == SCHEDULE else changed
        return None

    def _with_mean(self, point: Point, of: Point) -> Point:
        """Return a point of another schedule with the mean learning rate of `of`, where the space has that."""
        if (space := self.learning_rates) is None:
            return point
        wanted = of.settings[LEARNING_RATE] * MEANS[of.settings[SCHEDULE]] / MEANS[point.settings[SCHEDULE]]
        return self._at_learning_rate(point, wanted) if space.contains(wanted) else point

    def _nearer(self, tried: Sequence[Tried], best: Point) -> Point | None:
        """Return the best settings at a learning rate between the best and its neighbours; None after enough."""
        if self.learning_rates is None:
            return None
        losses = _losses_beside(best, tried)
        rates = sorted(losses)
        between = _between(rates, [losses[rate] for rate in rates], best.settings[LEARNING_RATE])
        return None if between is None else self._at_learning_rate(best, between)

    @staticmethod
    def _at_learning_rate(point: Point, learning_rate: float) -> Point:
        return Point.of({**point.settings, LEARNING_RATE: round_learning_rate(learning_rate)})


def _losses_beside(point: Point, tried: Sequence[Tried]) -> dict[float, float | None]:
    """Return the losses by learning rate of what was tried with a point's other settings."""
    others = {**point.settings, LEARNING_RATE: 0}
    return {one.settings[LEARNING_RATE]: one.loss for one in tried if {**one.settings, LEARNING_RATE: 0} == others}


def _beyond(space: Range, rates: Sequence[float], best: float, learned: bool) -> float | None:
    """Return a learning rate beyond the best of `rates`, above rather than below; None where it is not at an end.

    Where no learning rate has `learned` anything, it is below them all.
    """
    if not learned:
        return _moved(space, rates[0], LOWER)
    above = _moved(space, best, HIGHER) if best == rates[-1] else None
    return above or (_moved(space, best, LOWER) if best == rates[0] else None)


def _moved(space: Range, rate: float, factor: float) -> float | None:
    """Return a learning rate times a factor, at most the end of the space; None where that is too near the first."""
    moved = min(max(rate * factor, float(space.low)), float(space.high))
    return moved if abs(log(moved / rate)) >= log(NEAREST) else None


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
