"""The memory of a run, predicted from its own rows before a weight is loaded, and whether the run may start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from peftlab.data.dataset import Dataset
from peftlab.errors import OutOfMemoryError
from peftlab.memory.blueprint import Blueprints
from peftlab.memory.fakes import UnpredictableError
from peftlab.memory.fit import largest_split, remedies, with_settings
from peftlab.memory.predict import predict
from peftlab.memory.private import explain_failure
from peftlab.memory.strategies import find_strategy
from peftlab.optimization.dropout import disable_dropout
from peftlab.quantities import format_bytes
from peftlab.recipe.schema import Recipe
from peftlab.reports import MemoryReport
from peftlab.runs.longest import answers_to, longest_prompts, longest_work
from peftlab.sizes import parse_budget
from peftlab.world.base import World
from peftlab.world.hardware import cuda_capability

Note = Callable[[str], None]


class Forecast:
    """Predicts recipes on a run's own rows, device and processes; `capacity_bytes` is what each process may use."""

    def __init__(self, dataset: Dataset, device: torch.device, processes: int, capacity_bytes: int):
        self.dataset, self.device, self.processes, self.capacity_bytes = dataset, device, processes, capacity_bytes
        self._blueprint = Blueprints(device, lambda recipe: dataset.labels, disable_dropout)

    def __call__(self, recipe: Recipe) -> MemoryReport:
        """Return the predicted memory of the run's longest rows on one device."""
        blueprint = self._blueprint(recipe)
        options = {}
        if self.device.type == "cuda":
            options["capability"] = cuda_capability(self.device)
        work = longest_work(blueprint.workload(), self.dataset)
        prompts = longest_prompts(recipe, self.dataset, blueprint.fake.model)
        return predict(
            blueprint,
            replace(work, answers=answers_to(prompts, recipe)),
            devices=self.processes,
            strategy=find_strategy("ddp"),
            capacity_bytes=self.capacity_bytes,
            **options,
        )


def open_forecast(recipe: Recipe, dataset: Dataset, world: World) -> Forecast:
    """Return the forecast of a run: every process of a launch must call this, and gets an equal one."""
    return Forecast(dataset, world.device, world.processes, count_on(recipe, world))


def foresee(recipe: Recipe, forecast: Forecast, memory: dict[str, MemoryReport], note: Note) -> Recipe:
    """Enter the run's predicted memory into `memory`, or note why there is none; return the recipe to run.

    It differs from `recipe`, with a note, only where `training.fit` asks for smaller micro-batches. Raises
    OutOfMemoryError for a run that will not fit, unless `run.plan` only reports.
    """
    if recipe.run.plan == "off":
        return recipe
    try:
        memory["predicted"] = forecast(recipe)
    except Exception as error:  # a model that cannot be traced may still train: a forecast never ends a run
        reason = error.reason if isinstance(error, UnpredictableError) else explain_failure(error)
        unsplit = "; training.fit changes nothing" if recipe.training.fit else ""
        note(f"Memory cannot be predicted for this model ({reason}); training continues without a plan{unsplit}.")
        return recipe
    if memory["predicted"].fits is False and recipe.training.fit:
        recipe = split_to_fit(recipe, forecast, memory, note)
    if memory["predicted"].fits is False and recipe.run.plan == "refuse":
        refuse_too_large(recipe, memory["predicted"], forecast)
    return recipe


def split_to_fit(recipe: Recipe, forecast: Forecast, memory: dict[str, MemoryReport], note: Note) -> Recipe:
    """Return the recipe with micro-batches that fit and the same rows in a step, with a note; unchanged if none fit."""
    change = largest_split(recipe, forecast.capacity_bytes, forecast)
    if change is None:
        return recipe
    memory["predicted"] = change.report
    split = with_settings(recipe, change.settings)
    used, asked = (
        f"{one.training.gradient_accumulation} micro-batches of {one.training.batch_size} rows"
        for one in (split, recipe)
    )
    sizes = f"{format_bytes(change.report.needed_bytes)} of {format_bytes(forecast.capacity_bytes)}"
    note(f"training.fit: {used} a step instead of {asked}: that needs {sizes}")
    return split


def count_on(recipe: Recipe, world: World) -> int:
    """Return the memory that each process may use: the least of all, so that all plan alike."""
    least = min(world.gather([world.free_bytes()]))
    return least if recipe.run.memory is None else min(least, parse_budget(recipe.run.memory).bytes)


def refuse_too_large(recipe: Recipe, report: MemoryReport, forecast: Forecast) -> None:
    """Raise OutOfMemoryError, naming what would fit, for a run that will not."""
    capacity = forecast.capacity_bytes
    changes = remedies(recipe, capacity, forecast)
    report.remedies = [change.describe() for change in changes]
    ways = f"these fit: {'; '.join(report.remedies)}" if changes else "no smaller batch, length or method would fit"
    raise OutOfMemoryError(
        f"this run needs {format_bytes(report.needed_bytes)}, but {format_bytes(capacity)} is available; "
        f"{ways}; run.plan=report starts it anyway"
    )
