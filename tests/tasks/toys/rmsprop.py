"""A toy optimiser: torch's RMSprop."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from peftlab.optimizers import Optimizer
from peftlab.optimizers.base import StateTensor


class RMSprop(Optimizer):
    title: ClassVar[str] = "RMSprop"

    type: Literal["rmsprop"] = "rmsprop"
    smoothing: float = Field(default=0.99, ge=0, lt=1)
    """Decay of the running mean of squared gradients."""

    def build(self, groups, learning_rate, device):
        import torch

        return torch.optim.RMSprop(groups, lr=learning_rate, alpha=self.smoothing)

    def state_tensors(self, count):
        return {"step": StateTensor(1, "float32"), "square_avg": StateTensor(count, "float32")}

    def plan(self, groups, device_type):
        import torch

        return torch.optim.RMSprop(groups, lr=1.0, alpha=self.smoothing)
