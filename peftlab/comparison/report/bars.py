"""The picture of memory: each variant's ledger at its peak as stacked bars, predicted over measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from peftlab.comparison.report.style import PAPER, drawing, legend_below, plain, save, write_heading
from peftlab.comparison.rows import Table
from peftlab.reports import MemoryReport
from peftlab.runs.picture import CATEGORY_COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW_INCHES = 0.42
HATCH = "////"


def draw_memory(table: Table) -> tuple[str, bytes] | None:
    """Draw the peak's categories of every variant that has a ledger, predicted (hatched) above measured."""
    rows = list(_rows(table))
    if not rows:
        return None
    from matplotlib.patches import Patch

    used: set[str] = set()
    with drawing(0.8 + ROW_INCHES * len(rows)) as (figure, axes):
        for place, (title, memory) in enumerate(rows):
            if not memory:
                write_heading(axes, place, title)
            for source, shift, hatch in (("predicted", -0.2, HATCH), ("measured", 0.2, None)):
                if source in memory:
                    used |= _draw_bar(axes, place + shift, memory[source], hatch)
        ticks = [place for place, (_, memory) in enumerate(rows) if memory]
        axes.set_yticks(ticks, [plain(rows[place][0]) for place in ticks])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(False, axis="y")
        axes.set_xlabel("MiB at the peak (hatched: predicted)", loc="right")
        categories = [name for name in CATEGORY_COLOURS if name in used]
        legend_below(figure, [Patch(color=colour_of(name), label=name.replace("_", " ")) for name in categories])
        return save(figure, "memory at the peak, predicted and measured")


def _rows(table: Table) -> Iterator[tuple[str, dict[str, MemoryReport]]]:
    """Yield every row's name and ledgers, budget under budget; a heading has none."""
    for budget in table.budgets:
        examples = [(row.name, row.example) for row in table.of_budget(budget) if row.example]
        known = [(name, example.result.memory) for name, example in examples if example.result]
        shown = [(name, memory) for name, memory in known if any(report.categories for report in memory.values())]
        if shown and len(table.budgets) > 1:
            yield budget or "no budget", {}
        yield from shown


def _draw_bar(axes: Axes, place: float, report: MemoryReport, hatch: str | None) -> set[str]:
    """Draw one ledger as a stacked bar; return the categories that it has."""
    left, used = 0.0, set()
    for name in CATEGORY_COLOURS:
        width = report.categories.get(name, 0) / 2**20
        if width:
            axes.barh(place, width, 0.36, left, color=colour_of(name), hatch=hatch, edgecolor=PAPER, linewidth=0.5)
            used.add(name)
            left += width
    return used


def colour_of(category: str) -> str:
    return CATEGORY_COLOURS[category].lower()
