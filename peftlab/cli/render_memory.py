"""Memory reports as tables for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table

from peftlab.cli.render import format_bytes, format_share, plain_table
from peftlab.reports import MemoryReport, MethodPlan


def render_memory(report: MemoryReport) -> RenderableType:
    """Return a report's verdict, categories at the peak, phases, and what would make it fit."""
    facts = Table.grid(padding=(0, 2))
    facts.add_row("source", f"{report.source}, {report.device}")
    for name, value in report.maximized.items():
        facts.add_row(f"largest {name}", f"{value:,}")
    facts.add_row("needed", f"{format_bytes(report.needed_bytes)} ({report.needed_bytes:,} bytes)")
    if report.fits is not None:
        facts.add_row("there is", format_bytes(report.capacity_bytes))
        facts.add_row("fits", verdict(report))
    parts: list[RenderableType] = [facts, "", bytes_table("at the peak", report.categories | report.overheads)]
    parts += ["", bytes_table("phase's peak", report.phases)]
    if report.remedies:
        parts += ["", "what would make it fit:", *(f"  {line}" for line in report.remedies)]
    return Group(*parts, *(f"note: {note}" for note in report.notes))


def verdict(report: MemoryReport) -> str:
    if report.fits:
        return f"yes, {format_bytes(report.spare_bytes)} to spare"
    return f"no, {format_bytes(-report.spare_bytes)} too much"


def bytes_table(title: str, rows: dict[str, int]) -> Table:
    table = plain_table(title, "bytes", "")
    for name, count in rows.items():
        table.add_row(name.replace("_", " "), f"{count:,}", format_bytes(count))
    return table


def render_methods(rows: Sequence[MethodPlan]) -> RenderableType:
    """Return one row a method: what trains, what it takes, how long a step is beside full fine-tuning's."""
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
    return Group(table, *reasons, "step time: of full fine-tuning's, by operations", *(f"note: {n}" for n in notes))
