"""What the training loop steps with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn

from peftlab.recipe.schema import Recipe
from peftlab.reports import Progress
from peftlab.training.rows import StepRows
from peftlab.training.stop import Stop
from peftlab.world.base import World


class Saver(Protocol):
    """Writes checkpoints; `check` raises what a write that still goes on beside the training has met."""

    def save(self, setup: Setup) -> None: ...

    def check(self) -> None: ...


class NoSaver:
    """Saves nothing: for a setup that only measures."""

    def save(self, setup: Setup) -> None:
        pass

    def check(self) -> None:
        pass


@dataclass
class Setup:
    """What the loop steps with. `model` is prepared (and wrapped) by the world."""

    world: World
    recipe: Recipe
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    rows: StepRows
    precision: torch.dtype
    steps: int
    stop: Stop
    evaluate: Callable[[], dict[str, float]]
    saver: Saver
    scaler: torch.amp.GradScaler = field(init=False)
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self):
        self.scaler = torch.amp.GradScaler(self.world.device.type, enabled=self.precision == torch.float16)
