"""What a recipe would train, counted on the meta device: no weights, no training."""

from __future__ import annotations

from peftlab.models.build import build_meta
from peftlab.parameters.shape import shape_of
from peftlab.recipe.schema import Recipe
from peftlab.reports import ParameterReport
from peftlab.runs.loading import apply_method, check_method, read_labels
from peftlab.world.quiet import quiet_libraries


def count(recipe: Recipe) -> ParameterReport:
    """Return the report of the recipe's model with its method applied, from the model's config alone.

    Only a classifier needs the data too: its head has as many outputs as there are labels. Raises MethodError
    for what the method cannot do on this model.
    """
    quiet_libraries()
    model, fresh = build_meta(recipe.model, read_labels(recipe))
    check_method(recipe.method, shape_of(model, fresh, recipe.task.name))
    return apply_method(recipe.method, model, recipe.task.name, fresh)[1]
