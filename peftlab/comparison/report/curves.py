"""Pictures of lines: losses over steps, and the metric over the rates that were tried."""

from __future__ import annotations

from collections import defaultdict
from math import isfinite
from statistics import fmean
from typing import TYPE_CHECKING

from peftlab.comparison.outcome import Outcome, Variant
from peftlab.comparison.report.scatters import legend
from peftlab.comparison.report.style import Look, drawing, label_rates, legend_below, looks_of, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EVENTS = {"train": "training loss", "evaluation": "held-out loss"}


def draw_losses(outcome: Outcome, event: str) -> tuple[str, bytes] | None:
    """Draw the loss over optimiser steps of every variant, the mean of its seeds."""
    curves = {variant.label: curve for variant in outcome.variants if len(curve := mean_curve(variant, event)) > 1}
    if not curves:
        return None
    looks = looks_of(outcome.variants)
    with drawing(2.8) as (figure, axes):
        for label, curve in curves.items():
            look = looks[label]
            axes.plot(
                list(curve), list(curve.values()), color=look.colour, linestyle=look.dash, linewidth=1.5,
                marker=look.marker, fillstyle=look.fill, markersize=4, markevery=max(1, len(curve) // 6),
            )  # fmt: skip
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(xlabel="optimiser step", ylabel=f"{EVENTS[event]} (nats)")
        legend_below(figure, legend(outcome, list(curves)))
        return save(figure, EVENTS[event])


def mean_curve(variant: Variant, event: str) -> dict[int, float]:
    """Return the mean loss at every step that all finished seeds logged."""
    losses: dict[int, list[float]] = defaultdict(list)
    for run in variant.finished:
        found = {line.get("step"): line.get("loss") for line in run.history if line.get("event") == event}
        for step, loss in found.items():
            if isinstance(step, int) and isinstance(loss, float) and isfinite(loss):
                losses[step].append(loss)
    return {step: fmean(losses[step]) for step in sorted(losses) if len(losses[step]) == len(variant.finished)}


def draw_rates(outcome: Outcome) -> tuple[str, bytes] | None:
    """Draw the metric on the evaluation rows over the rates that were tried; a ring marks the chosen one."""
    tried = [variant for variant in outcome.variants if len({run.trial.learning_rate for run in variant.sweep}) > 1]
    if not tried:
        return None
    looks = looks_of(outcome.variants)
    with drawing(2.8) as (figure, axes):
        label_rates(axes, [run.trial.learning_rate for variant in tried for run in variant.sweep])
        for variant in tried:
            _draw_sweep(axes, variant, looks[variant.label])
        axes.set(xlabel="learning rate (ring: chosen, ×: failed)", ylabel=f"{outcome.report.metric}, evaluation rows")
        legend_below(figure, legend(outcome, [variant.label for variant in tried]))
        return save(figure, "the rates that were tried")


def _draw_sweep(axes: Axes, variant: Variant, look: Look) -> None:
    """Draw one variant's rates: a line through those that finished, a ring on the chosen, a cross for the failed."""
    trials = [run.trial for run in variant.sweep]
    finished = sorted((t.learning_rate, t.validation) for t in trials if t.validation is not None)
    for points, style in (
        (finished, {"linestyle": look.dash, "marker": look.marker, "fillstyle": look.fill, "markersize": 5}),
        (
            [point for point in finished if point[0] == variant.report.learning_rate],
            {"linestyle": "none", "marker": "o", "fillstyle": "none", "markersize": 12},
        ),
    ):
        if points:
            axes.plot(*zip(*points, strict=True), color=look.colour, linewidth=1.5, **style)
    lost = [trial.learning_rate for trial in trials if trial.validation is None]
    top = axes.get_xaxis_transform()
    axes.plot(lost, [0.97] * len(lost), "x", color=look.colour, markersize=7, transform=top)
