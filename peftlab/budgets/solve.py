"""A recipe under a budget: the fields to set, and the recipe with them."""

from __future__ import annotations

from collections.abc import Mapping

from peftlab.budgets.budget import Budget
from peftlab.budgets.memory import solve_memory
from peftlab.budgets.seconds import solve_seconds
from peftlab.budgets.size import solve_size
from peftlab.errors import Problem, RecipeError
from peftlab.memory.fit import with_settings
from peftlab.recipe.checks import find_contradictions
from peftlab.recipe.schema import Recipe
from peftlab.reports import BudgetReport
from peftlab.runs.loading import read_labels, read_shape
from peftlab.shapes import ModelShape
from peftlab.world.quiet import quiet_libraries


def apply_budget(recipe: Recipe, budget: Budget, shape: ModelShape | None = None) -> tuple[Recipe, BudgetReport]:
    """Return the recipe with the size nearest to the budget, and what it reaches.

    Raises MethodError if no size of the method fits this model, RecipeError if a solved field contradicts another.
    """
    report = solve(recipe, budget, shape)
    solved = with_settings(recipe, report.solved)
    if problems := find_contradictions(solved, ()):
        raise RecipeError([Problem(".".join(map(str, path)), message) for path, message in problems])
    return solved, report


def solve(
    recipe: Recipe, budget: Budget, shape: ModelShape | None = None, environment: Mapping[str, str] | None = None
) -> BudgetReport:
    """Return which recipe fields to set for a budget, and what they reach.

    Trainable parameters and stored bytes follow from the model's sizes (`shape`, else read from its config);
    memory is planned; seconds are measured by a short run here, with the variables of `environment` added.
    """
    quiet_libraries()
    if budget.kind == "seconds":
        return solve_seconds(recipe, budget, environment or {})
    shape = shape or read_shape(recipe, read_labels(recipe))
    if budget.kind == "memory":
        return solve_memory(recipe, budget, shape)
    return solve_size(recipe, budget, shape)
