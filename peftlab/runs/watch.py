"""What is known of a run when memory runs out: the phase, what occupies memory, the planner."""

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
    """The parts of a run that occupy memory; each stage adds its own. `memory` is the result's own dictionary."""

    recipe: Recipe
    device: torch.device
    memory: dict[str, MemoryReport]
    phase: str = "load"
    probe: Probe | None = None
    model: nn.Module | None = None
    optimizer: torch.optim.Optimizer | None = None
    planner: Planner | None = None
