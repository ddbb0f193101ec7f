"""The largest size of a method whose planned memory stays within a budget."""

from __future__ import annotations

from functools import cache

from peftlab.budgets.size import describe_followers, settings_for, usable_sizes
from peftlab.memory.fit import largest_fitting, with_settings
from peftlab.quantities import format_bytes
from peftlab.recipe.budget import Budget
from peftlab.recipe.schema import Recipe
from peftlab.reports import BudgetReport, MemoryReport
from peftlab.runs.planner import open_planner
from peftlab.shapes import ModelShape
from peftlab.sizes import parse_budget

ROWS = "planned with every row as long as data.max_length"


def solve_memory(recipe: Recipe, budget: Budget, shape: ModelShape) -> BudgetReport:
    """Return the largest size that fits. A memory budget is a limit: any size that stays below it meets it.

    Plans a few sizes, about a second each.
    """
    method, limit = recipe.method, parse_budget(budget.value)
    sizes = usable_sizes(method, shape)
    planner = open_planner(recipe, "auto", limit)
    most = len(sizes.values)

    @cache
    def trial(count: int) -> MemoryReport:
        return planner(with_settings(recipe, settings_for(method, sizes, sizes.values[count - 1])))

    count, report = 1, trial(1)
    if report.fits:
        count, report = largest_fitting(trial, report, limit.bytes, most)
    solved = settings_for(method, sizes, sizes.values[count - 1])
    size, reason = f"method.{sizes.field}={sizes.values[count - 1]}", None
    if not report.fits:
        reason = f"even {size} needs {format_bytes(report.needed_bytes)}"
    elif count == most:
        reason = f"{size} is the largest size and needs only {format_bytes(report.needed_bytes)}"
    return BudgetReport(
        kind="memory",
        asked=limit.bytes,
        reached=report.needed_bytes,
        solved=solved,
        step=trial(count + 1).needed_bytes - report.needed_bytes if report.fits and count < most else None,
        met=bool(report.fits),
        reason=reason,
        notes=[ROWS, *report.notes, *describe_followers(sizes, solved)],
    )
