"""A run's measured memory: exact tensor bytes by category, peaks by phase."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from peftlab.memory.cuda import read_phase
from peftlab.memory.private import quantisation_tensors
from peftlab.parameters.divided import own_part
from peftlab.reports import DevicePhase, MemoryReport
from peftlab.world.hardware import reset_allocator_peaks, reset_resident_peak, resident_peak_bytes, used_bytes


def tensor_bytes(tensors: Iterable[torch.Tensor | None]) -> int:
    """Return the bytes of the tensors' distinct storages, of those that processes divide this process's part."""
    own = [own_part(t).untyped_storage() for t in tensors if t is not None]
    storages = {storage.data_ptr(): storage.nbytes() for storage in own}
    return sum(storages.values())


class MemoryMeter:
    """Peaks by phase: allocated bytes on CUDA, resident bytes of the process on the CPU."""

    def __init__(self, device: torch.device):
        self.device = device
        self.phases: dict[str, int] = {}
        self.device_phases: dict[str, DevicePhase] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Attribute the peak of what runs inside to `name`; a repeated phase keeps its highest."""
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
    copies = [] if optimizer is None else copies_of_weights(optimizer, trainable)
    states = [] if optimizer is None else [v for state in optimizer.state.values() for v in state.values()]
    return {
        "frozen_weights": tensor_bytes(p for p in parameters if not p.requires_grad),
        "quantisation_state": tensor_bytes(quantisation_tensors(parameters)),
        "trainable_weights": tensor_bytes([*trainable, *copies]),
        "gradients": tensor_bytes(trainable) if optimizer is not None else 0,
        "optimiser_state": tensor_bytes(v for v in states if torch.is_tensor(v)),
    }


def copies_of_weights(optimizer: torch.optim.Optimizer, trainable: list[nn.Parameter]) -> list[torch.Tensor]:
    """Return what an optimizer updates in place of a model's parameters, where a strategy divides its states alone."""
    known = {id(parameter) for parameter in trainable}
    updated = (*(one for group in optimizer.param_groups for one in group["params"]), *optimizer.state)
    return [one for one in updated if id(one) not in known]
