"""The longest rows first: two steps and an evaluation that show, within seconds, what a run takes at most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from peftlab.checkpoint.randomness import capture_random_state, restore_random_state
from peftlab.data.batches import collate
from peftlab.data.tokens import TokenRow
from peftlab.evaluation.generate import pad_left
from peftlab.loss import sum_loss, supervised_scores
from peftlab.memory.generation import Answers, write_last_token
from peftlab.memory.probe import Probe
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


@dataclass(frozen=True)
class HeldOut:
    """What an evaluation takes: rows, how many make a batch, and the longest prompts that answers are written to."""

    rows: Sequence[TokenRow] = ()
    batch_size: int = 1
    prompts: Sequence[Sequence[int]] = ()
    answers: Answers | None = None


def measure_longest(setup: Setup, model: nn.Module, held_out: HeldOut, probe: Probe) -> MemoryReport:
    """Take the longest training rows through two steps, the longest of an evaluation through two batches and an answer.

    `setup` holds an optimiser of its own, which is thrown away afterwards; `model` is the one that
    `setup.model` wraps. The optimiser sees zero gradients, so the weights stay as they are; modes and random
    states are put back. Returns the measured ledger by phase; `probe`, a new one, can be asked where it stopped.
    """
    random = capture_random_state()
    trial = replace(setup, rows=longest_step(setup.rows))
    for group in trial.optimizer.param_groups:  # decay moves weights without any gradient
        group["weight_decay"] = 0.0
    with probe.steps(model, trial.optimizer):
        for phase in ("first_step", "steady_step"):
            with probe.phase(phase):
                _step(trial)
        model.eval()
        if held_out.rows:
            with probe.phase("evaluation"):
                _evaluate(trial, model, longest(held_out.rows, held_out.batch_size))
        if held_out.answers is not None:
            with probe.phase("generation"):
                _generate(trial, model, held_out)
    restore_random_state(random)
    return probe.report()


def _step(setup: Setup) -> None:
    setup.model.train()
    supervised, _ = setup.rows.count(1)
    backward_micro_batches(setup, 1, supervised)
    clip_gradients(setup)
    torch._foreach_zero_([parameter.grad for parameter in trainable_parameters(setup.model).values()])
    setup.optimizer.step()
    setup.scaler.update()
    setup.optimizer.zero_grad(set_to_none=True)


def _evaluate(setup: Setup, model: nn.Module, rows: Sequence[TokenRow]) -> None:
    device = setup.world.device
    batch = {name: value.to(device) for name, value in collate(rows, setup.rows.pad_id).items()}
    with torch.no_grad(), setup.world.autocast(setup.precision):
        for _ in range(2):  # as in an evaluation, a batch's scores live while the next one's are computed
            scores, targets = supervised_scores(model, batch)
            sum_loss(scores, targets)


def _generate(setup: Setup, model: nn.Module, held_out: HeldOut) -> None:
    device = setup.world.device
    ids, mask = (tensor.to(device) for tensor in pad_left(held_out.prompts, setup.rows.pad_id))
    with setup.world.autocast(setup.precision):
        write_last_token(model, ids, mask, held_out.answers)
