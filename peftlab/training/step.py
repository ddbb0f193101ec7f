"""The parts of one optimiser step: its losses and gradients, and their checks."""

from __future__ import annotations

import contextlib

import torch

from peftlab.errors import DivergedError
from peftlab.loss import supervised_loss
from peftlab.parameters.trainable import trainable_parameters
from peftlab.training.setup import Setup

SMALLEST_SCALE = 1.0


def backward_micro_batches(setup: Setup, step: int, supervised: int) -> torch.Tensor:
    """Accumulate the gradients of a step; return the micro-batches' losses, each a share of the step's mean.

    The sum over all processes is divided by `supervised` once, hence the world's factor.
    """
    world, accumulation = setup.world, setup.rows.accumulation
    losses = []
    for micro in range(accumulation):
        batch = world.move(setup.rows.batch(step, micro))
        last = micro == accumulation - 1
        with contextlib.nullcontext() if last else world.accumulating(setup.model):
            with world.autocast(setup.precision):
                loss_sum, _ = supervised_loss(setup.model, batch)
            share = loss_sum / supervised
            setup.scaler.scale(share * world.gradient_factor).backward()
        losses.append(share.detach())
    return torch.stack(losses)


def clip_gradients(setup: Setup) -> torch.Tensor:
    """Clip to the recipe's norm, if any, and return the norm before that."""
    setup.scaler.unscale_(setup.optimizer)
    limit = setup.recipe.training.clip
    parameters = list(trainable_parameters(setup.model).values())
    return torch.nn.utils.clip_grad_norm_(parameters, float("inf") if limit is None else limit)


def check_finite(setup: Setup, step: int, losses: torch.Tensor, norm: torch.Tensor) -> None:
    """Raise DivergedError, naming the step and its rows, unless loss and gradient are finite.

    With float16 an overflow of the scaled gradient is part of the method: the scaler skips that step and
    halves its scale; only when nothing is left to halve has training diverged.
    """
    total = setup.world.sum(losses.sum())  # every process must reach the same verdict, or one waits for ever
    if bool(torch.isfinite(total + norm)):
        return
    if setup.scaler.is_enabled() and setup.scaler.get_scale() > SMALLEST_SCALE:
        return
    bad = [m for m in range(len(losses)) if not bool(torch.isfinite(losses[m]))] or list(range(len(losses)))
    rows = sorted(i for micro in bad for i in setup.rows.indices(step, micro, setup.rows.process))
    remedy = "lower training.learning_rate or look at these rows"
    if step == 1:
        remedy = "nothing has been trained yet, so look at these rows, the base's weights and the method's settings"
    what = "loss" if not bool(torch.isfinite(total)) else "gradient norm"
    raise DivergedError(
        f"step {step}: the {what} is not finite (loss {total.item():g}, gradient norm {norm.item():g}); "
        f"training rows {', '.join(map(str, rows))}. Nothing was stepped; {remedy}"
    )


def check_weights(setup: Setup) -> None:
    """Raise DivergedError unless every trained weight is finite: the last step's own fault shows nowhere else."""
    weights = trainable_parameters(setup.model)
    finite = torch.stack([torch.isfinite(weight.detach()).all() for weight in weights.values()])
    if bool(finite.all()):
        return
    name = list(weights)[int(finite.logical_not().nonzero()[0])]
    raise DivergedError(
        f"step {setup.progress.step}: {name} is not finite after the step; lower training.learning_rate "
        "or training.weight_decay"
    )
