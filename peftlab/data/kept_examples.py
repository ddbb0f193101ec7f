"""Examples that are too many for a list: in a temporary file, or chosen from others by their places."""

from __future__ import annotations

import pickle
from array import array
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from tempfile import SpooledTemporaryFile

import numpy as np

from peftlab.data.lazy import LazySequence
from peftlab.tasks.formats import Example

# What an example raises that cannot be written: a value of it is none that a file of rows gives.
UNWRITABLE = (pickle.PicklingError, AttributeError, TypeError)
# Fewer bytes stay in memory.
SPOOLED_BYTES = 64 * 1024**2


class SpooledExamples(LazySequence[Example]):
    """Examples in a temporary file without a name, which this process alone reads: hence pickle, which keeps all types.

    Appending raises OSError where `folder` is full.
    """

    def __init__(self, folder: Path) -> None:
        self._file = SpooledTemporaryFile(max_size=SPOOLED_BYTES, dir=str(folder))
        self._ends = array("q", [0])
        self._class: type | None = None  # of all examples of a part
        self._names: list[str] = []

    def append(self, example: Example, /) -> None:
        if self._class is None:
            self._class, self._names = type(example), [one.name for one in fields(example)]
        values = [getattr(example, name) for name in self._names]
        content = pickle.dumps(values, pickle.HIGHEST_PROTOCOL)
        self._file.seek(self._ends[-1])
        self._file.write(content)
        self._ends.append(self._ends[-1] + len(content))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def make(self, place: int) -> Example:
        self._file.seek(self._ends[place])
        values = pickle.loads(self._file.read(self._ends[place + 1] - self._ends[place]))
        assert self._class is not None, "known since the first example was appended"
        return self._class(*values)

    def close(self) -> None:
        self._file.close()


Kept = list[Example] | SpooledExamples
"""Examples in the order in which they were appended."""


class ChosenExamples(LazySequence[Example]):
    """Some of many examples, in the order of `places`."""

    def __init__(self, examples: Sequence[Example], places: np.ndarray) -> None:
        self._examples, self._places = examples, places

    def __len__(self) -> int:
        return len(self._places)

    def make(self, place: int) -> Example:
        return self._examples[int(self._places[place])]


def choose(examples: Sequence[Example], places: np.ndarray) -> Sequence[Example]:
    """Return the examples at `places`: a list of those in a list, else without reading them."""
    if isinstance(examples, list):
        return [examples[place] for place in places.tolist()]
    return ChosenExamples(examples, places)
