"""Rows of tokens: one class for each kind of target, and how rows become a batch of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

IGNORED = -100
# The names in a batch of what is predicted: flat positions in (rows, length), and the class at each.
POSITIONS, TARGETS = "positions", "targets"


@dataclass(frozen=True, slots=True)
class TokenRow(ABC):
    """One row: int32 ids, what is to be predicted, and the tokenizer's segment ids where a row has two texts."""

    input_ids: np.ndarray
    labels: Any
    token_type_ids: np.ndarray | None = None

    @property
    @abstractmethod
    def supervised(self) -> int:
        """The number of targets, which the loss is a mean over."""

    @property
    @abstractmethod
    def supervised_tokens(self) -> np.ndarray:
        """Which tokens are targets themselves, (length,) of booleans."""

    @classmethod
    @abstractmethod
    def stack(cls, rows: Sequence[Any], width: int) -> dict[str, np.ndarray]:
        """Return the targets of a batch of such rows, padded to `width`, as int64 arrays."""

    @classmethod
    @abstractmethod
    def target_sizes(cls, rows: int, width: int, share: float) -> dict[str, int]:
        """Return the lengths of what `stack` gives where a `share` of the predictable tokens is supervised."""


class PositionRow(TokenRow):
    """Labels as long as the ids, -100 where not supervised.

    The label of a token is predicted `shift` positions before it.
    """

    __slots__ = ()
    shift: ClassVar[int] = 0

    @property
    def supervised(self) -> int:
        return int((self.labels[self.shift :] != IGNORED).sum())

    @property
    def supervised_tokens(self) -> np.ndarray:
        marked = self.labels != IGNORED
        marked[: self.shift] = False
        return marked

    @classmethod
    def stack(cls, rows: Sequence[PositionRow], width: int) -> dict[str, np.ndarray]:
        places = [np.flatnonzero(row.supervised_tokens) for row in rows]
        positions = [number * width + found - cls.shift for number, found in enumerate(places)]
        targets = [row.labels[found] for row, found in zip(rows, places, strict=True)]
        return {POSITIONS: np.concatenate(positions), TARGETS: np.concatenate(targets).astype(np.int64)}

    @classmethod
    def target_sizes(cls, rows: int, width: int, share: float) -> dict[str, int]:
        return dict.fromkeys((POSITIONS, TARGETS), max(1, round(rows * (width - 1) * share)))


class TextRow(PositionRow):
    """Each position predicts the next token; the first token of a row is never predicted."""

    __slots__ = ()
    shift: ClassVar[int] = 1


class TagRow(PositionRow):
    """Each supervised position predicts its own class."""

    __slots__ = ()


class ClassRow(TokenRow):
    """The whole row has one class, `labels`."""

    __slots__ = ()

    @property
    def supervised(self) -> int:
        return 1

    @property
    def supervised_tokens(self) -> np.ndarray:
        return np.zeros(len(self.input_ids), dtype=bool)

    @classmethod
    def stack(cls, rows: Sequence[ClassRow], width: int) -> dict[str, np.ndarray]:
        return {TARGETS: np.array([row.labels for row in rows], dtype=np.int64)}

    @classmethod
    def target_sizes(cls, rows: int, width: int, share: float) -> dict[str, int]:
        return {TARGETS: rows}
