"""Pictures of points: quality against what it costs, with its front; what was learned against what was forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from peftlab.comparison.findings import Findings
from peftlab.comparison.groups import Cost, point_front
from peftlab.comparison.report.style import INK, Look, drawing, legend_below, looks_of, plain, save, scale_to_fit
from peftlab.comparison.rows import Table
from peftlab.comparison.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COST_TITLES = {
    "trainable": "trainable parameters", "memory": "measured peak memory (MiB)", "seconds": "seconds of training"
}  # fmt: skip
UNITS = {"trainable": 1, "memory": 2**20, "seconds": 1}
FADED = 0.4
MOST_IN_LEGEND = 14


def direction(table: Table, findings: Findings) -> str:
    """Return the metric's name, the rows that it is of and which way is better, in two lines that fit an axis."""
    better = "higher" if table.report.higher_is_better else "lower"
    return f"{table.metric} on {findings.kind} rows\n({better} is better)"


def draw_pareto(table: Table, findings: Findings, cost: str) -> tuple[str, bytes] | None:
    """Draw every row's quality against a cost, with intervals; those that are beaten are faded."""
    quality = findings.quality.get(table.metric, {})
    unit = UNITS[cost]
    costs = {
        label: Cost(known.mean / unit, known.low / unit, known.high / unit)
        for label, known in findings.costs[cost].items() if label in quality
    }  # fmt: skip
    if not costs:
        return None
    looks, beaten = looks_of(table.rows), findings.beaten[cost]
    with drawing(3.0) as (figure, axes):
        scale_to_fit(axes, min(c.low for c in costs.values()), max(c.high for c in costs.values()))
        front = point_front({n: (costs[n].mean, quality[n].mean) for n in costs}, table.report.higher_is_better)
        axes.step(
            [costs[name].mean for name in front], [quality[name].mean for name in front],
            where="post", color=INK, linewidth=1, linestyle=":", zorder=1,
        )  # fmt: skip
        for label, known in costs.items():
            spread = [[known.mean - known.low], [known.high - known.mean]] if known.high > known.low else None
            draw_point(axes, known.mean, quality[label], looks[label], spread, FADED if beaten[label] else 1.0)
        axes.set(xlabel=COST_TITLES[cost], ylabel=direction(table, findings))
        axes.margins(x=0.08)
        legend_below(figure, [*legend(table, list(costs)), *_marks(any(beaten.values()), len(front) > 1)])
        return save(figure, f"{table.metric} against {COST_TITLES[cost]}")


def draw_forgetting(table: Table, findings: Findings) -> tuple[str, bytes] | None:
    """Draw the change of the loss on general text against the change of the metric, both with intervals."""
    both = [label for label in findings.change if label in findings.general_change]
    if not both:
        return None
    looks = looks_of(table.rows)
    with drawing(3.0) as (figure, axes):
        axes.axhline(0, color=INK, linewidth=0.8)
        for label in both:
            learned = findings.change[label]
            spread = [[learned.mean - learned.low], [learned.high - learned.mean]]
            draw_point(axes, learned.mean, findings.general_change[label], looks[label], spread, 1.0)
        axes.set(
            xlabel=f"change of {table.metric} by training",
            ylabel="change of loss on general text\n(up: forgot)",
        )
        axes.margins(x=0.08)
        legend_below(figure, legend(table, both))
        return save(figure, "what was learned against what was forgotten")


def draw_point(axes: Axes, x: float, found: Estimate, look: Look, x_error: Any, alpha: float) -> None:
    """Draw one variant's mean with its intervals."""
    axes.errorbar(
        x, found.mean, [[found.mean - found.low], [found.high - found.mean]], x_error,
        fmt="none", color=look.colour, elinewidth=1.2, capsize=2.5, alpha=alpha,
    )  # fmt: skip
    axes.plot(x, found.mean, alpha=alpha, zorder=3, **marker_of(look))


def marker_of(look: Look, size: float = 7.5) -> dict[str, Any]:
    """Return the keywords that draw one variant's marker."""
    return {
        "linestyle": "none", "marker": look.marker, "color": look.colour, "markersize": size, "markeredgewidth": 1.5,
        "fillstyle": look.fill,
    }  # fmt: skip


def legend(table: Table, labels: Sequence[str]) -> list[Any]:
    """Return a handle for each name among the labels and, where there are several, for each budget.

    Many names have no room under a picture: that of the quality has each name beside its marker.
    """
    from matplotlib.lines import Line2D

    looks = looks_of(table.rows)
    shown = [row for row in table.rows if row.label in labels]
    names = {row.name: looks[row.label] for row in reversed(shown)}
    if len(names) > MOST_IN_LEGEND:
        return [Line2D([], [], linestyle="none", label=f"{len(names)} variants: markers as in the quality's picture")]
    handles = [
        Line2D([], [], label=plain(name), **marker_of(Look(look.colour, look.marker, "full", "-")))
        for name, look in reversed(names.items())
    ]
    budgets = {row.budget: looks[row.label].fill for row in shown}
    if len(budgets) > 1:
        handles += [
            Line2D([], [], label=plain(budget or "no budget"), **marker_of(Look(INK, "o", fill, "-")))
            for budget, fill in budgets.items()
        ]
    return handles


def _marks(faded: bool, front: bool) -> list[Any]:
    """Return handles for what the drawing of fronts means."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=INK, linestyle=":", linewidth=1, label="front of the means")] if front else []
    if faded:
        dot = marker_of(Look(INK, "o", "full", "-"))
        handles.append(Line2D([], [], label="faded: beaten", alpha=FADED, **dot))
    return handles
