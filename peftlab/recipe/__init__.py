"""Recipes: the schema, loading with the file and line of every error, overrides, and writing."""

from __future__ import annotations

from peftlab.recipe.dump import dump_recipe
from peftlab.recipe.load import load_recipe, parse_recipe, recipe_name
from peftlab.recipe.schema import Recipe

__all__ = ["Recipe", "dump_recipe", "load_recipe", "parse_recipe", "recipe_name"]
