"""Pictures with one line a row: its quality, its difference to the best, and what training changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from peftlab.comparison.findings import Findings
from peftlab.comparison.groups import short_letters
from peftlab.comparison.report.scatters import direction, marker_of
from peftlab.comparison.report.style import FAINT, INK, Look, drawing, looks_of, plain, save, write_heading
from peftlab.comparison.rows import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW_INCHES = 0.27
Draw = Callable[["Axes", str, float], None]


def draw_quality(table: Table, findings: Findings) -> tuple[str, bytes] | None:
    """Draw every row's mean with its interval, its seeds as ticks, and its letters."""
    quality = findings.quality.get(table.metric, {})
    looks = looks_of(table.rows)
    seeds = {
        row.label: [trial.report.test for trial in row.valued if trial.report.test is not None] for row in table.rows
    }

    def draw(axes: Axes, label: str, row: float) -> None:
        found, look = quality[label], looks[label]
        axes.errorbar(
            found.mean, row, None, [[found.mean - found.low], [found.high - found.mean]],
            fmt="none", color=look.colour, elinewidth=1.4, capsize=2.5,
        )  # fmt: skip
        axes.plot(seeds[label], [row + 0.28] * len(seeds[label]), "|", color=INK, markersize=5)
        axes.plot(found.mean, row, **marker_of(look))
        axes.text(
            1.02, row, short_letters(findings.letters.get(label, "")), transform=axes.get_yaxis_transform(),
            va="center", ha="left",
        )  # fmt: skip

    return _draw_rows(table, findings, draw, direction(table, findings).replace("\n", " ")) if quality else None


def draw_differences(table: Table, findings: Findings) -> tuple[str, bytes] | None:
    """Draw each row's difference to the best mean of its budget; filled where it is significant."""
    differences = {label: pair for family in findings.families for label, pair in family.to_best().items()}
    if not differences:
        return None
    looks = looks_of(table.rows)

    def draw(axes: Axes, label: str, row: float) -> None:
        look = looks[label]
        if label not in differences:
            axes.annotate("best mean", (0, row), (5, 0), textcoords="offset points", va="center", fontsize=9)
            return
        pair = differences[label]
        axes.plot([pair.low, pair.high], [row, row], color=look.colour, linewidth=1.4)
        fill = "full" if pair.significant else "none"
        axes.plot(pair.value, row, **marker_of(Look(look.colour, look.marker, fill, "-")))

    label = f"{table.metric} minus the best's {table.metric} (filled: significant)"
    return _draw_rows(table, findings, draw, label, zero=True)


def draw_change(table: Table, findings: Findings) -> tuple[str, bytes] | None:
    """Draw each row's metric before training and after."""
    quality = findings.quality.get(table.metric, {})
    if not findings.before:
        return None
    looks = looks_of(table.rows)

    def draw(axes: Axes, label: str, row: float) -> None:
        after, look = quality[label].mean, looks[label]
        if label in findings.before:
            before = findings.before[label].mean
            axes.plot([before, after], [row, row], color=look.colour, linewidth=1.4)
            axes.plot(before, row, "|", color=INK, markersize=8, markeredgewidth=1.6)
        axes.plot(after, row, **marker_of(look))

    label = direction(table, findings).replace("\n", " ")
    return _draw_rows(table, findings, draw, f"{label}\ntick: before; marker: after")


def _draw_rows(table: Table, findings: Findings, draw: Draw, label: str, *, zero: bool = False) -> tuple[str, bytes]:
    """Draw one line a row, best first, budget under budget."""
    names = {row.label: row.name for row in table.rows}
    families = [family for family in findings.families if family.ordered]
    headed = len(families) > 1
    count = sum(len(family.ordered) + headed for family in families)
    with drawing(0.75 + ROW_INCHES * max(count, 2)) as (figure, axes):
        ticks, row = {}, 0
        for family in families:
            if headed:
                write_heading(axes, row, family.budget)
                row += 1
            for name in family.ordered:
                draw(axes, name, row)
                ticks[row] = plain(names[name])
                row += 1
        if zero:
            axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(list(ticks), list(ticks.values()))
        axes.set_ylim(row - 0.4, -0.6)
        axes.grid(axis="y", color=FAINT, alpha=0.5)
        axes.set_xlabel(label, loc="right")
        return save(figure, label)
