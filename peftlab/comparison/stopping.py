"""Which trials of a search are stopped early: when they are compared, and by which rule of optuna."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

from peftlab.comparison.points import Point
from peftlab.recipe.schema import Recipe
from peftlab.recipe.space import Dimension, value_at

if TYPE_CHECKING:
    import optuna

# Trials are compared after a third and after two thirds of their steps: the better half continues each time. Earlier, a
# trial with a long warm-up is behind that ends ahead.
PARTS, REDUCTION = 3, 2
# Trials that differ in these have other rows at the same step.
BATCHES = {"training.batch_size", "training.gradient_accumulation"}
# What these evaluations may take of a trial. A forward pass takes a third of a row's step.
EVALUATION_SHARE, FORWARD = 0.2, 1 / 3


@dataclass(frozen=True)
class Stopping:
    """Compares trials after equal parts of each. `wanted` is the rule of a search, `own` the recipe's own settings."""

    wanted: str
    recipe: Recipe
    space: Mapping[str, Dimension]
    own: Point

    @property
    def is_on(self) -> bool:
        return self.rule != "none"

    @property
    def rule(self) -> str:
        """The rule that is applied; `none` where none can be."""
        return "none" if self.why_not() else self.wanted

    def why_not(self) -> str | None:
        """Return why nothing is stopped although it is wanted; None if it is, or is not wanted."""
        if self.wanted == "none":
            return None
        if self._share > EVALUATION_SHARE:
            return f"the evaluations for it would take {self._share:.0%} of a trial"
        if self.every(self.own) is None:
            return "set training.steps, or training.epochs and data.train_rows"
        return None

    def every(self, point: Point) -> int | None:
        """Return the steps between two comparisons in a point's trial.

        Where its steps are not known, as many as the recipe evaluates after; None where trials then have other batches.
        """
        if (steps := self._steps(point)) is not None:
            return ceil(steps / PARTS)
        return None if BATCHES & self.space.keys() else self.recipe.evaluation.every

    def part_at(self, step: int, point: Point) -> int | None:
        """Return after how many parts of a point's trial a step is, where it is compared; None elsewhere."""
        every = self.every(point)
        if every is None or step == 0 or step % every or step == self._steps(point):
            return None
        return step // every

    def build_pruner(self) -> optuna.pruners.BasePruner:
        """Return optuna's rule, whose steps are parts of a trial."""
        import optuna

        if not self.is_on:
            return optuna.pruners.NopPruner()
        if self.rule == "hyperband" and self._steps(self.own) is not None:
            return optuna.pruners.HyperbandPruner(1, max_resource=PARTS, reduction_factor=REDUCTION)
        return optuna.pruners.SuccessiveHalvingPruner(1, reduction_factor=REDUCTION)

    def _value(self, point: Point, key: str) -> Any:
        """Return the value of a recipe's key in the trial of a point."""
        return point.settings.get(key, value_at(self.recipe, key))

    def _rows_per_step(self, point: Point) -> int:
        return self._value(point, "training.batch_size") * self._value(point, "training.gradient_accumulation")

    def _steps(self, point: Point) -> int | None:
        """Return the steps of a point's trial; None where a recipe in epochs does not say how many rows it reads."""
        steps, epochs = self._value(point, "training.steps"), self._value(point, "training.epochs")
        rows = self._value(point, "data.train_rows")
        return steps if steps is not None or rows is None else ceil(epochs * rows / self._rows_per_step(point))

    @property
    def _share(self) -> float:
        """What comparisons cost as a share of a trial's training; 0 where the number of rows is not known before."""
        data, steps = self.recipe.data, self._steps(self.own)
        rows = data.evaluation if isinstance(data.evaluation, int) else data.evaluation_rows
        if rows is None or steps is None:
            return 0.0
        return (PARTS - 1) * rows * FORWARD / (steps * self._rows_per_step(self.own))
