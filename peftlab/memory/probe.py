"""A few phases of a run, measured: the ledger's categories and, on CUDA, the allocator's own peaks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from peftlab.memory.cuda import read_phase
from peftlab.memory.generation import UnmeasuredError
from peftlab.memory.ledger import BEFORE, Ledger
from peftlab.reports import PHASES, DevicePhase, MemoryReport
from peftlab.world.hardware import other_processes_bytes, reset_allocator_peaks

OTHERS_UNKNOWN = "what other processes use of the device is not known, and counts as outside the allocator"
Tensors = Mapping[str, Sequence[torch.Tensor]]
NONE: Tensors = {}


class Probe:
    """Measures what runs inside `phase`; `report` returns the peaks. `current` is the phase that runs now.

    `beside` are tensors of a strategy's engine that count from the start, by category.
    """

    def __init__(self, device: torch.device):
        self.device, self.ledger = device, Ledger(only=device.type)
        self.current: str | None = None
        self.notes: list[str] = []
        self._device_phases: dict[str, DevicePhase] = {}

    @contextmanager
    def steps(self, model: nn.Module, optimizer: torch.optim.Optimizer, beside: Tensors = NONE) -> Iterator[None]:
        """Measure training steps of a model, in phases opened inside."""
        with self.ledger.watch(model, optimizer), self.ledger:
            self.enter(model, optimizer, beside)  # the optimizer may update copies of the model's weights
            yield

    @contextmanager
    def alone(
        self, phase: str, model: nn.Module | None = None, optimizer=None, beside: Tensors = NONE
    ) -> Iterator[None]:
        """Measure one phase that trains nothing; a given model's and optimiser's tensors count from its start."""
        with self.ledger:
            if model is not None:
                self.enter(model, optimizer, beside)
            with self.phase(phase):
                yield

    def enter(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None, beside: Tensors = NONE) -> None:
        self.ledger.mark(BEFORE)
        self.ledger.adopt(model, optimizer)
        for category, tensors in beside.items():
            self.ledger.track_all(tensors, category)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure one phase; one that raises UnmeasuredError is omitted from the report, with a note."""
        self.current = name
        reset_allocator_peaks(self.device)
        self.ledger.mark(name)
        try:
            yield
        except UnmeasuredError as error:
            self.ledger.leave_out(name)
            self.notes.append(str(error))
            return
        found = read_phase(self.device)
        if found is not None:
            self._device_phases[name] = found

    def report(self) -> MemoryReport:
        """Return the phases' memory; on CUDA the allocator's peaks, whose excess over the ledger is the residual."""
        report = self.ledger.report().model_copy(update={"notes": list(self.notes)})
        others = other_processes_bytes(self.device) if self._device_phases else None
        return with_device(report, self._device_phases, others)


def with_device(report: MemoryReport, phases: dict[str, DevicePhase], others: int | None = None) -> MemoryReport:
    """Return a ledger's report with the allocator's peaks in place of its own; unchanged without any.

    `others` is what other processes use of the device, None where that is not known: it then counts as outside.
    """
    if not phases:
        return report
    highest = max(phases.values(), key=lambda phase: phase.allocated_bytes)
    unknown = [OTHERS_UNKNOWN] if others is None else []
    return report.model_copy(
        update={
            "peak_bytes": highest.allocated_bytes,
            "phases": {name: phase.allocated_bytes for name, phase in phases.items()},
            "device_phases": phases,
            "overheads": {
                "allocator_slack": highest.inactive_split_bytes,
                "outside_allocator": max(highest.outside_bytes - (others or 0), 0),
            },
            "notes": [*report.notes, *unknown],
        }
    )


def join_reports(reports: Sequence[MemoryReport]) -> MemoryReport:
    """Return measurements of several phases as one: the highest peak's categories, phases in a run's order."""
    highest = max(reports, key=lambda report: report.peak_bytes)
    phases = {name: peak for report in reports for name, peak in report.phases.items()}
    device_phases = {name: phase for report in reports for name, phase in report.device_phases.items()}
    return highest.model_copy(
        update={
            "phases": {name: phases[name] for name in PHASES if name in phases},
            "device_phases": {name: device_phases[name] for name in PHASES if name in device_phases},
            "notes": list(dict.fromkeys(note for report in reports for note in report.notes)),
        }
    )
