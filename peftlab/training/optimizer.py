"""The optimiser over what trains, its parameter groups and its schedule."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import get_scheduler

from peftlab.errors import MissingRequirementError
from peftlab.parameters.trainable import trainable_parameters

if TYPE_CHECKING:
    from peftlab.recipe.schema import Training

VIRTUAL_TOKENS = "prompt_encoder"
SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to matrices only, never to biases, norms or prefixes."""
    return parameter.ndim >= 2 and VIRTUAL_TOKENS not in name.split(".")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Return what trains in two groups, with and without decay, in the model's order."""
    named = trainable_parameters(model)
    decayed = [p for name, p in named.items() if decays(name, p)]
    plain = [p for name, p in named.items() if not decays(name, p)]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, training: Training, device: torch.device) -> torch.optim.Optimizer:
    """Return the recipe's optimiser. Raises MissingRequirementError for bitsandbytes' off CUDA."""
    groups = parameter_groups(model, training.weight_decay)
    if training.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=training.learning_rate, fused=device.type == "cuda")
    if device.type != "cuda":
        raise MissingRequirementError(
            f"training.optimizer: {training.optimizer} needs CUDA; use adamw on {device.type}"
        )
    import bitsandbytes

    kinds = {
        "adamw_8bit": bitsandbytes.optim.AdamW8bit,
        "paged_adamw": bitsandbytes.optim.PagedAdamW,
        "paged_adamw_8bit": bitsandbytes.optim.PagedAdamW8bit,
    }
    return kinds[training.optimizer](groups, lr=training.learning_rate)


def warmup_steps(warmup: int | float, steps: int) -> int:
    """Return the warm-up in steps: a whole number is steps, a fraction is a part of all of them."""
    return warmup if isinstance(warmup, int) else round(warmup * steps)


def build_schedule(optimizer: torch.optim.Optimizer, training: Training, steps: int):
    """Return the learning-rate schedule over `steps` optimiser steps."""
    return get_scheduler(
        SCHEDULES[training.schedule],
        optimizer,
        num_warmup_steps=warmup_steps(training.warmup, steps),
        num_training_steps=steps,
    )
