"""CUDA's own numbers, from its allocator and the device: peaks of a phase, fragmentation, snapshots for the viewer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from peftlab.errors import MissingRequirementError
from peftlab.reports import DevicePhase
from peftlab.world.hardware import read_allocator, start_allocation_history, stop_allocation_history


def read_phase(device: torch.device) -> DevicePhase | None:
    """Return the allocator's peaks since the last reset, and the memory used on the whole device; None on a CPU."""
    if device.type != "cuda":
        return None
    return phase_of(*read_allocator(device))


def phase_of(stats: Mapping[str, int], free: int, total: int) -> DevicePhase:
    """Return a phase from the allocator's statistics and the device's free and total bytes."""
    return DevicePhase(
        allocated_bytes=stats.get("allocated_bytes.all.peak", 0),
        reserved_bytes=stats.get("reserved_bytes.all.peak", 0),
        inactive_split_bytes=stats.get("inactive_split_bytes.all.peak", 0),
        used_bytes=total - free,
        outside_bytes=max(total - free - stats.get("reserved_bytes.all.current", 0), 0),
    )


def refuse_snapshot(wanted: bool, device: torch.device) -> None:
    """Raise MissingRequirementError for a snapshot without CUDA."""
    if wanted and device.type != "cuda":
        raise MissingRequirementError("run.memory_snapshot: records CUDA's allocator, and this run is on the CPU")


@contextlib.contextmanager
def snapshot(path: Path | None) -> Iterator[None]:
    """Record every allocation inside and write them to `path`, also after an error; does nothing without a path.

    The file opens at pytorch.org/memory_viz. Its format is torch's own and a pickle: the rule that peftlab neither
    writes nor reads pickles is about checkpoints, and this file is only ever written.
    """
    if path is None:
        yield
        return
    start_allocation_history()
    try:
        yield
    finally:
        stop_allocation_history(path)
