"""The first points of a search, before anything is drawn: what people would try, in their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peftlab.comparison.points import LEARNING_RATE, Point
from peftlab.comparison.variants import learning_rate_beyond
from peftlab.recipe.comparison import DEFAULT_RATE_EXTENSIONS
from peftlab.recipe.space import Dimension, Range, has_point

# What the recipe's learning rate is multiplied by, before anything else is changed.
FACTORS = (3.0, 0.3)
MOST_TRIALS = 8


@dataclass(frozen=True)
class Beginning:
    """How a search of `space` begins, where the recipe's own settings are `own`.

    These come first. The learning rate decides most: others of it alone follow, also beyond the best at an end, as
    without a search. Then each value of each list is tried once, with the best settings so far.
    """

    own: Point
    space: Mapping[str, Dimension]

    @property
    def has_own(self) -> bool:
        """Whether the recipe's own settings are in the space; otherwise there is no beginning."""
        return has_point(self.space, self.own.settings)

    @property
    def learning_rates(self) -> list[float]:
        """The learning rates to begin with: the recipe's own, and multiples of it that are in the space."""
        dimension = self.space.get(LEARNING_RATE)
        if not isinstance(dimension, Range) or not self.has_own:
            return []
        own = self.own.settings[LEARNING_RATE]
        return [own, *filter(dimension.contains, (round_learning_rate(own * factor) for factor in FACTORS))]

    def next(self, tried: Sequence[Mapping[str, Any]], best: Point) -> Point | None:
        """Return what is tried after the settings of `tried`, of which `best` were the best; None after all."""
        if not self.has_own:
            return None
        if not tried:
            return self.own
        following = self._next_learning_rate(tried, best)
        return self._at(following) if following is not None else self._untried_choice(tried, best)

    def _next_learning_rate(self, tried: Sequence[Mapping[str, Any]], best: Point) -> float | None:
        """Return the learning rate to try next with the recipe's own settings; None where enough were tried."""
        first, number = self.learning_rates, len(tried)
        if number < len(first):
            return first[number]
        alone = first and all(Point.of(point) == self._at(point[LEARNING_RATE]) for point in tried)
        if not alone or number >= len(first) + DEFAULT_RATE_EXTENSIONS:
            return None
        beyond = learning_rate_beyond(sorted(point[LEARNING_RATE] for point in tried), best.settings[LEARNING_RATE])
        rounded = None if beyond is None else round_learning_rate(beyond)
        return rounded if rounded is not None and has_point(self.space, self._at(rounded).settings) else None

    def _untried_choice(self, tried: Sequence[Mapping[str, Any]], best: Point) -> Point | None:
        """Return the best settings with a value of a list that no trial had; None where all were tried."""
        if len(tried) >= MOST_TRIALS:
            return None
        lists = {key: values for key, values in self.space.items() if not isinstance(values, Range)}
        untried = (
            (key, value)
            for key, values in lists.items()
            for value in values
            if not any(point[key] == value for point in tried)
        )
        found = next(untried, None)
        return None if found is None else Point.of({**best.settings, found[0]: found[1]})

    def _at(self, learning_rate: float) -> Point:
        """Return the recipe's own settings at another learning rate."""
        return Point.of({**self.own.settings, LEARNING_RATE: learning_rate})


def round_learning_rate(learning_rate: float) -> float:
    return float(f"{learning_rate:.3g}")
