"""The plain answer of a comparison: the best, the cheapest that is not significantly worse, what more seeds decide."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import comb

from peftlab.comparison.claims import WITH_SEED
from peftlab.comparison.findings import Family, Findings
from peftlab.comparison.groups import Cost
from peftlab.comparison.power import MOST_SEEDS, Power
from peftlab.comparison.rows import Row, Table
from peftlab.comparison.statistics import Difference, Estimate
from peftlab.comparison.words import estimate_text, names_of, shorten, size_text, some
from peftlab.quantities import format_bytes, format_count, format_seconds, number

# What each cost is called where a variant has the least of it.
LEAST: dict[str, tuple[str, Callable[[float], str]]] = {
    "trainable": ("fewest trainable parameters", format_count),
    "stored": ("smallest file", format_bytes),
    "memory": ("least memory", format_bytes),
    "seconds": ("fastest training", lambda seconds: f"{format_seconds(seconds)} s"),
}


@dataclass(frozen=True)
class Answer:
    """One line of the answer: the question, the answer in words, the row that it names and the figures it is from.

    `cheapest` are the costs of which no row that is not significantly worse than the best has less.
    """

    question: str
    text: str
    label: str = ""
    figures: tuple[Estimate | Difference[str], ...] = ()
    cheapest: dict[str, Cost] | None = None


def answer(table: Table, findings: Findings, family: Family) -> list[Answer]:
    """Return the answer for one budget; nothing where no variant has a result."""
    if not family.ordered:
        return []
    if len(family.ordered) == 1:
        return [_alone(table, findings, family), *_with_less(table, findings, family), *_elsewhere(table, family)]
    best = [_best(table, family), *_with_less(table, findings, family)]
    compared = [*_cheapest(table, findings, family), *_more(table, findings, family)]
    return [*best, *compared, *_elsewhere(table, family)]


def _with_less(table: Table, findings: Findings, family: Family) -> Iterator[Answer]:
    """Yield the best row of another budget that is within this one too, where its mean is better than the best here."""
    quality, sign = findings.quality.get(table.metric, {}), 1 if table.report.higher_is_better else -1
    rows = [row for row in _within(table, family.budget) if row.label in quality]
    best = family.ordered[0]
    row = max(rows, key=lambda row: sign * quality[row.label].mean, default=None)
    if row is None or sign * quality[row.label].mean <= sign * family.estimates[best].mean:
        return
    pair = findings.between(row.label, best)
    how = "significantly better" if pair.significant else "better, not significantly,"
    how = "better (not tested)" if pair.scope == "nothing" else how
    text = f"{shorten(row.name)} (under {row.budget}), {table.metric} {estimate_text(quality[row.label])}; {how} than "
    text += f"{names_of(table)[best]} by {size_text(pair)}{WITH_SEED[pair.scope]}."
    yield Answer("better with less", text, row.label, (quality[row.label], pair))


def _within(table: Table, budget: str | None) -> list[Row]:
    """Return the rows of other budgets whose size is within this one; none where it is of several limits."""
    limits = [row.variant.solution for row in table.of_budget(budget) if row.variant.solution]
    if not limits or "," in (budget or ""):
        return []
    kind, asked = limits[0].kind, limits[0].asked
    others = [(row, row.variant.solution) for row in table.rows if row.budget != budget]
    return [row for row, one in others if one and one.kind == kind and one.reached <= asked]


def _elsewhere(table: Table, family: Family) -> Iterator[Answer]:
    """Yield which variants of a frontier are not in this answer, because their size is run under another amount."""
    rows = [row for row in table.rows if family.budget in row.variant.same_size]
    if rows:
        names = some([f"{shorten(row.name)} (under {row.budget})" for row in rows])
        yield Answer("not in this answer", f"{names}: the nearest size is that of another amount, and is run there.")


def _alone(table: Table, findings: Findings, family: Family) -> Answer:
    (label,) = family.ordered
    found, change = family.estimates[label], findings.change.get(label)
    text = f"{names_of(table)[label]}: {table.metric} {estimate_text(found)}"
    if change:
        text += f"; training changed it by {estimate_text(change)}"
    return Answer("result", f"{text}.", label, (found, *([change] if change else [])))


def not_worse(family: Family) -> list[str]:
    """Return the best row and those that are not significantly worse, best first; untested ones are not counted."""
    best, *others = family.ordered
    pairs = {other: family.between(best, other) for other in others}
    return [best, *(other for other, pair in pairs.items() if pair.scope != "nothing" and not pair.significant)]


def _best(table: Table, family: Family) -> Answer:
    names, (best, *others) = names_of(table), family.ordered
    figures = [family.between(best, other) for other in others]
    text = f"{names[best]}, {table.metric} {estimate_text(family.estimates[best])}"
    equals = [names[name] for name in not_worse(family)[1:]]
    text += f"; {_stand(figures, equals, names) if family.alike else 'the others were measured on other rows'}"
    return Answer("best", f"{text}{WITH_SEED[family.scope]}.", best, (family.estimates[best], *figures))


def _stand(figures: Sequence[Difference[str]], equals: Sequence[str], names: Mapping[str, str]) -> str:
    """Return how the best row compares with the others, by its differences to them."""
    untested = [names[pair.second] for pair in figures if pair.scope == "nothing"]
    if len(untested) == len(figures):
        return "what is chance is not known"
    if equals:
        return f"{some(equals)} {'is' if len(equals) == 1 else 'are'} not significantly worse"
    if untested:
        return f"significantly better than all but {some(untested)}, which could not be tested"
    return "significantly better" + (" than every other" if len(figures) > 1 else "")


def _cheapest(table: Table, findings: Findings, family: Family) -> Iterator[Answer]:
    """Yield which rows that are not significantly worse than the best cost least, those of several costs once."""
    names, best, candidates = names_of(table), family.ordered[0], not_worse(family)
    if len(candidates) < 2:
        return
    least, shared = {}, {}
    for cost in LEAST:
        known = {label: found for label in candidates if (found := findings.costs[cost].get(label))}
        if known and len({found.mean for found in known.values()}) > 1:
            least[cost] = chosen = min(known, key=lambda label: known[label].mean)
            shared[cost] = _shared(chosen, known, names)
    for label, costs in groupby(sorted(least, key=lambda cost: candidates.index(least[cost])), key=least.__getitem__):
        own = {cost: findings.costs[cost][label] for cost in costs}
        what = ", ".join(
            f"{LEAST[cost][0]} ({LEAST[cost][1](found.mean)}{shared[cost]})" for cost, found in own.items()
        )
        pair = family.between(label, best) if label != best else None
        size = f"; {_further(table, pair)} the best" if pair else ", and is the best"
        figures = (pair,) if pair else ()
        yield Answer("cheapest not significantly worse", f"{names[label]}: {what}{size}.", label, figures, own)


def _shared(chosen: str, known: Mapping[str, Cost], names: Mapping[str, str]) -> str:
    """Return which other rows cost as little, or that some seed of another did, where `chosen` is the least by mean."""
    others = {label: found for label, found in known.items() if label != chosen}
    if equal := [names[label] for label, found in others.items() if found.mean == known[chosen].mean]:
        return f", as {some(equal)}"
    return "" if all(map(known[chosen].no_more_than, others.values())) else ", not in every seed"


def _further(table: Table, pair: Difference[str]) -> str:
    """Return `worse by 0.02 [−0.01, 0.05] than`."""
    if pair.value == 0:
        return "equal to"
    worse = (pair.value < 0) == table.report.higher_is_better
    return f"{'worse' if worse else 'better'} by {size_text(pair)} than"


def measure_power(table: Table, findings: Findings, family: Family) -> Power | None:
    """Return the variances that the comparison measured; None with one seed."""
    seeds = {label: found.seeds for label, found in family.estimates.items()}
    power = Power.measured(family.differences, seeds, findings.rows)
    return power and Power(power.of_seed, power.of_row, power.rows, comb(len(family.ordered), 2))


def _more(table: Table, findings: Findings, family: Family) -> Iterator[Answer]:
    """Yield how many seeds would decide between the best row and the next that is not significantly worse."""
    equals = not_worse(family)
    if len(equals) < 2 or family.scope == "nothing":
        return
    if family.scope == "weights":
        text = "With one seed the chance of the seed is not known: three or more show how much seeds differ."
        yield Answer("more seeds", text)
        return
    best, second = equals[:2]
    pair, power = family.between(best, second), measure_power(table, findings, family)
    if power is None or pair.value == 0:
        return
    names, size = names_of(table), abs(pair.value)
    needs = _needs(power, size, findings.kind)
    text = f"If {names[best]} and {names[second]} differ by as much as here ({size:.2g}), {needs}"
    yield Answer("more seeds", text, second, (pair,))


def _needs(power: Power, size: float, kind: str) -> str:
    """Return what finds a difference of this size in 80 % of comparisons, on rows of a kind."""
    known = f"on these {power.rows:,} {kind} rows"
    if seeds := power.seeds_for(size):
        return f"{number(seeds, 'seed')} {known} show it in 80 % of comparisons."
    if rows := power.rows_for(size, 10):
        return f"more than {MOST_SEEDS} seeds are needed {known}; 10 seeds on {rows:,} do."
    return f"more than {MOST_SEEDS} seeds are needed, with any number of {kind} rows."
