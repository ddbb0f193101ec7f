"""An optimiser that allocates the states of another one and does nothing with them: for planning without its device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from peftlab.optimizers.base import Groups, Optimizer


class PlannedStates(torch.optim.Optimizer):
    """Allocates what `config` says that each parameter's state takes, at the first step."""

    def __init__(self, groups: Groups, config: Optimizer):
        super().__init__(groups, {})
        self.config = config

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # torch overloads it for closures
        for group in self.param_groups:
            for parameter in group["params"]:
                if not self.state[parameter]:
                    planned = self.config.state_tensors(parameter.numel())
                    self.state[parameter].update(
                        {
                            name: torch.empty(one.length, dtype=getattr(torch, one.dtype))
                            for name, one in planned.items()
                        }
                    )
