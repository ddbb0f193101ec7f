"""A merged model as text: its tensors, and how far it is from the trained one."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table

from peftlab.cli.render import plain_table
from peftlab.quantities import format_metric, format_share
from peftlab.reports import AgreementReport, MergeReport


def render_merge(report: MergeReport) -> RenderableType:
    """Return where the model is, what became of its tensors, and the comparison for each base that was tried."""
    facts = Table.grid(padding=(0, 2))
    facts.add_row("merged", f"{report.run} into {report.folder} ({report.dtype})")
    facts.add_row("base", report.base)
    facts.add_row("tensors", ", ".join(f"{count:,} {kind}" for kind, count in report.tensors.items()))
    if not report.agreements:
        return Group(facts, "", "not compared with the trained model (--rows 0)")
    found = next(iter(report.agreements.values()))
    rows = f"compared with the trained model on {found.rows} {report.part} rows, {found.targets:,} targets:"
    return Group(facts, "", rows, agreement_table(report), "", conclusion(report))


def agreement_table(report: MergeReport) -> Table:
    """Return a column for each base: merged model against trained model, on the same targets."""
    table = plain_table("updates added to", *report.agreements)
    lines = {
        "logits: difference (rms)": [f"{one.rms:.3g}" for one in report.agreements.values()],
        "of what training changed": [_share(one, report) for one in report.agreements.values()],
        "largest difference": [f"{one.largest:.3g}" for one in report.agreements.values()],
        "KL divergence, nats": [f"{one.kl:.3g}" for one in report.agreements.values()],
        "same likeliest class": [format_share(one.same_top) for one in report.agreements.values()],
        "loss, trained model": [format_metric(one.loss_first) for one in report.agreements.values()],
        "loss, merged model": [format_metric(one.loss_second) for one in report.agreements.values()],
        "change [95 %]": [_change(one) for one in report.agreements.values()],
    }
    for title, cells in lines.items():
        table.add_row(title, *cells)
    return table


def _share(one: AgreementReport, report: MergeReport) -> str:
    return format_share(one.rms / report.effect) if report.effect else "-"


def _change(one: AgreementReport) -> str:
    value, low, high = one.loss_change
    return f"{value:+.2g} [{low:+.2g}, {high:+.2g}]"


def conclusion(report: MergeReport) -> str:
    found = report.agreements[report.base]
    return f"passed: the difference of {found.rms:.3g} is within the limit of {report.limit:.3g}"
