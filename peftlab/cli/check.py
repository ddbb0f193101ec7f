"""`peftlab check` and `peftlab schema`: the commands that need only the recipe, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftlab.cli.answer import answers, problem_json
from peftlab.cli.options import AsJson, Debug, RecipePaths, split_overrides
from peftlab.errors import Problem, RecipeError, UsageError
from peftlab.secrets import mask_secrets


@answers
def check(recipes: RecipePaths, as_json: AsJson = False, debug: Debug = False) -> Any:
    """Check recipes and comparisons, and the columns of data files at hand. Problems have file, line and key."""
    paths, overrides = split_overrides(recipes)
    if not paths:
        raise UsageError("name at least one recipe file to check")
    found = {path: find_problems(path, overrides) for path in paths}
    good = not any(found.values())
    answer = {
        "ok": good,
        "recipes": [
            {"path": str(path), "ok": not problems, "problems": [problem_json(problem) for problem in problems]}
            for path, problems in found.items()
        ],
    }
    return answer, lambda: show_problems(found), 0 if good else RecipeError.exit_code


def find_problems(path: Path, overrides: Sequence[str]) -> list[Problem]:
    from peftlab.recipe.load import check_files, is_comparison, load_recipe

    try:
        if is_comparison(path):
            from peftlab.recipe.comparison import load_comparison

            load_comparison(path, overrides)
        else:
            load_recipe(path, overrides)
            return check_files(path, overrides)
    except RecipeError as error:
        return error.problems
    return []


def show_problems(found: dict[Path, list[Problem]]) -> None:
    for path, problems in found.items():
        print("\n".join(mask_secrets(str(problem)) for problem in problems) if problems else f"ok  {path}")


@answers
def schema(debug: Debug = False) -> Any:
    """Print the JSON Schema of recipes, for editors."""
    from peftlab.cli.answer import print_json
    from peftlab.recipe.json_schema import editor_schema

    answer = editor_schema()
    return answer, lambda: print_json(answer), 0
