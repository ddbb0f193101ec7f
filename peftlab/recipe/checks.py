"""Every check of settings that contradict one another, and what they find in a recipe."""

from __future__ import annotations

from collections.abc import Sequence

from peftlab.recipe.check import Check
from peftlab.recipe.data_checks import DATA_CHECKS
from peftlab.recipe.evaluation_checks import EVALUATION_CHECKS
from peftlab.recipe.schema import Recipe
from peftlab.recipe.training_checks import TRAINING_CHECKS
from peftlab.recipe.yaml_source import KeyPath

CHECKS: tuple[Check, ...] = (*TRAINING_CHECKS, *DATA_CHECKS, *EVALUATION_CHECKS)


def find_contradictions(recipe: Recipe, wrong: Sequence[KeyPath]) -> list[tuple[KeyPath, str]]:
    """Return (key path, message) of every contradiction between fields that are right by themselves.

    A check that reads a field which is wrong already is left out.
    """
    return [
        (tuple(path.split(".")), message)
        for check in CHECKS
        if not any(check.reads_any(path) for path in wrong)
        for path, message in check.find(recipe)
    ]
