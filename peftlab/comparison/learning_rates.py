"""The choice of learning rates without a search: all are tried, and beyond the best if that is at an end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from peftlab.comparison.jobs import SETTLED, Jobs, show
from peftlab.comparison.points import Point
from peftlab.comparison.variants import best_of, learning_rate_beyond, round_learning_rates, spare_trial
from peftlab.metrics import METRICS
from peftlab.recipe.comparison import LEARNING_RATE, Variant
from peftlab.runs.jobs import Job
from peftlab.runs.outcomes import read_record


@dataclass
class LearningRates:
    """The learning rates of `variants`, tried with `seed`. Those that are extended are replaced in the list.

    `chosen` gets the best of each variant, by its place.
    """

    jobs: Jobs
    variants: list[Variant]
    chosen: dict[int, Point]
    seed: int

    def choose(self, extensions: int, ended: Callable[[], object]) -> None:
        """Try all, and up to `extensions` times another where the best is at an end; call `ended` after each run."""
        runnable = {place: one for place, one in enumerate(self.variants) if one.error is None}
        several = [place for place, one in runnable.items() if len(one.learning_rates) > 1]
        self.chosen |= {
            place: Point.at_learning_rate(one.learning_rates[0])
            for place, one in runnable.items()
            if len(one.learning_rates) == 1
        }
        tries = [self._plan(place, rate) for place in several for rate in self.variants[place].learning_rates]
        while tries:
            self.jobs.execute(tries, ended)
            self.chosen |= {place: Point.at_learning_rate(self._best(place)) for place in several}
            extensions -= 1
            beyond = self._extend(several) if extensions >= 0 else ()
            tries = [self._plan(place, rate) for place, rate in beyond]
            if tries:
                show(f"{len(tries)} of {len(runnable)} variants did best at an end of their learning rates: extended")

    def _extend(self, places: Iterable[int]) -> Iterator[tuple[int, float]]:
        """Give each variant whose best learning rate is at an end another beyond it, and yield place and addition."""
        for place in places:
            point, tried = self.chosen[place], self.variants[place].learning_rates
            beyond = learning_rate_beyond(tried, point.settings[LEARNING_RATE])
            if beyond and self.jobs.status(self.jobs.planned[place, point, self.seed])[0] in SETTLED:
                extended = round_learning_rates((*tried, beyond))
                self.variants[place] = replace(self.variants[place], learning_rates=extended)
                yield place, next(rate for rate in extended if rate not in tried)

    def _plan(self, place: int, learning_rate: float) -> Job:
        """Return the job that tries a learning rate; one of before that measured the test rows too serves as well."""
        point, variant = Point.at_learning_rate(learning_rate), self.variants[place]
        former = self.jobs.plan(place, variant, point, self.seed)
        if former.folder.exists():
            return former
        return self.jobs.plan(place, variant, point, self.seed, spare_trial(variant.recipe))

    def _best(self, place: int) -> float:
        """Return the one of the best value on the validation rows."""
        values = {
            rate: self.jobs.value(
                read_record(self.jobs.planned[place, Point.at_learning_rate(rate), self.seed].folder), "validation"
            )
            for rate in self.variants[place].learning_rates
        }
        return best_of(values, METRICS[self.jobs.metric].higher_is_better)
