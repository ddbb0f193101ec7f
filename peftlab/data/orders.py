"""The order in which training takes rows: which row comes at a position, as a pure function of the seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from peftlab.data.batches import row_at

SOURCE_ORDER = 7
# So many sources are drawn at once, as `datasets.interleave_datasets` does.
DRAWS_AT_ONCE = 1000
BLOCKS_KEPT = 100


class Order(Protocol):
    """Which row comes at each position of training (from 0, without an end), and how many rows make an epoch."""

    @property
    def epoch_rows(self) -> int: ...

    def row(self, position: int) -> int: ...

    def state(self) -> dict[str, Any]:
        """Return what identifies the order."""


@dataclass(frozen=True)
class Shuffled:
    """All of `rows`, in a new order each epoch."""

    seed: int
    rows: int

    @property
    def epoch_rows(self) -> int:
        return self.rows

    def row(self, position: int) -> int:
        return row_at(self.seed, self.rows, position)

    def state(self) -> dict[str, Any]:
        return {"order": "shuffled", "seed": self.seed, "rows": self.rows}


class SourceDraws:
    """Which source each row is drawn from: those of `datasets.interleave_datasets` with probabilities and this seed."""

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        self.shares = np.array(weights, float) / sum(weights)
        self._seed = seed
        self._counts = [np.zeros(len(weights), np.int64)]
        self._begin()

    def _begin(self) -> None:
        self._chance, self._made = np.random.default_rng(self._seed), 0
        self._blocks: dict[int, np.ndarray] = {}

    def draw(self, position: int) -> tuple[int, int]:
        """Return the source at a position, and how many rows were drawn from it before."""
        number, place = divmod(position, DRAWS_AT_ONCE)
        block = self._block(number)
        source = int(block[place])
        return source, int(self._counts[number][source] + (block[:place] == source).sum())

    def _block(self, number: int) -> np.ndarray:
        if number < self._made and number not in self._blocks:
            self._begin()
        while self._made <= number:
            block = self._chance.choice(len(self.shares), size=DRAWS_AT_ONCE, p=self.shares).astype(np.int16)
            self._blocks[self._made] = block
            self._blocks.pop(self._made - BLOCKS_KEPT, None)
            self._made += 1
            if len(self._counts) == self._made:
                self._counts.append(self._counts[-1] + np.bincount(block, minlength=len(self.shares)))
        return self._blocks[number]

    def sources(self) -> Iterator[int]:
        number = 0
        while True:
            yield from self._block(number).tolist()
            number += 1


@dataclass(frozen=True)
class Mixed:
    """Rows of several sources, drawn by weight; each source is shuffled, and begins again in another order at its end.

    `sizes` are the sources' numbers of rows, which stand one source after another. An epoch ends where the first
    source was read to its end, or with `all_exhausted` where all were: `datasets.interleave_datasets`.
    """

    seed: int
    sizes: tuple[int, ...]
    weights: tuple[float, ...]
    all_exhausted: bool = False
    draws: SourceDraws = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "draws", SourceDraws(self.weights, self.seed))

    @property
    def epoch_rows(self) -> int:
        left, ends = list(self.sizes), 0
        for position, source in enumerate(self.draws.sources(), start=1):
            left[source] -= 1
            ends += left[source] == 0
            if ends == (len(left) if self.all_exhausted else 1):
                return position
        raise AssertionError("draws have no end")

    def row(self, position: int) -> int:
        source, drawn = self.draws.draw(position)
        epoch, place = divmod(drawn, self.sizes[source])
        return sum(self.sizes[:source]) + int(_permutation(self.seed, source, self.sizes[source], epoch)[place])

    def state(self) -> dict[str, Any]:
        return {"order": "mixed", "seed": self.seed, "sizes": list(self.sizes), "weights": list(self.weights)}


@dataclass(frozen=True)
class Mixture:
    """Sources by name, how many rows each has, which stand one source after another, and their weights."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    weights: tuple[float, ...]
    all_exhausted: bool = False

    def order(self, seed: int) -> Mixed:
        return Mixed(seed, self.sizes, self.weights, self.all_exhausted)

    def describe(self) -> list[dict[str, Any]]:
        """Return what a report says of each source."""
        shares = [weight / sum(self.weights) for weight in self.weights]
        return [
            {"source": name, "share": share, "rows": rows}
            for name, share, rows in zip(self.names, shares, self.sizes, strict=True)
        ]


@lru_cache(maxsize=64)
def _permutation(seed: int, source: int, rows: int, epoch: int) -> np.ndarray:
    chance = np.random.Generator(np.random.PCG64(np.random.SeedSequence([SOURCE_ORDER, seed, source, epoch])))
    return chance.permutation(rows)
