"""Training in this process without a run directory: a recipe's model and optimizer, and steps of it."""

from __future__ import annotations

import gc
import itertools
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch import nn

from peftlab.memory.private import quantisation_tensors
from peftlab.optimization.step import optimizer_step
from peftlab.recipe.schema import Recipe
from peftlab.runs.bench import prepare
from peftlab.runs.setup import build_setup
from peftlab.training.setup import Setup
from peftlab.training.stop import Stop
from peftlab.world.base import World
from peftlab.world.open import open_world


@dataclass
class Built:
    """A recipe's model with its method, and the loop's setup before the first step."""

    model: nn.Module
    setup: Setup

    def step(self, number: int) -> tuple[float, float]:
        """Do one optimizer step of the loop and return its loss and gradient norm."""
        rows = self.setup.rows
        result = optimizer_step(self.setup, rows.batches(number), rows.count(number).targets)
        self.setup.schedule.step()
        return float(result.losses.sum()), float(result.norm)

    def tokens(self, number: int) -> int:
        return self.setup.rows.count(number).tokens


def fresh_world(device: str) -> World:
    """Return a world on a device of this process, also after one on another device: accelerate remembers the first."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return open_world(device)


def build(recipe: Recipe) -> Built:
    """Return the recipe's model and setup in training mode."""
    bench = prepare(recipe, fresh_world(recipe.run.device))
    model = bench.apply().model
    built = Built(model, build_setup(bench, model, Stop()))
    built.setup.model.train()
    return built


def copy_tensors(source: nn.Module, target: nn.Module) -> None:
    """Give a model the weights, buffers and quantised bytes of an equal one on another device."""
    with torch.no_grad():
        for one, other in zip(all_tensors(source), all_tensors(target), strict=True):
            if one.shape != other.shape:
                raise ValueError(f"tensors of {tuple(one.shape)} and {tuple(other.shape)} numbers differ in form")
            other.data.copy_(one.data)


def all_tensors(model: nn.Module) -> list[torch.Tensor]:
    quantised = quantisation_tensors(model.parameters())
    return [*itertools.chain(model.parameters(), model.buffers(), quantised)]


def trained(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def type_name(value: Any) -> str:
    return str(value.dtype).removeprefix("torch.")


def free_memory() -> None:
    """Return what earlier cases have left to the device."""
    gc.collect()
    torch.cuda.empty_cache()
