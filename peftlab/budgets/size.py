"""The size of a method for a budget of trainable parameters or stored bytes, by the method's own formulas."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from peftlab.budgets.search import Choice, nearest_size
from peftlab.methods import Method
from peftlab.methods.base import Sizes
from peftlab.quantities import format_bytes
from peftlab.recipe.budget import Budget
from peftlab.recipe.schema import Recipe
from peftlab.reports import BudgetReport
from peftlab.runs.loading import check_method
from peftlab.runs.planner import planned_device
from peftlab.shapes import ModelShape
from peftlab.world.dtypes import resolve_types

TOLERANCE = 0.02

Cost = Callable[[Any], float]


def solve_size(recipe: Recipe, budget: Budget, shape: ModelShape) -> BudgetReport:
    """Return the size whose trainable parameters or stored bytes are nearest to the budget.

    More than 2 % off, it is the nearest from below. The budget is met within 2 %, or if it is between two neighbouring
    sizes of a graded field; `error` says how far below it.
    """
    # Parts that only training needs are not stored: their size does not count.
    method = recipe.method.without_training_parts() if budget.kind == "stored" else recipe.method
    sizes = usable_sizes(method, shape)
    cost = cost_of(recipe, budget, method, sizes, shape)
    asked = budget.amount * (shape.total if budget.is_share else 1)
    choice = nearest_size(sizes.values, cost, asked, TOLERANCE)
    is_constant = cost(sizes.values[0]) == cost(sizes.values[-1])
    size = getattr(method, sizes.field) if is_constant else choice.size
    solved = settings_for(method, sizes, size)
    exact = abs(choice.cost / asked - 1) <= TOLERANCE
    return BudgetReport(
        kind=budget.kind,
        asked=asked,
        reached=choice.cost,
        solved=solved,
        step=choice.step,
        met=exact or (sizes.graded and choice.beyond is None),
        reason=None if exact else explain(budget, sizes, choice, cost),
        notes=[*describe_count(budget, shape), *describe_followers(sizes, solved)],
    )


def usable_sizes(method: Method, shape: ModelShape) -> Sizes:
    """Return the method's sizes on this model. Raises MethodError if the method cannot be applied in the smallest."""
    sizes = method.sizes(shape)
    check_method(method.resized(sizes.field, sizes.values[0]) if sizes.values else method, shape)
    return sizes


def cost_of(recipe: Recipe, budget: Budget, method: Method, sizes: Sizes, shape: ModelShape) -> Cost:
    """Return a function from a size to its cost in the budget's unit."""
    device = planned_device(recipe, "auto", None)
    frozen_bytes = resolve_types(recipe.model.dtype, recipe.training.precision, device).weights.itemsize

    @cache
    def cost(size: Any) -> float:
        resized = method.resized(sizes.field, size)
        if budget.kind == "stored":
            return resized.count_stored_bytes(shape, frozen_bytes)
        return resized.count_trainable(shape)

    return cost


def settings_for(method: Method, sizes: Sizes, size: Any) -> dict[str, Any]:
    """Return the recipe fields that a size sets: its own, and those that change with it."""
    resized = method.resized(sizes.field, size)
    changed = [name for name in type(method).model_fields if getattr(resized, name) != getattr(method, name)]
    return {f"method.{name}": getattr(resized, name) for name in dict.fromkeys([sizes.field, *changed])}


def explain(budget: Budget, sizes: Sizes, choice: Choice, cost: Cost) -> str:
    """Return why no size of the method is nearer to the budget."""
    smallest, largest = sizes.values[0], sizes.values[-1]
    field = f"method.{sizes.field}"
    if cost(smallest) == cost(largest):
        return f"{field} does not change it: {show(budget, choice.cost)} at every size"
    if not sizes.graded:
        return "the only sizes are " + " and ".join(
            f"{field}={size} ({show(budget, cost(size))})" for size in sizes.values
        )
    if choice.beyond == "smallest":
        return f"{field}={choice.size}, the smallest size, already has {show(budget, choice.cost)}"
    if choice.beyond == "largest":
        return f"{field}={choice.size}, the largest size, has only {show(budget, choice.cost)}"
    return f"one step of {field} changes it by {show(budget, choice.step or 0)}"


def describe_count(budget: Budget, shape: ModelShape) -> list[str]:
    """Return notes on what was counted."""
    notes = []
    if budget.is_share:
        notes.append(f"{budget.value} of the base model's {shape.total:,} parameters")
    if head := sum(site.count for site in shape.parameters if site.name in shape.fresh):
        notes.append(f"the new head always trains and is counted: {head:,} parameters")
    if budget.kind == "stored":
        notes.append("bytes of the tensors, without file headers")
    return notes


def describe_followers(sizes: Sizes, solved: dict[str, Any]) -> list[str]:
    """Return a note on the fields that change with the size to keep the method otherwise the same."""
    followers = [path for path in solved if path != f"method.{sizes.field}"]
    if not followers:
        return []
    return [f"{' and '.join(followers)} changes with method.{sizes.field}, to keep the method otherwise the same"]


def show(budget: Budget, cost: float) -> str:
    return format_bytes(int(cost)) if budget.kind == "stored" else f"{cost:,.0f} parameters"
