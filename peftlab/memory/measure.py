"""A run's measured memory: exact tensor bytes by category, peaks by phase."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import torch
from torch import nn

from peftlab.memory.cuda import read_phase, reset_peaks
from peftlab.memory.private import quantisation_tensors
from peftlab.reports import DevicePhase, MemoryReport

PROC = Path("/proc/self")
# What a container may take and takes, in the two generations of Linux control groups.
CONTROL_GROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


def tensor_bytes(tensors: Iterable[torch.Tensor | None]) -> int:
    """Return the bytes of the tensors' distinct storages."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t is not None}
    return sum(storages.values())


def free_host_bytes() -> int:
    """Return the host memory that this process may still take: the machine's, or less in a container."""
    free = psutil.virtual_memory().available
    for limit, usage in CONTROL_GROUPS:
        with contextlib.suppress(OSError, ValueError):  # no such group, or "max": no limit
            free = min(free, int(limit.read_text()) - int(usage.read_text()))
    return max(free, 0)


def reset_resident_peak() -> None:
    """Start the kernel's peak of resident memory anew (Linux; elsewhere the peak is the process's whole life's)."""
    with contextlib.suppress(OSError):
        (PROC / "clear_refs").write_text("5")


def resident_peak_bytes() -> int:
    """Return the process's peak resident bytes since the last reset."""
    with contextlib.suppress(OSError):
        for line in (PROC / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return psutil.Process().memory_info().rss


class MemoryMeter:
    """Peaks by phase: allocated bytes on CUDA, resident bytes of the process on the CPU."""

    def __init__(self, device: torch.device):
        self.device = device
        self.phases: dict[str, int] = {}
        self.device_phases: dict[str, DevicePhase] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Attribute the peak of what runs inside to `name`; a repeated phase keeps its highest."""
        reset_peaks(self.device)
        if self.device.type != "cuda":
            reset_resident_peak()
        try:
            yield
        finally:
            self._note(name)

    def _note(self, name: str) -> None:
        found = read_phase(self.device)
        peak = resident_peak_bytes() if found is None else found.allocated_bytes
        if peak < self.phases.get(name, 0):
            return
        self.phases[name] = peak
        if found is not None:
            self.device_phases[name] = found

    def current(self) -> int:
        """Return the bytes in use now: allocated on CUDA, resident on the CPU."""
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        return psutil.Process().memory_info().rss

    def report(self, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> MemoryReport:
        """Return the measured memory; its residual is the part of the peak that is not in the state's tensors."""
        return MemoryReport(
            source="measured",
            device=self.device.type,
            peak_bytes=max(self.phases.values(), default=0),
            categories=bytes_by_category(model, optimizer),
            phases=self.phases,
            device_phases=self.device_phases,
        )


def bytes_by_category(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, int]:
    """Return the bytes of weights, gradients and optimiser states, each gradient counted as large as its weight."""
    parameters = list(model.parameters())
    trainable = [p for p in parameters if p.requires_grad]
    states = [] if optimizer is None else [v for state in optimizer.state.values() for v in state.values()]
    return {
        "frozen_weights": tensor_bytes(p for p in parameters if not p.requires_grad),
        "quantisation_state": tensor_bytes(quantisation_tensors(parameters)),
        "trainable_weights": tensor_bytes(trainable),
        "gradients": tensor_bytes(trainable) if optimizer is not None else 0,
        "optimiser_state": tensor_bytes(v for v in states if torch.is_tensor(v)),
    }
