"""What is at hand when memory runs out: the phase, what holds memory, the plan to ask."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from peftlab.memory.probe import Probe
from peftlab.recipe.schema import Recipe
from peftlab.reports import MemoryReport
from peftlab.runs.planner import Planner


@dataclass
class Watch:
    """The state of a run as far as memory goes; each stage enters what it makes. `memory` is the result's own."""

    recipe: Recipe
    device: torch.device
    memory: dict[str, MemoryReport]
    phase: str = "load"
    probe: Probe | None = None
    model: nn.Module | None = None
    optimizer: torch.optim.Optimizer | None = None
    planner: Planner | None = None
