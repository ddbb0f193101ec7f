"""The training loop's setup, made from a bench and a model with its method applied."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import nn

from peftlab.data.batches import Layout
from peftlab.data.rows import Rows, ShuffledRows
from peftlab.data.stream import StreamedRows
from peftlab.errors import UsageError
from peftlab.optimization.in_backward import InBackward
from peftlab.optimization.schedule import build_optimizer, build_schedule
from peftlab.optimization.step import open_scaler
from peftlab.recipe.schema import Training
from peftlab.reports import Progress
from peftlab.runs.bench import Bench
from peftlab.speed.loss import loss_of
from peftlab.speed.packing import training_layout
from peftlab.training.setup import NoSaver, Saver, Setup
from peftlab.training.stop import Stop

NOTHING = Progress()


def build_setup(bench: Bench, model: nn.Module, stop: Stop, saver: Saver | None = None) -> Setup:
    """Return the loop's setup at step 0, with a fresh optimiser and seeded random states."""
    recipe, world, training = bench.recipe, bench.world, bench.recipe.training
    steps = count_steps(training, bench.dataset.order(recipe.run.seed).epoch_rows, world.row_processes)
    refuse_endless_warmup(training, steps)
    prepared = world.prepare(model)
    scaler = open_scaler(bench.precision, world.device)
    refuse_scaled_updates(training, scaler)
    optimizer = world.join(prepared, build_optimizer(prepared, recipe, world.device))
    # Dropout must differ between processes, while data order and initialisation must not.
    torch.manual_seed(recipe.run.seed + world.row_process)
    return Setup(
        world=world,
        recipe=recipe,
        model=prepared,
        loss=loss_of(recipe.task, training.speed, model, world.device.type),
        optimizer=optimizer,
        schedule=build_schedule(optimizer, training, steps),
        rows=build_rows(bench, training_layout(model, recipe, bench.dataset.pad_id)),
        precision=bench.precision,
        clip=training.clip,
        scaler=scaler,
        foreach=None,
        in_backward=InBackward(optimizer) if training.optimizer_in_backward else None,
        steps=steps,
        stop=stop,
        evaluate=lambda: bench.evaluate(model).metrics,
        saver=saver or NoSaver(),
    )


def build_rows(bench: Bench, layout: Layout) -> Rows:
    """Return which training rows each step takes, and how they become batches."""
    training, world, dataset, seed = bench.recipe.training, bench.world, bench.dataset, bench.recipe.run.seed
    sizes = training.batch_size, training.gradient_accumulation, world.row_process, world.row_processes
    if dataset.stream is not None:
        return StreamedRows(dataset.stream, layout, *sizes, seed)
    return ShuffledRows(dataset.train, layout, *sizes, seed, dataset.order(seed))


def refuse_endless_warmup(training: Training, steps: int) -> None:
    """Raise UsageError for a warm-up longer than training, which for a recipe in epochs is known only now."""
    if isinstance(training.warmup, int) and training.warmup > steps:
        raise UsageError(
            f"training.warmup: {training.warmup} steps of warm-up do not fit into {steps} steps of training; "
            "a fraction such as 0.1 always fits"
        )


def refuse_scaled_updates(training: Training, scaler: torch.amp.GradScaler) -> None:
    """Raise UsageError for updates in the backward pass in float16, which a model's own type may ask for."""
    if training.optimizer_in_backward and scaler.is_enabled():
        raise UsageError(
            "training.optimizer_in_backward: float16's scaler looks at all gradients before any update; "
            "set training.precision=bfloat16"
        )


def recount_steps(setup: Setup, epoch_rows: int) -> None:
    """Set the steps of a restored setup, whose former steps had other numbers of rows, to what epochs leave."""
    if setup.recipe.training.epochs is None:
        return
    setup.steps = count_steps(setup.recipe.training, epoch_rows, setup.world.row_processes, setup.progress)
    state = setup.schedule.state_dict()
    setup.schedule = build_schedule(setup.optimizer, setup.recipe.training, setup.steps)
    setup.schedule.load_state_dict(state)


def renew_optimizer(setup: Setup) -> None:
    """Replace the optimiser and the schedule of `setup` with new ones."""
    former, new = setup.optimizer, build_optimizer(setup.model, setup.recipe, setup.world.device)
    setup.optimizer = setup.world.join(setup.model, new)
    setup.recipe.training.optimizer.reuse(setup.optimizer, former)
    # After trial steps it is part of a cycle of references, which Python collects late: its states would live on.
    former.state.clear()
    if setup.in_backward is not None:
        setup.in_backward.remove()
        setup.in_backward = InBackward(setup.optimizer)
    setup.schedule = build_schedule(setup.optimizer, setup.recipe.training, setup.steps)


def count_steps(training: Training, rows: int, processes: int, done: Progress = NOTHING) -> int:
    """Return the optimiser steps, with those that are `done`; epochs are rounded up to whole steps.

    Epochs are counted as the decimal number that a recipe writes: 1.1 epochs of 100 rows are 110 rows, not one more.
    """
    if training.steps is not None:
        return training.steps
    assert training.epochs is not None, "a recipe has steps or epochs"
    per_step = training.batch_size * training.gradient_accumulation * processes
    return done.step + max(math.ceil((Fraction(repr(training.epochs)) * rows - done.rows) / per_step), 0)
