"""Short runs in two processes and in one, which are compared: recipes, and what a run has written."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from peftlab.checkpoint.parts import load_whole
from peftlab.recipe.schema import Recipe
from tests.runs.recipes import METHODS, even_model, shallow_sections

# As accelerate's launcher sets them, its default of loading too.
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
OFFLOADED = FSDP2 | {"FSDP_OFFLOAD_PARAMS": "true"}
# LoRA: both factors start off zero, so that each has a gradient.
TRAINED = {
    "qlora": METHODS["qlora"],
    "fp4": METHODS["qlora"] | {"quantization": "fp4"},
    "lora": METHODS["lora"] | {"init": "orthogonal"},
    "dora": METHODS["lora"] | {"dora": True, "init": "orthogonal"},
    "full": {"type": "full"},
    "last layer": {"type": "full", "layers": 1},
    "adapters": METHODS["adapters"],
    "bitfit": METHODS["bitfit"],
    "prefix": METHODS["prefix"],
}
STEPS = 3
INSTALLED = importlib.util.find_spec("deepspeed") is not None
with_deepspeed = pytest.mark.skipif(not INSTALLED, reason="needs DeepSpeed: pip install 'peftlab[deepspeed]'")


def small_recipe(method: dict, folder: Path, accumulation: int, **run) -> Recipe:
    sections = shallow_sections("full", folder, steps=STEPS, batch_size=2, gradient_accumulation=accumulation)
    sections["method"] = method
    sections["data"] |= {"max_length": 48, "train_rows": 12, "evaluation_rows": 5}
    sections["evaluation"] = {"generation": {"examples": 1, "rows": 3, "max_new_tokens": 4}}
    sections["evaluation"] |= {"metrics": ["loss", "exact_match"]}
    sections["run"] |= {"save_every": 1, "keep_checkpoints": 9, "log_every": 1} | run
    return Recipe.model_validate(sections)


def even_recipe(method: dict, folder: Path, accumulation: int, **run) -> Recipe:
    """Return the recipe with heads that two processes can share."""
    made = small_recipe(method, folder, accumulation, **run)
    return made.model_copy(update={"model": made.model.model_copy(update={"name": str(even_model())})})


def losses_of(run: Path) -> list[float]:
    """Return the logged losses of a run's steps and evaluations, in their order."""
    return [one["loss"] for one in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in one]


def gradients_of(run: Path) -> list[torch.Tensor]:
    """Return each parameter's gradient in the first step, times a tenth: Adam's first average of it."""
    state = load_whole(run / "checkpoints" / "step-000001")["optimizer"]["state"]
    return [moments["exp_avg"] for moments in state.values()]
