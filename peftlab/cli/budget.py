"""`peftlab budget`: a recipe resized to fit a budget."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from peftlab.cli.answer import answers, error_places
from peftlab.cli.options import AsJson, Debug, RecipePath
from peftlab.errors import UsageError

Arguments = Annotated[
    list[str],
    typer.Argument(
        metavar="BUDGET [KEY=VALUE]",
        help="trainable=300k (or 0.5%), memory=8GiB, stored=2MB, seconds=600, operations=3P, or several with commas; "
        "and overrides of the recipe.",
        show_default=False,
    ),
]


@answers
def budget(recipe: RecipePath, arguments: Arguments, as_json: AsJson = False, debug: Debug = False) -> Any:
    """Print the recipe resized to fit a budget. What it reaches is printed on standard error."""
    from peftlab.recipe.budget import parse_budget
    from peftlab.recipe.load import load_recipe

    wanted, overrides = split_budget(arguments)
    parsed = parse_budget(wanted)
    loaded = load_recipe(recipe, overrides)
    from peftlab.budgets.solve import apply_budget
    from peftlab.recipe.dump import dump_recipe

    with error_places(recipe, overrides):
        solved, report = apply_budget(loaded, parsed)
    answer = {"budget": report.model_dump(), "recipe": solved.model_dump(mode="json")}
    return answer, lambda: show_solved(dump_recipe(solved), report), 0


def split_budget(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Return the budget and the overrides among the arguments; overrides begin with a section of the recipe."""
    from peftlab.recipe.schema import Recipe

    def is_override(text: str) -> bool:
        return text.partition("=")[0].partition(".")[0].strip() in Recipe.model_fields

    budgets = [text for text in arguments if not is_override(text)]
    if len(budgets) != 1:
        found = f"{len(budgets)} budgets ({', '.join(budgets)})" if budgets else "no budget"
        raise UsageError(f"{found} given; give exactly one, such as trainable=300k")
    return budgets[0], [text for text in arguments if text not in budgets]


def show_solved(text: str, report: Any) -> None:
    from peftlab.cli.render_budget import describe_budget

    print(text, end="", flush=True)
    print("\n".join(describe_budget(report)), file=sys.stderr)
