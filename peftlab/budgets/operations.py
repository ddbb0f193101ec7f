"""How many steps a training takes for a number of floating-point operations, by the method's own count."""

from __future__ import annotations

from collections.abc import Iterator

from peftlab.budgets.search import nearest_size, possible_steps
from peftlab.budgets.size import TOLERANCE
from peftlab.errors import UsageError
from peftlab.quantities import format_count
from peftlab.recipe.budget import Budget
from peftlab.recipe.schema import Recipe
from peftlab.reports import BudgetReport
from peftlab.runs.data_report import report_data
from peftlab.runs.plan import operations_per_token
from peftlab.shapes import ModelShape


def solve_operations(recipe: Recipe, budget: Budget, shape: ModelShape) -> BudgetReport:
    """Return the most steps whose forward and backward passes take no more operations.

    A step has as many tokens as the recipe's own rows, padding not counted; evaluations are not counted either.
    """
    one = operations_per_step(recipe, shape)
    enough = possible_steps(budget.amount / one, budget.text)
    choice = nearest_size(enough, lambda steps: steps * one, budget.amount, TOLERANCE)
    steps, reached = choice.size, choice.cost
    exact = abs(reached / budget.amount - 1) <= TOLERANCE
    return BudgetReport(
        kind="operations",
        asked=budget.amount,
        reached=reached,
        solved={"training.steps": steps, "training.epochs": None},
        step=one,
        met=exact or reached <= budget.amount,
        reason=None if exact else f"one step takes {format_count(one)} operations",
        notes=["forward and backward passes of training; evaluations, padding and checkpointing are not counted"],
    )


def operations_per_step(recipe: Recipe, shape: ModelShape) -> float:
    """Return the floating-point operations of one step, of the mean tokens and targets of the recipe's steps.

    The head is computed at targets alone. Raises UsageError for data without rows to train on.
    """
    steps = report_data(recipe, count=0).steps
    if steps is None:
        raise UsageError("operations: the recipe has no rows to train on; see `peftlab data`")
    length = round(steps.tokens / max(steps.rows, 1))
    body = operations_per_token(recipe.method, shape, length) - sum(_heads(recipe, shape, tied=False))
    return steps.tokens * body + steps.supervised * sum(_heads(recipe, shape))


def _heads(recipe: Recipe, shape: ModelShape, tied: bool = True) -> Iterator[int]:
    """Yield the operations of each head at one target: forward, to its input, and where it trains to its weight.

    One that is `tied` to the embedding has no weight of its own, and is not in the operations of a token.
    """
    trained = {site.name for site in recipe.method.trainable_sites(shape)}
    own = {site.name for site in shape.parameters}
    tables = {site.name for site in shape.parameters if site.kind == "embedding" and site.shape[0] == shape.vocabulary}
    for head in (linear for linear in shape.linears if linear.role == "head"):
        weight = f"{head.name}.weight"
        if weight in own or tied:
            trains = bool(trained & (tables if weight not in own else {weight}))
            yield head.n_in * head.n_out * (6 if trains else 4)
