"""Which variants are not significantly different, as letters, and which may be on the Pareto front."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, count
from string import ascii_lowercase

import networkx

from peftlab.comparison.statistics import Difference, Estimate, Name

MOST_LETTERS = 5


def best_first(estimates: Mapping[Name, Estimate], higher_is_better: bool) -> list[Name]:
    """Return the variants by their means; an order to show them in, not a claim."""
    return sorted(estimates, key=lambda name: estimates[name].mean, reverse=higher_is_better)


def letter_groups(ordered: Sequence[Name], differences: Iterable[Difference[Name]]) -> dict[str, list[Name]]:
    """Return the compact letter display: every largest set of variants without a significant difference, by its letter.

    Two variants share a letter exactly when they are not significantly different. `ordered` gives the order of the
    letters and of the names under each.
    """
    together = networkx.Graph()
    together.add_nodes_from(ordered)
    together.add_edges_from(combinations(ordered, 2))
    together.remove_edges_from((pair.first, pair.second) for pair in differences if pair.significant)
    place = {name: position for position, name in enumerate(ordered)}
    cliques = sorted(sorted(place[name] for name in clique) for clique in networkx.find_cliques(together))
    return {letter: [ordered[i] for i in clique] for letter, clique in zip(_letters(), cliques, strict=False)}


def _letters() -> Iterable[str]:
    """Yield a, b, ..., z, a2, b2, ..."""
    for turn in count(1):
        yield from (letter if turn == 1 else f"{letter}{turn}" for letter in ascii_lowercase)


def letters_of(groups: Mapping[str, Sequence[Name]]) -> dict[Name, str]:
    """Return the letters of every variant, such as `ab`."""
    names = dict.fromkeys(name for members in groups.values() for name in members)
    return {name: "".join(letter for letter, members in groups.items() if name in members) for name in names}


def short_letters(letters: str) -> str:
    """Return letters that a table has room for: of a variant in many groups the first few, and how many there are."""
    found = re.findall(r"[a-z]\d*", letters)
    return letters if len(found) <= MOST_LETTERS else f"{' '.join(found[: MOST_LETTERS - 1])} … ({len(found)})"


@dataclass(frozen=True)
class Cost:
    """What a variant costs, over its seeds."""

    mean: float
    low: float
    high: float

    def no_more_than(self, other: Cost) -> bool:
        """Whether no seed of this cost more than any seed of the other."""
        return self.high <= other.low


def winner_first(pair: Difference[Name], higher_is_better: bool) -> tuple[Name, Name]:
    """Return the two variants of a pair, the better mean first."""
    return (pair.first, pair.second) if (pair.value > 0) == higher_is_better else (pair.second, pair.first)


def beaten_by(
    costs: Mapping[Name, Cost], differences: Iterable[Difference[Name]], higher_is_better: bool
) -> dict[Name, list[Name]]:
    """Return for each variant that has a cost those that beat it; one that none beats is on the front.

    B beats A when B is significantly better and costs no more in any seed. A variant that is cheaper and not
    significantly different beats none: the other may still be the better one.
    """
    beaten: dict[Name, list[Name]] = {name: [] for name in costs}
    for pair in differences:
        if not pair.significant or pair.first not in costs or pair.second not in costs:
            continue
        better, worse = winner_first(pair, higher_is_better)
        if costs[better].no_more_than(costs[worse]):
            beaten[worse].append(better)
    return beaten


def point_front(points: Mapping[Name, tuple[float, float]], higher_is_better: bool) -> list[Name]:
    """Return the front of the means alone, cheapest first: each better than all that cost less."""
    front: list[Name] = []
    sign = 1 if higher_is_better else -1
    for name in sorted(points, key=lambda name: (points[name][0], -sign * points[name][1])):
        if not front or sign * points[name][1] > sign * points[front[-1]][1]:
            front.append(name)
    return front
