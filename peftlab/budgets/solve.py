"""A recipe under a budget: the fields to set, and the recipe with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from peftlab.budgets.budget import Budget
from peftlab.budgets.memory import solve_memory
from peftlab.budgets.operations import solve_operations
from peftlab.budgets.seconds import solve_seconds
from peftlab.budgets.size import solve_size
from peftlab.errors import Problem, RecipeError
from peftlab.memory.fit import with_settings
from peftlab.methods.base import Sizes
from peftlab.recipe.checks import find_contradictions
from peftlab.recipe.schema import Recipe
from peftlab.reports import BudgetReport
from peftlab.runs.loading import read_labels, read_shape
from peftlab.shapes import ModelShape
from peftlab.world.quiet import quiet_libraries

# Kinds of budget that are met by the number of training steps; the others by the method's size.
OF_STEPS = ("seconds", "operations")


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
    if budget.others:
        return solve_all(recipe, budget, shape, environment)
    if budget.kind == "seconds":
        return solve_seconds(recipe, budget, environment or {})
    shape = shape or read_shape(recipe, read_labels(recipe))
    if budget.kind == "operations":
        return solve_operations(recipe, budget, shape)
    if budget.kind == "memory":
        return solve_memory(recipe, budget, shape)
    return solve_size(recipe, budget, shape)


def solve_all(
    recipe: Recipe, budget: Budget, shape: ModelShape | None, environment: Mapping[str, str] | None
) -> BudgetReport:
    """Return what stays within all of several budgets: the smallest of the sizes, the fewest of the steps.

    The report is of the budget that bounds the size, or else the steps; the others are in its notes.
    """
    shape = shape or read_shape(recipe, read_labels(recipe))
    singles = [replace(budget, others=()), *budget.others]
    of_size = [solve(recipe, one, shape) for one in singles if one.kind not in OF_STEPS]
    smallest = min(of_size, key=partial(place_of, recipe.method.sizes(shape)), default=None)
    resized = with_settings(recipe, smallest.solved if smallest else {})
    of_steps = [solve(resized, one, shape, environment) for one in singles if one.kind in OF_STEPS]
    shortest = min(of_steps, key=lambda report: report.solved["training.steps"], default=None)
    bounding = [report for report in (smallest, shortest) if report]
    others = [describe_other(report) for report in (*of_size, *of_steps) if report is not bounding[0]]
    return bounding[0].model_copy(
        update={
            "solved": {field: value for report in bounding for field, value in report.solved.items()},
            "met": all(report.met for report in bounding),
            "reason": "; ".join(report.reason for report in bounding if report.reason) or None,
            "notes": [*bounding[0].notes, *others],
        }
    )


def place_of(sizes: Sizes, report: BudgetReport) -> int:
    """Return the place of a solved size among the method's sizes, which ascend."""
    return sizes.values.index(report.solved[f"method.{sizes.field}"])


def describe_other(report: BudgetReport) -> str:
    field, value = next(iter(report.solved.items()))
    return f"{report.kind} of {report.asked:,.6g} alone would give {field}={value}"
