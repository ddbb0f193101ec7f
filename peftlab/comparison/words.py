"""What a comparison's statistics say in sentences: which variants differ significantly, and what can be concluded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median

from peftlab.comparison.columns import interval_text, missed_text, shared_decimals
from peftlab.comparison.findings import Family, Findings
from peftlab.comparison.groups import winner_first
from peftlab.comparison.rows import Row, Table
from peftlab.comparison.statistics import Difference, Estimate

MOST_NAMED = 6
NAME_CHARACTERS = 60


def names_of(table: Table) -> dict[str, str]:
    """Return what sentences about one budget call its rows: names short enough to read."""
    return {row.label: shorten(row.name) for row in table.rows}


def shorten(name: str) -> str:
    return name if len(name) <= NAME_CHARACTERS else f"{name[: NAME_CHARACTERS - 1]}…"


def join(names: Sequence[str]) -> str:
    """Return `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def describe_groups(table: Table, family: Family) -> list[str]:
    """Return sentences on one budget's rows: which share a group, and which are significantly worse than others."""
    names = names_of(table)
    if len(family.ordered) < 2:
        return ["There is nothing to compare: fewer than two variants have results."]
    if not any(pair.tested for pair in family.differences):
        return [
            *_describe_best(table, family, names),
            "Other seeds were not tried, and may order the variants otherwise.",
        ]
    if not family.significant:
        count = len(family.ordered)
        return [
            "The two are not significantly different." if count == 2
            else f"No two of the {count} variants are significantly different."
        ]  # fmt: skip
    sentences = []
    for letter, members in family.groups.items():
        if len(members) > 1:
            sentences.append(
                f"{join([names[name] for name in members])} are not significantly different (group {letter})."
            )
        elif members[0] == family.ordered[0]:
            sentences.append(f"{names[members[0]]} is significantly better than every other (group {letter}).")
    return sentences + _describe_worse(family, names, table.report.higher_is_better)


def _describe_best(table: Table, family: Family, names: dict[str, str]) -> Iterable[str]:
    """Yield which row is best on these rows and by how much, where one seed allows no more."""
    best, second = family.ordered[:2]
    extreme, further = ("highest", "lower") if table.report.higher_is_better else ("lowest", "higher")
    equal = [name for name, pair in family.to_best().items() if pair.value == 0]
    if equal:
        yield f"{join([names[name] for name in (best, *equal)])} have the {extreme} {table.metric} on these rows."
        return
    next_one = f"that of {names[second]}, the next, is {further} by {_size_text(family.to_best()[second])}"
    yield f"{names[best]} has the {extreme} {table.metric} on these rows; {next_one}."


def _describe_worse(family: Family, names: dict[str, str], higher_is_better: bool) -> list[str]:
    """Return for each row that is significantly worse than others: than which, and the smallest difference."""
    lost: dict[str, list[tuple[str, Difference[str]]]] = {}
    for pair in family.significant:
        winner, loser = winner_first(pair, higher_is_better)
        lost.setdefault(loser, []).append((winner, pair))
    sentences = []
    for loser in (name for name in family.ordered if name in lost):
        winners = sorted(lost[loser], key=lambda entry: family.ordered.index(entry[0]))
        size = _size_text(min((pair for _, pair in winners), key=lambda pair: abs(pair.value)))
        others = _some([names[name] for name, _ in winners])
        more = "" if len(winners) == 1 else " or more"
        sentences.append(f"{names[loser]} is significantly worse than {others}, by {size}{more}.")
    return sentences


def _some(names: Sequence[str]) -> str:
    names = [shorten(name) for name in names]
    if len(names) <= MOST_NAMED:
        return join(names)
    return join([*names[: MOST_NAMED - 1], f"{len(names) - MOST_NAMED + 1} more"])


def _size_text(pair: Difference[str]) -> str:
    """Return how large a difference is, as a positive number; its interval may reach below 0."""
    low, high = (pair.low, pair.high) if pair.value >= 0 else (-pair.high, -pair.low)
    size = Estimate(abs(pair.value), low, high, None, 0, True, True)
    return interval_text(size, shared_decimals([size]))


def conclude(table: Table, findings: Findings) -> tuple[list[str], list[str]]:
    """Return what can be concluded and what cannot, as sentences."""
    pairs = [pair for family in findings.families for pair in family.differences if pair.tested]
    return list(_can(table, findings, pairs)), list(_cannot(table, findings, pairs))


def _can(table: Table, findings: Findings, pairs: Sequence[Difference[str]]) -> Iterable[str]:
    significant = sum(pair.significant for pair in pairs)
    metric, several = table.metric, len(table.budgets) > 1
    if pairs:
        kind = f"{_number(len(pairs), 'pair')} of variants{' under the same budget' if several else ''}"
        verb = "differ" if significant > 1 else "differs"
        yield f"Of {kind}, {significant or 'none'} {verb} significantly in {metric}."
    if significant:
        yield (
            "Significantly: were all variants equal, the chance of calling even one pair different would be at most 5 %"
            f"{' in each budget' if several else ''}."
        )
    yield from _moved(
        findings.change, table.report.higher_is_better, f"improved {metric} over the model before training"
    )
    yield from _moved(findings.general_change, True, "forgot: the loss on general text rose")


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _part(some: Sequence[str], among: Iterable[str]) -> str:
    """Return `All 6 variants`, `4 of 6 variants`, `None of the 6 variants`."""
    count = len(list(among))
    whole = _number(count, "variant")
    if not some:
        return f"None of the {whole}"
    return f"All {whole}" if len(some) == count else f"{len(some)} of {whole}"


def _moved(changes: Mapping[str, Estimate], upwards: bool, what: str) -> Iterable[str]:
    """Yield how many changes have an interval on one side of 0; where one seed was tried, an interval of the rows."""
    several = {name: change for name, change in changes.items() if change.of_seeds}
    known = several or {name: change for name, change in changes.items() if change.of_rows}
    moved = [name for name, change in known.items() if (change.low > 0 if upwards else change.high < 0)]
    by = "by the 95 % interval of each" if several else "with the one seed tried, by the 95 % interval over the rows"
    if known:
        yield f"{_part(moved, known)} {what} ({by})."


def _cannot(table: Table, findings: Findings, pairs: Sequence[Difference[str]]) -> Iterable[str]:
    yield from _about_seeds(table, findings, pairs)
    if findings.part == "" and findings.quality:
        yield (
            "There were no test rows: these numbers are of the rows that chose the learning rates, and so too "
            "optimistic, most of all for variants that tried many."
        )
    if edge := _by_budget(table, lambda row: "" if row.variant.at_edge else None):
        yield f"The best learning rate of {edge} is the smallest or largest tried: a better one may be beyond it."
    if missed := _by_budget(table, _missed):
        yield f"Off their budget by more than 2 %: {missed}. These do not compare at equal budgets."
    if lost := _by_budget(table, _lost):
        yield f"Seeds gave no {table.metric}: {lost}; the mean of the others may be too optimistic."
    yield "All of this applies to this model, this data and this length of training; other cases were not tried."


def _by_budget(table: Table, describe: Callable[[Row], str | None]) -> str:
    """Return the rows that have a description, `full (+5 %) and lora (−3 %) under trainable=1%; ...`, or nothing."""
    parts = []
    for budget in table.budgets:
        found = [f"{shorten(row.name)}{text}" for row in table.of_budget(budget) if (text := describe(row)) is not None]
        if found:
            parts.append(_some(found) + (f" under {budget}" if len(table.budgets) > 1 else ""))
    return "; ".join(parts)


def _missed(row: Row) -> str | None:
    missed = missed_text(row.variant)
    return f" ({missed})" if missed else None


def _lost(row: Row) -> str | None:
    lost = len(row.trials) - len(row.valued)
    return f" ({lost} of {len(row.trials)})" if lost else None


def _about_seeds(table: Table, findings: Findings, pairs: Sequence[Difference[str]]) -> Iterable[str]:
    quality = findings.quality.get(table.metric, {})
    single = [name for name, found in quality.items() if found.seeds < 2]
    if quality and len(single) == len(quality):
        yield (
            "One seed says nothing about the methods: any difference may be the seed's. The intervals cover the chance "
            "of the rows alone."
        )
    elif single:
        yield f"With one seed, {_some(single)} cannot be compared significantly with the others."
    open_pairs = [pair for pair in pairs if not pair.significant and pair.seed_share is not None]
    if not open_pairs:
        return
    width = median((pair.high - pair.low) / 2 for pair in open_pairs)
    yield (
        "Variants that are not significantly different may still differ: for the "
        f"{_number(len(open_pairs), 'such pair')}, a difference of about ±{width:.2g} in {table.metric} stays possible."
    )
    share = median(pair.seed_share for pair in open_pairs if pair.seed_share is not None)
    first, second = ("seeds", "test rows") if share > 0.5 else ("test rows", "seeds")
    source = f"{100 * share:.0f} % of that uncertainty comes from the seeds"
    yield f"{source}: more {first} narrow it sooner than more {second}."
