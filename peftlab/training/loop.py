"""The training loop, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from peftlab.data.rows import BatchesAhead
from peftlab.metrics import METRICS
from peftlab.optimization.average import averaged
from peftlab.optimization.finite import FiniteGuard
from peftlab.optimization.step import StepResult, optimizer_step
from peftlab.parameters.trainable import trainable_parameters
from peftlab.recipe.schema import Evaluation, Recipe
from peftlab.reports import AuditReport, Metrics, Progress
from peftlab.training.setup import Setup
from peftlab.training.stop import Interruption

if TYPE_CHECKING:
    import torch

    from peftlab.parameters.audit import Audit
    from peftlab.training.recorder import Recorder

AUDITED_STEPS = 3


def train(setup: Setup, recorder: Recorder, audit: Audit, audited: Callable[[AuditReport], None]) -> Progress:
    """Run the optimiser steps of a recipe, starting after `setup.progress`, and return the progress at the end.

    `audited` is called with what the audit of the first steps found, unless it is finished already; it may raise.
    Raises DivergedError for the first step whose loss or gradient is not finite; that step changes no weight. On
    CUDA with a fused optimiser it is raised at the next log line, evaluation or checkpoint.
    """
    recipe, progress, guard = setup.recipe, setup.progress, FiniteGuard(setup, setup.rows)
    last_audited = min(progress.step + AUDITED_STEPS - audit.steps, setup.steps) if not audit.finished else 0
    setup.model.train()

    def inspect(step: int, result: StepResult) -> None:
        if step <= last_audited:
            audit.observe_gradients(setup.model, setup.world.gradient_of)
        guard.observe(step, result)

    if setup.in_backward is not None:  # afterwards the gradients are freed
        names = {id(parameter): name for name, parameter in trainable_parameters(setup.model).items()}

        def observe(parameter: torch.Tensor) -> None:
            if progress.step < last_audited:
                audit.observe(names[id(parameter)], parameter)

        setup.in_backward.before = observe
    if setup.world.highest(int(was_interrupted(setup, recorder))):
        evaluate(setup, recorder)
    progress.ended_early = has_waited(progress, recipe.evaluation)  # a run that resumes may have other patience
    if progress.ended_early:
        return progress
    with BatchesAhead(setup.rows, setup.steps, setup.world.stage) as batches:
        for step in range(progress.step + 1, setup.steps + 1):
            targets, tokens = setup.rows.count(step)
            learning_rate = float(setup.schedule.get_last_lr()[0])
            result = optimizer_step(setup, batches.take(step), targets, before_update=partial(inspect, step))
            setup.schedule.step()
            progress.step, progress.tokens = step, progress.tokens + tokens
            progress.rows += setup.rows.per_step
            recorder.add(result.losses.sum(), targets, tokens)
            setup.saver.check()
            if step == last_audited:
                guard.check()
                audited(audit.finish(setup.model))
            if step % recipe.run.log_every == 0 or step in (1, setup.steps):
                guard.check()
                recorder.log(progress, result.norm, learning_rate)
            if is_evaluated(recipe, step, setup.steps):
                guard.check()
                evaluate(setup, recorder)
            if step == setup.steps or progress.ended_early:
                break
            stopping = agree_to_stop(setup, step)
            if stopping or is_due(step, recipe.run.save_every):
                guard.check()
                setup.saver.save(setup)
            if stopping:
                break
    return progress


def evaluate(setup: Setup, recorder: Recorder) -> None:
    """Evaluate the held-out rows, log their metrics, and choose by them: the best step, and whether to end here.

    A signal ends the evaluation: a resumed run makes it again.
    """
    try:
        # A signal must not end the exchange of weights and averages half-way: it is outside.
        with averaged(setup.optimizer), setup.stop.between_steps():
            metrics = setup.evaluate()
    except Interruption:
        return
    recorder.log_evaluation(setup.progress.step, metrics)
    note_best(setup.progress, metrics, setup.recipe.evaluation)
    if setup.recipe.run.keep != "last" and setup.progress.best_step == setup.progress.step < setup.steps:
        setup.saver.save(setup)


def was_interrupted(setup: Setup, recorder: Recorder) -> bool:
    """Return whether the evaluation of the present step is missing: a signal ended the run in it."""
    step = setup.progress.step
    due = 0 < step and is_evaluated(setup.recipe, step, setup.steps)
    return due and setup.world.is_main and not recorder.has_evaluation(step)


def is_evaluated(recipe: Recipe, step: int, steps: int) -> bool:
    """Return whether the held-out rows are evaluated after a step; after the last one only if it may not be kept."""
    if step == steps:
        return recipe.run.keep != "last"
    return is_due(step, recipe.evaluation.every)


def is_due(step: int, every: int | None) -> bool:
    """Return whether an action that is done every so many steps is due after this one."""
    return every is not None and step % every == 0


def note_best(progress: Progress, metrics: Metrics, wanted: Evaluation) -> None:
    """Note the best step by a metric, or how many evaluations ago it was; after `wanted.patience` training ends.

    A metric without a value is never better.
    """
    value, best = metrics.get(wanted.best), progress.best_metric
    sign = 1 if METRICS[wanted.best].higher_is_better else -1
    if value is not None and math.isfinite(value) and (best is None or sign * value > sign * best):
        progress.best_metric, progress.best_step, progress.waited = value, progress.step, 0
    else:
        progress.waited += 1
    progress.ended_early = has_waited(progress, wanted)


def has_waited(progress: Progress, wanted: Evaluation) -> bool:
    """Return whether there were `patience` evaluations since the best one."""
    return wanted.patience is not None and progress.waited >= wanted.patience


def agree_to_stop(setup: Setup, step: int) -> bool:
    """Return whether to stop after this step; all processes agree, as a signal reaches them at different steps."""
    reason = setup.world.highest(setup.stop.ask(step))
    if reason > 0:  # otherwise a signal that arrived meanwhile, which the next step sees, would be lost
        setup.stop.reason = reason
    return reason > 0
