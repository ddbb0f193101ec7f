"""The classes that a head knows before training: what its outputs mean already, and so the order of a run's labels."""

from __future__ import annotations

from collections.abc import Sequence

from peftlab.errors import listed
from peftlab.models.config import read_own_classes
from peftlab.models.load import LoadedModel
from peftlab.recipe.schema import Recipe
from peftlab.runs.start import find_start


def known_classes(recipe: Recipe) -> tuple[str, ...]:
    """Return the classes of the weights that a recipe starts from, in the order of their outputs.

    Those of `method.from`, else the base's own; empty where neither names any.
    """
    if not recipe.task.has_labels:
        return ()
    started = find_start(recipe.method.from_).labels if recipe.method.from_ is not None else ()
    return started or read_own_classes(recipe.model)


def note_other_classes(known: Sequence[str], labels: Sequence[str] | None, base: LoadedModel) -> str | None:
    """Return a line where a trained head gets classes of other names; None where it knows them, or is new."""
    same = {one.casefold() for one in known} == {label.casefold() for label in labels or ()}
    if labels is None or len(known) != len(labels) or same or base.fresh:
        return None
    return (
        f"model: its head was trained on the classes {listed(list(known))}, and the rows have {listed(list(labels))}: "
        "its outputs begin with another meaning"
    )
