"""A recipe's model: its sizes, its base with weights, its method applied, its base with trained weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from peftlab.data.splits import load_examples
from peftlab.errors import MethodError
from peftlab.methods import Method
from peftlab.models.build import build_meta, describe_part
from peftlab.models.load import LoadedModel, load_model
from peftlab.parameters.divided import move_
from peftlab.parameters.report import parameter_report
from peftlab.parameters.shape import shape_of
from peftlab.recipe.schema import Recipe
from peftlab.reports import ParameterReport
from peftlab.shapes import ModelShape


def read_labels(recipe: Recipe) -> list[str] | None:
    """Return the classes among the recipe's rows, for which a classifier's head is built; None for other tasks.

    None too for a recipe without data (`-`): its head is as large as the model's config says.
    """
    if not recipe.task.has_labels or recipe.data.train == "-":
        return None
    return load_examples(recipe.data, recipe.task, recipe.data_seed).labels


def read_shape(recipe: Recipe, labels: list[str] | None) -> ModelShape:
    """Return the sizes of the recipe's model, built without weights."""
    model, fresh = build_meta(recipe.model, labels)
    return shape_of(model, fresh, recipe.model.task)


def check_method(method: Method, shape: ModelShape) -> None:
    """Raise MethodError with everything that the method cannot do on a model of this shape, a line each."""
    if problems := method.check(shape):
        raise MethodError("\n".join(f"method.{field}: {message}" for field, message in problems))


def apply_method(
    method: Method, model: nn.Module, task: str, fresh: frozenset[str] = frozenset()
) -> tuple[nn.Module, ParameterReport]:
    """Return `model` with the method, and what trains; the count must equal the method's own formula.

    `fresh` are the names of parameters that no checkpoint filled.
    """
    shape = shape_of(model, fresh, task)
    expected, notes = method.count_trainable(shape), [*describe_part(model), *method.notes(shape)]
    model = method.apply(model, fresh)
    report = parameter_report(model, stored=method.stores)
    if report.trainable != expected:
        raise AssertionError(f"{report.trainable:,} parameters train, but the method's formula says {expected:,}")
    return model, report.model_copy(update={"notes": notes})


def load_base(
    recipe: Recipe,
    device: torch.device,
    labels: Sequence[str] | None = None,
    seen: Callable[[nn.Module], None] = lambda model: None,
    mesh: DeviceMesh | None = None,
) -> LoadedModel:
    """Return the base on `device`, stored as the recipe's method needs it.

    Random weights, and those that no checkpoint fills, are drawn with the recipe's seed: they are the same in every
    command. `labels`, `seen` and `mesh` are those of `load_model`. What reads the base's weights when it is added
    needs a whole one, whatever the mesh.
    """
    torch.manual_seed(recipe.run.seed)
    return load_model(
        recipe.model,
        precision=recipe.training.precision,
        device=device,
        labels=labels,
        seen=seen,
        mesh=None if recipe.needs_whole_base else mesh,
        **recipe.method.base_storage,
    )


def load_trained(recipe: Recipe, weights: Path, device: torch.device, labels: Sequence[str] | None = None) -> nn.Module:
    """Return a freshly loaded base on `device` with the trained weights that a run saved in the folder `weights`."""
    return fill_trained(recipe, load_base(recipe, device, labels), weights, device)


def fill_trained(recipe: Recipe, base: LoadedModel, weights: Path, device: torch.device) -> nn.Module:
    """Return `base` itself with a run's trained weights. Raises StorageError if they are of another base or method."""
    model = recipe.method.load(base.model, weights, {"base_model": base.source})
    move_(model, device)
    return model
