"""Stochastic gradient descent, with or without momentum: torch's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from peftlab.optimizers.base import Groups, Optimizer, StateTensor

if TYPE_CHECKING:
    import torch


class SGD(Optimizer):
    title: ClassVar[str] = "SGD"

    type: Literal["sgd"] = "sgd"
    momentum: float = Field(0.0, ge=0, lt=1)
    """Decay of the running sum of gradients; 0 keeps none, and so no state."""
    nesterov: bool = False
    """Look ahead by the momentum."""

    @model_validator(mode="after")
    def _momentum_for_nesterov(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self

    @property
    def elementwise(self) -> bool:
        return True

    def build(self, groups: Groups, learning_rate: float, device: torch.device) -> torch.optim.Optimizer:
        import torch

        settings: dict[str, Any] = {"momentum": self.momentum, "nesterov": self.nesterov}
        return torch.optim.SGD(groups, lr=learning_rate, fused=device.type == "cuda", **settings)

    def state_tensors(self, count: int) -> dict[str, StateTensor]:
        return {"momentum_buffer": StateTensor(count, "float32")} if self.momentum else {}

    def plan(self, groups: Groups, device_type: str) -> torch.optim.Optimizer:
        import torch

        return torch.optim.SGD(groups, lr=1.0, momentum=self.momentum, nesterov=self.nesterov)
