"""A recipe's predicted memory, before a weight is loaded: by category and by phase."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import numpy as np

from peftlab.memory.blueprint import Blueprint
from peftlab.memory.constants import NCCL_BUFFERS, cuda_constants
from peftlab.memory.depth import Segments
from peftlab.memory.generation import UnmeasuredError
from peftlab.memory.ledger import CATEGORIES
from peftlab.memory.strategies import Division, Strategy
from peftlab.memory.trace import Trace, Workload, trace_whole
from peftlab.reports import PHASES, CommunicationReport, MemoryReport
from peftlab.sizes import DEFAULT_CAPABILITY

NOT_MEASURED = "CUDA's constants and the allocator's slack are not yet measured on a device"
STRATEGY_NOT_MEASURED = "the {} formula for {} devices is not yet measured"


def predict(
    blueprint: Blueprint,
    work: Workload | None = None,
    *,
    devices: int = 1,
    strategy: Strategy | None = None,
    capability: tuple[int, int] = DEFAULT_CAPABILITY,
    capacity_bytes: int | None = None,
    bandwidth_bytes: int | None = None,
) -> MemoryReport:
    """Return one device's predicted memory; `work` defaults to the largest batches that the recipe allows.

    `strategy` is how several devices divide the work. Lasts seconds, whatever the sizes. Generation that cannot
    be traced is omitted, with a note. Raises UnpredictableError for a model that cannot be traced at all.
    """
    work = work or blueprint.workload()
    checkpointing = blueprint.recompute()
    divided = strategy if devices > 1 else None
    with nullcontext() if divided is None else divided.computing():
        trace, notes = _trace(blueprint, work, divided is not None and divided.takes_gradients)
    segments = alone = trace.segments
    saving, communication = 0, None
    if divided is not None:
        division = Division(blueprint.weights, devices, beside_host=work.cuda, summed=blueprint.summed_bytes(work))
        sent = divided.sent_bytes(division, blueprint.recipe.training.gradient_accumulation)
        communication = CommunicationReport(devices=devices, sent_bytes=sent, bandwidth_bytes=bandwidth_bytes)
        segments = {key: divided.share(part, key, division) for key, part in alone.items()}
        saving = divided.saving_bytes(division, blueprint.recipe.method.stores == "all")
    phases = {phase: _joined(segments, phase) for phase in PHASES if any(key[0] == phase for key in segments)}
    load = _load_peak(blueprint, int(alone[("state",)][:, -1].sum()), strategy, devices)
    phases |= _other_phases(load, segments, phases, saving)
    constants = cuda_constants(capability, blueprint.recipe.run.deterministic) if work.cuda else None
    if constants is not None:
        for phase in phases.keys() - {"load"}:
            phases[phase][CATEGORIES.index("workspace")] += constants.cublas_workspaces
    peaks = {phase: part[:, part.sum(0).argmax()] for phase, part in phases.items()}
    peak = max(peaks.values(), key=lambda column: column.sum())
    overheads = {}
    if constants is not None:
        passing = peak.sum() - segments[("state",)][:, -1].sum()
        overheads = {"allocator_slack": int(trace.slack * max(passing, 0)), "cuda_context": constants.context}
        overheads |= {"nccl_buffers": NCCL_BUFFERS} if devices > 1 else {}
    return MemoryReport(
        source="predicted",
        device=blueprint.device.type,
        peak_bytes=int(peak.sum()),
        categories=dict(zip(CATEGORIES, map(int, peak), strict=True)),
        phases={phase: int(peaks[phase].sum()) for phase in PHASES if phase in peaks},
        overheads=overheads,
        capacity_bytes=capacity_bytes,
        communication=communication,
        checkpointing=checkpointing,
        notes=notes + _notes(work, strategy, devices) + blueprint.recipe.method.notes(blueprint.shape),
    )


def _trace(blueprint: Blueprint, work: Workload, takes_gradients: bool) -> tuple[Trace, list[str]]:
    try:
        return trace_whole(blueprint.fake, work, takes_gradients), []
    except UnmeasuredError as error:
        return trace_whole(blueprint.fake, replace(work, answers=None), takes_gradients), [str(error)]


def _joined(segments: Segments, phase: str) -> np.ndarray:
    return np.concatenate([part for key, part in segments.items() if key[0] == phase], axis=1)


def _other_phases(
    load_bytes: int, segments: Segments, phases: dict[str, np.ndarray], saving: int
) -> dict[str, np.ndarray]:
    """Return the peaks of loading and of saving, which are not traced, as columns of categories.

    `saving` is what saving adds.
    """
    after = segments[("state",)][:, [-1]].copy()
    load = np.zeros_like(after)
    load[CATEGORIES.index("frozen_weights")] = load_bytes
    row = CATEGORIES.index("optimiser_state")
    after[row] = phases["steady_step"][row].max()
    after[CATEGORIES.index("workspace")] += saving
    return {"load": load, "save": after}


def _load_peak(blueprint: Blueprint, weight_bytes: int, strategy: Strategy | None, devices: int) -> int:
    """Return the peak of loading: the plain model on the CPU; on CUDA one dense weight at a time and its copy.

    Random weights are drawn on the device, so that there all of the plain model is on CUDA too. Where a strategy
    divides weights, a device has its part from the first, unless the method reads whole ones.
    """
    load, recipe = blueprint.load, blueprint.recipe
    if strategy is not None and devices > 1 and strategy.divides and not recipe.needs_whole_base:
        return load.divided(devices)
    if recipe.method.base_format == "plain":
        return load.made
    return weight_bytes + load.largest if blueprint.device.type == "cuda" and not load.drawn else load.in_place


def _notes(work: Workload, strategy: Strategy | None, devices: int) -> list[str]:
    notes = [NOT_MEASURED] if work.cuda else []
    if strategy is not None and devices > 1 and not strategy.measured:
        notes.append(STRATEGY_NOT_MEASURED.format(strategy.name, devices))
    return notes
