"""A comparison on the terminal: one row a variant, what failed, memory, an example of each."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table as TextTable

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
from peftlab.comparison.columns import missed_in
from peftlab.comparison.words import search_text
from peftlab.reports import NOT_BEGUN, MemoryReport, Metrics, RunResult

if TYPE_CHECKING:
    from peftlab.comparison.rows import Row, Table

LEARNING_RATE = "learning\nrate"  # a title on two lines, so that a row fits 80 columns
STATE = ("frozen_weights", "quantisation_state", "trainable_weights", "optimiser_state")


def render_comparison(table: Table) -> RenderableType:
    """Return one row a variant, why any failed, what memory went where, and an example of each."""
    labels = dict(zip((row.label for row in table.rows), short_labels(table.rows), strict=True))
    results = [(labels[row.label], one.result) for row in table.rows for one in row.finished[:1] if one.result]
    parts: list[RenderableType] = [quality_table(table, labels)]
    parts += [line for row in table.rows for line in failures(labels[row.label], row)]
    parts += search_lines(table, labels)
    parts += [f"note: {note}" for note in table.report.notes]
    if edges := [labels[row.label] for row in table.rows if row.variant.at_edge]:
        parts.append(f"note: a better learning rate may be beyond those tried, for: {', '.join(edges)}")
    if measured := [(label, result) for label, result in results if "measured" in result.memory]:
        parts += ["", memory_table(measured)]
    if examples := [(label, result.examples[0]) for label, result in results if result.examples]:
        parts += ["", render_examples(examples)]
    return Group(*parts)


def search_lines(table: Table, labels: Mapping[str, str]) -> list[RenderableType]:
    """Return what each variant's search tried, cost and chose, and its notes."""
    found = [(labels[row.label], row.variant) for row in table.rows if row.variant.search]
    lines: list[RenderableType] = [f"search of {label}: {search_text(one, table.metric)}" for label, one in found]
    return lines + [f"note: {label}: {note}" for label, one in found if one.search for note in one.search.notes]


def short_labels(rows: Sequence[Row]) -> list[str]:
    """Return the methods' names where they distinguish the variants, else the variants'; with budgets, those too."""
    methods = {row.variant.method for row in rows}
    by_method = len({(row.variant.method, row.name) for row in rows}) == len(methods)
    kinds = {row.budget.partition("=")[0] for row in rows if row.budget}
    return [
        " ".join([row.variant.method if by_method else row.name, *short_budget(row.budget, len(kinds) == 1)])
        for row in rows
    ]


def short_budget(budget: str | None, one_kind: bool) -> list[str]:
    """Return what distinguishes a budget from the others: its amount alone where all are of one kind."""
    if budget is None:
        return []
    return [budget.partition("=")[2] if one_kind else budget]


def quality_table(table: Table, labels: Mapping[str, str]) -> TextTable:
    """Return cost and quality: the share where no budget says it already, the learning rate where it was chosen.

    Memory makes room for the learning rate: it has a table of its own.
    """
    left_out = {"share"} if any(row.budget for row in table.rows) else set()
    left_out |= {"memory"} if any(len(row.sweep) > 1 for row in table.rows) else {LEARNING_RATE}
    cells = [{k: v for k, v in quality_cells(table, row).items() if k not in left_out} for row in table.rows]
    text = plain_table("variant", *(cells[0] if cells else ()))
    for row, values in zip(table.rows, cells, strict=True):
        missed = missed_in(row)
        text.add_row(labels[row.label] + (f" ({missed})" if missed else ""), *values.values())
    return text


def quality_cells(table: Table, row: Row) -> dict[str, str]:
    """Return a row's cells by their columns' titles."""
    first = row.finished[0] if row.finished else None
    result, rate, seeds = first.result if first else None, row.variant.learning_rate, len(table.report.seeds)
    metrics = first.metrics if first else {}
    before: Metrics = next((metrics[key] for key in ("test_before", "before") if key in metrics), {})
    parameters = first.parameters if first else None
    seconds = [one.training_seconds for one in row.finished if one.training_seconds is not None]
    status = row.trials[0].report.status if row.trials else NOT_BEGUN if row.sweep else "failed"
    ended = format_spread([trial.report.test for trial in row.valued if trial.report.test is not None])
    return {
        "trainable": f"{parameters.trainable:,}" if parameters else "-",
        "share": format_share(parameters.fraction) if parameters else "-",
        "memory": peak_memory(result) if result else "-",
        "seconds": format_seconds(statistics.fmean(seconds)) if seconds else "-",
        LEARNING_RATE: f"{rate:.2g}" if rate and result else "-",
        "before": format_metric(before.get(table.metric)),
        f"{table.metric} after" if seeds == 1 else f"{table.metric}, {seeds} seeds": ended
        if result
        else status.replace("_", " "),
    }


def format_spread(values: Sequence[float]) -> str:
    """Return a mean, and with several values their standard deviation."""
    if not values:
        return "-"
    mean = format_metric(statistics.fmean(values))
    return mean if len(values) == 1 else f"{mean} ± {format_metric(statistics.stdev(values))}"


def failures(label: str, row: Row) -> Iterator[str]:
    """Yield a line for every seed that did not finish, or has no value."""
    for trial in row.trials:
        report = trial.report
        if report.status != "finished":
            reason = f": {report.error}" if report.error else ""
            yield f"{label}, seed {report.seed}: {report.status.replace('_', ' ')}{reason}"
        elif trial.finished and (why := row.why_lost(trial)):
            yield f"{label}, seed {report.seed}: no {row.metric} ({why}); the mean leaves it out"


def memory_table(results: Sequence[tuple[str, RunResult]]) -> TextTable:
    """Return what each run's state and peak take in tensors, as a multiple of full fine-tuning's where that is a row.

    State is weights, their gradients (as large as what trains) and the optimiser's. Training a few layers is not full.
    """
    whole = [result.memory["measured"] for _, result in results if trains_all(result)][:1]
    title = ["of full"] if whole else []
    text = plain_table("memory", "state", *title, "peak", *title, "predicted", "error")
    for label, result in results:
        cells, report, predicted = [label], result.memory["measured"], result.memory.get("predicted")
        for size in (sum_state, get_peak):
            cells += [format_bytes(size(report)), *(f"{size(report) / size(one):.2f}" for one in whole)]
        peak = predicted.peak_bytes if predicted else None
        cells += [format_bytes(peak) if peak is not None else "-", format_error(peak, report.peak_bytes)]
        text.add_row(*cells)
    return text


def trains_all(result: RunResult) -> bool:
    return (
        result.recipe["method"]["type"] == "full" and result.parameters is not None and result.parameters.fraction == 1
    )


def get_peak(report: MemoryReport) -> int:
    return report.peak_bytes


def sum_state(report: MemoryReport) -> int:
    sizes = report.categories
    return sum(sizes.get(name, 0) for name in STATE) + sizes.get("trainable_weights", 0)


def render_examples(examples: Sequence[tuple[str, dict[str, str]]]) -> RenderableType:
    """Return an example of every variant; prompt, reference and the first base's answer are shown once."""
    parts: list[RenderableType] = []
    asked = None
    for label, example in examples:
        if (example["prompt"], example["reference"]) != asked:
            asked = example["prompt"], example["reference"]
            parts.append(render_example({key: text for key, text in example.items() if key != "after"}))
        parts.append(render_example({label: example.get("after", "")}))
    return Group(*parts)
