"""No step on a gradient that is not finite, without waiting for the device at every step."""

from __future__ import annotations

import torch
from torch import nn

from peftlab.data.rows import Rows
from peftlab.errors import DivergedError
from peftlab.optimization.skipping import skips_by_flag
from peftlab.optimization.step import Stepper, StepResult
from peftlab.parameters.divided import are_finite
from peftlab.parameters.trainable import trainable_parameters
from peftlab.quantities import number

SMALLEST_SCALE = 1.0


class FiniteGuard:
    """Watches the losses and gradients of steps.

    Where the optimiser can skip an update by a flag on its device (torch's fused ones on a GPU), `observe` sets that
    flag from the first step that is not finite onwards, and `check` reads it: the weights stay as they were before
    that step, and nobody waits until the next log line. Other optimisers, float16 with its scaler, and steps on the
    CPU are checked at every step.
    """

    def __init__(self, parts: Stepper, rows: Rows):
        self.parts, self.rows = parts, rows
        self.deferred = can_skip_updates(parts)
        device = parts.world.device
        self._bad_step = torch.zeros((), dtype=torch.int64, device=device)
        self._seen: StepResult | None = None

    def observe(self, step: int, result: StepResult) -> None:
        """Take a step's losses and gradient norm before its update. Raises DivergedError where it does not defer."""
        total = result.losses.sum()
        if self.parts.world.processes > 1:  # all processes must reach the same verdict, or one waits forever
            total = self.parts.world.sum(total)
        finite = torch.isfinite(total + result.norm)
        if not self.deferred:
            if not bool(finite) and not self._scaler_can_shrink():
                raise self._explain(step, result, total)
            return
        first = torch.logical_and(self._bad_step == 0, torch.logical_not(finite))
        self._bad_step = torch.where(first, step, self._bad_step)
        self._keep(first, StepResult(result.losses.detach(), result.norm), total)
        self.parts.optimizer.found_inf = (self._bad_step > 0).float()  # type: ignore[attr-defined]  # torch's own name
        self.parts.optimizer.grad_scale = None  # type: ignore[attr-defined]

    def check(self) -> None:
        """Raise DivergedError, naming the step and its rows, if a step was not finite. Waits for the device."""
        if self.deferred and self._seen is not None and (step := int(self._bad_step)):
            raise self._explain(step, self._seen, self._total)

    def _keep(self, first: torch.Tensor, result: StepResult, total: torch.Tensor) -> None:
        """Remember the first bad step's numbers, on the device."""
        if self._seen is None:
            self._seen, self._total = result, total
        else:
            losses, norm = (torch.where(first, new, old) for new, old in zip(result, self._seen, strict=True))
            self._seen, self._total = StepResult(losses, norm), torch.where(first, total, self._total)

    def _scaler_can_shrink(self) -> bool:
        """Whether an overflow is part of float16's method: the scaler skips that step and halves its scale."""
        scaler = self.parts.scaler
        return scaler.is_enabled() and scaler.get_scale() > SMALLEST_SCALE

    def _explain(self, step: int, result: StepResult, total: torch.Tensor) -> DivergedError:
        numbers = self.rows.numbers(step)
        finite = torch.isfinite(result.losses).tolist()
        bad = [rows for rows, good in zip(numbers, finite, strict=True) if not good] or numbers
        remedy = "lower training.learning_rate or look at these rows"
        if step == 1:
            remedy = "nothing has been trained yet, so look at these rows, the base's weights and the method's settings"
        what = "loss" if not bool(torch.isfinite(total)) else "gradient norm"
        return DivergedError(
            f"step {step}: the {what} is not finite (loss {total.item():g}, gradient norm {result.norm.item():g}); "
            f"training rows {', '.join(map(str, sorted(i for rows in bad for i in rows)))}. "
            f"{self._changed(total)}; {remedy}"
        )

    def _changed(self, total: torch.Tensor) -> str:
        """Return what this step changed before it was stopped."""
        updates = self.parts.in_backward
        if updates is None or not updates.can_skip and not updates.changed:
            return "No weight was changed by this step"
        if updates.can_skip:
            return "Weights whose gradients were complete before may be changed; resume from a checkpoint before it"
        changed = number(updates.changed, "tensor")
        return f"The backward pass had updated {changed} before; resume from a checkpoint before it"


def can_skip_updates(parts: Stepper) -> bool:
    """Whether the optimiser skips an update by a flag on the device that nobody has to read."""
    return skips_by_flag(parts.optimizer) and not parts.scaler.is_enabled()


def check_weights(model: nn.Module, step: int) -> None:
    """Raise DivergedError unless every trained weight is finite: the last step's own fault shows nowhere else."""
    weights = trainable_parameters(model)
    finite = are_finite(list(weights.values()))
    if bool(finite.all()):
        return
    name = list(weights)[int(finite.logical_not().nonzero()[0])]
    raise DivergedError(
        f"step {step}: {name} is not finite after the step; lower training.learning_rate or training.weight_decay"
    )
