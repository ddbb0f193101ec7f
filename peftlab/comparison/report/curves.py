"""Pictures of lines: losses over steps, and the metric over the learning rates that were tried."""

from __future__ import annotations

from collections import defaultdict
from math import isfinite
from statistics import fmean
from typing import TYPE_CHECKING, Any

from peftlab.comparison.report.scatters import legend
from peftlab.comparison.report.style import Look, drawing, label_learning_rates, legend_below, line_of, looks_of, save
from peftlab.comparison.rows import Row, Table
from peftlab.runs.phases import PROCESSOR

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EVENTS = {"train": "training loss", "evaluation": "held-out loss"}


def draw_losses(table: Table, event: str) -> tuple[str, bytes] | None:
    """Draw the loss over optimiser steps of every variant, the mean of its seeds."""
    curves = {row.label: curve for row in table.rows if len(curve := mean_curve(row, event)) > 1}
    if not curves:
        return None
    from matplotlib.ticker import MaxNLocator

    looks = looks_of(table.rows)
    with drawing(2.8) as (figure, axes):
        for label, curve in curves.items():
            style = line_of(looks[label])
            axes.plot(list(curve), list(curve.values()), markevery=max(1, len(curve) // 6), **style)
        axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
        axes.set(xlabel="optimiser step", ylabel=f"{EVENTS[event]} (nats)")
        legend_below(figure, legend(table, list(curves)))
        return save(figure, EVENTS[event])


def mean_curve(row: Row, event: str) -> dict[int, float]:
    """Return the mean loss at every step that all finished seeds logged."""
    losses: dict[int, list[float]] = defaultdict(list)
    for trial in row.finished:
        found = {line.get("step"): line.get("loss") for line in trial.history if line.get("event") == event}
        for step, loss in found.items():
            if isinstance(step, int) and isinstance(loss, float) and isfinite(loss):
                losses[step].append(loss)
    return {step: fmean(losses[step]) for step in sorted(losses) if len(losses[step]) == len(row.finished)}


def draw_learning_rates(table: Table) -> tuple[str, bytes] | None:
    """Draw the metric on the evaluation rows over the learning rates that were tried; a ring marks the chosen one.

    Trials of a search differ in more than that, and no line joins them.
    """
    tried = [row for row in table.rows if len({trial.report.learning_rate for trial in row.sweep}) > 1]
    if not tried:
        return None
    looks = looks_of(table.rows)
    with drawing(2.8) as (figure, axes):
        label_learning_rates(axes, [trial.report.learning_rate for row in tried for trial in row.sweep])
        for row in tried:
            _draw_sweep(axes, row, looks[row.label])
        axes.set(xlabel="learning rate (ring: chosen, ×: failed)", ylabel=f"{table.metric}, evaluation rows")
        legend_below(figure, legend(table, [row.label for row in tried]))
        return save(figure, "the learning rates that were tried")


def _draw_sweep(axes: Axes, row: Row, look: Look) -> None:
    """Draw one sweep: a line through the trials that finished, a ring on the chosen one, a cross for the failed."""
    trials = [trial.report for trial in row.sweep if not trial.stopped and not trial.unended]
    dash = "none" if row.variant.search else look.dash
    finished = sorted((t.learning_rate, t.validation) for t in trials if t.validation is not None)
    styles: list[tuple[Any, dict[str, Any]]] = [
        (finished, {"linestyle": dash, "marker": look.marker, "fillstyle": look.fill, "markersize": 5}),
        (
            [point for point in finished if point[0] == row.variant.learning_rate],
            {"linestyle": "none", "marker": "o", "fillstyle": "none", "markersize": 12},
        ),
    ]
    for points, style in styles:
        if points:
            axes.plot(*zip(*points, strict=True), color=look.colour, linewidth=1.5, **style)
    lost = [trial.learning_rate for trial in trials if trial.validation is None]
    top = axes.get_xaxis_transform()
    axes.plot(lost, [0.97] * len(lost), "x", color=look.colour, markersize=7, transform=top)


def draw_search(table: Table) -> tuple[str, bytes] | None:
    """Draw the best metric so far on the evaluation rows over the seconds of processors that each search took."""
    curves = {row.label: curve for row in table.rows if row.variant.search and (curve := best_so_far(row, table))}
    if not curves:
        return None
    looks = looks_of(table.rows)
    with drawing(2.8) as (figure, axes):
        for label, curve in curves.items():
            axes.plot(*zip(*curve, strict=True), drawstyle="steps-post", **line_of(looks[label]))
        axes.set(xlabel="processor seconds of all trials", ylabel=f"best {table.metric} so far, evaluation rows")
        legend_below(figure, legend(table, list(curves)))
        return save(figure, "what the searches found for their cost")


def best_so_far(row: Row, table: Table) -> list[tuple[float, float]]:
    """Return the cost of the trials until then and the best value, after each trial that finished."""
    spent, best, curve, seen = 0.0, None, [], set()
    better = max if table.report.higher_is_better else min
    for trial in row.sweep:
        if trial.result and trial.report.run not in seen:
            spent += trial.result.seconds.get(PROCESSOR, 0.0)
        seen.add(trial.report.run)
        if (value := trial.report.validation) is not None and isfinite(value):
            best = value if best is None else better(best, value)
            curve.append((spent, best))
    return curve
