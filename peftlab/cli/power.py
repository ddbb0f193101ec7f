"""`peftlab compare --power`: how many seeds and test rows find a difference; nothing is run."""

from __future__ import annotations

from collections.abc import Iterator
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlab.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table as TextTable

    from peftlab.comparison.power import Power

SEEDS = (2, 3, 4, 5, 8, 12, 20)
MULTIPLES = (1, 2, 4, 8)
SPREAD = ("seed", "row", "rows")
EXAMPLE = "seed=0.01,row=0.4,rows=200"


def plan_power(difference: float, spread: str | None, folder: Path, variants: int) -> tuple[Any, Any, int]:
    """Return the answer, what shows it and the exit code. Raises UsageError where no variance is known."""
    if not 0 < difference < float("inf"):
        raise UsageError(f"--power {difference:g}: must be a difference greater than 0")
    found = dict(_measured(folder)) if spread is None else {"": _given(spread, variants)}
    plans = [_plan(title, power, difference) for title, power in found.items()]
    return {"difference": difference, "plans": plans}, lambda: _show(difference, plans), 0


def _given(spread: str, variants: int) -> Power:
    """Return the variances of a text such as `seed=0.01,row=0.4,rows=200`. Raises UsageError."""
    from peftlab.comparison.power import Power

    try:
        values = {key.strip(): float(value) for key, _, value in (part.partition("=") for part in spread.split(","))}
    except ValueError:
        values = {}
    valid = set(values) == set(SPREAD) and all(0 <= value < float("inf") for value in values.values())
    if not valid or values["rows"] < 2 or values["seed"] + values["row"] == 0:
        raise UsageError(f"--spread {spread!r}: write two standard deviations and the number of test rows, {EXAMPLE}")
    return Power(values["seed"] ** 2, values["row"] ** 2, int(values["rows"]), max(1, comb(variants, 2)))


def _measured(folder: Path) -> Iterator[tuple[str, Power]]:
    """Yield the variances that the comparison in a folder measured, by budget. Raises UsageError without any."""
    from peftlab.comparison.findings import find
    from peftlab.comparison.folder import SUMMARY
    from peftlab.comparison.rows import read_table
    from peftlab.comparison.verdict import measure_power

    known = False
    if (folder / SUMMARY).exists():
        table = read_table(folder)
        findings = find(table)
        for family in findings.families:
            if power := measure_power(table, findings, family):
                known = True
                yield family.budget or "", power
    if not known:
        raise UsageError(
            f"--power: {folder} has no comparison with two seeds and scores of single rows yet; "
            f"add what you expect, --spread {EXAMPLE}"
        )


def _plan(title: str, power: Power, difference: float) -> dict[str, Any]:
    """Return the chances by seeds and rows, and what is needed for 80 %."""
    rows = [power.rows * multiple for multiple in MULTIPLES]
    return {
        "budget": title or None,
        "pairs": power.pairs,
        "rows": power.rows,
        "seed_spread": power.of_seed**0.5,
        "row_spread": power.of_row**0.5,
        "chances": [
            {"seeds": seeds, "rows": count, "chance": power.chance(difference, seeds, count)}
            for seeds in SEEDS for count in rows
        ],
        "seeds_needed": power.seeds_for(difference),
        "rows_needed": {seeds: power.rows_for(difference, seeds) for seeds in (3, 5, 10)},
    }  # fmt: skip


def _show(difference: float, plans: list[dict[str, Any]]) -> None:
    from peftlab.cli.render import show

    for plan in plans:
        where = f" under {plan['budget']}" if plan["budget"] else ""
        show(f"Chance of finding a true difference of {difference:g}, one of {plan['pairs']} pairs{where}")
        show(
            f"(standard deviation {plan['seed_spread']:.2g} between seeds, {plan['row_spread']:.2g} between rows, "
            f"{plan['rows']:,} test rows)"
        )
        show(_table(plan["chances"]))
        show("\n".join([*_needs(plan), ""]))


def _table(chances: list[dict[str, Any]]) -> TextTable:
    from peftlab.cli.render import plain_table

    counts = list(dict.fromkeys(one["rows"] for one in chances))
    text = plain_table("seeds", *(f"{count:,} rows" for count in counts))
    for seeds in dict.fromkeys(one["seeds"] for one in chances):
        text.add_row(str(seeds), *(f"{100 * one['chance']:.0f} %" for one in chances if one["seeds"] == seeds))
    return text


def _needs(plan: dict[str, Any]) -> Iterator[str]:
    """Yield what finds the difference in 80 % of comparisons."""
    seeds = plan["seeds_needed"]
    yield (
        f"80 % need: {seeds} seeds on {plan['rows']:,} rows"
        if seeds
        else (f"80 % need: more than 100 seeds on {plan['rows']:,} rows")
    )
    for seeds, rows in plan["rows_needed"].items():
        yield f"       or: {seeds} seeds on {rows:,} rows" if rows else f"     with {seeds} seeds: no number of rows"
