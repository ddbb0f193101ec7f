"""Which rows make a batch, as pure functions of seed and step, and the tensors of a batch: padded or end to end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, islice
from typing import ClassVar, NamedTuple

import numpy as np
import torch

from peftlab.data.token_arrays import sizes_of
from peftlab.data.token_rows import LINE, LINE_POSITIONS, TokenRow

EPOCH_ORDER = 4


@lru_cache(maxsize=2)
def _permutation(seed: int, n: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([EPOCH_ORDER, seed, epoch]))).permutation(n)


def row_at(seed: int, n: int, position: int) -> int:
    """Return which of `n` rows comes at `position` (0-based) of training; every epoch of n has its own order."""
    epoch, place = divmod(position, n)
    return int(_permutation(seed, n, epoch)[place])


def deal_by_length(
    micro_batches: Sequence[Sequence[Sequence[int]]], length: Callable[[int], int]
) -> list[list[list[int]]]:
    """Return a step's rows dealt anew among its micro-batches and processes, [micro-batch][process], as many to each.

    All processes wait for the one with most tokens. Rows of like length share a micro-batch, and in it the longest row
    that is left goes to the process with the fewest tokens. One process alone keeps its rows as they are.
    """
    if len(micro_batches[0]) == 1:
        return [[list(one) for one in micro] for micro in micro_batches]
    lengths = {number: length(number) for micro in micro_batches for one in micro for number in one}
    numbers = (number for micro in micro_batches for one in micro for number in one)
    longest_first = iter(sorted(numbers, key=lambda number: -lengths[number]))
    return [_deal(longest_first, [len(one) for one in micro], lengths) for micro in micro_batches]


def _deal(numbers: Iterator[int], rooms: Sequence[int], lengths: Mapping[int, int]) -> list[list[int]]:
    """Take as many numbers as there is room for, each to the process that has room and the fewest tokens."""
    dealt: list[list[int]] = [[] for _ in rooms]
    tokens = [0] * len(rooms)
    for number in islice(numbers, sum(rooms)):
        process = min((one for one in range(len(rooms)) if len(dealt[one]) < rooms[one]), key=tokens.__getitem__)
        dealt[process].append(number)
        tokens[process] += lengths[number]
    return dealt


def evaluation_batches(
    rows: Sequence[TokenRow], batch_size: int, *, process: int = 0, processes: int = 1
) -> list[tuple[int, list[int]]]:
    """Return (batch number, row numbers) of one process; over all processes every row comes once.

    Rows of like length share a batch, longest first, so that little is padded and a lack of memory shows at once.
    """
    order = np.argsort(-sizes_of(rows).tokens, kind="stable").tolist()
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [(number, batch) for number, batch in enumerate(batches) if number % processes == process]


def collate(rows: Sequence[TokenRow], pad_id: int, pad_to: int | None = None) -> dict[str, torch.Tensor]:
    """Return `input_ids` and `attention_mask`, padded at the right to the longest row or `pad_to`, and the targets.

    All int64, but for targets that are numbers. `targets` are what to predict; `positions`, where the rows have them,
    say where in the flat (rows, length) each is predicted. They are computed here on the CPU, where asking for them
    costs no synchronisation. Masks come from lengths: a pad id may well be the end-of-text id.
    """
    width = max(pad_to or 0, *(len(row.input_ids) for row in rows))
    starts = range(0, len(rows) * width, width)
    batch = {
        "input_ids": _pad([row.input_ids for row in rows], width, pad_id),
        "attention_mask": _pad([np.ones(len(row.input_ids)) for row in rows], width, 0),
    }
    types = [row.token_type_ids for row in rows if row.token_type_ids is not None]
    if types:
        batch["token_type_ids"] = _pad(types, width, 0)
    return batch | {name: torch.from_numpy(values) for name, values in rows[0].stack(rows, starts).items()}


class RowGroup(NamedTuple):
    """Neighbours of one length: so many rows of so many tokens."""

    length: int
    rows: int


def group_rows(lengths: Iterable[int]) -> tuple[RowGroup, ...]:
    """Return rows of these lengths as groups of neighbours."""
    return tuple(RowGroup(length, len(list(same))) for length, same in groupby(lengths))


class PackedBatch(dict[str, torch.Tensor]):
    """A batch whose rows lie end to end in one line, (1, tokens), in these groups: its inputs, or those of layers."""

    groups: tuple[RowGroup, ...] = ()


class Layout(ABC):
    """How the rows of a micro-batch become tensors."""

    pads: ClassVar[bool] = False
    """Whether rows of other lengths are padded to one."""

    @abstractmethod
    def batch(self, rows: Sequence[TokenRow]) -> dict[str, torch.Tensor]:
        """Return the batch of these rows, on the CPU."""

    def regroup(self, micro_batches: list[list[int]], length: Callable[[int], int]) -> list[list[int]]:
        """Return the rows of a step's micro-batches, divided as suits the layout; `length` gives a row's tokens."""
        return micro_batches


@dataclass(frozen=True)
class Padded(Layout):
    """Each row is a line, padded at the right to the longest one."""

    pads: ClassVar[bool] = True
    pad_id: int
    by_length: bool = False
    """Whether rows of like length share a micro-batch, so that less is padded."""

    def batch(self, rows: Sequence[TokenRow]) -> dict[str, torch.Tensor]:
        return collate(rows, self.pad_id)

    def regroup(self, micro_batches: list[list[int]], length: Callable[[int], int]) -> list[list[int]]:
        if not self.by_length:
            return micro_batches
        numbers = iter(sorted((number for one in micro_batches for number in one), key=length, reverse=True))
        return [[next(numbers) for _ in one] for one in micro_batches]


@dataclass(frozen=True)
class EndToEnd(Layout):
    """All rows are one line without padding, with position ids that begin again in each row.

    Rows that the model's head takes as a whole are padded with `pad_id` above its layers.

    They count from `first`. A model that gives tokens of the id `unplaced` no position of their own numbers the others
    alone, as RoBERTa does with its padding token.
    """

    first: int = 0
    unplaced: int | None = None
    pad_id: int = 0

    def batch(self, rows: Sequence[TokenRow]) -> PackedBatch:
        """Return `input_ids` and `position_ids`, (1, tokens), and the targets; for pooled rows `collate`'s and `LINE`.

        Rows of one length are neighbours, so that attention takes them together.
        """
        rows = sorted(rows, key=lambda row: len(row.input_ids))
        lengths = [len(row.input_ids) for row in rows]
        packed = self._below_head(rows) if rows[0].pooled else self._as_input(rows, lengths)
        packed.groups = group_rows(lengths)
        return packed

    def _below_head(self, rows: Sequence[TokenRow]) -> PackedBatch:
        packed = PackedBatch(collate(rows, self.pad_id))
        packed[LINE] = packed["attention_mask"].flatten().nonzero().flatten()
        packed[LINE_POSITIONS] = _line([self._positions(row.input_ids) for row in rows])
        return packed

    def _as_input(self, rows: Sequence[TokenRow], lengths: Sequence[int]) -> PackedBatch:
        packed = PackedBatch(
            input_ids=_line([row.input_ids for row in rows]),
            position_ids=_line([self._positions(row.input_ids) for row in rows]),
        )
        types = [row.token_type_ids for row in rows if row.token_type_ids is not None]
        if types:
            packed["token_type_ids"] = _line(types)
        starts = np.cumsum([0, *lengths[:-1]]).tolist()
        packed.update({name: torch.from_numpy(values) for name, values in rows[0].stack(rows, starts).items()})
        return packed

    def _positions(self, ids: np.ndarray) -> np.ndarray:
        if self.unplaced is None:
            return np.arange(self.first, self.first + len(ids))
        placed = ids != self.unplaced
        return np.where(placed, self.first - 1 + np.cumsum(placed), self.first - 1)


def _line(values: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(values).astype(np.int64))[None]


def _pad(values: Sequence[np.ndarray], width: int, fill: int) -> torch.Tensor:
    padded = np.full((len(values), width), fill, dtype=np.int64)
    for line, value in zip(padded, values, strict=True):
        line[: len(value)] = value
    return torch.from_numpy(padded)
