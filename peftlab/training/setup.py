"""What the training loop works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch

from peftlab.data.rows import Rows
from peftlab.optimization.step import Stepper
from peftlab.recipe.schema import Recipe
from peftlab.reports import Metrics, Progress
from peftlab.training.stop import Stop


class Saver(Protocol):
    """Writes checkpoints; `check` raises the error of a write in the background."""

    def save(self, setup: Setup) -> None: ...

    def check(self) -> None: ...


class NoSaver:
    """Saves nothing: for a setup that only measures."""

    def save(self, setup: Setup) -> None:
        pass

    def check(self) -> None:
        pass


@dataclass
class Setup(Stepper):
    """The parts of a step, and what else the loop needs."""

    recipe: Recipe
    schedule: torch.optim.lr_scheduler.LRScheduler
    rows: Rows
    steps: int
    stop: Stop
    evaluate: Callable[[], Metrics]
    saver: Saver
    progress: Progress = field(default_factory=Progress)
