"""What a budget came to, as lines for people."""

from __future__ import annotations

from collections.abc import Iterator

from peftlab.quantities import format_change
from peftlab.reports import BudgetReport

UNITS = {"trainable": "parameters", "memory": "bytes", "stored": "bytes", "seconds": "seconds"}


def describe_budget(report: BudgetReport) -> Iterator[str]:
    """Yield one line on what was solved and reached, then why it is no nearer and what was counted."""
    solved = " ".join(f"{path}={'null' if value is None else value}" for path, value in report.solved.items())
    amounts = f"{report.reached:,.0f} of {report.asked:,.0f} {UNITS[report.kind]}"
    yield f"{solved}: {amounts} ({format_change(report.error, 2)}), {'met' if report.met else 'not met'}"
    if report.reason:
        yield f"reason: {report.reason}"
    yield from (f"note: {note}" for note in report.notes)
