"""The optimiser over what trains, in groups with and without weight decay, and its learning-rate schedule."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import get_scheduler

from peftlab.optimization.average import keep_average
from peftlab.parameters.divided import whole_shape
from peftlab.parameters.trainable import trainable_parameters

if TYPE_CHECKING:
    from peftlab.methods import Method
    from peftlab.optimizers.base import Groups
    from peftlab.recipe.schema import Recipe, Training

SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def parameter_groups(model: nn.Module, method: Method, weight_decay: float) -> Groups:
    """Return what trains in up to two groups, with and without decay as the method says, in the model's order."""
    named = trainable_parameters(model)
    decayed = [p for name, p in named.items() if method.decays(name, whole_shape(p))]
    plain = [p for name, p in named.items() if not method.decays(name, whole_shape(p))]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """Return the recipe's optimiser. Raises MissingRequirementError for one that `device` cannot run."""
    training = recipe.training
    groups = parameter_groups(model, recipe.method, training.weight_decay)
    optimizer = training.optimizer.build(groups, training.learning_rate, device)
    return optimizer if training.average.ema is None else keep_average(optimizer, training.average.ema)


def warmup_steps(warmup: int | float, steps: int) -> int:
    """Return the warm-up in steps: a whole number is steps, a fraction is a part of all of them."""
    return warmup if isinstance(warmup, int) else round(warmup * steps)


def build_schedule(
    optimizer: torch.optim.Optimizer, training: Training, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return the learning-rate schedule over `steps` optimiser steps."""
    return get_scheduler(
        SCHEDULES[training.schedule],
        optimizer,
        num_warmup_steps=warmup_steps(training.warmup, steps),
        num_training_steps=steps,
    )
