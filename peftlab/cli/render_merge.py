"""A merged model as text: its tensors, and how far it is from the trained one."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from peftlab.cli.render import plain_table
from peftlab.quantities import format_bytes, format_metric, format_share
from peftlab.reports import AgreementReport, Change, ExportReport, MemoryReport, MergeReport, MetricChange


def render_merge(report: MergeReport) -> RenderableType:
    """Return where the model is, its tensors, the comparison for each base that was tried, and how it is served."""
    facts = Table.grid(padding=(0, 2))
    facts.add_row("merged", f"{report.run} into {report.folder} ({report.dtype})")
    facts.add_row("base", report.base)
    if report.quantize:
        facts.add_row("quantised", f"dense layers in {report.quantize}")
    facts.add_row("tensors", ", ".join(f"{count:,} {kind}" for kind, count in report.tensors.items()))
    facts.add_row("memory", _memory(report.memory))
    if not report.agreements:
        return Group(facts, "", "not compared with the trained model (--rows 0)", *serving(report.serve))
    found = next(iter(report.agreements.values()))
    rows = f"compared with the trained model on {found.rows} {report.part} rows, {found.targets:,} targets:"
    parts = [facts, "", rows, agreement_table(report), "", conclusion(report), *_quantized(report)]
    return Group(*parts, *serving(report.serve))


def _memory(found: Mapping[str, MemoryReport]) -> str:
    """Return the peak, and what was planned."""
    if "measured" not in found:
        return "not measured"
    planned = f" (planned {format_bytes(found['predicted'].peak_bytes)})" if "predicted" in found else ""
    return f"{format_bytes(found['measured'].peak_bytes)} beside the loaded libraries{planned}"


def _quantized(report: MergeReport) -> list[RenderableType]:
    """Return the comparison of what was quantised again; nothing where nothing was."""
    if report.quantize is None or report.quantized is None or report.quantized_limit is None:
        return []
    models = ("trained model", report.quantize)
    table = compared("quantised again", {report.quantize: report.quantized}, models, report.effect)
    return ["", table, "", passed(report.quantized, report.quantized_limit)]


def serving(commands: Mapping[str, str]) -> list[RenderableType]:
    """Return a line for each server, after an empty one; nothing where no server takes it."""
    return (
        ["", *(Text(f"{name}: {command}", overflow="fold") for name, command in commands.items())] if commands else []
    )


def agreement_table(report: MergeReport) -> Table:
    """Return a column for each base: merged model against trained model, on the same targets."""
    return compared("updates added to", report.agreements, ("trained model", "merged model"), report.effect)


def compared(
    title: str, found: Mapping[str, AgreementReport], models: tuple[str, str], effect: float | None = None
) -> Table:
    """Return a column for each comparison of a second model with a first one, whose names are `models`."""
    table = plain_table(title, *found)
    lines = {
        "logits: difference (rms)": [f"{one.rms:.3g}" for one in found.values()],
        **({"of what training changed": [format_share(one.rms / effect) for one in found.values()]} if effect else {}),
        "largest difference": [f"{one.largest:.3g}" for one in found.values()],
        "KL divergence, nats": [f"{one.kl:.3g}" for one in found.values()],
        "same likeliest class": [format_share(one.same_top) for one in found.values()],
        f"loss, {models[0]}": [format_metric(one.loss_first) for one in found.values()],
        f"loss, {models[1]}": [format_metric(one.loss_second) for one in found.values()],
        "change [95 %]": [_change(one.loss_change) for one in found.values()],
    }
    names = dict.fromkeys(name for one in found.values() for name in one.metrics)
    lines |= {f"{name}, {models[1]}": [_metric(one.metrics.get(name)) for one in found.values()] for name in names}
    for name, cells in lines.items():
        table.add_row(name, *cells)
    if any(one.loss_change[1] is None for one in found.values()):
        table.add_row("", "too few rows for an interval")
    return table


def _metric(one: MetricChange | None) -> str:
    return "-" if one is None else f"{format_metric(one.second)} ({_change(one.change)})"


def _change(change: Change) -> str:
    value, low, high = change
    return f"{value:+.2g}" + ("" if low is None or high is None else f" [{low:+.2g}, {high:+.2g}]")


def conclusion(report: MergeReport) -> str:
    found = report.agreements[report.base]
    assert report.limit is not None, "what was compared has a limit"
    return passed(found, report.limit)


def passed(found: AgreementReport, limit: float) -> str:
    return f"passed: the difference of {found.rms:.3g} is within the limit of {limit:.3g}"


def render_export(report: ExportReport) -> RenderableType:
    """Return what was written, its comparison with the trained model, and how it is served."""
    facts = Table.grid(padding=(0, 2))
    facts.add_row("written", f"{report.run} as {report.to} into {report.folder}")
    for name, size in report.files.items():
        facts.add_row("", f"{name}, {format_bytes(size)}")
    if report.tensors:
        facts.add_row("tensors", ", ".join(f"{count:,} {kind}" for kind, count in report.tensors.items()))
    parts: list[RenderableType] = [facts]
    if report.agreement is not None and report.limit is not None:
        found = report.agreement
        rows = f"compared with the trained model on {found.rows} {report.part} rows, {found.targets:,} targets:"
        table = compared("read back", {report.dtype or report.to: found}, ("trained model", report.to), report.effect)
        parts += ["", rows, table, "", passed(found, report.limit)]
    parts += ["", *report.notes] if report.notes else []
    return Group(*parts, *serving(report.serve))


def render_compared(first: str, second: str, part: str, found: AgreementReport) -> RenderableType:
    """Return how far a second model is from a first one."""
    rows = f"{second} compared with {first} on {found.rows} {part} rows, {found.targets:,} targets:"
    return Group(rows, compared("", {"difference": found}, ("first", "second")))
