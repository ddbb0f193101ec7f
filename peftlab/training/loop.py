"""The training loop, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftlab.reports import Progress
from peftlab.training.setup import Setup
from peftlab.training.step import backward_micro_batches, check_finite, clip_gradients

if TYPE_CHECKING:
    from peftlab.parameters.audit import Audit
    from peftlab.training.recorder import Recorder

AUDITED_STEPS = 3


def train(setup: Setup, recorder: Recorder, audit: Audit) -> Progress:
    """Run the optimiser steps of a recipe, from where `setup.progress` is, and return how far they went.

    The loss of a step is the sum over its supervised tokens on all processes and micro-batches, divided by
    their number, so that neither accumulation nor the number of processes changes the gradients.
    Raises DivergedError before the step whose loss or gradient is not finite.
    """
    recipe, progress, scaler = setup.recipe, setup.progress, setup.scaler
    last_audited = min(progress.step + AUDITED_STEPS, setup.steps)
    setup.model.train()
    for step in range(progress.step + 1, setup.steps + 1):
        supervised, tokens = setup.rows.count(step)
        losses = backward_micro_batches(setup, step, supervised)
        if step <= last_audited:
            audit.observe_gradients(setup.model)
        norm = clip_gradients(setup)
        check_finite(setup, step, losses, norm)
        rate = setup.schedule.get_last_lr()[0]
        scaler.step(setup.optimizer)
        scaler.update()
        setup.schedule.step()
        setup.optimizer.zero_grad(set_to_none=True)
        progress.step, progress.rows, progress.tokens = step, step * setup.rows.per_step, progress.tokens + tokens
        recorder.add(losses.sum(), supervised, tokens)
        setup.saver.check()
        if step == last_audited:
            recorder.audit = audit.finish(setup.model)
        if step % recipe.run.log_every == 0 or step in (1, setup.steps):
            recorder.log(progress, norm, rate)
        if step == setup.steps:
            break
        if is_due(step, recipe.evaluation.every):
            metrics = setup.evaluate()
            recorder.log_evaluation(step, metrics)
            note_best(progress, metrics)
        stopping = agree_to_stop(setup, step)
        if stopping or is_due(step, recipe.run.save_every):
            setup.saver.save(setup)
        if stopping:
            break
    return progress


def is_due(step: int, every: int | None) -> bool:
    """Whether an action that comes every so many steps comes after this one."""
    return every is not None and step % every == 0


def note_best(progress: Progress, metrics: dict[str, float]) -> None:
    """Remember the step of the lowest held-out loss."""
    loss = metrics.get("loss")
    if loss is not None and (progress.best_metric is None or loss < progress.best_metric):
        progress.best_metric, progress.best_step = loss, progress.step


def agree_to_stop(setup: Setup, step: int) -> bool:
    """Whether to stop after this step: a signal reaches processes at different steps, so they ask each other."""
    agreed = setup.world.highest(setup.stop.ask(step))
    if agreed:  # else a signal that came during the exchange would be lost; it counts at the next step
        setup.stop.reason = agreed
    return agreed > 0
