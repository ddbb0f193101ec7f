"""The result of a budget, as lines of text."""

from __future__ import annotations

from collections.abc import Iterator

from peftlab.quantities import format_change
from peftlab.reports import BudgetReport

UNITS = {
    "trainable": "parameters",
    "memory": "bytes",
    "stored": "bytes",
    "seconds": "seconds",
    "operations": "operations",
}


def describe_budget(report: BudgetReport) -> Iterator[str]:
    """Yield a line with the solved fields and what they reach, then the reason and the notes."""
    solved = " ".join(f"{path}={'null' if value is None else value}" for path, value in report.solved.items())
    amounts = f"{report.reached:,.0f} of {report.asked:,.0f} {UNITS[report.kind]}"
    yield f"{solved}: {amounts} ({format_change(report.error, 2)}), {'met' if report.met else 'not met'}"
    if report.reason:
        yield f"reason: {report.reason}"
    yield from (f"note: {note}" for note in report.notes)
