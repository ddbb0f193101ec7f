"""What a comparison's statistics say: sentences, each made from the figures that it speaks of and kept with them.

A claim never says more than its figures do: of methods where several seeds were tried, of methods on these rows where
only the seeds' chance is known, of the weights of one seed on such rows where only the rows' chance is known, and of
nothing where neither is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from statistics import median
from typing import Literal

from peftlab.comparison.findings import SCOPES, Family, Findings
from peftlab.comparison.groups import winner_first
from peftlab.comparison.rows import Table
from peftlab.comparison.statistics import Difference, Estimate, Scope
from peftlab.comparison.words import (
    by_budget,
    join,
    lost_seeds,
    missed_budget,
    names_of,
    number,
    part_of,
    size_text,
    some,
    unended_runs,
)

Kind = Literal["best", "not different", "better", "worse", "counted", "moved", "open", "limit"]
WITH_SEED = {"methods": "", "rows": " on these rows", "weights": " with these weights", "nothing": ""}
MOVED_BY: dict[Scope, str] = {
    "methods": "by the 95 % interval of each",
    "rows": "on these rows, by the 95 % interval over the seeds",
    "weights": "with the one seed tried, by the 95 % interval over the rows",
}
NOT_TESTED = {"weights": "Another seed", "rows": "Other rows"}


@dataclass(frozen=True)
class Claim:
    """One sentence. `subjects` are the labels that it names, `others` those that it compares them with.

    `figures` are the estimates or differences that the sentence was made from: in `not different` every pair of the
    subjects, in `better` and `worse` the subject's differences to the others, in `counted` all pairs, in `moved` the
    changes of the subjects and of the others, of which the sentence says that they do not count.
    """

    kind: Kind
    text: str
    subjects: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    figures: tuple[Estimate | Difference[str], ...] = ()
    scope: Scope | None = None

    def __str__(self) -> str:
        return self.text


def describe_groups(table: Table, family: Family) -> list[Claim]:
    """Return what the rows of one budget say: the best, which share a group, which are significantly worse."""
    if len(family.ordered) < 2:
        return [Claim("limit", "There is nothing to compare: fewer than two variants have results.")]
    if family.scope == "nothing":
        reason = "Neither other seeds nor scores of single rows are there: what is chance is not known."
        if not family.alike:
            reason = "The runs were measured on different rows: which difference is one of the rows is not known."
        return [_best(table, family), Claim("limit", reason)]
    parts = [*([_best(table, family)] if family.scope == "weights" else []), *_groups(table, family)]
    parts += _worse(table, family)
    if other := NOT_TESTED.get(family.scope):
        parts.append(Claim("limit", f"{other} may order the variants otherwise (not tested)."))
    return parts


def _best(table: Table, family: Family) -> Claim:
    """Return which row has the best mean, and by how much."""
    names, where = names_of(table), "on these rows" if family.alike else "on its own rows"
    best, second = family.ordered[:2]
    extreme, further = ("highest", "lower") if table.report.higher_is_better else ("lowest", "higher")
    equal = [name for name in family.ordered[1:] if family.between(best, name).value == 0]
    if equal:
        subjects = (best, *equal)
        text = f"{some([names[name] for name in subjects])} have the {extreme} {table.metric} {where}."
        return Claim("best", text, subjects, (), tuple(family.estimates[name] for name in subjects))
    pair = family.between(best, second)
    text = (
        f"{names[best]} has the {extreme} {table.metric} {where}; that of {names[second]}, the next, is "
        f"{further} by {size_text(pair)}."
    )
    return Claim("best", text, (best,), (second,), (pair,), pair.scope)


def _groups(table: Table, family: Family) -> Iterator[Claim]:
    """Yield which rows share a group, and which one is better than all others."""
    names = names_of(table)
    for letter, members in family.groups.items():
        pairs = tuple(family.between(*pair) for pair in combinations(members, 2))
        if len(members) > 1:
            subject = "The two" if len(family.ordered) == 2 else join([names[name] for name in members])
            if len(members) == len(family.ordered) > 2:
                subject, letter = f"No two of the {len(members)} variants", ""
            text = f"{subject} are {'' if subject.startswith('No') else 'not '}significantly different"
            text += WITH_SEED[family.scope] + (f" (group {letter})" if letter and len(family.ordered) > 2 else "")
            untested = sum(pair.scope == "nothing" for pair in pairs)
            text += f"; {number(untested, 'pair')} of them could not be tested." if untested else "."
            yield Claim("not different", text, tuple(members), (), pairs, family.scope)
        elif members[0] == family.ordered[0] and len(family.ordered) > 2:
            others = tuple(family.ordered[1:])
            figures = tuple(family.between(members[0], other) for other in others)
            text = f"{names[members[0]]} is significantly better than every other{WITH_SEED[family.scope]}"
            yield Claim("better", f"{text} (group {letter}).", tuple(members), others, figures, family.scope)


def _worse(table: Table, family: Family) -> Iterator[Claim]:
    """Yield for each row that is significantly worse than others: than which, and the smallest difference."""
    names, place = names_of(table), {name: place for place, name in enumerate(family.ordered)}
    lost = [winner_first(pair, table.report.higher_is_better)[::-1] for pair in family.significant]
    lost.sort(key=lambda pair: (place[pair[0]], place[pair[1]]))
    for loser, pairs in groupby(lost, key=lambda pair: pair[0]):
        winners = tuple(winner for _, winner in pairs)
        figures = [family.between(loser, winner) for winner in winners]
        for scope in sorted({pair.scope for pair in figures}):
            own = [pair for pair in figures if pair.scope == scope]
            size = size_text(min(own, key=lambda pair: abs(pair.value)))
            text = (
                f"{names[loser]} is significantly worse than {some([names[pair.second] for pair in own])}"
                f"{WITH_SEED[scope]}, by {size}{'' if len(own) == 1 else ' or more'}."
            )
            yield Claim("worse", text, (loser,), tuple(pair.second for pair in own), tuple(own), scope)


def conclude(table: Table, findings: Findings) -> tuple[list[Claim], list[Claim]]:
    """Return what can be concluded and what cannot."""
    return list(_can(table, findings)), list(_cannot(table, findings))


def _can(table: Table, findings: Findings) -> Iterator[Claim]:
    pairs = [pair for family in findings.families for pair in family.differences]
    for scope in SCOPES:
        if own := [pair for pair in pairs if pair.scope == scope]:
            yield _counted(table, own, scope)
    if any(pair.significant for pair in pairs) and not any(pair.scope == "rows" for pair in pairs):
        each = " in each budget" if len(table.budgets) > 1 else ""
        text = f"Were all variants equal, the chance of calling even one pair different would be at most 5 %{each}."
        yield Claim("limit", text)
    improved = f"improved {table.metric} over the model before training"
    yield from _moved(findings.change, table.report.higher_is_better, improved)
    yield from _moved(findings.general_change, True, "raised the loss on general text, a sign of forgetting")


def _counted(table: Table, pairs: Sequence[Difference[str]], scope: Scope) -> Claim:
    """Return how many pairs differ significantly."""
    significant = sum(pair.significant for pair in pairs)
    kind = f"{number(len(pairs), 'pair')} of variants{' under the same budget' if len(table.budgets) > 1 else ''}"
    verb = "differ" if significant > 1 else "differs"
    text = f"Of {kind}, {significant or 'none'} {verb} significantly in {table.metric}{WITH_SEED[scope]}."
    return Claim("counted", text, figures=tuple(pairs), scope=scope)


def _moved(changes: Mapping[str, Estimate], upwards: bool, what: str) -> Iterator[Claim]:
    """Yield how many changes have an interval on one side of 0: over seeds and rows, and over one of them alone."""
    for scope, by in MOVED_BY.items():
        known = {name: change for name, change in changes.items() if _scope_of(change) == scope}
        if not known:
            continue
        moved = [name for name, change in known.items() if (change.low > 0 if upwards else change.high < 0)]
        rest = tuple(name for name in known if name not in moved)
        figures = tuple(known[name] for name in (*moved, *rest))
        yield Claim("moved", f"{part_of(moved, len(known))} {what} ({by}).", tuple(moved), rest, figures, scope)


def _scope_of(found: Estimate) -> Scope:
    """Return what an interval speaks of, by the sources of chance that it covers."""
    if found.of_seeds:
        return "methods" if found.of_rows else "rows"
    return "weights" if found.of_rows else "nothing"


def _cannot(table: Table, findings: Findings) -> Iterator[Claim]:
    yield from _about_seeds(table, findings)
    yield from _open(table, findings)
    lines = []
    if unended := by_budget(table, unended_runs):
        lines.append(f"Not all runs have ended: {unended}. What is said here may change.")
    if findings.part == "" and findings.quality and any(row.sweep for row in table.rows):
        lines.append(
            "There were no test rows: these numbers are of the rows that chose the learning rates, and so too "
            "optimistic, most of all for variants that tried many."
        )
    if edge := by_budget(table, lambda row: "" if row.variant.at_edge else None):
        lines.append(
            f"The best learning rate of {edge} is the smallest or largest tried: a better one may be beyond it."
        )
    if missed := by_budget(table, missed_budget):
        lines.append(f"Off their budget by more than 2 %: {missed}. These do not compare at equal budgets.")
    if lost := by_budget(table, lost_seeds):
        others = any(0 < len(row.valued) < len(row.trials) for row in table.rows)
        hint = "; the mean of the others may be too optimistic" if others else ""
        lines.append(f"Seeds gave no {table.metric}: {lost}{hint}.")
    lines.append(
        "All of this applies to this model, this data and this length of training; other cases were not tried."
    )
    yield from (Claim("limit", line) for line in lines)


def _about_seeds(table: Table, findings: Findings) -> Iterator[Claim]:
    quality = findings.quality.get(table.metric, {})
    single = [name for name, found in quality.items() if found.seeds < 2]
    if quality and len(single) == len(quality):
        text = "One seed was tried: the figures are of these weights"
        if any(found.of_rows for found in quality.values()):
            text += ", and their intervals cover the chance of the rows alone"
        yield Claim("limit", f"{text}. What another seed gives was not tested.", tuple(single))
    elif single:
        text = f"{some(single)} has one seed" if len(single) == 1 else f"{some(single)} have one seed each"
        yield Claim("limit", f"{text}: what another gives was not tested.", tuple(single))


def _open(table: Table, findings: Findings) -> Iterator[Claim]:
    """Yield how large the differences may be that were not significant, and what would narrow them."""
    pairs = [pair for family in findings.families for pair in family.differences if pair.scope != "nothing"]
    kept = [pair for pair in pairs if not pair.significant and pair.low < pair.high]  # equal runs differ by nothing
    if not kept:
        return
    width = median(max(abs(pair.low), abs(pair.high)) for pair in kept)
    yield Claim(
        "open",
        "Variants that are not significantly different may still differ: in the median of "
        f"{number(len(kept), 'such pair')}, by up to {width:.2g} in {table.metric}.",
        figures=tuple(kept),
    )
    shares = [pair.seed_share for pair in kept if pair.seed_share is not None]
    if shares:
        rows = f"{findings.kind} rows"
        first, second = ("seeds", rows) if median(shares) > 0.5 else (rows, "seeds")
        source = f"{100 * median(shares):.0f} % of that uncertainty is from the seeds"
        yield Claim("open", f"{source}: more {first} narrow it sooner than more {second}.", figures=tuple(kept))
