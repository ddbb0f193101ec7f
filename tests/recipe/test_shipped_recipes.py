"""The recipes that ship are right, complete and about what their folder says."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftlab.methods import METHODS
from peftlab.recipe import load_recipe
from peftlab.recipe.comparison import load_comparison

FOLDER = Path(__file__).parents[2] / "recipes"
COMPARISONS = sorted((FOLDER / "comparisons").glob("*.yaml"))
RECIPES = sorted(set(FOLDER.glob("*/*.yaml")) - set(COMPARISONS))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_shipped_recipe_has_no_problem(path):
    assert path.stem.startswith(load_recipe(path).method.type)


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.stem)
def test_a_shipped_comparison_compares_on_test_rows_that_choose_nothing(path):
    comparison, candidates = load_comparison(path)
    assert len(candidates) >= 5 and comparison.seeds >= 3 and (comparison.budgets or comparison.search)
    for recipe in (candidate.recipe for candidate in candidates):
        assert recipe.data.test is not None and recipe.data.evaluation is not None


def test_the_tiny_model_has_a_recipe_for_every_method():
    assert {path.stem for path in (FOLDER / "tiny").glob("*.yaml")} == set(METHODS)


def test_recipes_for_one_model_differ_in_nothing_but_the_method_and_its_rate():
    for folder in ("tiny", "minilm"):
        rest = {
            load_recipe(path).model_dump_json(exclude={"method", "training"})
            for path in (FOLDER / folder).glob("*.yaml")
        }
        assert len(rest) == 1
