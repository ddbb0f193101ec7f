"""The training loop, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import nn

from peftlab.reports import Progress
from peftlab.training.step import StepRows, backward_micro_batches, check_finite, clip_gradients

if TYPE_CHECKING:
    from peftlab.parameters.audit import Audit
    from peftlab.recipe.schema import Recipe
    from peftlab.training.recorder import Recorder

AUDITED_STEPS = 3


@dataclass
class Setup:
    """What the loop steps with. `model` is prepared (and wrapped) by the accelerator."""

    accelerator: Accelerator
    recipe: Recipe
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    rows: StepRows
    precision: torch.dtype
    steps: int
    evaluate: Callable[[], dict[str, float]]
    save: Callable[[Progress], None]
    progress: Progress = field(default_factory=Progress)


def train(setup: Setup, recorder: Recorder, audit: Audit) -> Progress:
    """Run the optimiser steps of a recipe and return how far they went.

    The loss of a step is the sum over its supervised tokens on all processes and micro-batches, divided by
    their number, so that neither accumulation nor the number of processes changes the gradients.
    Raises DivergedError before the step whose loss or gradient is not finite.
    """
    recipe, progress = setup.recipe, setup.progress
    scaler = torch.amp.GradScaler(setup.accelerator.device.type, enabled=setup.precision == torch.float16)
    setup.model.train()
    for step in range(progress.step + 1, setup.steps + 1):
        tokens = setup.rows.count_tokens(step)
        losses = backward_micro_batches(setup, scaler, step, tokens)
        if step <= AUDITED_STEPS:
            audit.observe_gradients(setup.model)
        norm = clip_gradients(setup, scaler)
        check_finite(setup, scaler, step, losses, norm)
        rate = setup.schedule.get_last_lr()[0]
        scaler.step(setup.optimizer)
        scaler.update()
        setup.schedule.step()
        setup.optimizer.zero_grad(set_to_none=True)
        progress.step, progress.rows, progress.tokens = step, step * setup.rows.per_step, progress.tokens + tokens
        recorder.add(losses.sum(), tokens)
        if step == min(AUDITED_STEPS, setup.steps):
            recorder.audit = audit.finish(setup.model)
        if step % recipe.run.log_every == 0 or step in (1, setup.steps):
            recorder.log(progress, norm, rate)
        if step < setup.steps and is_due(step, recipe.evaluation.every):
            recorder.log_evaluation(step, setup.evaluate())
        if step < setup.steps and is_due(step, recipe.run.save_every):
            setup.save(progress)
    return progress


def is_due(step: int, every: int | None) -> bool:
    """Whether an action that comes every so many steps comes after this one."""
    return every is not None and step % every == 0
