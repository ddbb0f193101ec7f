"""A recipe's data as text: facts on each part, lengths, notes, and rows with their supervised tokens marked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from peftlab.cli.render import WIDTH, plain_table
from peftlab.cli.render_rows import MARK, render_row
from peftlab.errors import listed
from peftlab.quantities import format_share
from peftlab.reports import DataReport, LengthBin, RowReport, RowView

BAR_CHARACTERS = 40
# Facts of a part that are shown where any part has them: the key in the report, and the title.
FACTS = {
    "rows": "rows",
    "dropped": "dropped, nothing supervised",
    "truncated": "cut to data.max_length",
    "lost_supervised": "of them lost supervised tokens",
    "lost_tokens": "supervised tokens lost",
    "cut_turns": "messages cut",
    "chunked": "cut into several rows",
    "skipped": "too long, skipped",
    "carried": "with special tokens in their text",
    "unended": "answers without an end marker",
    "tokens": "tokens",
    "supervised": "supervised",
    "longest": "longest row",
}


def render_data(report: DataReport, *, with_rows: bool = True) -> RenderableType:
    """Return the report as text; `with_rows` adds its rows."""
    parts: list[RenderableType] = []
    if report.data:
        parts += [parts_table(report.data), ""]
    parts += [Text(line) for line in fact_lines(report)]
    if report.lengths:
        parts += ["", lengths_table(report.lengths, report.part)]
    if report.notes:
        parts += ["", *(Text(f"note: {line}") for line in report.notes)]
    if report.refusal:
        parts += [Text(f"training would stop: {report.refusal}", style="bold red")]
    if with_rows and report.rows:
        parts += ["", f"rows of data.{report.part}; lines with {MARK.strip()} are supervised:"]
        for row in report.rows:
            parts += ["", *render_report(row)]
    return Group(*parts)


def parts_table(data: dict[str, Any]) -> Table:
    """Return one column for each part of the data that has rows."""
    parts = {name: part for name, part in data.items() if isinstance(part, dict) and part.get("rows")}
    table = plain_table(f"format {data['format']}", *parts)
    for key, title in FACTS.items():
        if any(part.get(key) for part in parts.values()):
            table.add_row(title, *(f"{part[key]:,}" if part.get(key) else "-" for part in parts.values()))
    table.add_row("share supervised", *(_supervised_share(part) for part in parts.values()))
    return table


def _supervised_share(part: dict[str, Any]) -> str:
    return format_share(part["supervised"] / part["tokens"]) if part.get("tokens") else "-"


def fact_lines(report: DataReport) -> Iterator[str]:
    """Yield what steps take, and which end markers are supervised."""
    if steps := report.steps:
        epochs = "1 epoch" if steps.epochs == 1 else f"{steps.epochs:.4g} epochs"
        yield f"steps       {steps.steps:,} of {steps.rows:,} rows, {epochs}"
        yield (
            f"a step      {steps.tokens:,.0f} tokens, {steps.supervised:,.0f} supervised; padding adds"
            f" {format_share(steps.padding)} of its places"
        )
    if report.data:
        yield f"end marker  {' '.join(report.ends)} is supervised" if report.ends else "end marker  none is supervised"
        if unread := report.data.get(report.part, {}).get("unread"):
            yield f"not read    {listed(unread)}: nothing of these columns of data.{report.part} is in the rows"


def lengths_table(bins: list[LengthBin], part: str) -> Table:
    """Return a bar for each bin of lengths."""
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column()
    table.add_row("tokens", "rows", f"of data.{part}")
    most = max(one.rows for one in bins)
    for one in bins:
        bar = "#" * max(round(BAR_CHARACTERS * one.rows / most), int(one.rows > 0))
        table.add_row(f"{one.first:,}-{one.last:,}", f"{one.rows:,}", bar)
    return table


def render_report(row: RowReport) -> Iterator[Text]:
    """Yield a row's lines, then its faults."""
    supervised = sum(span.tokens for span in row.spans if span.supervised)
    view = RowView(tokens=len(row.ids), supervised=supervised, spans=row.spans, label=row.label)
    yield from render_row(view, f"row {row.index}")
    for fault in row.faults:
        yield Text(f"  ! {fault}"[:WIDTH], style="yellow")
