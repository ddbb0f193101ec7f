"""Memory, predicted and measured."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, computed_field

from peftlab.reports.base import Report


class DevicePhase(Report):
    """CUDA's measurements of one phase: the allocator's peaks, and what all processes together use of the device.

    `inactive_split_bytes` is the peak of what is free in blocks that other tensors keep from being given back: the
    fragmentation. `outside_bytes` is what was used at the end of the phase and is not the allocator's, other
    processes included.
    """

    allocated_bytes: int
    reserved_bytes: int
    inactive_split_bytes: int
    used_bytes: int
    outside_bytes: int = 0

    @computed_field  # type: ignore[prop-decorator]  # pydantic's documented use, which mypy does not know
    @property
    def fragmentation_bytes(self) -> int:
        return self.inactive_split_bytes


PHASES = ("load", "first_step", "steady_step", "evaluation", "generation", "save")
"""A run's phases in order; those that a run does not have are in no report."""


class CommunicationReport(Report):
    """What one device sends in an optimiser step, predicted: `sent_bytes` by purpose.

    `bandwidth_bytes` is what a device can send in a second over the slowest link, where it was given.
    """

    devices: int
    sent_bytes: dict[str, int]
    bandwidth_bytes: int | None = None

    @computed_field  # type: ignore[prop-decorator]  # pydantic's documented use, which mypy does not know
    @property
    def total_bytes(self) -> int:
        return sum(self.sent_bytes.values())

    @computed_field  # type: ignore[prop-decorator]  # pydantic's documented use, which mypy does not know
    @property
    def floor_seconds(self) -> float | None:
        """Return the least time that a step spends sending, part of which computing can hide."""
        return None if self.bandwidth_bytes is None else self.total_bytes / self.bandwidth_bytes


class CheckpointingReport(Report):
    """How many layers are recomputed in the backward pass, of those that gradients reach, the first of them.

    `on_host` says that their inputs wait in the host's memory.
    """

    layers: int
    of: int
    on_host: bool = False

    def describe(self) -> str:
        """Return one line: `the first 12 of 32 layers are recomputed in the backward pass`."""
        what = "all" if self.layers >= self.of else f"the first {self.layers} of"
        kept = ", from inputs that wait in the host's memory" if self.on_host else ""
        return f"{what} {self.of} layers are recomputed in the backward pass{kept}"


class MemoryReport(Report):
    """Peak memory in bytes, predicted or measured, by category (at the peak) and by phase (its own peak).

    `peak_bytes` is what tensors take; `overheads` is what the device loses besides (the allocator's slack, the
    CUDA context), `capacity_bytes` what it has. A measurement on CUDA has the allocator's own numbers in
    `device_phases`. A plan also says how many layers are recomputed, what it
    maximised and what would make it fit.
    """

    source: Literal["measured", "predicted"]
    device: str
    peak_bytes: int
    categories: dict[str, int] = Field(default_factory=dict)
    phases: dict[str, int] = Field(default_factory=dict)
    device_phases: dict[str, DevicePhase] = Field(default_factory=dict)
    overheads: dict[str, int] = Field(default_factory=dict)
    capacity_bytes: int | None = None
    communication: CommunicationReport | None = None
    checkpointing: CheckpointingReport | None = None
    maximized: dict[str, int] = Field(default_factory=dict)
    remedies: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)

    @computed_field  # type: ignore[prop-decorator]  # pydantic's documented use, which mypy does not know
    @property
    def needed_bytes(self) -> int:
        return self.peak_bytes + sum(self.overheads.values())

    @computed_field  # type: ignore[prop-decorator]  # pydantic's documented use, which mypy does not know
    @property
    def residual_bytes(self) -> int:
        """What the categories do not explain of the peak."""
        return self.peak_bytes - sum(self.categories.values()) if self.categories else 0

    @computed_field  # type: ignore[prop-decorator]  # pydantic's documented use, which mypy does not know
    @property
    def fits(self) -> bool | None:
        return None if self.capacity_bytes is None else self.needed_bytes <= self.capacity_bytes

    @computed_field  # type: ignore[prop-decorator]  # pydantic's documented use, which mypy does not know
    @property
    def spare_bytes(self) -> int | None:
        return None if self.capacity_bytes is None else self.capacity_bytes - self.needed_bytes


class StrategyPlan(Report):
    """One way to share a recipe's training among devices, planned, or why it cannot train it."""

    strategy: str
    devices: int
    memory: MemoryReport | None = None
    error: str | None = None

    @property
    def fits(self) -> bool:
        return self.memory is not None and self.memory.fits is True


class MethodPlan(Report):
    """One method on one model, planned: what it trains, takes and costs, or why it cannot be applied.

    `relative_step_time` is the floating-point operations of a step as a part of full fine-tuning's.
    """

    method: str
    title: str
    trainable: int = 0
    fraction: float = 0.0
    relative_step_time: float = 0.0
    memory: MemoryReport | None = None
    error: str | None = None
