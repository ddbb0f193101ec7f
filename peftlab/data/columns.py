"""Cells by the names that a recipe writes: columns, dotted paths into them, and templates of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any

from peftlab.errors import DataError, listed, nearest
from peftlab.tables.row import Unreadable
from peftlab.tasks.formats import as_text

Cells = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of this name, or the place inside a column that a dotted name says: `answers.text.0`."""

    name: str
    head: str
    path: tuple[str, ...] = ()

    def cell(self, cells: Cells) -> Any:
        """Return a row's cell, None where it has none. Raises ValueError for one that cannot be read."""
        value = cells.get(self.head)
        for key in self.path:
            if isinstance(value, Unreadable):
                break
            value = self._inside(value, key)
        if isinstance(value, Unreadable):
            raise ValueError(f"column {self.name!r} {value.reason}")
        return value

    def _inside(self, value: Any, key: str) -> Any:
        if value is None:
            return None
        if isinstance(value, Mapping):
            return value.get(key)
        if isinstance(value, list) and key.isdecimal():
            return value[int(key)] if int(key) < len(value) else None
        raise ValueError(f"column {self.name!r}: has no {key!r} inside {type(value).__name__}")


def find_column(name: str, header: Sequence[str], first: Cells) -> Column | None:
    """Return the column of this name, or the nested one that a dotted name says; None where there is neither.

    `first` are the cells of a row: a column is nested where it has an object or a list there.
    """
    if name in header:
        return Column(name, name)
    head, *path = name.split(".")
    if path and head in header and (first.get(head) is None or isinstance(first[head], Mapping | list)):
        return Column(name, head, tuple(path))
    return None


def is_null(value: Any) -> bool:
    """Return whether a cell says nothing: null, not a number, an empty list, or blank text."""
    if value is None or value == [] or (isinstance(value, float) and value != value):
        return True
    return isinstance(value, str) and not value.strip()


@dataclass(frozen=True)
class Template:
    """Literal texts, each with the column after it (None: the end). Attributes and formats are unknown."""

    pieces: Sequence[tuple[str, Column | None]]

    def fill(self, cells: Cells) -> str:
        """Return the text of a row. Raises ValueError for a cell that is null or not text."""
        return "".join(literal + (self._text(column, cells) if column else "") for literal, column in self.pieces)

    @property
    def columns(self) -> list[Column]:
        return [column for _, column in self.pieces if column]

    def _text(self, column: Column, cells: Cells) -> str:
        value = column.cell(cells)
        if is_null(value) and not isinstance(value, str):
            raise ValueError(f"column {column.name!r} is empty")
        try:
            return as_text(value)
        except ValueError as error:
            raise ValueError(f"column {column.name!r}: {error}") from None


def parse_template(text: str, header: Sequence[str], first: Cells, name: str) -> Template:
    """Return the template of a file called `name`. Raises DataError if it is not one."""
    try:
        parsed = list(Formatter().parse(text))
    except ValueError as error:
        raise DataError(f"data.template: {error}; write a brace itself as {{{{ or }}}}") from None
    pieces = []
    for literal, wanted, spec, conversion in parsed:
        if wanted is not None and (spec or conversion):
            raise DataError(f"data.template: {{{wanted}}} takes no ':' or '!' after the name")
        column = None if wanted is None else find_column(wanted, header, first)
        if wanted is not None and column is None:
            hint = f"{nearest(wanted, header)}; its columns: {listed(header)}"
            raise DataError(f"data.template: {name} has no column {wanted!r}{hint}")
        pieces.append((literal, column))
    return Template(pieces)
