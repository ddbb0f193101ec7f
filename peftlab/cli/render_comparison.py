"""A comparison on the terminal: one row a variant, what failed, memory, an example of each."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table

from peftlab.cli.render import (
    format_bytes,
    format_metric,
    format_seconds,
    format_share,
    peak_memory,
    plain_table,
    render_example,
)
from peftlab.cli.render_memory import format_error
from peftlab.reports import ComparisonReport, RunResult, VariantReport

STATE = ("frozen_weights", "quantisation_state", "trainable_weights", "optimiser_state")


@dataclass(frozen=True)
class Row:
    """One variant: its label, its report, and the result of its first seed that finished (None: none did)."""

    label: str
    variant: VariantReport
    result: RunResult | None


def render_comparison(report: ComparisonReport, results: Mapping[str, RunResult]) -> RenderableType:
    """Return one row a variant, why any failed, what memory went where, and an example of each."""
    labels = short_labels(report)
    rows = [Row(label, v, first_result(v, results)) for label, v in zip(labels, report.variants, strict=True)]
    parts: list[RenderableType] = [quality_table(report, rows)]
    parts += [line for row in rows for line in failures(row)]
    parts += [f"note: {note}" for note in report.notes]
    if edges := [row.label for row in rows if row.variant.rate_at_edge]:
        parts.append(f"note: a better rate may lie beyond those tried: {', '.join(edges)} took the last on a side")
    measured = [row for row in rows if row.result and "measured" in row.result.memory]
    if measured:
        parts += ["", memory_table(measured)]
    with_examples = [row for row in rows if row.result and row.result.examples]
    if with_examples:
        parts += ["", render_examples(with_examples)]
    return Group(*parts)


def first_result(variant: VariantReport, results: Mapping[str, RunResult]) -> RunResult | None:
    return next((results[t.run] for t in variant.trials if t.status == "finished" and t.run in results), None)


def short_labels(report: ComparisonReport) -> list[str]:
    """Return the methods' names where they tell the variants apart, else the variants'; with budgets, those too."""
    names = [variant.name for variant in report.variants]
    methods = [variant.method for variant in report.variants]
    telling = len(set(zip(methods, names, strict=True))) == len(set(methods))
    one_kind = len({variant.budget.partition("=")[0] for variant in report.variants if variant.budget}) == 1
    return [
        " ".join([variant.method if telling else variant.name, *short_budget(variant.budget, one_kind)])
        for variant in report.variants
    ]


def short_budget(budget: str | None, one_kind: bool) -> list[str]:
    """Return what tells a budget from the others: its amount alone where all are of one kind."""
    if budget is None:
        return []
    return [budget.partition("=")[2] if one_kind else budget]


def quality_table(report: ComparisonReport, rows: Sequence[Row]) -> Table:
    """Return cost and quality: the share where no budget says it already, the rate where it was chosen.

    Memory makes room for the rate: it has a table of its own.
    """
    left_out = {"share"} if any(row.variant.budget for row in rows) else set()
    left_out |= {"memory"} if any(len(row.variant.sweep) > 1 for row in rows) else {"rate"}
    cells = [{k: v for k, v in quality_cells(report, row).items() if k not in left_out} for row in rows]
    table = plain_table("variant", *cells[0])
    for row, values in zip(rows, cells, strict=True):
        table.add_row(row.label, *values.values())
    return table


def quality_cells(report: ComparisonReport, row: Row) -> dict[str, str]:
    """Return a row's cells by their columns' titles."""
    result, rate, trials = row.result, row.variant.learning_rate, row.variant.trials
    metrics = result.metrics if result else {}
    before = next((metrics[key] for key in ("test_before", "before") if key in metrics), {})
    parameters = result.parameters if result else None
    seeds = len(report.seeds)
    status = trials[0].status if trials else "failed"
    ended = format_spread([trial.test for trial in trials if trial.test is not None])
    return {
        "trainable": f"{parameters.trainable:,}" if parameters else "-",
        "share": format_share(parameters.fraction) if parameters else "-",
        "memory": peak_memory(result) if result else "-",
        "seconds": format_seconds(result.seconds.get("total")) if result else "-",
        "rate": f"{rate:.2g}" if rate and result else "-",
        "before": format_metric(before.get(report.metric)),
        f"{report.metric} after" if seeds == 1 else f"{report.metric}, {seeds} seeds": ended if result else status,
    }


def format_spread(values: Sequence[float]) -> str:
    """Return a mean, and with several values their standard deviation."""
    if not values:
        return "-"
    mean = format_metric(statistics.fmean(values))
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.4f}"


def failures(row: Row) -> list[str]:
    return [
        f"{row.label}, seed {trial.seed}: {trial.status}: {trial.error}"
        for trial in row.variant.trials
        if trial.status != "finished"
    ]


def memory_table(rows: Sequence[Row]) -> Table:
    """Return what each run's state and peak take in tensors, as a part of full fine-tuning's where that is a row.

    State is weights, their gradients (as large as what trains) and the optimiser's. A few layers are not full.
    """
    whole = [
        row.result for row in rows
        if row.variant.method == "full" and row.result.parameters and row.result.parameters.fraction == 1
    ]  # fmt: skip
    title = ["of full"] if whole else []
    table = plain_table("memory", "state", *title, "peak", *title, "predicted", "error")
    for row in rows:
        cells = [row.label]
        for count in (state_bytes, peak_bytes):
            share = [f"{count(row.result) / count(full):.2f}" for full in whole[:1]]
            cells += [format_bytes(count(row.result)), *share]
        predicted = row.result.memory.get("predicted")
        foreseen = predicted.peak_bytes if predicted else None
        cells += [format_bytes(foreseen) if predicted else "-", format_error(foreseen, peak_bytes(row.result))]
        table.add_row(*cells)
    return table


def peak_bytes(result: RunResult) -> int:
    return result.memory["measured"].peak_bytes


def state_bytes(result: RunResult) -> int:
    categories = result.memory["measured"].categories
    return sum(categories.get(name, 0) for name in STATE) + categories.get("trainable_weights", 0)


def render_examples(rows: Sequence[Row]) -> RenderableType:
    """Return the first example of every variant; prompt, reference and the first base's answer are shown once."""
    parts: list[RenderableType] = []
    asked = None
    for row in rows:
        example = row.result.examples[0]
        if (example["prompt"], example["reference"]) != asked:
            asked = example["prompt"], example["reference"]
            parts.append(render_example({key: text for key, text in example.items() if key != "after"}))
        parts.append(render_example({row.label: example.get("after", "")}))
    return Group(*parts)
