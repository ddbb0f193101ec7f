"""One optimiser step: the training loop's, the trial's before it, and the one that the memory plan traces."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn

from peftlab.data.batches import PackedBatch
from peftlab.losses.base import Loss
from peftlab.nn.formulas import compiled_formulas
from peftlab.optimization.in_backward import InBackward
from peftlab.speed.attention import attention_of_rows
from peftlab.world.base import World

Batch = dict[str, torch.Tensor]


@dataclass
class Stepper:
    """What a step works with. `model` is the one that `world.prepare` returned, `clip` the largest gradient norm.

    `foreach` is passed to the clipping: None lets torch choose by the tensors' device.
    """

    world: World
    model: nn.Module
    loss: Loss
    optimizer: torch.optim.Optimizer
    precision: torch.dtype
    clip: float | None
    scaler: torch.amp.GradScaler
    foreach: bool | None
    in_backward: InBackward | None = field(default=None, kw_only=True)
    """What steps the optimizer inside the backward pass; None where it steps after that."""


class StepResult(NamedTuple):
    """A step's losses by micro-batch, each a share of the step's mean, and the gradient norm before clipping."""

    losses: torch.Tensor
    norm: torch.Tensor


def optimizer_step(
    parts: Stepper,
    batches: Sequence[Batch],
    targets: int,
    *,
    before_update: Callable[[StepResult], object] = lambda result: None,
    mark: Callable[[str], object] = lambda place: None,
) -> StepResult:
    """Step once on the micro-batches of this process.

    The loss is the sum over all targets, divided by `targets`, the number on all processes and micro-batches, so
    that neither accumulation nor the number of processes changes the gradients. `before_update` sees the clipped
    gradients and may raise; where updates are made in the backward pass, it comes after them. `mark` is called at the
    places `loss`, `clip` and `step`. Does not wait for the device.
    """
    losses: list[torch.Tensor] = []
    for batch in batches:
        last = len(losses) == len(batches) - 1
        with contextlib.nullcontext() if last else parts.world.accumulating(parts.model):
            losses.append(_backward(parts, parts.world.move(batch), targets, mark))
    mark("clip")
    if parts.in_backward is not None:
        result = StepResult(torch.stack(losses), parts.in_backward.take_norm())
        before_update(result)
        mark("step")
        return result
    result = StepResult(torch.stack(losses), clip_gradients(parts))
    before_update(result)
    mark("step")
    parts.world.update(parts.optimizer, parts.scaler)
    return result


def _backward(parts: Stepper, batch: Batch, targets: int, mark: Callable[[str], object]) -> torch.Tensor:
    groups = batch.groups if isinstance(batch, PackedBatch) else None
    with attention_of_rows(parts.model, groups), compiled_formulas(parts.model):
        with parts.world.autocast(parts.precision):
            total = parts.loss.total(parts.model, batch)
        share = total / targets
        mark("loss")
        parts.world.backward(parts.scaler.scale(share * parts.world.gradient_factor))
    return share.detach()


def clip_gradients(parts: Stepper) -> torch.Tensor:
    """Clip to the norm `clip`, if any, and return the norm before that."""
    parts.scaler.unscale_(parts.optimizer)
    return parts.world.clip(parts.optimizer, float("inf") if parts.clip is None else parts.clip, parts.foreach)


def open_scaler(precision: torch.dtype, device: torch.device) -> torch.amp.GradScaler:
    """Return the gradient scaler that float16 needs; a switched-off one for other types."""
    return torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
