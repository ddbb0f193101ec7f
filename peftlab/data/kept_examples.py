"""Examples that are too many for a list: in a temporary file, or chosen from others by their places."""

from __future__ import annotations

import pickle
from array import array
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, overload

import numpy as np

from peftlab.tasks.formats import Example

# What an example raises that cannot be written: a value of it is none that a file of rows gives.
UNWRITABLE = (pickle.PicklingError, AttributeError, TypeError)
# Fewer bytes stay in memory.
SPOOLED_BYTES = 64 * 1024**2


class SpooledExamples(Sequence[Example]):
    """Examples in a temporary file without a name, which this process alone reads: hence pickle, which keeps all types.

    Appending raises OSError where `folder` is full.
    """

    def __init__(self, folder: Path) -> None:
        self._file = SpooledTemporaryFile(max_size=SPOOLED_BYTES, dir=str(folder))
        self._ends = array("q", [0])
        self._make: type | None = None  # the class of all examples of a part, and their fields
        self._names: list[str] = []

    def append(self, example: Example, /) -> None:
        if self._make is None:
            self._make, self._names = type(example), [one.name for one in fields(example)]
        values = [getattr(example, name) for name in self._names]
        content = pickle.dumps(values, pickle.HIGHEST_PROTOCOL)
        self._file.seek(self._ends[-1])
        self._file.write(content)
        self._ends.append(self._ends[-1] + len(content))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        self._file.seek(self._ends[index])
        values = pickle.loads(self._file.read(self._ends[index + 1] - self._ends[index]))
        assert self._make is not None, "known since the first example was appended"
        return self._make(*values)

    def close(self) -> None:
        self._file.close()


Kept = list[Example] | SpooledExamples
"""Examples in the order in which they were appended."""


class ChosenExamples(Sequence[Example]):
    """Some of many examples, in the order of `places`."""

    def __init__(self, examples: Sequence[Example], places: np.ndarray) -> None:
        self._examples, self._places = examples, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self._examples[place] for place in self._places[index].tolist()]
        return self._examples[int(self._places[index])]


def choose(examples: Sequence[Example], places: np.ndarray) -> Sequence[Example]:
    """Return the examples at `places`: a list of those in a list, else without reading them."""
    if isinstance(examples, list):
        return [examples[place] for place in places.tolist()]
    return ChosenExamples(examples, places)
