"""CUDA's own numbers, from its allocator and the device: peaks of a phase, fragmentation, snapshots for the viewer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from peftlab.errors import MissingRequirementError
from peftlab.reports import DevicePhase

SNAPSHOT_EVENTS = 200_000


def reset_peaks(device: torch.device) -> None:
    """Start the allocator's peaks anew; nothing on the CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def read_phase(device: torch.device) -> DevicePhase | None:
    """Return the allocator's peaks since the last reset, and the memory used on the whole device; None on a CPU."""
    if device.type != "cuda":
        return None
    return phase_of(torch.cuda.memory_stats(device), *torch.cuda.mem_get_info(device))


def phase_of(stats: Mapping[str, int], free: int, total: int) -> DevicePhase:
    """Return a phase from `torch.cuda.memory_stats` and `mem_get_info`."""
    return DevicePhase(
        allocated_bytes=stats.get("allocated_bytes.all.peak", 0),
        reserved_bytes=stats.get("reserved_bytes.all.peak", 0),
        inactive_split_bytes=stats.get("inactive_split_bytes.all.peak", 0),
        used_bytes=total - free,
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
    torch.cuda.memory._record_memory_history(max_entries=SNAPSHOT_EVENTS)
    try:
        yield
    finally:
        torch.cuda.memory._dump_snapshot(str(path))
        torch.cuda.memory._record_memory_history(enabled=None)
