"""Rows of tokens as a few flat arrays, in memory or mapped from files: one of a million rows costs what one costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from peftlab.data.lazy import LazySequence
from peftlab.data.token_rows import TokenRow

IDS, LABELS, TYPES, SIZES = "ids", "labels", "types", "sizes"
# The columns of the sizes: tokens of the input, of a decoder's answer, targets, and entries of the labels.
INPUTS, ANSWERS, SUPERVISED, ENTRIES = range(4)


@dataclass(frozen=True)
class RowSizes:
    """How large each of many rows is, as int arrays: `inputs` and `answers` in tokens, `supervised` in targets."""

    inputs: np.ndarray
    answers: np.ndarray
    supervised: np.ndarray

    @property
    def tokens(self) -> np.ndarray:
        """`len(row.tokens)` of each row."""
        return self.inputs + self.answers

    @property
    def longest(self) -> np.ndarray:
        """The positions that the model needs for each row."""
        return np.maximum(self.inputs, self.answers)


def sizes_of(rows: Sequence[TokenRow]) -> RowSizes:
    """Return the sizes of rows, without looking at each where they are kept beside the rows."""
    found = getattr(rows, "sizes", None)
    return found if isinstance(found, RowSizes) else RowSizes(*_measure(rows)[:3])


def _measure(rows: Sequence[TokenRow]) -> np.ndarray:
    found = [(len(row.input_ids), row.answer, row.supervised, np.size(row.labels)) for row in rows]
    return np.array(found, np.int32).reshape(-1, 4).T


class Layout(NamedTuple):
    """What the arrays of rows are: the type of the labels, whether each row has one of them, and segment ids or not."""

    label_type: str = "int32"
    one_label: bool = False
    has_types: bool = False


class ArrayRows(LazySequence[TokenRow]):
    """Rows of one class as flat arrays; each row is made when it is asked for and shares their memory."""

    def __init__(self, row_class: type[TokenRow], layout: Layout, arrays: dict[str, np.ndarray]) -> None:
        self.row_class, self.layout = row_class, layout
        self._sizes = arrays[SIZES].reshape(-1, 4)
        self._ids, self._labels = arrays[IDS], arrays[LABELS]
        self._types = arrays[TYPES] if layout.has_types else None
        self._id_ends = np.cumsum(self._sizes[:, INPUTS], dtype=np.int64)
        self._label_ends = np.cumsum(self._sizes[:, ENTRIES], dtype=np.int64)
        if int(self._id_ends[-1:].sum()) != len(self._ids) or int(self._label_ends[-1:].sum()) != len(self._labels):
            raise ValueError("the arrays of rows do not fit their sizes")

    def __len__(self) -> int:
        return len(self._sizes)

    def make(self, place: int) -> TokenRow:
        inputs, entries = self._sizes[place, INPUTS], self._sizes[place, ENTRIES]
        ids, labels = int(self._id_ends[place]), int(self._label_ends[place])
        types = None if self._types is None else self._types[ids - inputs : ids]
        return self.row_class(self._ids[ids - inputs : ids], self._label(labels - entries, labels), types)

    def _label(self, begin: int, end: int) -> Any:
        return self._labels[begin].item() if self.layout.one_label else self._labels[begin:end]

    @cached_property
    def sizes(self) -> RowSizes:
        return RowSizes(*(self._sizes[:, column] for column in (INPUTS, ANSWERS, SUPERVISED)))


class ListedRows(list[TokenRow]):
    """Rows in a list that nothing changes after it is filled, so that they are measured once."""

    @cached_property
    def sizes(self) -> RowSizes:
        return RowSizes(*_measure(self)[:3])


class JoinedRows(LazySequence[TokenRow]):
    """The rows of several parts, one part after another."""

    def __init__(self, parts: Sequence[Sequence[TokenRow]]) -> None:
        self.parts = [part for part in parts if len(part)]
        self._ends = np.cumsum([len(part) for part in self.parts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1:].sum())

    def make(self, place: int) -> TokenRow:
        part = int(np.searchsorted(self._ends, place, side="right"))
        return self.parts[part][place - int(self._ends[part]) + len(self.parts[part])]

    def __iter__(self) -> Iterator[TokenRow]:
        return (row for part in self.parts for row in part)

    @cached_property
    def sizes(self) -> RowSizes:
        found = [sizes_of(part) for part in self.parts]
        return RowSizes(
            *(
                np.concatenate([getattr(one, name) for one in found] or [np.zeros(0, np.int32)])
                for name in ("inputs", "answers", "supervised")
            )
        )


class RowWriter:
    """Appends rows to one file of each array. `layout` is known when all rows are written."""

    def __init__(self, open_file: Callable[[str], BinaryIO]) -> None:
        self.files = {name: open_file(name) for name in (IDS, LABELS, TYPES, SIZES)}
        self.layout = Layout()
        self.rows = 0

    def extend(self, rows: Sequence[TokenRow]) -> None:
        """Append rows. Raises ValueError for rows that differ in kind from those before them."""
        if not rows:
            return
        ids, labels = np.concatenate([row.input_ids for row in rows]), self._labels(rows)
        self._write(IDS, ids.astype(np.int32, copy=False))
        self._write(LABELS, labels)
        if self.layout.has_types:
            self._write(TYPES, np.concatenate([row.token_type_ids for row in rows]).astype(np.int32, copy=False))
        self._write(SIZES, np.ascontiguousarray(_measure(rows).T))
        self.rows += len(rows)

    def _labels(self, rows: Sequence[TokenRow]) -> np.ndarray:
        one_label = not isinstance(rows[0].labels, np.ndarray)
        labels = np.array([row.labels for row in rows]) if one_label else np.concatenate([row.labels for row in rows])
        types = {row.token_type_ids is not None for row in rows}
        layout = Layout(labels.dtype.name, one_label, types == {True})
        if len(types) > 1 or self.rows and layout != self.layout:
            raise ValueError(f"rows differ in their kind: {self.layout}, {layout}")
        self.layout = layout
        return labels

    def _write(self, name: str, array: np.ndarray) -> None:
        self.files[name].write(np.ascontiguousarray(array).data)

    def close(self) -> None:
        for file in self.files.values():
            file.close()


def array_types(layout: Layout) -> dict[str, np.dtype[Any]]:
    """Return the type of each array of rows."""
    types = {IDS: np.dtype(np.int32), LABELS: np.dtype(layout.label_type), SIZES: np.dtype(np.int32)}
    return types | ({TYPES: np.dtype(np.int32)} if layout.has_types else {})


def map_rows(row_class: type[TokenRow], layout: Layout, place: Callable[[str], Path]) -> ArrayRows:
    """Return rows whose arrays are mapped from files, `place` of each array's name. Raises OSError and ValueError."""
    arrays = {name: map_array(place(name), kind) for name, kind in array_types(layout).items()}
    return ArrayRows(row_class, layout, arrays | {SIZES: np.array(arrays[SIZES])})


def map_array(path: Path, kind: np.dtype[Any]) -> np.ndarray:
    """Return a file's content as an array that is read where it is used, also after the file is deleted."""
    if path.stat().st_size == 0:  # it cannot be mapped
        return np.zeros(0, kind)
    return np.asarray(np.memmap(path, kind, mode="r"))
