"""Memory reports as text tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table

from peftlab.cli.render import plain_table
from peftlab.quantities import format_bytes, format_change, format_share
from peftlab.reports import CommunicationReport, DevicePhase, MemoryReport, MethodPlan, StrategyPlan


def render_memory(report: MemoryReport) -> RenderableType:
    """Return whether the run fits, categories at the peak, phases, and what would make it fit."""
    facts = Table.grid(padding=(0, 2))
    facts.add_row("source", f"{report.source}, {report.device}")
    for name, value in report.maximized.items():
        facts.add_row(f"largest {name}", f"{value:,}")
    if report.checkpointing is not None:
        facts.add_row("checkpointing", report.checkpointing.describe())
    facts.add_row("needed", f"{format_bytes(report.needed_bytes)} ({report.needed_bytes:,} bytes)")
    if report.capacity_bytes is not None:
        facts.add_row("available", format_bytes(report.capacity_bytes))
        facts.add_row("fits", verdict(report.capacity_bytes - report.needed_bytes))
    parts: list[RenderableType] = [facts, "", bytes_table("at the peak", report.categories | report.overheads)]
    parts += ["", bytes_table("phase's peak", report.phases)]
    if report.communication is not None:
        parts += ["", communication_table(report.communication)]
    if report.remedies:
        parts += ["", "what would make it fit:", *(f"  {line}" for line in report.remedies)]
    return Group(*parts, *(f"note: {note}" for note in report.notes))


def render_both(memory: dict[str, MemoryReport]) -> RenderableType:
    """Return predicted next to measured memory, by category at the peak and by phase, with the plan's error."""
    reports = {source: memory[source] for source in ("predicted", "measured") if source in memory}
    parts: list[RenderableType] = [both_table("at the peak", {k: v.categories for k, v in reports.items()})]
    parts += ["", both_table("phase's peak", {source: report.phases for source, report in reports.items()})]
    if "measured" in reports and reports["measured"].device_phases:
        parts += ["", device_table(reports["measured"].device_phases)]
    predicted = reports.get("predicted")
    if predicted is not None and predicted.capacity_bytes is not None:
        parts += ["", f"needed {format_bytes(predicted.needed_bytes)}, free {format_bytes(predicted.capacity_bytes)}"]
    notes = dict.fromkeys(note for report in reports.values() for note in report.notes)
    return Group(*parts, *(f"note: {note}" for note in notes))


def both_table(title: str, columns: dict[str, dict[str, int]]) -> Table:
    table = plain_table(title, *columns, *(["error"] if len(columns) == 2 else []))
    for name in dict.fromkeys(name for rows in columns.values() for name in rows):
        counts = [rows.get(name) for rows in columns.values()]
        cells = ["-" if count is None else format_bytes(count) for count in counts]
        if len(counts) == 2:
            cells.append(format_error(*counts))
        table.add_row(name.replace("_", " "), *cells)
    return table


def device_table(phases: dict[str, DevicePhase]) -> Table:
    """Return CUDA's numbers for each phase: the allocator's peaks, and the memory in use on the whole device."""
    table = plain_table("on the device", "allocated", "reserved", "fragmented", "in use")
    for name, phase in phases.items():
        counts = (phase.allocated_bytes, phase.reserved_bytes, phase.fragmentation_bytes, phase.used_bytes)
        table.add_row(name.replace("_", " "), *map(format_bytes, counts))
    return table


def format_error(predicted: int | None, measured: int | None) -> str:
    return format_change(predicted / measured - 1) if predicted is not None and measured else "-"


def verdict(spare_bytes: int) -> str:
    if spare_bytes >= 0:
        return f"yes, {format_bytes(spare_bytes)} to spare"
    return f"no, {format_bytes(-spare_bytes)} too much"


def bytes_table(title: str, rows: dict[str, int]) -> Table:
    table = plain_table(title, "bytes", "")
    for name, count in rows.items():
        table.add_row(name.replace("_", " "), f"{count:,}", format_bytes(count))
    return table


def communication_table(report: CommunicationReport) -> Table:
    """Return what a device sends in a step, by purpose, and the least time for it."""
    table = plain_table(f"sent by each of {report.devices} devices in a step", "bytes", "")
    for name, count in report.sent_bytes.items():
        table.add_row(name, f"{count:,}", format_bytes(count))
    if report.floor_seconds is not None:
        table.add_row("at least", f"{report.floor_seconds:.3g} s", "")
    return table


def render_strategies(rows: Sequence[StrategyPlan]) -> RenderableType:
    """Return one row for each strategy: memory of a device, bytes that it sends in a step, and the first that fits."""
    table = plain_table("strategy", "devices", "memory", "sent a step", "at least", "fits")
    for row in rows:
        if row.memory is None:
            table.add_row(row.strategy, str(row.devices), "-", "-", "-", "-")
            continue
        sent = row.memory.communication
        seconds = "-" if sent is None or sent.floor_seconds is None else f"{sent.floor_seconds:.3g} s"
        cells = format_bytes(row.memory.needed_bytes), "-" if sent is None else format_bytes(sent.total_bytes), seconds
        table.add_row(row.strategy, str(row.devices), *cells, "yes" if row.fits else "no")
    best = next((row for row in rows if row.fits), None)
    answer = "none of them fits"
    if best is not None:
        answer = f"cheapest that fits: {best.strategy}" + (f" on {best.devices} devices" if best.devices > 1 else "")
    errors = [f"{row.strategy}: {row.error}" for row in rows if row.error]
    notes = list(dict.fromkeys(note for row in rows if row.memory for note in row.memory.notes))
    return Group(table, answer, *errors, *(f"note: {note}" for note in notes))


def render_methods(rows: Sequence[MethodPlan]) -> RenderableType:
    """Return one row for each method: trainable parameters, memory, and the time of a step relative to full."""
    table = plain_table("method", "trainable", "fraction", "memory", "step time", "fits")
    for row in rows:
        if row.memory is None:
            table.add_row(row.method, "-", "-", "-", "-", "-")
            continue
        fits = "-" if row.memory.fits is None else "yes" if row.memory.fits else "no"
        needed, time = format_bytes(row.memory.needed_bytes), f"{row.relative_step_time:.2f}"
        table.add_row(row.method, f"{row.trainable:,}", format_share(row.fraction), needed, time, fits)
    reasons = [f"{row.method}: {row.error}" for row in rows if row.error]
    notes = list(dict.fromkeys(note for row in rows if row.memory for note in row.memory.notes))
    return Group(
        table,
        *reasons,
        "step time: relative to full fine-tuning, by floating-point operations",
        *(f"note: {n}" for n in notes),
    )
