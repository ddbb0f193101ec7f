"""What an optimiser is: a frozen config that can build itself, and say what state a parameter costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import torch

Groups = list[dict[str, Any]]


class StateTensor(NamedTuple):
    """One tensor of a parameter's optimiser state on the device: its length and the name of its type."""

    length: int
    dtype: str


class Optimizer(BaseModel):
    """An optimiser. Its subclass is one file and one name in `OPTIMIZERS`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    title: ClassVar[str]
    type: str

    @property
    def needs_cuda(self) -> bool:
        return False

    @property
    def elementwise(self) -> bool:
        """Whether the update of a number depends on its own gradients alone: parts of tensors can be updated then."""
        return False

    def build(self, groups: Groups, learning_rate: float, device: torch.device) -> torch.optim.Optimizer:
        """Return the optimiser over parameter groups that have their own `weight_decay`."""
        raise NotImplementedError

    def reuse(self, new: torch.optim.Optimizer, former: torch.optim.Optimizer) -> None:
        """Give `new` what `former`, an optimiser of the same parameters that ends now, has and would not free."""

    def state_tensors(self, count: int) -> dict[str, StateTensor]:
        """Return the state on the device of a float32 parameter of `count` numbers, after the first step."""
        raise NotImplementedError

    def count_saved_bytes(self, count: int) -> int:
        """Return the bytes of a parameter's state in a checkpoint, wherever it is while training."""
        sizes = {"float32": 4, "uint8": 1}
        return sum(tensor.length * sizes[tensor.dtype] for tensor in self.state_tensors(count).values())

    def plan(self, groups: Groups, device_type: str) -> torch.optim.Optimizer:
        """Return an optimiser for a trace on fake tensors, with the states and operations that `device_type` has."""
        raise NotImplementedError
