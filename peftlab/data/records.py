"""Many small values in one file of JSON lines, of which one is read when it is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from peftlab.data.lazy import LazySequence
from peftlab.data.token_arrays import map_array


def write_records(values: Iterable[Any], lines: BinaryIO, ends: BinaryIO) -> None:
    """Write plain values, and where each ends. Raises ValueError for one that JSON would not give back as it is."""
    total, places = 0, []
    for value in values:
        content = json.dumps(value).encode()
        if json.loads(content) != value:
            raise ValueError("a row has a value that JSON does not keep as it is")
        total += lines.write(content + b"\n")
        places.append(total)
    ends.write(np.array(places, np.int64).tobytes())


class Records(LazySequence[Any]):
    """The values of two files that `write_records` wrote, mapped; `make` makes of each what it stands for."""

    def __init__(self, lines: Path, ends: Path, make: Callable[[Any], Any]) -> None:
        self._from_plain = make
        self._ends = np.fromfile(ends, np.int64)
        self._lines = map_array(lines, np.dtype(np.uint8))
        if len(self._lines) != int(self._ends[-1:].sum()):
            raise ValueError(f"{lines}: has another length than its records")

    def __len__(self) -> int:
        return len(self._ends)

    def make(self, place: int) -> Any:
        begin = int(self._ends[place - 1]) if place else 0
        return self._from_plain(json.loads(self._lines[begin : int(self._ends[place])].tobytes()))
