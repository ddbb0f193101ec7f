"""`peftlab plan`: what a recipe will take and whether it fits, or all methods on one model side by side."""

from __future__ import annotations

import torch

from peftlab.errors import MethodError
from peftlab.memory.blueprint import Blueprint, Blueprints
from peftlab.memory.fit import maximize, remedies
from peftlab.memory.predict import predict
from peftlab.memory.strategies import Strategy, find_strategy
from peftlab.methods import METHODS, Method
from peftlab.optimization.dropout import disable_dropout
from peftlab.recipe.schema import Recipe
from peftlab.reports import MemoryReport, MethodPlan
from peftlab.runs.bench import read_labels
from peftlab.shapes import ModelShape
from peftlab.sizes import DEFAULT_CAPABILITY, Budget, parse_budget
from peftlab.world.hardware import available_host_bytes, has_cuda, total_bytes
from peftlab.world.open import refuse_unsupported
from peftlab.world.quiet import quiet_libraries


def plan(
    recipe: Recipe,
    memory: str | None = None,
    *,
    maximized: str | None = None,
    device: str = "auto",
    devices: int = 1,
    strategy: str = "ddp",
) -> MemoryReport:
    """Return what the recipe will take on one device, from the model's config alone.

    `memory` (else the recipe's `run.memory`) is a size or a GPU's name: the report then says whether it fits, and
    what would make it fit. `maximized` (batch_size, max_length or rank) asks for the largest that fits. `device` is
    `cpu`, `cuda` (none is needed), or `auto`: the recipe's, else CUDA if there is one or a GPU is named. Raises
    UsageError.
    """
    refuse_unsupported()
    quiet_libraries()
    memory = memory or recipe.run.memory
    budget = parse_budget(memory) if memory is not None else None
    target = planned_device(recipe, device, budget)
    planner = Planner(target, budget, devices, find_strategy(strategy))
    if maximized is None:
        report = planner(recipe)
    else:
        longest = planner.blueprint(recipe).positions
        value, report = maximize(recipe, maximized, _capacity(budget, target), planner, longest)
        report = report.model_copy(update={"maximized": {maximized: value}})
    if report.fits is False and report.capacity_bytes is not None:
        changes = remedies(recipe, report.capacity_bytes, planner)
        report = report.model_copy(update={"remedies": [change.describe() for change in changes]})
    return report


def plan_methods(
    model: str,
    memory: str | None = None,
    *,
    task: str = "causal-lm",
    batch_size: int = 1,
    max_length: int = 512,
    gradient_checkpointing: bool = False,
    device: str = "auto",
) -> list[MethodPlan]:
    """Return one plan for each method with its defaults on `model` (a hub id, a folder, ...)."""
    refuse_unsupported()
    quiet_libraries()
    found = []
    for name, method in METHODS.items():
        checkpointing = gradient_checkpointing and method(type=name).supports_gradient_checkpointing
        recipe = Recipe.model_validate(
            {
                "model": {"name": model, "task": task},
                "method": {"type": name},
                "data": {"train": "-", "max_length": max_length},
                "training": {
                    "steps": 1,
                    "learning_rate": 1e-4,
                    "batch_size": batch_size,
                    "gradient_checkpointing": checkpointing,
                },
            }
        )
        found.append(_plan_method(recipe, memory, device))
    return found


def relative_step_time(method: Method, shape: ModelShape, length: int) -> float:
    """Return a step's floating-point operations as a part of full fine-tuning's, without checkpointing.

    For each token: 2 for every weight of a matrix forward, 2 backward to its input, 2 for its own gradient where
    it trains, and the attention's own products. Below the first layer that trains nothing goes backward.
    """
    base = [site for site in shape.parameters if method.multiplies(site)]
    added = [site for site in method.added_parameters(shape) if method.multiplies(site)]
    trained = method.trainable_sites(shape)
    matrices = sum(site.count for site in base)
    attention = 2 * length * shape.hidden_size * shape.layers
    first = min((site.layer if site.layer is not None else 0 for site in trained), default=0)
    below = sum(site.count for site in base if site.layer is not None and site.layer < first)
    reached = 1 - first / max(shape.layers, 1)
    own = sum(site.count for site in trained if method.multiplies(site))
    extra = sum(site.count for site in added)
    cost = 2 * (matrices + extra) + 2 * (matrices + extra - below) + 2 * own + attention * (1 + 2 * reached)
    return cost / (6 * matrices + 3 * attention)


def _plan_method(recipe: Recipe, memory: str | None, device: str) -> MethodPlan:
    method = recipe.method
    row = MethodPlan(method=method.type, title=method.title)
    budget = parse_budget(memory) if memory is not None else None
    target = planned_device(recipe, device, budget)
    try:
        blueprint = Blueprints(target, read_labels, disable_dropout)(recipe)
    except MethodError as error:
        return row.model_copy(update={"error": str(error)})
    trainable = method.count_trainable(blueprint.shape)
    return row.model_copy(
        update={
            "trainable": trainable,
            "fraction": trainable / blueprint.shape.total,
            "relative_step_time": relative_step_time(method, blueprint.shape, recipe.data.max_length),
            "memory": _report(blueprint, budget, 1, find_strategy("ddp")),
        }
    )


class Planner:
    """Turns recipes into reports; builds a model anew only for a recipe that needs another one."""

    def __init__(self, target: torch.device, budget: Budget | None, devices: int, strategy: Strategy):
        self.budget, self.devices, self.strategy = budget, devices, strategy
        self.blueprint = Blueprints(target, read_labels, disable_dropout)

    def __call__(self, recipe: Recipe) -> MemoryReport:
        return _report(self.blueprint(recipe), self.budget, self.devices, self.strategy)


def _report(blueprint: Blueprint, budget: Budget | None, devices: int, strategy: Strategy) -> MemoryReport:
    return predict(
        blueprint,
        devices=devices,
        strategy=strategy,
        capability=budget.capability if budget else DEFAULT_CAPABILITY,
        capacity_bytes=budget.bytes if budget else None,
    )


def planned_device(recipe: Recipe, device: str, budget: Budget | None) -> torch.device:
    """Return the device to plan for: what `device` says, else the recipe; `auto` is CUDA where a GPU is named."""
    wanted = recipe.run.device if device == "auto" else device
    if wanted == "auto":
        named = budget is not None and budget.gpu is not None
        wanted = "cuda" if named or has_cuda() else "cpu"
    return torch.device(wanted)


def _capacity(budget: Budget | None, target: torch.device) -> int:
    if budget is not None:
        return budget.bytes
    return total_bytes(target) if target.type == "cuda" and has_cuda() else available_host_bytes()
