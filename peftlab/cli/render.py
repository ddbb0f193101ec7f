"""Reports as text tables, 80 columns wide and plain where there is no terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table

from peftlab.quantities import format_bytes, format_change, format_metric, format_seconds, format_share, number
from peftlab.reports import CountRow, InferenceReport, Metrics, ParameterReport, RunResult

WIDTH = 80
EXAMPLE_CHARACTERS = 320


def show(renderable: RenderableType) -> None:
    """Print to standard output in the width of the terminal, or in 80 columns where there is none."""
    # Brackets and colons in texts of models and data are not rich's markup or emoji.
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDTH
    with console.capture() as capture:
        console.print(renderable)
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))


def render_parameters(report: ParameterReport) -> RenderableType:
    """Return totals, then rows by kind and by layer; equal neighbouring layers are one line."""
    totals = Table.grid(padding=(0, 2))
    totals.add_column()
    totals.add_column(justify="right")
    totals.add_column()
    totals.add_row("total", f"{report.total:,}", "")
    totals.add_row("trainable", f"{report.trainable:,}", format_share(report.fraction))
    totals.add_row("active", f"{report.active:,}", "per token" if report.active < report.total else "")
    totals.add_row("stored bytes", f"{report.stored_bytes:,}", format_bytes(report.stored_bytes))
    notes = ["", *report.notes] if report.notes else []
    return Group(
        totals, "", count_table("kind", report.kinds), "", count_table("layer", collapse(report.layers)), *notes
    )


def count_table(title: str, rows: Sequence[CountRow]) -> Table:
    table = plain_table(title, "total", "trainable", "fraction")
    for row in rows:
        share = format_share(row.trainable / row.total) if row.trainable else "-"
        table.add_row(row.name, f"{row.total:,}", f"{row.trainable:,}", share)
    return table


def collapse(rows: Sequence[CountRow]) -> list[CountRow]:
    """Return the rows with equal neighbours merged into one: `layers.0-29, each`."""
    runs: list[list[CountRow]] = []
    for row in rows:
        if runs and (runs[-1][-1].total, runs[-1][-1].trainable) == (row.total, row.trainable):
            runs[-1].append(row)
        else:
            runs.append([row])
    return [run[0] if len(run) == 1 else run[0].model_copy(update={"name": range_name(run)}) for run in runs]


def range_name(run: Sequence[CountRow]) -> str:
    return f"{run[0].name}-{run[-1].name.rpartition('.')[2]}, each"


def render_result(result: RunResult) -> RenderableType:
    """Return what one run trained, its costs and its metrics."""
    facts = Table.grid(padding=(0, 2))
    facts.add_row("run", f"{result.name}: {result.status}" + (f" ({result.error})" if result.error else ""))
    if result.parameters:
        parameters = result.parameters
        share = format_share(parameters.fraction)
        facts.add_row("trainable", f"{parameters.trainable:,} of {parameters.total:,} ({share})")
    if "measured" in result.memory:
        facts.add_row("peak memory", f"{peak_memory(result)} in tensors, with the longest rows")
    if "training" in result.seconds and "total" in result.seconds:
        training = format_seconds(result.seconds.get("training"))
        first = f"; the first step after {format_seconds(found)}" if (found := result.seconds.get("first_step")) else ""
        facts.add_row("seconds", f"{format_seconds(result.seconds['total'])}, {training} of them training{first}")
    if result.inference:
        facts.add_row("inference", describe_inference(result.inference))
    parts: list[RenderableType] = [facts]
    if result.metrics:
        parts += ["", metrics_table(result.metrics), *explain_metrics(result.undefined, result.signatures)]
    for example in result.examples[:1]:
        parts += ["", render_example(example)]
    return Group(*parts)


def describe_inference(report: InferenceReport) -> str:
    """Return what the result adds to the base at inference, and the time of a forward pass, merged too."""
    times = [f"{name} {format_change(share - 1)}" for name, share in report.relative.items() if name != "base"]
    merges = "" if "merged" in report.relative else ", cannot be merged"
    added = f"{report.extra_parameters:,} more parameters{merges}"
    batch = f"{report.rows} × {report.tokens} tokens: {1000 * report.seconds['base']:.1f} ms with the base"
    sizes, larger = report.weight_bytes, ""
    if sizes.get("merged", 0) > sizes["unmerged"]:
        larger = f", in {format_bytes(sizes['merged'])} of weights instead of {format_bytes(sizes['unmerged'])}"
    return f"{added}; {batch}, {', '.join(times)}{larger}"


def metrics_table(metrics: Mapping[str, Metrics]) -> Table:
    """Return one row for each metric and one column for each time of measurement."""
    table = plain_table("held out", *(when.replace("_", " ") for when in metrics))
    for name in dict.fromkeys(name for values in metrics.values() for name in values):
        table.add_row(name, *(format_metric(values.get(name)) for values in metrics.values()))
    return table


def render_metrics(metrics: Metrics, undefined: dict[str, str], signatures: dict[str, str]) -> RenderableType:
    """Return metrics, then why some have no value, and the settings of those of generated text."""
    return Group(metrics_table({"value": metrics}), *explain_metrics({"": undefined}, signatures))


def explain_metrics(undefined: Mapping[str, dict[str, str]], signatures: dict[str, str]) -> list[str]:
    """Return a line for each metric without a value, and one for the settings of each metric of generated text."""
    reasons: dict[str, list[str]] = {}
    for when, found in undefined.items():
        for name, reason in found.items():
            reasons.setdefault(f"{name} is undefined: {reason}", []).append(when.replace("_", " "))
    lines = [line + (f" ({', '.join(whens)})" if any(whens) else "") for line, whens in reasons.items()]
    return [*lines, *(f"{name}: {text}" for name, text in signatures.items())]


def render_example(example: dict[str, str]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(width=10, overflow="fold")
    table.add_column(overflow="fold")
    for name, text in example.items():
        table.add_row(name, shorten(text))
    return table


def render_doctor(found: dict[str, Any]) -> RenderableType:
    """Return versions, devices, and whether each method runs here."""
    facts = Table.grid(padding=(0, 2))
    facts.add_row("python", f"{found['python']} on {found['platform']}")
    for device in found["devices"]:
        cores = (
            f", {number(device['cores'], 'core')}, {number(found['threads'], 'thread')} in use"
            if "cores" in device
            else ""
        )
        facts.add_row(device["device"], f"{device['name']}, {format_bytes(device['bytes'])}{cores}")
    facts.add_row("free memory", format_bytes(found["memory_bytes"]["available"]))
    facts.add_row("model hub", found["hub"])
    versions = plain_table("library", "version")
    for name, version in found["versions"].items():
        versions.add_row(name, version or "not installed")
    untried = [f"note: {line}" for line in found["untried_versions"]]
    speed = plain_table("training.speed", "here", right=False)
    for name, text in found["speed"].items():
        speed.add_row(name, text)
    return Group(facts, "", versions, *untried, "", methods_table(found), "", speed)


def methods_table(found: dict[str, Any]) -> Table:
    table = plain_table("method", f"trains a toy model on {found['device']}", right=False)
    for name, method in found["methods"].items():
        for variant, reason in method["variants"].items():
            title = name if variant == "default" else f"{name} {variant}"
            table.add_row(title, "yes" if reason is None else f"no: {reason}")
    return table


def plain_table(*titles: str, right: bool = True) -> Table:
    """Return a table whose first column is text and whose others are numbers."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    for position, title in enumerate(titles):
        table.add_column(title, justify="right" if position and right else "left", overflow="fold")
    return table


def peak_memory(result: RunResult) -> str:
    measured = result.memory.get("measured")
    return format_bytes(measured.peak_bytes) if measured else "-"


def shorten(text: str) -> str:
    """Return a text, cut in the middle if it is long."""
    half = EXAMPLE_CHARACTERS // 2
    return text if len(text) <= EXAMPLE_CHARACTERS else f"{text[:half]} [...] {text[-half:]}"
