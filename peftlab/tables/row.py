"""One row of a source as it was read: its cells, its place, and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple


class Row(NamedTuple):
    """Cells by column. `number` counts from 1: a line of a text file, a row of any other.

    A row with a `fault` could not be read and has no cells.
    """

    number: int
    cells: dict[str, Any]
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Unreadable:
    """In place of a cell that Python has no value for, such as a text that is not UTF-8, with the reason."""

    reason: str
