"""What a run is measured by: one stamp after each optimiser step."""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Clock:
    """Wall and processor seconds since the process was started, and the loss, after each step."""

    born: float
    """`time.time()` just before the process was started."""
    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def step(self, loss: float) -> None:
        """Note the end of a step; `loss` is read from the device already."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        self.wall.append(time.time() - self.born)
        self.processor.append(used.ru_utime + used.ru_stime)
        self.losses.append(loss)

    def report(self, device: str) -> dict[str, Any]:
        """Return the stamps and the most memory so far: of the device, else resident."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if device == "cuda":
            import torch

            peak = torch.cuda.max_memory_allocated()
        stamps = {"wall": self.wall, "processor": self.processor, "losses": self.losses}
        return stamps | {"peak_bytes": peak, "threads": len(os.sched_getaffinity(0))}
