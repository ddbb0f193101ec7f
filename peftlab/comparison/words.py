"""The pieces of sentences about a comparison: names, counts, how large a difference is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from peftlab.comparison.columns import interval_text, missed_in, shared_decimals
from peftlab.comparison.points import Point
from peftlab.comparison.rows import Row, Table
from peftlab.comparison.statistics import Difference, Estimate
from peftlab.quantities import number
from peftlab.reports import VariantReport

MOST_NAMED = 6
NAME_CHARACTERS = 60


def search_text(variant: VariantReport, metric: str) -> str:
    """Return what a variant's search tried, what it cost and what it chose."""
    search = variant.search
    assert search is not None, "asked for variants that were searched"
    ways = {"finished": search.finished, "stopped early": search.stopped, "failed": search.failed}
    ended = ", ".join(f"{count} {way}" for way, count in ways.items() if count)
    text = f"{number(search.trials, 'trial')} ({ended or 'none yet'}), {search.processor_seconds:.0f} processor seconds"
    if search.best is not None:
        text += f"; best {metric} on the evaluation rows {search.best:.4f} with {Point.of(variant.settings)}"
    return text + (f" (the recipe's own: {search.own:.4f})" if search.own is not None else "")


def names_of(table: Table) -> dict[str, str]:
    """Return what sentences about one budget call its rows: names short enough to read."""
    return {row.label: shorten(row.name) for row in table.rows}


def shorten(name: str) -> str:
    return name if len(name) <= NAME_CHARACTERS else f"{name[: NAME_CHARACTERS - 1]}…"


def join(names: Sequence[str]) -> str:
    """Return `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def some(names: Sequence[str]) -> str:
    """Return the first of many names, joined, and how many more there are."""
    names = [shorten(name) for name in names]
    if len(names) <= MOST_NAMED:
        return join(names)
    return join([*names[: MOST_NAMED - 1], f"{len(names) - MOST_NAMED + 1} more"])


def part_of(found: Sequence[str], among: int) -> str:
    """Return `All 6 variants`, `4 of 6 variants`, `None of the 6 variants`, `The variant`,."""
    if among == 1:
        return "The variant" if found else "No variant"
    whole = number(among, "variant")
    if not found:
        return f"None of the {whole}"
    return f"All {whole}" if len(found) == among else f"{len(found)} of {whole}"


def size_text(pair: Difference[str]) -> str:
    """Return how large a difference is, as a positive number; its interval may reach below 0."""
    low, high = (pair.low, pair.high) if pair.value >= 0 else (-pair.high, -pair.low)
    return estimate_text(Estimate(abs(pair.value), low, high, None, 0, True, True))


def estimate_text(found: Estimate) -> str:
    """Return `mean [low, high]` with the decimals that its own interval deserves."""
    return interval_text(found, shared_decimals([found]))


def by_budget(table: Table, describe: Callable[[Row], str | None]) -> str:
    """Return the rows that have a description, `full (+5 %) and lora (−3 %) under trainable=1%; ...`, or nothing."""
    parts = []
    for budget in table.budgets:
        found = [f"{shorten(row.name)}{text}" for row in table.of_budget(budget) if (text := describe(row)) is not None]
        if found:
            parts.append(some(found) + (f" under {budget}" if len(table.budgets) > 1 else ""))
    return "; ".join(parts)


def missed_budget(row: Row) -> str | None:
    missed = missed_in(row)
    return f" ({missed})" if missed else None


def unended_runs(row: Row) -> str | None:
    """Return how many of the runs that are known so far have not ended: learning rates, then seeds."""
    trials = row.trials or row.sweep
    unended = sum(trial.unended for trial in trials)
    return f" ({unended} of {len(trials)})" if unended else None


def lost_seeds(row: Row) -> str | None:
    lost = len(row.trials) - len(row.valued) - sum(trial.unended for trial in row.trials)
    return f" ({lost} of {len(row.trials)})" if lost else None
