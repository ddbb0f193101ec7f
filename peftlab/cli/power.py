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
    from peftlab.comparison.rows import Table

SEEDS = (2, 3, 4, 5, 8, 12, 20)
MULTIPLES = (1, 2, 4, 8)
SPREAD = ("seed", "row", "rows")
EXAMPLE = "seed=0.01,row=0.4,rows=200"


def plan_power(
    difference: float, spread: str | None, folder: Path, variants: int, metric: str | None = None
) -> tuple[Any, Any, int]:
    """Return the answer, what shows it and the exit code. Raises UsageError where no variance is known.

    `metric` is the one that the command names; of a measured comparison it is that one's.
    """
    if not 0 < difference < float("inf"):
        raise UsageError(f"--power {difference:g}: must be a difference greater than 0")
    measured = _read(folder, metric) if spread is None else None
    metric = measured.metric if measured else metric
    _check_difference(difference, metric)
    found = dict(_measured(measured)) if measured else {"": _given(spread or "", variants)}
    plans = [_plan(title, power, difference) for title, power in found.items()]
    source = str(folder) if measured else None
    answer = {"difference": difference, "metric": metric, "measured_in": source, "plans": plans}
    return answer, lambda: _show(difference, metric, source, plans), 0


def _check_difference(difference: float, metric: str | None) -> None:
    """Raise UsageError for a difference that no two values of a metric can have, such as percent of a fraction."""
    from peftlab.metrics import METRICS

    if metric not in METRICS:
        return
    lowest, highest = METRICS[metric].range
    if difference >= highest - lowest:
        hint = f"; {difference:g} % are {difference / 100:g}" if highest - lowest == 1 and difference < 100 else ""
        raise UsageError(
            f"--power {difference:g}: two values of {metric}, which is from {lowest:g} to {highest:g}, differ by "
            f"less{hint}"
        )


def _given(spread: str, variants: int) -> Power:
    """Return the variances of a text such as `seed=0.01,row=0.4,rows=200`. Raises UsageError."""
    from peftlab.comparison.power import Power
    from peftlab.evaluation.resampling import LEAST_ROWS

    parts = [part.partition("=") for part in spread.split(",")]
    try:
        values = {key.strip(): float(value) for key, _, value in parts}
    except ValueError:
        values = {}
    valid = sorted(key.strip() for key, _, _ in parts) == sorted(SPREAD) == sorted(values)
    valid = valid and all(0 <= value < float("inf") for value in values.values())
    if not valid or not values["rows"].is_integer() or values["seed"] + values["row"] == 0:
        raise UsageError(f"--spread {spread!r}: write two standard deviations and the number of test rows, {EXAMPLE}")
    if values["rows"] < LEAST_ROWS:
        raise UsageError(f"--spread {spread!r}: fewer than {LEAST_ROWS} rows show no chance of theirs; name more")
    return Power(values["seed"] ** 2, values["row"] ** 2, int(values["rows"]), max(1, comb(variants, 2)))


def _read(folder: Path, metric: str | None) -> Table:
    """Return the comparison in a folder. Raises UsageError where there is none, or one by another metric."""
    from peftlab.comparison.folder import SUMMARY
    from peftlab.comparison.rows import read_table

    if not (folder / SUMMARY).exists():
        raise _unknown(folder)
    table = read_table(folder)
    if metric not in (None, table.metric):
        raise UsageError(
            f"--power: the comparison in {folder} measured {table.metric}, not {metric}; name another --output, or "
            f"add what you expect, --spread {EXAMPLE}"
        )
    return table


def _unknown(folder: Path) -> UsageError:
    return UsageError(
        f"--power: {folder} has no comparison with two seeds and scores of single rows yet; "
        f"add what you expect, --spread {EXAMPLE}"
    )


def _measured(table: Table) -> Iterator[tuple[str, Power]]:
    """Yield the variances that a comparison measured, by budget. Raises UsageError without any."""
    from peftlab.comparison.findings import find
    from peftlab.comparison.verdict import measure_power

    findings = find(table)
    found = {family.budget or "": measure_power(table, findings, family) for family in findings.families}
    known = {title: power for title, power in found.items() if power}
    if not known:
        raise _unknown(table.folder)
    varied = {title: power for title, power in known.items() if power.of_seed + power.of_row}
    if not varied:
        raise UsageError(
            f"--power: in {table.folder} neither seeds nor rows made a difference in {table.metric}; "
            f"add what you expect, --spread {EXAMPLE}"
        )
    yield from varied.items()


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


def _show(difference: float, metric: str | None, source: str | None, plans: list[dict[str, Any]]) -> None:
    from peftlab.cli.render import show
    from peftlab.quantities import number

    of_metric = f" in {metric}" if metric else ""
    where_from = f"; measured in {source}" if source else ""
    for plan in plans:
        where = f" under {plan['budget']}" if plan["budget"] else ""
        pairs = number(plan["pairs"], "pair")
        show(f"Chance of finding a true difference of {difference:g}{of_metric}, one of {pairs}{where}")
        show(
            f"(standard deviation {plan['seed_spread']:.2g} between seeds, {plan['row_spread']:.2g} between rows, "
            f"{plan['rows']:,} test rows{where_from})"
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
