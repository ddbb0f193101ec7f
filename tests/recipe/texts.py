"""A small valid recipe, and the problems of a changed one."""

from __future__ import annotations

from peftlab.errors import Problem, RecipeError
from peftlab.recipe import parse_recipe

VALID = """\
model:
  name: builtin:tiny
method:
  type: lora
  rank: 8
data:
  train: builtin:docstrings[train]
  evaluation: builtin:docstrings[test]
training:
  steps: 10
  learning_rate: 1e-4
"""


def problems_of(text: str, overrides: tuple[str, ...] = ()) -> list[Problem]:
    """Return the problems that a recipe text is refused for; none if it is accepted."""
    try:
        parse_recipe(text, overrides, file="r.yaml")
    except RecipeError as error:
        return error.problems
    return []


def only_problem(text: str, overrides: tuple[str, ...] = ()) -> str:
    """Return the line of the single problem of a recipe text."""
    (problem,) = problems_of(text, overrides)
    return str(problem)


def changed(old: str, new: str) -> str:
    """Return the valid recipe with one piece of its text replaced."""
    assert VALID.count(old) == 1
    return VALID.replace(old, new)
