"""The longest rows first: two steps and an evaluation that show, within seconds, what a run takes at most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from peftlab.checkpoint.randomness import capture_random_state, restore_random_state
from peftlab.data.batches import collate
from peftlab.data.tokens import TokenRow
from peftlab.device import autocast
from peftlab.loss import sum_loss, supervised_scores
from peftlab.memory.ledger import Ledger
from peftlab.parameters.trainable import trainable_parameters
from peftlab.reports import MemoryReport
from peftlab.training.rows import StepRows
from peftlab.training.setup import Setup
from peftlab.training.step import backward_micro_batches, clip_gradients


def longest(rows: Sequence[TokenRow], count: int) -> list[TokenRow]:
    """Return the `count` longest rows, again from the first where there are fewer."""
    ordered = sorted(rows, key=lambda row: -len(row.input_ids))
    return [ordered[i % len(ordered)] for i in range(count)]


def longest_step(rows: StepRows) -> StepRows:
    """Return rows of which every step takes the longest ones, in at most two micro-batches a process."""
    accumulation = min(rows.accumulation, 2)
    chosen = longest(rows.rows, rows.batch_size * accumulation * rows.processes)
    return replace(rows, rows=chosen, accumulation=accumulation)


def measure_longest(
    setup: Setup, model: nn.Module, evaluation: Sequence[TokenRow], evaluation_batch: int
) -> MemoryReport:
    """Take the longest training rows through two steps, the longest evaluation rows through two batches.

    `setup` holds an optimiser of its own, which is thrown away afterwards; `model` is the one that
    `setup.model` wraps. The optimiser sees zero gradients, so the weights stay as they are; modes and random
    states are put back. Returns the measured ledger, phases `first_step`, `steady_step`, `evaluation`.
    """
    random = capture_random_state()
    trial = replace(setup, rows=longest_step(setup.rows))
    ledger = Ledger()
    with ledger.watch(model, trial.optimizer), ledger:
        ledger.mark("state")
        ledger.adopt(model)
        for phase in ("first_step", "steady_step"):
            ledger.mark(phase)
            _step(trial)
        if evaluation:
            ledger.mark("evaluation")
            _evaluate(trial, model, longest(evaluation, evaluation_batch))
    restore_random_state(random)
    return ledger.report(setup.accelerator.device.type)


def _step(setup: Setup) -> None:
    setup.model.train()
    supervised, _ = setup.rows.count(1)
    backward_micro_batches(setup, 1, supervised)
    clip_gradients(setup)
    torch._foreach_zero_([parameter.grad for parameter in trainable_parameters(setup.model).values()])
    setup.optimizer.step()
    setup.optimizer.zero_grad(set_to_none=True)


def _evaluate(setup: Setup, model: nn.Module, rows: Sequence[TokenRow]) -> None:
    device = setup.accelerator.device
    batch = {name: value.to(device) for name, value in collate(rows, setup.rows.pad_id).items()}
    model.eval()
    with torch.no_grad(), autocast(setup.precision, device):
        for _ in range(2):  # as in an evaluation, a batch's scores live while the next one's are computed
            scores, targets = supervised_scores(model, batch)
            sum_loss(scores, targets)
