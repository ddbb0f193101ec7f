"""One process alone."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from peftlab.world.base import Item, World


class Single(World):
    strategy = "single"
    gradient_factor = 1.0
    sharing = 1

    def prepare(self, model: nn.Module) -> nn.Module:
        return self._accelerator.prepare_model(model)

    def accumulating(self, model: nn.Module) -> AbstractContextManager[None]:
        return nullcontext()

    def gather(self, items: list[Item]) -> list[Item]:
        return list(items)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def wait(self) -> None:
        pass
