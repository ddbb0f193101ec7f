"""The preflight: two steps and an evaluation of the longest rows, which measure a run's peak memory in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from peftlab.checkpoint.randomness import capture_random_state, restore_random_state
from peftlab.data.batches import collate
from peftlab.data.rows import longest_rows
from peftlab.data.token_rows import TokenRow
from peftlab.evaluation.generate import pad_prompts
from peftlab.memory.generation import Answers, write_last_token
from peftlab.memory.probe import Probe
from peftlab.optimization.step import StepResult, optimizer_step
from peftlab.parameters.trainable import kept_buffers, set_buffers
from peftlab.reports import MemoryReport
from peftlab.training.setup import Setup


@dataclass(frozen=True)
class HeldOut:
    """What an evaluation needs: rows, rows of a batch, and the longest prompts that answers are written to."""

    rows: Sequence[TokenRow] = ()
    batch_size: int = 1
    pad_id: int = 0
    prompts: Sequence[Sequence[int]] = ()
    answers: Answers | None = None


def measure_longest(setup: Setup, model: nn.Module, held_out: HeldOut, probe: Probe) -> MemoryReport:
    """Return the memory by phase of two steps of the longest training rows, an evaluation's two batches, and an answer.

    `model` is the one that `setup.model` wraps. Gradients are zero, so the weights do not change, and random states
    and buffers are restored; the optimiser of `setup` has stepped and must be replaced. `probe` is a new one, which
    knows the phase if memory runs out.
    """
    random, buffers = capture_random_state(), {name: one.clone() for name, one in kept_buffers(model).items()}
    # A scaler would skip the update where a trial overflows, and with it the optimiser's states.
    scaler = torch.amp.GradScaler(setup.world.device.type, enabled=False)
    trial = replace(setup, rows=setup.rows.longest(), scaler=scaler)
    for group in trial.optimizer.param_groups:  # decay moves weights without any gradient
        group["weight_decay"] = 0.0
    if trial.in_backward is not None:
        trial.in_backward.before = clear_gradient
    with probe.steps(model, trial.optimizer, trial.world.engine_tensors()):
        for phase in ("first_step", "steady_step"):
            with probe.phase(phase):
                _step(trial)
        model.eval()
        if held_out.rows:
            with probe.phase("evaluation"):
                _evaluate(trial, model, held_out)
        if held_out.answers is not None:
            with probe.phase("generation"):
                _generate(trial, model, held_out, held_out.answers)
    if trial.in_backward is not None:
        trial.in_backward.before = lambda parameter: None
    restore_random_state(random)
    set_buffers(model, buffers)
    return probe.report()


def clear_gradient(parameter: torch.Tensor) -> None:
    """Make a parameter's gradient zero."""
    if parameter.grad is not None:
        parameter.grad.zero_()


def _step(setup: Setup) -> None:
    setup.model.train()

    def zero_gradients(result: StepResult) -> None:
        if gradients := setup.world.gradients(setup.optimizer):
            torch._foreach_zero_(gradients)

    optimizer_step(setup, setup.rows.batches(1), setup.rows.count(1).targets, before_update=zero_gradients)


def _evaluate(setup: Setup, model: nn.Module, held_out: HeldOut) -> None:
    rows = longest_rows(held_out.rows, held_out.batch_size, padded=held_out.batch_size)
    batch, counts = setup.world.move(collate(rows, held_out.pad_id)), [row.supervised for row in rows]
    with torch.no_grad(), setup.world.autocast(setup.precision):
        for _ in range(2):  # as in an evaluation, a batch's losses live while the next one's are computed
            scored = setup.loss.rows(model, batch, counts)
    del scored


def _generate(setup: Setup, model: nn.Module, held_out: HeldOut, answers: Answers) -> None:
    prompts = pad_prompts(model, held_out.prompts, held_out.pad_id)
    ids, mask = (tensor.to(setup.world.device) for tensor in prompts)
    with setup.world.autocast(setup.precision):
        write_last_token(model, ids, mask, answers)
