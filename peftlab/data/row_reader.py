"""Examples from the rows of one file: columns become texts, prompts and answers, messages, labels or tags."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peftlab.data.columns import Cells, Column, Template, find_column, is_null, parse_template
from peftlab.errors import DataError, listed, nearest
from peftlab.recipe.schema import Data, DataSource
from peftlab.tables.row import Unreadable
from peftlab.tasks.formats import Example, Format
from peftlab.tasks.layouts import Layout


@dataclass(frozen=True)
class Wanted:
    """What a recipe says of a source's columns: the column of a role, and the template that makes one."""

    columns: Mapping[str, str]
    template: str | None = None

    @property
    def says_which(self) -> bool:
        """Whether it names columns, so that the file is not written in a layout of its own."""
        return self.template is not None or bool(set(self.columns) - {"tools"})


def wanted_columns(section: Data, entry: DataSource) -> Wanted:
    """Return what a recipe says of the columns of one of its sources: its own fields, else those of all sources."""
    columns = section.columns if entry.columns is None else entry.columns
    tools = {"tools": section.tools} if section.tools is not None else {}
    return Wanted({**columns, **tools}, section.template if entry.template is None else entry.template)


@dataclass(frozen=True)
class Header:
    """What a file looks like: its name, its columns, and the cells of its first row that could be read."""

    name: str
    columns: Sequence[str]
    first: Cells


SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


class RowReader:
    """Makes an example of each row of a file. Raises DataError where the file lacks a column."""

    def __init__(self, layout: Format, header: Header, wanted: Wanted) -> None:
        self.format = layout
        named = wanted.columns
        made = layout.template_role if wanted.template is not None else None
        self._template = self._made = None
        if made is not None and wanted.template is not None:
            self._template = parse_template(wanted.template, header.columns, header.first, header.name)
            self._made = made
        taken = {column.head for column in self._template.columns} if self._template else set()
        self.columns = _map_roles(layout, header, named, made, taken)
        # Later rows of a file may have a key that its first rows lack.
        absent = {named.get(role, role): role for role in layout.optional if role not in self.columns}
        self._absent = {column: role for column, role in absent.items() if column not in taken}

    @property
    def optional_roles(self) -> frozenset[str]:
        """The optional roles that every row of the file has to have."""
        return frozenset(self.columns) & (self.format.optional - self.format.nullable)

    @property
    def read_columns(self) -> frozenset[str]:
        """The columns of the file that rows are made of."""
        return frozenset(column.head for column in self._used) | frozenset(self._absent)

    @property
    def _used(self) -> list[Column]:
        return [*self.columns.values(), *(self._template.columns if self._template else ())]

    def is_empty(self, cells: Cells) -> bool:
        """Return whether all that would be read of a row is null or blank."""
        found = (cells.get(column.head) for column in self._used)
        return all(is_null(value) and not isinstance(value, Unreadable) for value in found)

    def read(self, cells: Cells) -> Example:
        """Return a row's example. Raises ValueError with column and reason."""
        for column, role in self._absent.items():
            if not is_null(cells.get(column)) and role not in self.format.nullable:
                raise ValueError(
                    f"column {column!r} is in this row and not in the first ones; all rows need it or none"
                )
        values = {role: self._convert(role, column, cells) for role, column in self.columns.items()}
        if self._template is not None and self._made is not None:
            values[self._made] = self._fill(self._template, self._made, cells)
        return self.format.example(*(values.get(role) for role in self.format.roles))

    def _convert(self, role: str, column: Column, cells: Cells) -> Any:
        value = column.cell(cells)
        if role not in self.format.nullable and is_null(value):
            raise ValueError(f"column {column.name!r} is empty")
        return convert(self.format.roles[role], value, f"column {column.name!r}: ")

    def _fill(self, template: Template, made: str, cells: Cells) -> str:
        text = template.fill(cells)
        if not text.strip():
            raise ValueError(f"data.template makes the {made}, which is empty")
        return text


class LayoutReader:
    """Makes an example of each row of a file that is written in a layout of its format."""

    def __init__(self, layout: Format, written: Layout, wanted: Wanted) -> None:
        self.format, self.written, self._names = layout, written, wanted.columns

    @property
    def optional_roles(self) -> frozenset[str]:
        return frozenset()

    @property
    def read_columns(self) -> frozenset[str]:
        return frozenset(self.written.columns) | self.written.also | frozenset(self._names.values())

    def is_empty(self, cells: Cells) -> bool:
        return all(is_null(cells.get(column)) for column in self.written.columns)

    def read(self, cells: Cells) -> Example:
        """Return a row's example. Raises ValueError with column and reason."""
        for name, value in cells.items():
            if isinstance(value, Unreadable) and name in (*self.written.columns, *self.written.also):
                raise ValueError(f"column {name!r} {value.reason}")
        values = self.written.read({**cells, **{role: cells.get(column) for role, column in self._names.items()}})
        return self.format.example(*(self._convert(role, values.get(role)) for role in self.format.roles))

    def _convert(self, role: str, value: Any) -> Any:
        if role in self.format.optional and (value is None or role in self.format.nullable and is_null(value)):
            return None
        if is_null(value):
            raise ValueError(f"the {role} is empty")
        return convert(self.format.roles[role], value, "")


Reader = RowReader | LayoutReader


def convert(converter: Callable[[Any], Any], value: Any, before: str) -> Any:
    try:
        return converter(value)
    except ValueError as error:
        raise ValueError(f"{before}{error}") from None


def _map_roles(
    layout: Format, header: Header, named: Mapping[str, str], made: str | None, taken: Collection[str]
) -> dict[str, Column]:
    """Return the column of every role that is read as it is; the template makes the role `made`.

    Columns `taken` into the template are no optional role too, unless a recipe says so.
    """
    roles = {}
    for role in layout.roles:
        name = named.get(role, role)
        column = find_column(name, header.columns, header.first)
        if role == made or (role in layout.optional and role not in named and (column is None or name in taken)):
            continue
        if column is None:
            raise DataError(missing_column(header, role, name))
        roles[role] = column
    return roles


def missing_column(header: Header, role: str, name: str) -> str:
    """Return the message for a file without a column that a role needs."""
    hint = f"; set data.columns.{role}" if role == name else nearest(name, header.columns)
    hint = separator_hint(header) or hint
    return f"{header.name}: has no column {name!r} for {role!r}{hint}; its columns: {listed(header.columns)}"


def separator_hint(header: Header) -> str:
    """Return what to do with a header that looks as if its file had another separator; empty if it does not."""
    found = [name for mark, name in SEPARATORS.items() if len(header.columns) == 1 and mark in header.columns[0]]
    return f"; its header looks separated by {found[0]}: save it with commas, or as .tsv with tabs" if found else ""
