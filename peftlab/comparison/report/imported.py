"""Pictures of imported results beside the comparison's own: accuracy against a cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from peftlab.comparison.findings import Findings
from peftlab.comparison.peft_bench import ACCURACIES, BenchResult
from peftlab.comparison.report.scatters import COST_TITLES, UNITS, draw_point, legend, marker_of
from peftlab.comparison.report.style import Look, drawing, legend_below, looks_of, save, scale_to_fit
from peftlab.comparison.rows import Table
from peftlab.quantities import number

COSTS: dict[str, Callable[[BenchResult], float | None]] = {
    "trainable": lambda one: one.trainable,
    "memory": lambda one: one.memory_bytes,
    "seconds": lambda one: one.seconds,
}
GREY = Look("#999999", "o", "none", "-")


def draw_imported(
    table: Table, findings: Findings, results: Sequence[BenchResult], cost: str
) -> tuple[str, bytes] | None:
    """Draw the imported runs' accuracy against a cost, and the comparison's own variants where they have one."""
    unit = UNITS[cost]
    points = [(known / unit, one.accuracy) for one in results if (known := COSTS[cost](one)) is not None]
    if not points:
        return None
    from matplotlib.lines import Line2D

    own = own_costs(table, findings, cost)
    looks, quality = looks_of(table.rows), findings.quality.get(table.metric, {})
    with drawing(3.0) as (figure, axes):
        amounts = [*(x for x, _ in points), *own.values()]
        scale_to_fit(axes, min(amounts), max(amounts))
        axes.plot(*zip(*points, strict=True), **marker_of(GREY, 6))
        for label, x in own.items():
            draw_point(axes, x, quality[label], looks[label], None, 1.0)
        axes.set(xlabel=COST_TITLES[cost], ylabel="accuracy on the test rows (higher is better)")
        axes.margins(x=0.08)
        handle = Line2D([], [], label=f"imported, {number(len(points), 'run')}", **marker_of(GREY, 6))
        legend_below(figure, [handle, *legend(table, list(own))])
        return save(figure, f"imported results against {COST_TITLES[cost]}")


def own_costs(table: Table, findings: Findings, cost: str) -> dict[str, float]:
    """Return what the comparison's own variants cost; none for a comparison by another metric than accuracy."""
    if table.metric not in ACCURACIES:
        return {}
    quality = findings.quality.get(table.metric, {})
    return {label: known.mean / UNITS[cost] for label, known in findings.costs[cost].items() if label in quality}
