"""What a run is measured by: one stamp after each optimiser step, and one more step under torch's profiler."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm", "aten::linear")
ATTENTION = "scaled_dot_product"


@dataclass
class Clock:
    """Wall and processor seconds since the process was started, and the loss, after each step.

    The step after the `timed` ones is profiled: where its time goes does not cost the others any.
    """

    born: float
    """`time.time()` just before the process was started."""
    timed: int
    """Steps that are stamped."""
    device: str = "cpu"
    wait: Callable[[], object] = lambda: None
    """Waits between steps until it is this run's turn."""
    begun: list[float] = field(default_factory=list)
    """Wall seconds at which each step could begin, the first one at 0."""
    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    operations: dict[str, float] = field(default_factory=dict)
    """Seconds of the profiled step: of matrix products, of attention, of all operations on tensors, of these and the
    functions around them, and by the clock."""
    peak: int = 0
    _profile: Any = None
    _begun: float = 0.0

    def step(self, loss: float) -> None:
        """Note the end of a step; `loss` is read from the device already."""
        if self._profile is not None:
            self._end_profile()
        if len(self.wall) == self.timed:
            return
        self.begun = self.begun or [0.0]
        used = resource.getrusage(resource.RUSAGE_SELF)
        self.wall.append(time.time() - self.born)
        self.processor.append(used.ru_utime + used.ru_stime)
        self.losses.append(loss)
        self.wait()
        self.begun.append(time.time() - self.born)
        if len(self.wall) == self.timed:
            self.peak = self.peak_bytes()
            self._begin_profile()

    def _begin_profile(self) -> None:
        from torch.profiler import ProfilerActivity, profile

        self._profile = profile(activities=[ProfilerActivity.CUDA if self.device == "cuda" else ProfilerActivity.CPU])
        self._profile.__enter__()
        self._begun = time.perf_counter()

    def _end_profile(self) -> None:
        seconds = time.perf_counter() - self._begun
        self._profile.__exit__(None, None, None)
        self.operations = add_up(self._profile.key_averages(), self.device) | {"step": seconds}
        self._profile = None

    def peak_bytes(self) -> int:
        """Return the most memory so far: of the device, else resident."""
        if self.device == "cuda":
            import torch

            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def report(self) -> dict[str, Any]:
        """Return the stamps, the most memory up to the last of them, and where the profiled step's time went."""
        stamps = {
            "begun": self.begun[: len(self.wall)],
            "wall": self.wall,
            "processor": self.processor,
            "losses": self.losses,
        }
        found = {"peak_bytes": self.peak, "operations": self.operations, "threads": len(os.sched_getaffinity(0))}
        return stamps | found


def add_up(events: Any, device: str) -> dict[str, float]:
    """Return the seconds of products, of attention, of all operations on tensors and of all that a profile names.

    `events` are its averages by name.
    """
    found = {"products": 0.0, "attention": 0.0, "tensors": 0.0, "all": 0.0}
    for event in events:
        seconds = (event.self_device_time_total if device == "cuda" else event.self_cpu_time_total) / 1e6
        found["all"] += seconds
        if event.key.startswith("aten::"):
            found["tensors"] += seconds
        if event.key in PRODUCTS:
            found["products"] += seconds
        elif ATTENTION in event.key:
            found["attention"] += seconds
    return found
