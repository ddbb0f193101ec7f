"""`peftlab plan`: the memory that a recipe needs and whether it fits, or all methods on one model."""

from __future__ import annotations

from peftlab.errors import MethodError, UsageError
from peftlab.memory.fit import fewest_recomputed, maximize, remedies
from peftlab.memory.strategies import STRATEGIES
from peftlab.methods import METHODS, Method
from peftlab.recipe.checkpointing import AUTO
from peftlab.recipe.schema import Recipe
from peftlab.reports import MemoryReport, MethodPlan, StrategyPlan
from peftlab.runs.planner import open_planner
from peftlab.shapes import ModelShape
from peftlab.sizes import parse_budget, parse_size
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
    bandwidth: str | None = None,
) -> MemoryReport:
    """Return the predicted memory of the recipe on one of `devices`, from the model's config alone.

    `memory` (else the recipe's `run.memory`) is a size or a GPU's name: the report then contains whether it fits, and
    what would make it fit. `maximized` (batch_size, max_length or rank) asks for the largest that fits. `device` is
    `cpu`, `cuda` (none is needed), or `auto`: the recipe's, else CUDA if there is one or a GPU is named. `bandwidth` is
    the size that a device can send in a second. Raises UsageError.
    """
    refuse_unsupported()
    quiet_libraries()
    memory = memory or recipe.run.memory
    budget = parse_budget(memory) if memory is not None else None
    sent = None if bandwidth is None else parse_size(bandwidth, "bandwidth")
    planner = open_planner(recipe, device, budget, processes=devices, strategy=strategy, bandwidth_bytes=sent)
    if devices > 1 and (reason := planner.strategy.why_not(recipe, planner.device)):
        raise UsageError(reason)
    if maximized is None:
        report = planner(recipe)
    else:
        longest = planner.blueprint(recipe).positions
        value, report = maximize(recipe, maximized, planner.usable_bytes, planner, longest)
        report = report.model_copy(update={"maximized": {maximized: value}})
    if report.fits is False and maximized is None and recipe.training.gradient_checkpointing == AUTO:
        layers = planner.blueprint(recipe).layers
        change = fewest_recomputed(recipe, report, planner.usable_bytes, planner, layers)
        report = report if change is None else change.report
    if report.fits is False and report.capacity_bytes is not None:
        changes = remedies(recipe, report.capacity_bytes, planner)
        report = report.model_copy(update={"remedies": [change.describe() for change in changes]})
    return report


def plan_strategies(
    recipe: Recipe, memory: str | None = None, *, device: str = "auto", devices: int = 1, bandwidth: str | None = None
) -> list[StrategyPlan]:
    """Return a plan on one device alone and one of each strategy on `devices`, in the order of what they send.

    The first that fits is the cheapest. The arguments are those of `plan`. Raises UsageError without a memory.
    """
    if memory is None and recipe.run.memory is None:
        raise UsageError("what fits depends on the memory of a device: give --memory, as in --memory 80GiB")

    def planned(strategy: str, count: int) -> StrategyPlan:
        made = StrategyPlan(strategy=strategy, devices=count)
        try:
            report = plan(recipe, memory, device=device, devices=count, strategy=strategy, bandwidth=bandwidth)
        except UsageError as error:
            return made.model_copy(update={"error": str(error)})
        return made.model_copy(update={"memory": report.model_copy(update={"remedies": []})})

    rows = [planned("ddp", 1).model_copy(update={"strategy": "one device"})]
    return rows + ([planned(name, devices) for name, one in STRATEGIES.items() if one.offered] if devices > 1 else [])


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
        found.append(plan_method(recipe, memory, device))
    return found


def relative_step_time(method: Method, shape: ModelShape, length: int) -> float:
    """Return a step's floating-point operations as a fraction of full fine-tuning's, without checkpointing."""
    matrices = sum(site.count for site in shape.parameters if method.multiplies(site))
    attention = 2 * length * shape.hidden_size * shape.layers
    return operations_per_token(method, shape, length) / (6 * matrices + 3 * attention)


def operations_per_token(method: Method, shape: ModelShape, length: int) -> float:
    """Return the floating-point operations of a step for each token of rows of `length`, without checkpointing.

    2 for every weight of a matrix forward, 2 backward to its input, 2 for its own gradient where
    it trains, and the attention's own products. There is no backward pass below the first layer that trains.
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
    return 2 * (matrices + extra) + 2 * (matrices + extra - below) + 2 * own + attention * (1 + 2 * reached)


def plan_method(recipe: Recipe, memory: str | None, device: str) -> MethodPlan:
    """Return what the recipe's method trains and needs on its model, or the reason why it cannot be applied to it."""
    method = recipe.method
    row = MethodPlan(method=method.type, title=method.title)
    planner = open_planner(recipe, device, parse_budget(memory) if memory is not None else None)
    try:
        shape = planner.blueprint(recipe).shape
    except MethodError as error:
        return row.model_copy(update={"error": str(error)})
    trainable = method.count_trainable(shape)
    return row.model_copy(
        update={
            "trainable": trainable,
            "fraction": trainable / shape.total,
            "relative_step_time": relative_step_time(method, shape, recipe.data.max_length),
            "memory": planner(recipe),
        }
    )
