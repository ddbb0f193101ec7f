"""What is made of CUDA's own numbers, from dictionaries such as `torch.cuda.memory_stats` returns."""

from __future__ import annotations

import pytest
import torch

from peftlab.errors import MissingRequirementError
from peftlab.memory.cuda import phase_of, read_phase, refuse_snapshot
from peftlab.memory.ledger import CATEGORIES
from peftlab.memory.probe import join_reports, with_device
from peftlab.reports import MemoryReport
from peftlab.world.hardware import sum_others

MIB = 2**20
STATS = {
    "allocated_bytes.all.peak": 900 * MIB,
    "allocated_bytes.all.current": 100 * MIB,
    "reserved_bytes.all.peak": 1200 * MIB,
    "reserved_bytes.all.current": 1100 * MIB,
    "inactive_split_bytes.all.peak": 250 * MIB,
}


def ledger(peak: int, **phases: int) -> MemoryReport:
    held = dict.fromkeys(CATEGORIES, 0) | {"frozen_weights": peak}
    return MemoryReport(source="measured", device="cuda", peak_bytes=peak, categories=held, phases=phases)


def test_a_phase_has_the_allocators_peaks_and_the_whole_devices_use():
    phase = phase_of(STATS, free=6_000 * MIB, total=8_000 * MIB)
    assert (phase.allocated_bytes, phase.reserved_bytes) == (900 * MIB, 1200 * MIB)
    assert phase.outside_bytes == 900 * MIB
    assert phase.inactive_split_bytes == 250 * MIB
    assert phase.used_bytes == 2_000 * MIB


def test_what_the_ledger_does_not_explain_of_the_allocators_peak_is_the_residual():
    first = {"allocated_bytes.all.peak": 400 * MIB, "reserved_bytes.all.peak": 500 * MIB}
    stats = {"first_step": first, "steady_step": STATS}
    phases = {name: phase_of(one, free=6_000 * MIB, total=8_000 * MIB) for name, one in stats.items()}
    report = with_device(ledger(850 * MIB, first_step=380 * MIB, steady_step=850 * MIB), phases)
    assert report.peak_bytes == 900 * MIB and report.residual_bytes == 50 * MIB
    assert report.phases == {"first_step": 400 * MIB, "steady_step": 900 * MIB}
    # Cached whole segments are no fragmentation: 300 MiB are reserved beyond the peak, 250 cannot be released.
    assert report.overheads == {"allocator_slack": 250 * MIB, "outside_allocator": 900 * MIB}
    assert report.needed_bytes == 2_050 * MIB and any("other processes" in note for note in report.notes)
    beside = with_device(ledger(850 * MIB), phases, others=400 * MIB)
    assert beside.overheads["outside_allocator"] == 500 * MIB and not beside.notes


def test_other_processes_on_the_same_device_are_summed_where_this_one_is_listed():
    listed = "GPU-a, 10, 500\nGPU-a, 11, 300\nGPU-b, 12, 900\nGPU-a, 13, [N/A]\n"
    assert sum_others(listed, "GPU-a", 10) == 300 * MIB
    assert sum_others(listed, "GPU-b", 12) == 0
    assert sum_others(listed, "GPU-a", 99) is None, "a container's numbers of processes are others"


def test_phases_measured_apart_stand_in_a_runs_order_with_the_highest_ones_categories():
    report = join_reports([ledger(5, load=5), ledger(9, steady_step=9, first_step=8), ledger(3, save=3)])
    assert list(report.phases) == ["load", "first_step", "steady_step", "save"]
    assert report.peak_bytes == report.categories["frozen_weights"] == 9


def test_on_the_cpu_there_is_no_device_phase_and_no_snapshot():
    cpu = torch.device("cpu")
    assert read_phase(cpu) is None
    refuse_snapshot(False, cpu)
    with pytest.raises(MissingRequirementError, match="run.memory_snapshot: records CUDA's allocator"):
        refuse_snapshot(True, cpu)
