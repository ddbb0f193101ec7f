"""Rows of tokens: one class for each kind of target, and how rows become a batch of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np

IGNORED = -100
# The names in a batch of what is predicted: flat positions in (rows, length), and the class at each.
POSITIONS, TARGETS = "positions", "targets"
# Where rows lie end to end below the head alone: the flat place in (rows, length) of each token of their line, and its
# position in its row, (1, tokens).
LINE, LINE_POSITIONS = "line", "line_positions"
# The tokens of the answers that a decoder writes, (rows, longest answer), -100 after each.
ANSWERS = "answers"


class BatchSize(NamedTuple):
    """How large a batch is: rows, tokens of the longest one, the share of predictable tokens that is supervised.

    `outputs` is the number of outputs of the model's head, `answer` the tokens of the longest answer where an encoder
    reads the prompt.
    """

    rows: int
    width: int
    share: float = 1.0
    outputs: int = 1
    answer: int = 1


@dataclass(frozen=True, slots=True)
class TokenRow(ABC):
    """One row: int32 ids, what is to be predicted, and the tokenizer's segment ids where a row has two texts."""

    input_ids: np.ndarray
    labels: Any
    token_type_ids: np.ndarray | None = None

    target_type: ClassVar[str] = "int64"
    """The type of `TARGETS`; everything else in a batch is int64."""
    why_padded: ClassVar[str] = ""
    """Why such rows cannot be laid end to end as one; empty where they can."""

    pooled: ClassVar[bool] = False
    """Whether the model's head takes whole rows, so that they lie end to end only below it."""

    @property
    def tokens(self) -> np.ndarray:
        """All tokens of the row that the model reads or writes, in their order."""
        return self.input_ids

    @property
    def longest(self) -> int:
        """The positions that the model needs for the row."""
        return len(self.input_ids)

    @property
    def answer(self) -> int:
        """The number of tokens that a decoder writes beside an encoder; 0 for other rows."""
        return 0

    @property
    @abstractmethod
    def supervised(self) -> int:
        """The number of targets, which the loss is a mean over."""

    @property
    def outputs(self) -> int:
        """The number of lines that the row has in the scores of its loss."""
        return self.supervised

    @property
    @abstractmethod
    def supervised_tokens(self) -> np.ndarray:
        """Which of `tokens` are targets themselves, (length,) of booleans."""

    def lengthened(self, length: int, answer: int) -> TokenRow:
        """Return a row of `length` tokens, and an answer of `answer`, that repeats those of this one."""
        types = None if self.token_type_ids is None else np.resize(self.token_type_ids, length)
        return replace(self, input_ids=np.resize(self.input_ids, length), token_type_ids=types)

    def with_targets(self, count: int) -> TokenRow:
        """Return a row with so many targets, at most as many as it has room for; itself where their number is fixed."""
        return self

    @classmethod
    @abstractmethod
    def stack(cls, rows: Sequence[Any], starts: Sequence[int]) -> dict[str, np.ndarray]:
        """Return the targets of a batch of such rows; `starts` are the places of their first tokens in it, in order."""

    @classmethod
    @abstractmethod
    def target_sizes(cls, size: BatchSize) -> dict[str, tuple[int, ...]]:
        """Return the sizes of what `stack` gives for a batch of this size."""

    @classmethod
    def count_places(cls, rows: Sequence[Any]) -> int:
        """Return how many tokens of a padded batch of such rows could be targets."""
        return len(rows) * max(max(len(row.input_ids) for row in rows) - 1, 1)

    def describe(self, labels: Sequence[str] | None) -> str | None:
        """Return the target of a whole row as text; None where its tokens are the targets."""
        return None


class PositionRow(TokenRow):
    """Labels as long as the ids, -100 where not supervised.

    The label of a token is predicted `shift` positions before it.
    """

    __slots__ = ()
    shift: ClassVar[int] = 0

    def lengthened(self, length: int, answer: int) -> TokenRow:
        return replace(super().lengthened(length, answer), labels=np.resize(self.labels, length))

    def with_targets(self, count: int) -> TokenRow:
        count = min(count, len(self.labels) - self.shift)
        labels = np.full_like(self.labels, IGNORED)
        labels[len(labels) - count :] = np.resize(self.labels[self.labels != IGNORED], count)
        return replace(self, labels=labels)

    @property
    def supervised(self) -> int:
        return int((self.labels[self.shift :] != IGNORED).sum())

    @property
    def supervised_tokens(self) -> np.ndarray:
        marked = self.labels != IGNORED
        marked[: self.shift] = False
        return marked

    @classmethod
    def stack(cls, rows: Sequence[PositionRow], starts: Sequence[int]) -> dict[str, np.ndarray]:
        places = [np.flatnonzero(row.supervised_tokens) for row in rows]
        positions = [start + found - cls.shift for start, found in zip(starts, places, strict=True)]
        targets = [row.labels[found] for row, found in zip(rows, places, strict=True)]
        return {POSITIONS: np.concatenate(positions), TARGETS: np.concatenate(targets).astype(np.int64)}

    @classmethod
    def target_sizes(cls, size: BatchSize) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys((POSITIONS, TARGETS), (max(1, round(size.rows * (size.width - 1) * size.share)),))


class TextRow(PositionRow):
    """Each position predicts the next token; the first token of a row is never predicted."""

    __slots__ = ()
    shift: ClassVar[int] = 1


class TagRow(PositionRow):
    """Each supervised position predicts its own class."""

    __slots__ = ()


class PairRow(TokenRow):
    """A prompt for the encoder, `input_ids`, and the answer that the decoder writes, `labels`, all supervised."""

    __slots__ = ()
    why_padded: ClassVar[str] = "a decoder that reads an encoder's states has no row boundaries there"

    def lengthened(self, length: int, answer: int) -> TokenRow:
        return replace(super().lengthened(length, answer), labels=np.resize(self.labels, answer))

    @property
    def tokens(self) -> np.ndarray:
        return np.concatenate([self.input_ids, self.labels])

    @property
    def longest(self) -> int:
        return max(len(self.input_ids), len(self.labels))

    @property
    def answer(self) -> int:
        return len(self.labels)

    @property
    def supervised(self) -> int:
        return len(self.labels)

    @property
    def supervised_tokens(self) -> np.ndarray:
        return np.arange(len(self.tokens)) >= len(self.input_ids)

    @classmethod
    def stack(cls, rows: Sequence[PairRow], starts: Sequence[int]) -> dict[str, np.ndarray]:
        longest = max(row.answer for row in rows)
        answers = np.full((len(rows), longest), IGNORED, dtype=np.int64)
        for line, row in zip(answers, rows, strict=True):
            line[: row.answer] = row.labels
        positions = np.flatnonzero(answers.ravel() != IGNORED)
        return {ANSWERS: answers, POSITIONS: positions, TARGETS: answers.ravel()[positions]}

    @classmethod
    def target_sizes(cls, size: BatchSize) -> dict[str, tuple[int, ...]]:
        flat = (max(1, round(size.rows * size.answer * size.share)),)
        return {ANSWERS: (size.rows, size.answer), POSITIONS: flat, TARGETS: flat}

    @classmethod
    def count_places(cls, rows: Sequence[PairRow]) -> int:
        return len(rows) * max(row.answer for row in rows)


class WholeRow(TokenRow):
    """A row with targets of its own, which no token of it is."""

    __slots__ = ()
    pooled: ClassVar[bool] = True

    @property
    def supervised(self) -> int:
        return 1

    @property
    def outputs(self) -> int:
        return 1

    @property
    def supervised_tokens(self) -> np.ndarray:
        return np.zeros(len(self.input_ids), dtype=bool)


class ClassRow(WholeRow):
    """The whole row has one class, `labels`."""

    __slots__ = ()

    @classmethod
    def stack(cls, rows: Sequence[ClassRow], starts: Sequence[int]) -> dict[str, np.ndarray]:
        return {TARGETS: np.array([row.labels for row in rows], dtype=np.int64)}

    @classmethod
    def target_sizes(cls, size: BatchSize) -> dict[str, tuple[int, ...]]:
        return {TARGETS: (size.rows,)}

    def describe(self, labels: Sequence[str] | None) -> str:
        return labels[self.labels] if labels else str(self.labels)


class NumberRow(WholeRow):
    """The whole row has one number, `labels`."""

    __slots__ = ()
    target_type: ClassVar[str] = "float32"

    @classmethod
    def stack(cls, rows: Sequence[NumberRow], starts: Sequence[int]) -> dict[str, np.ndarray]:
        return {TARGETS: np.array([row.labels for row in rows], dtype=np.float32)}

    @classmethod
    def target_sizes(cls, size: BatchSize) -> dict[str, tuple[int, ...]]:
        return {TARGETS: (size.rows,)}

    def describe(self, labels: Sequence[str] | None) -> str:
        return f"{self.labels:g}"


class LabelSetRow(WholeRow):
    """The whole row has any number of the labels: `labels` is 1 for each that it has, else 0."""

    __slots__ = ()
    target_type: ClassVar[str] = "float32"

    @property
    def supervised(self) -> int:
        return len(self.labels)

    @classmethod
    def stack(cls, rows: Sequence[LabelSetRow], starts: Sequence[int]) -> dict[str, np.ndarray]:
        return {TARGETS: np.concatenate([row.labels for row in rows]).astype(np.float32)}

    @classmethod
    def target_sizes(cls, size: BatchSize) -> dict[str, tuple[int, ...]]:
        return {TARGETS: (size.rows * size.outputs,)}

    def describe(self, labels: Sequence[str] | None) -> str:
        own = np.flatnonzero(self.labels).tolist()
        return ", ".join(labels[number] if labels else str(number) for number in own)
