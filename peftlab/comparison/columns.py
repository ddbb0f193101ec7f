"""The columns of a comparison's table: for each row the text that people read, and the value by which it sorts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import floor, isfinite, log10
from statistics import fmean

from peftlab.comparison.findings import COSTS, Findings
from peftlab.comparison.groups import short_letters
from peftlab.comparison.rows import Row, Table
from peftlab.comparison.statistics import Estimate
from peftlab.quantities import format_bytes, format_count, format_seconds, format_share
from peftlab.recipe.budget import parse_budget
from peftlab.reports import BudgetReport

NONE = "–"
MOST_DECIMALS = 4  # of figures from 0.1 on; smaller ones have as many digits
BUDGET_TOLERANCE = 0.02
# Kinds of budgets that runs are sized for by a forecast. Runs show what it was worth.
FORECAST = ("seconds", "memory")


@dataclass(frozen=True)
class Column:
    """One column: a row's value, by which it sorts, the text that people read, and an addition in parentheses."""

    key: str
    title: str
    value: Callable[[Row], float | str | None]
    show: Callable[[Row], str]
    number: bool = True
    add: Callable[[Row], str] = lambda row: ""

    def text(self, row: Row) -> str:
        if self.value(row) is None:
            return NONE
        added = self.add(row)
        return f"{self.show(row)} ({added})" if added else self.show(row)


def filled_columns(table: Table, findings: Findings) -> list[Column]:
    """Return the columns that at least one row fills."""
    columns = [*_statistics(table.metric, findings), *_costs(findings), *_inference(), *_runs()]
    return [column for column in columns if any(column.value(row) is not None for row in table.rows)]


def _statistics(metric: str, findings: Findings) -> list[Column]:
    quality, letters = findings.quality.get(metric, {}), findings.letters
    return [
        Column("variant", "variant", lambda row: row.name, lambda row: row.name, False, _size_text),
        Column("budget", "budget", lambda row: row.budget, _budget_text, False),
        _interval_column("quality", metric, quality),
        Column(
            "group", "group", lambda row: letters.get(row.label), lambda row: short_letters(letters[row.label]), False
        ),
        _interval_column("change", f"{metric}, change", findings.change, "+"),
        _interval_column("general", "general loss, change", findings.general_change, "+"),
    ]


def _interval_column(key: str, title: str, found: Mapping[str, Estimate], sign: str = "") -> Column:
    """Return a column of intervals, all with the decimals that the narrowest deserves."""
    digits = shared_decimals(list(found.values()))
    return Column(
        key,
        title,
        lambda row: found[row.label].mean if row.label in found else None,
        lambda row: interval_text(found[row.label], digits, sign),
    )


def _optional(key: str, title: str, value: Callable[[Row], float | None], show: Callable[[float], str]) -> Column:
    """Return a column of numbers that a row may lack; `show` gets the number."""
    return Column(key, title, value, lambda row: NONE if (known := value(row)) is None else show(known))


def _costs(findings: Findings) -> list[Column]:
    seconds = findings.costs["seconds"]
    return [
        Column("trainable", "trainable", lambda row: row.parameters.trainable if row.parameters else None, _count_text),
        _optional(
            "stored", "stored", lambda row: row.parameters.stored_bytes if row.parameters else None, format_bytes
        ),
        _optional(
            "state", "gradients, optimiser", lambda row: row.example.update_bytes if row.example else None, format_bytes
        ),
        _optional(
            "memory",
            "peak memory",
            lambda row: row.example.peak_bytes("measured") if row.example else None,
            format_bytes,
        ),
        _optional(
            "seconds", "seconds", lambda row: seconds[row.label].mean if row.label in seconds else None, format_seconds
        ),
    ]


def _inference() -> list[Column]:
    return [
        _optional(
            "extra", "extra in use", lambda row: row.inference.extra_parameters if row.inference else None, format_count
        ),
        Column("latency", "latency", lambda row: row.latency("unmerged"), _latency_text),
    ]


def _runs() -> list[Column]:
    return [
        _optional("learning_rate", "learning rate", lambda row: row.variant.learning_rate, "{:.3g}".format),
        Column("seeds", "seeds", lambda row: len(row.valued), lambda row: row.status),
    ]


def _size_text(row: Row) -> str:
    """Return the size that the budget was solved for: without it nobody knows which LoRA this is."""
    solution = row.variant.solution
    field, size = next(iter(solution.solved.items()), (None, None)) if solution else (None, None)
    return f"{field.rpartition('.')[2]} {size}" if field else ""


def _count_text(row: Row) -> str:
    counts = row.parameters
    return f"{format_count(counts.trainable)} ({format_share(counts.fraction)})" if counts else NONE


def _latency_text(row: Row) -> str:
    merged = row.latency("merged")
    return f"×{row.latency('unmerged'):.2f}" + (f", merged ×{merged:.2f}" if merged is not None else "")


def _budget_text(row: Row) -> str:
    """Return the budget, and by how much the solved size misses it where it does."""
    missed = missed_in(row)
    return f"{row.budget} (off {missed})" if missed else str(row.budget)


def missed_in(row: Row) -> str | None:
    """Return by how much a row misses its budget: by its size, `−74 %`, and by what its runs took, `measured +9 %`.

    Seconds and memory are sized by a forecast: the runs show what it was worth.
    """
    missed = [missed_text(row.variant.solution), *measured_misses(row)]
    return ", ".join(text for text in missed if text) or None


def measured_misses(row: Row) -> Iterator[str]:
    """Yield by how much the finished runs exceeded their seconds and memory; seconds that size alone, also below."""
    if row.budget is None:
        return
    budget = parse_budget(row.budget)
    for limit in (budget, *budget.others):
        if limit.kind not in FORECAST:
            continue
        taken = [found for trial in row.finished if (found := COSTS[limit.kind](trial)) is not None]
        if not taken:
            continue
        error = (max(taken) if limit.kind == "memory" else fmean(taken)) / limit.amount - 1
        either = limit.kind == "seconds" and not budget.others
        if (abs(error) if either else error) > BUDGET_TOLERANCE:
            kind = f"{limit.kind} " if budget.others else ""
            yield f"{kind}measured {signed(f'{100 * error:+.0f} %')}"


def missed_text(solution: BudgetReport | None) -> str | None:
    """Return by how much the solved size misses the budget, `−74 %`; None where it is within 2 %."""
    error = solution.error if solution else 0.0
    return signed(f"{100 * error:+.0f} %") if abs(error) > BUDGET_TOLERANCE else None


def interval_text(found: Estimate, digits: int, sign: str = "") -> str:
    """Return `mean [low, high]`, or the mean alone where there is no interval."""
    texts = [signed(f"{value:{sign}.{digits}f}") for value in (found.mean, found.low, found.high)]
    return texts[0] if found.low == found.high else f"{texts[0]} [{texts[1]}, {texts[2]}]"


def signed(text: str) -> str:
    """Return a number with a true minus."""
    return text.replace("-", "−")


def shared_decimals(found: Sequence[Estimate]) -> int:
    """Return the decimals that show two figures of the narrowest interval's half, but no more than figures deserve."""
    halves = [(one.high - one.low) / 2 for one in found]
    widths = [half for half in halves if half > 0 and isfinite(half)]
    sizes = [abs(one.mean) for one in found if one.mean and isfinite(one.mean)]
    small = max(0, -1 - floor(log10(max(sizes)))) if sizes else 0
    return min(MOST_DECIMALS + small, max(0, 1 - floor(log10(min(widths))))) if widths else 3 + small
