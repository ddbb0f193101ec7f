"""What a comparison's statistics say in plain words: who cannot be told apart, and what can be concluded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import median

from peftlab.comparison.columns import interval_text, missed_text, shared_decimals
from peftlab.comparison.findings import Family, Findings
from peftlab.comparison.outcome import Outcome, Variant
from peftlab.comparison.statistics import Difference, Estimate

MOST_NAMED = 6
NAME_CHARACTERS = 60


def names_of(outcome: Outcome) -> dict[str, str]:
    """Return what sentences about one budget call its variants: names short enough to read."""
    return {variant.label: shorten(variant.report.name) for variant in outcome.variants}


def shorten(name: str) -> str:
    return name if len(name) <= NAME_CHARACTERS else f"{name[: NAME_CHARACTERS - 1]}…"


def join(names: Sequence[str]) -> str:
    """Return `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def describe_groups(family: Family, names: dict[str, str], higher_is_better: bool) -> list[str]:
    """Return sentences on one budget's variants: which share a group, and which are surely worse than others."""
    if len(family.ordered) < 2:
        return ["There is nothing to compare: fewer than two variants have results."]
    if not family.sure:
        count = len(family.ordered)
        return ["The two cannot be told apart." if count == 2 else f"No two of the {count} variants can be told apart."]
    sentences = []
    for letter, members in family.groups.items():
        if len(members) > 1:
            sentences.append(f"{join([names[name] for name in members])} cannot be told apart (group {letter}).")
        elif members[0] == family.ordered[0]:
            sentences.append(f"{names[members[0]]} is surely better than every other (group {letter}).")
    return sentences + _losers(family, names, higher_is_better)


def _losers(family: Family, names: dict[str, str], higher_is_better: bool) -> list[str]:
    """Return for each variant that loses surely to whom, and the smallest of these differences."""
    lost: dict[str, list[tuple[str, Difference[str]]]] = {}
    for pair in family.sure:
        first_wins = (pair.value > 0) == higher_is_better
        winner, loser = (pair.first, pair.second) if first_wins else (pair.second, pair.first)
        lost.setdefault(loser, []).append((winner, pair))
    sentences = []
    for loser in (name for name in family.ordered if name in lost):
        winners = sorted(lost[loser], key=lambda entry: family.ordered.index(entry[0]))
        nearest = min((pair for _, pair in winners), key=lambda pair: abs(pair.value))
        more = "" if len(winners) == 1 else " or more"
        sentences.append(
            f"{names[loser]} is surely worse than {_some([names[name] for name, _ in winners])}, "
            f"by {_size(nearest)}{more}."
        )
    return sentences


def _some(names: Sequence[str]) -> str:
    names = [shorten(name) for name in names]
    if len(names) <= MOST_NAMED:
        return join(names)
    return join([*names[: MOST_NAMED - 1], f"{len(names) - MOST_NAMED + 1} more"])


def _size(pair: Difference[str]) -> str:
    """Return how large a difference is, whichever way it points."""
    low, high = sorted((abs(pair.low), abs(pair.high)))  # of a sure pair both have one sign
    size = Estimate(abs(pair.value), low, high, None, 0, True, True)
    return interval_text(size, shared_decimals([size]))


def conclude(outcome: Outcome, findings: Findings) -> tuple[list[str], list[str]]:
    """Return what can be concluded and what cannot, as sentences."""
    pairs = [pair for family in findings.families for pair in family.differences]
    return list(_can(outcome, findings, pairs)), list(_cannot(outcome, findings, pairs))


def _can(outcome: Outcome, findings: Findings, pairs: Sequence[Difference[str]]) -> Iterable[str]:
    sure = [pair for pair in pairs if pair.sure]
    metric, several = outcome.report.metric, len(outcome.budgets) > 1
    if pairs:
        kind = f"{_number(len(pairs), 'pair')} of variants{' under the same budget' if several else ''}"
        verb = "differs" if len(sure) == 1 else "differ"
        yield f"Of {kind}, {len(sure) or 'none'} {verb if sure else 'differs'} surely in {metric}."
    if sure:
        yield (
            "Surely means: were all variants equal, the chance of calling even one pair different would be at most 5 %"
            f"{' in each budget' if several else ''}."
        )
    told = "by the 95 % interval of each"
    better = [name for name, change in findings.change.items() if _surely(change, outcome.report.higher_is_better)]
    if findings.change:
        yield f"{_part(better, findings.change)} improved {metric} over the model before training ({told})."
    worse = [name for name, change in findings.general_change.items() if _surely(change, True)]
    if findings.general_change:
        yield f"{_part(worse, findings.general_change)} forgot: the loss on general text rose ({told})."


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _part(some: Sequence[str], among: Iterable[str]) -> str:
    """Return `All 6 variants`, `4 of 6 variants`, `None of the 6 variants`."""
    whole = _number(len(list(among)), "variant")
    return (
        f"None of the {whole}"
        if not some
        else f"All {whole}"
        if whole.startswith(f"{len(some)} ")
        else (f"{len(some)} of {whole}")
    )


def _surely(change: Estimate, upwards: bool) -> bool:
    return change.of_seeds and (change.low > 0 if upwards else change.high < 0)


def _cannot(outcome: Outcome, findings: Findings, pairs: Sequence[Difference[str]]) -> Iterable[str]:
    yield from _about_seeds(outcome, findings, pairs)
    if findings.part == "" and findings.quality:
        yield (
            "There were no test rows: these numbers are of the rows by which the rates were chosen, and so too "
            "good, most of all for variants that tried many rates."
        )
    if edge := _by_budget(outcome, lambda variant: "" if variant.report.rate_at_edge else None):
        yield f"The best rate of {edge} is the last that was tried on its side: a better one may lie beyond."
    if missed := _by_budget(outcome, _missed):
        yield f"Off their budget by more than 2 %: {missed}. These do not compare at equal budgets."
    if lost := _by_budget(outcome, _lost):
        yield f"Seeds did not finish: {lost}; what remains may flatter these."
    yield (
        "All of this holds for this model, this data and this length of training; nothing here says how far it carries "
        "to others."
    )


def _by_budget(outcome: Outcome, tell: Callable[[Variant], str | None]) -> str:
    """Return whom something is told of and what, `full (+5 %) and lora (−3 %) under trainable=1%; ...`, or nothing."""
    parts = []
    for budget in outcome.budgets:
        told = [
            f"{shorten(variant.report.name)}{text}"
            for variant in outcome.of_budget(budget) if (text := tell(variant)) is not None
        ]  # fmt: skip
        if told:
            parts.append(_some(told) + (f" under {budget}" if len(outcome.budgets) > 1 else ""))
    return "; ".join(parts)


def _missed(variant: Variant) -> str | None:
    missed = missed_text(variant.report)
    return f" ({missed})" if missed else None


def _lost(variant: Variant) -> str | None:
    lost = len(variant.runs) - len(variant.finished)
    return f" ({lost} of {len(variant.runs)})" if lost else None


def _about_seeds(outcome: Outcome, findings: Findings, pairs: Sequence[Difference[str]]) -> Iterable[str]:
    quality = findings.quality.get(outcome.report.metric, {})
    few = [name for name, found in quality.items() if found.seeds < 2]
    if quality and len(few) == len(quality):
        yield (
            "With one seed nothing can be said of the methods: any difference could be the seed's. The intervals hold "
            "the chance of the test rows alone."
        )
    elif few:
        yield f"One seed says nothing of the others: {_some(few)} cannot be told apart from any."
    unsure = [pair for pair in pairs if not pair.sure and pair.seed_share is not None]
    if not unsure:
        return
    width = median((pair.high - pair.low) / 2 for pair in unsure)
    yield (
        f"That two variants are not told apart does not make them equal: for the {_number(len(unsure), 'unsure pair')} "
        f"a difference of about ±{width:.2g} in {outcome.report.metric} stays possible."
    )
    share = median(pair.seed_share for pair in unsure)
    first, second = ("seeds", "test rows") if share > 0.5 else ("test rows", "seeds")
    told = f"{100 * share:.0f} % of that uncertainty comes from the seeds"
    yield f"{told}: more {first} narrow it sooner than more {second}."
