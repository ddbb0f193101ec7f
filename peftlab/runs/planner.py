"""The planner: turns recipes into predicted memory, for `plan`, budgets, a run before it loads, and what would fit."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from peftlab.data.dataset import Dataset
from peftlab.memory.blueprint import Blueprint, build_blueprint
from peftlab.memory.predict import predict
from peftlab.memory.strategies import find_strategy
from peftlab.memory.trace import Workload
from peftlab.recipe.schema import Recipe
from peftlab.reports import MemoryReport
from peftlab.runs.loading import read_labels
from peftlab.runs.longest import answers_to, longest_prompts, longest_work
from peftlab.sizes import DEFAULT_CAPABILITY, Budget
from peftlab.speed.apply import as_divided
from peftlab.world.hardware import available_host_bytes, has_cuda, total_bytes

# All that a model with its method is built from: recipes that are equal here share one blueprint.
BUILT_FROM: dict[str, Any] = {
    "model": True,
    "method": True,
    "training": {"frozen_dropout", "precision", "speed"},
}


class Planner:
    """Predicts the memory of recipes on one device of `processes` that train with `strategy`.

    Batches are as large as a recipe allows or, with a `dataset`, as its longest rows make them. The last model is
    kept for recipes that differ in other sections only. `capacity_bytes` is what each process may use, and decides
    whether a report fits; `bandwidth_bytes` is what each can send in a second. Raises UsageError for a strategy that
    training does not support.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        processes: int = 1,
        strategy: str = "ddp",
        capability: tuple[int, int] = DEFAULT_CAPABILITY,
        capacity_bytes: int | None = None,
        bandwidth_bytes: int | None = None,
        dataset: Dataset | None = None,
    ):
        self.device, self.processes, self.strategy = device, processes, find_strategy(strategy)
        self.capability, self.capacity_bytes, self.dataset = capability, capacity_bytes, dataset
        self.bandwidth_bytes = bandwidth_bytes
        self._built: tuple[str, Blueprint] | None = None

    def __call__(self, recipe: Recipe) -> MemoryReport:
        """Return the predicted memory. Raises UnpredictableError, ModelError and MethodError."""
        blueprint = self.blueprint(as_divided(recipe, self.strategy.whole_head) if self.divides_weights else recipe)
        return predict(
            blueprint,
            self.workload(blueprint),
            devices=self.processes,
            strategy=self.strategy,
            capability=self.capability,
            capacity_bytes=self.capacity_bytes,
            bandwidth_bytes=self.bandwidth_bytes,
        )

    @property
    def divides_weights(self) -> bool:
        """Whether each process has a part of every weight, so that steps use fewer speed-ups."""
        return self.processes > 1 and self.strategy.divides

    @property
    def usable_bytes(self) -> int:
        """The capacity; without one, what this machine has."""
        if self.capacity_bytes is not None:
            return self.capacity_bytes
        return total_bytes(self.device) if self.device.type == "cuda" and has_cuda() else available_host_bytes()

    def blueprint(self, recipe: Recipe) -> Blueprint:
        """Return the recipe's model with its method, without weights."""
        key = recipe.model_dump_json(include=BUILT_FROM)
        if self._built is None or self._built[0] != key:
            labels = read_labels(recipe) if self.dataset is None else self.dataset.labels
            own = partial(self.strategy.keep_own_part, devices=self.processes)
            made = build_blueprint(recipe, self.device, labels, *([own] if self.processes > 1 else []))
            self._built = key, made
        return self._built[1].for_recipe(recipe)

    def workload(self, blueprint: Blueprint) -> Workload:
        """Return the largest batches that go through the model."""
        work = blueprint.workload()
        if self.dataset is None:
            return work
        prompts = longest_prompts(blueprint.recipe, self.dataset, blueprint.fake.model)
        return replace(longest_work(work, self.dataset), answers=answers_to(prompts, blueprint.recipe))


def open_planner(
    recipe: Recipe,
    device: str,
    budget: Budget | None,
    *,
    processes: int = 1,
    strategy: str = "ddp",
    bandwidth_bytes: int | None = None,
) -> Planner:
    """Return the planner for a device by name, with the capacity and the GPU of `budget` where there is one."""
    return Planner(
        planned_device(recipe, device, budget),
        processes=processes,
        strategy=strategy,
        capability=budget.capability if budget else DEFAULT_CAPABILITY,
        capacity_bytes=budget.bytes if budget else None,
        bandwidth_bytes=bandwidth_bytes,
    )


def planned_device(recipe: Recipe, device: str, budget: Budget | None) -> torch.device:
    """Return the device to plan for: `device`, else the recipe's; `auto` is CUDA if there is one or a GPU is named."""
    wanted = recipe.run.device if device == "auto" else device
    if wanted == "auto":
        named = budget is not None and budget.gpu is not None
        wanted = "cuda" if named or has_cuda() else "cpu"
    return torch.device(wanted)
