"""Recipes to solve for, which need no files where the model's shape is given."""

from __future__ import annotations

from typing import Any

from peftlab.recipe.schema import Recipe

FORMATS = {"causal-lm": "completion", "sequence-classification": "classification"}


def recipe_for(method: dict[str, Any], task: str = "causal-lm", name: str = "-", **training: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"name": name, "task": task},
            "method": method,
            "data": {"train": "-", "max_length": 64, "format": FORMATS[task]},
            "training": {"steps": 4, "learning_rate": 1e-4, "batch_size": 2, **training},
            "run": {"device": "cpu"},
        }
    )
