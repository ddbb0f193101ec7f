"""A recipe under a budget: the fields to set, and the recipe with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from peftlab.budgets.memory import solve_memory
from peftlab.budgets.operations import solve_operations
from peftlab.budgets.seconds import solve_seconds
from peftlab.budgets.size import TOLERANCE, solve_size
from peftlab.errors import Problem, RecipeError
from peftlab.memory.fit import with_settings
from peftlab.methods import Method
from peftlab.quantities import format_bytes
from peftlab.recipe.budget import Budget
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

    The report is of the budget that is exceeded most, else of the one that bounds the size, or else the steps; the
    others are in its notes.
    """
    shape = shape or read_shape(recipe, read_labels(recipe))
    bounding: list[BudgetReport] = []
    others: list[BudgetReport] = []
    for group in in_order(recipe, [replace(budget, others=()), *budget.others], shape):
        reports = [solve(recipe, one, shape, environment) for one in group]
        smallest = min(reports, key=partial(place_of, recipe.method, shape))
        recipe = with_settings(recipe, smallest.solved)
        bounding.append(smallest)
        others += [report for report in reports if report is not smallest]
    # A limit that even the smallest size exceeds is not met, whichever budget bounds the size.
    exceeded = [report for report in [*bounding, *others] if report.reached > report.asked * (1 + TOLERANCE)]
    missed = [*bounding, *exceeded]
    shown = max(exceeded, key=lambda report: report.error, default=bounding[0])
    return shown.model_copy(
        update={
            "solved": {field: value for report in bounding for field, value in report.solved.items()},
            "met": all(report.met for report in bounding) and not exceeded,
            "reason": "; ".join(dict.fromkeys(report.reason for report in missed if report.reason)) or None,
            "notes": [*shown.notes, *(describe_other(one) for one in [*bounding, *others] if one is not shown)],
        }
    )


def in_order(recipe: Recipe, budgets: Sequence[Budget], shape: ModelShape) -> Iterator[list[Budget]]:
    """Yield the budgets that are met by one field each, in the order in which the fields are solved.

    What is stored may have a field of its own: a prefix's length, where the projection that trains it is not stored.
    """
    stored = recipe.method.without_training_parts()
    own = stored.sizes(shape).field != recipe.method.sizes(shape).field
    groups = (
        [one for one in budgets if own and one.kind == "stored"],
        [one for one in budgets if one.kind not in OF_STEPS and not (own and one.kind == "stored")],
        [one for one in budgets if one.kind in OF_STEPS],
    )
    yield from (group for group in groups if group)


def place_of(method: Method, shape: ModelShape, report: BudgetReport) -> int:
    """Return the place of what was solved among the method's sizes, which ascend, or among numbers of steps."""
    field, value = next(iter(report.solved.items()))
    sizes = method.sizes(shape)
    return sizes.values.index(value) if field == f"method.{sizes.field}" else value


def describe_other(report: BudgetReport) -> str:
    field, value = next(iter(report.solved.items()))
    amount = f"{report.asked:,.0f}" if report.asked >= 1000 else f"{report.asked:.6g}"
    asked = format_bytes(int(report.asked)) if report.kind in ("memory", "stored") else amount
    return f"{report.kind} of {asked} alone would give {field}={value}"
