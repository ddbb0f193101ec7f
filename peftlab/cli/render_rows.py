"""Rows of data as the model sees them, and the result of a dry run, as text."""

from __future__ import annotations

from collections.abc import Iterator

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

from peftlab.cli.render import WIDTH
from peftlab.cli.render_memory import render_both
from peftlab.reports import DryRunReport, RowView, Span

# A bar in the margin, so that the marking does not depend on colour.
MARK, PLAIN = "  | ", "    "
SPAN_CHARACTERS = 480
SHOWN_SPANS = 8


def render_dry_run(report: DryRunReport) -> RenderableType:
    """Return the first rows, what trains, and the planned memory next to that measured with the longest rows."""
    parts: list[RenderableType] = [f"first rows, as the model sees them; lines with {MARK.strip()} are supervised:"]
    for number, row in enumerate(report.rows, start=1):
        parts += ["", *render_row(row, f"row {number}")]
    parameters = report.parameters
    parts += ["", f"{parameters.trainable:,} of {parameters.total:,} parameters train, {report.steps:,} steps", ""]
    return Group(*parts, render_both(report.memory))


def render_row(row: RowView, title: str) -> list[Text]:
    """Return a row's lines: supervised ones with a bar in the margin, control characters escaped as in Python."""
    label = f", label {row.label!r}" if row.label is not None else f", {row.supervised:,} supervised"
    lines = [Text(f"{title}: {row.tokens:,} tokens{label}")]
    for span in row.spans[:SHOWN_SPANS]:
        margin, style = (MARK, "bold green") if span.supervised else (PLAIN, "")
        lines += [Text(margin + line, style=style) for line in span_lines(span)]
    if len(row.spans) > SHOWN_SPANS:
        lines.append(Text(f"{PLAIN}[... {len(row.spans) - SHOWN_SPANS} more spans]"))
    return lines


def span_lines(span: Span) -> Iterator[str]:
    """Yield a span's text in lines that fit; the middle of a long one is replaced by a note."""
    text, half = span.text, SPAN_CHARACTERS // 2
    if len(text) <= SPAN_CHARACTERS:
        yield from text_lines(text)
        return
    yield from text_lines(text[:half])
    yield f"[... {len(text) - 2 * half:,} characters]"
    yield from text_lines(text[-half:])


def text_lines(text: str) -> Iterator[str]:
    """Yield a text's own lines, folded at the width but never within an escaped character."""
    for line in text.splitlines(keepends=True):
        folded = ""
        for shown in map(visible, line):
            if cell_len(folded + shown) > WIDTH - len(MARK):
                yield folded
                folded = ""
            folded += shown
        yield folded


def visible(character: str) -> str:
    """Return a visible form of a character: escaped as in Python if it is not printable or is a backslash."""
    if character.isprintable() and character != "\\":
        return character
    return character.encode("unicode_escape").decode("ascii")
