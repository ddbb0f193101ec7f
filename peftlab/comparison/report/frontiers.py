"""The picture of a frontier: each variant's quality over the sizes that it was run in, a curve with its interval."""

from __future__ import annotations

from peftlab.comparison.findings import Findings
from peftlab.comparison.report.scatters import direction, marker_of
from peftlab.comparison.report.style import (
    COLOURS,
    DASHES,
    MARKERS,
    Look,
    drawing,
    legend_below,
    plain,
    save,
    scale_to_fit,
)
from peftlab.comparison.rows import Table

# What each axis is called, and the amount of one of its units.
AXES = {
    "trainable": ("trainable parameters", 1.0),
    "stored": ("stored size (MiB)", 2.0**20),
    "memory": ("planned peak memory (MiB)", 2.0**20),
    "seconds": ("planned seconds of training", 1.0),
    "operations": ("floating-point operations of training", 1.0),
}
BAND = 0.16
Curve = list[tuple[float, str]]


def axes_of(table: Table) -> list[str]:
    """Return the kinds of budget under which some variant was run in several sizes."""
    kinds = dict.fromkeys(row.variant.solution.kind for row in table.rows if row.variant.solution)
    return [kind for kind in kinds if any(len(curve) > 1 for curve in curves_of(table, kind).values())]


def curves_of(table: Table, kind: str) -> dict[str, Curve]:
    """Return by variant the amounts that it reached, ascending, with the row of each; equal amounts once."""
    curves: dict[str, dict[float, str]] = {}
    for row in table.rows:
        if row.variant.solution and row.variant.solution.kind == kind and row.finished:
            curves.setdefault(row.name, {}).setdefault(row.variant.solution.reached, row.label)
    return {name: sorted(points.items()) for name, points in curves.items()}


def draw_frontier(table: Table, findings: Findings, kind: str) -> tuple[str, bytes] | None:
    """Draw the metric over what each size of each variant reaches: curves, with bands of the 95 % intervals."""
    quality = findings.quality.get(table.metric, {})
    curves = {
        name: [(reached, quality[label]) for reached, label in curve if label in quality]
        for name, curve in curves_of(table, kind).items()
    }  # fmt: skip
    curves = {name: curve for name, curve in curves.items() if curve}
    if not any(len(curve) > 1 for curve in curves.values()):
        return None
    from matplotlib.lines import Line2D

    title, unit = AXES[kind]
    handles = []
    with drawing(3.2) as (figure, axes):
        amounts = [reached / unit for curve in curves.values() for reached, _ in curve]
        scale_to_fit(axes, min(amounts), max(amounts))
        for place, (name, curve) in enumerate(curves.items()):
            look = look_of(place)
            x, found = [reached / unit for reached, _ in curve], [one for _, one in curve]
            if len(curve) > 1:
                low, high = [one.low for one in found], [one.high for one in found]
                axes.fill_between(x, low, high, color=look.colour, alpha=BAND, linewidth=0)
                axes.plot(x, [one.mean for one in found], color=look.colour, linestyle=look.dash, linewidth=1.5)
            else:
                (one,) = found
                axes.errorbar(x, one.mean, [[one.mean - one.low], [one.high - one.mean]], fmt="none", color=look.colour,
                              elinewidth=1.2, capsize=2.5)  # fmt: skip
            axes.plot(x, [one.mean for one in found], **marker_of(look, 6))
            handles.append(Line2D([], [], label=plain(name), **marker_of(look, 6) | {"linestyle": look.dash}))
        axes.set(xlabel=title, ylabel=direction(table, findings))
        axes.margins(x=0.05)
        legend_below(figure, handles)
        return save(figure, f"{table.metric} over {title}")


def look_of(place: int) -> Look:
    """Return how a curve is drawn: by its place, so that colour alone carries nothing."""
    return Look(COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)], "full", DASHES[place % len(DASHES)])
