"""Measures a run's memory while it goes: exact tensor bytes by category, peaks by phase."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from peftlab.memory.cuda import read_phase
from peftlab.reports import DevicePhase, MemoryReport
from peftlab.world.hardware import reset_allocator_peaks, reset_resident_peak, resident_peak_bytes, used_bytes


def tensor_bytes(tensors) -> int:
    """Return the bytes of the tensors' distinct storages."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t is not None}
    return sum(storages.values())


class MemoryMeter:
    """Peaks by phase: allocated bytes on CUDA, resident bytes of the process on the CPU."""

    def __init__(self, device: torch.device):
        self.device = device
        self.phases: dict[str, int] = {}
        self.device_phases: dict[str, DevicePhase] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Attribute the peak of what runs inside to `name`; a phase that comes again keeps its highest."""
        reset_allocator_peaks(self.device)
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
        return used_bytes(self.device)

    def report(self, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> MemoryReport:
        """Return the ledger; what the state's tensors do not explain of the peak is its residual."""
        return MemoryReport(
            source="measured",
            device=self.device.type,
            peak_bytes=max(self.phases.values(), default=0),
            categories=state_bytes(model, optimizer),
            phases=self.phases,
            device_phases=self.device_phases,
        )


def state_bytes(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, int]:
    """Return the bytes that weights, gradients and optimiser states hold, each gradient as large as its weight."""
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


def quantisation_tensors(parameters) -> Iterator[torch.Tensor]:
    """Yield the scales and code books beside bitsandbytes' quantised weights."""
    for parameter in parameters:
        state = getattr(parameter, "quant_state", None)
        while state is not None:
            yield from (t for t in (state.absmax, state.code, state.offset) if torch.is_tensor(t))
            state = state.state2
        scales = getattr(parameter, "SCB", None)
        if torch.is_tensor(scales):
            yield scales
