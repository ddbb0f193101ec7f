"""Updates inside the backward pass: each weight is stepped as soon as its gradient is complete, which is then freed.

What one tensor's update does depends on no other tensor, so that the weights are those of a step after the backward
pass. https://pytorch.org/tutorials/intermediate/optimizer_step_in_backward_tutorial.html
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from peftlab.optimization.skipping import skips_by_flag


class InBackward:
    """Steps the parameters of an optimizer one by one, in the backward pass, and frees their gradients.

    From the first gradient that is not finite on nothing is updated; `changed` counts what this step had updated by
    then. `before` sees each parameter with its gradient. Without `checks` every gradient counts as finite.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, checks: bool = True):
        self.optimizer, self.checks = optimizer, checks
        self.before: Callable[[torch.Tensor], object] = lambda parameter: None
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._norms: list[torch.Tensor] = []
        self._bad = torch.zeros((), dtype=torch.bool, device=parameters[0].device) if checks else None
        self.changed = 0
        self._handles = [parameter.register_post_accumulate_grad_hook(self._update) for parameter in parameters]

    @property
    def can_skip(self) -> bool:
        """Whether the optimizer skips an update by a flag on the device that nobody has to read."""
        return skips_by_flag(self.optimizer)

    def take_norm(self) -> torch.Tensor:
        """Return the norm of all gradients since the last time."""
        norms, self._norms = self._norms, []
        return torch.linalg.vector_norm(torch.stack(norms))

    def remove(self) -> None:
        """Leave the parameters as they were found."""
        for handle in self._handles:
            handle.remove()

    def _update(self, parameter: torch.Tensor) -> None:
        if not self._norms:
            self.changed = 0
        self.before(parameter)
        assert parameter.grad is not None, "the hook runs when the gradient is complete"
        norm = torch.linalg.vector_norm(parameter.grad)
        self._norms.append(norm)
        if self._may_step(norm):
            self.optimizer.step()  # all other gradients are freed, or not there yet
            self.changed += 1
        parameter.grad = None

    def _may_step(self, norm: torch.Tensor) -> bool:
        if self._bad is None:
            return True
        self._bad = self._bad | torch.isfinite(norm).logical_not()
        if not self.can_skip:
            return not bool(self._bad)
        self.optimizer.found_inf = self._bad.float()  # type: ignore[attr-defined]  # torch's own name
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        return True
