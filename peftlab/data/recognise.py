"""Which format a file's rows have, and in which layout they are written, from its columns and its first row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from peftlab.data.columns import Cells, find_column
from peftlab.data.row_reader import Header, LayoutReader, Reader, RowReader, Wanted, separator_hint
from peftlab.errors import DataError, listed
from peftlab.tasks.formats import Format
from peftlab.tasks.layouts import Layout


class Choice(NamedTuple):
    """A format, and a layout of it; None where each role has a column."""

    format: Format
    layout: Layout | None = None

    @property
    def title(self) -> str:
        return f"{self.format.name} ({self.layout.title})" if self.layout else self.format.name

    @property
    def columns(self) -> set[str]:
        return set(self.layout.columns if self.layout else _required(self.format, None))


def open_reader(choice: Choice, header: Header, wanted: Wanted) -> Reader:
    """Return what makes examples of the file's rows. Raises DataError where the file lacks a column."""
    if choice.layout is None:
        return RowReader(choice.format, header, wanted)
    return LayoutReader(choice.format, choice.layout, wanted)


def recognise(formats: Sequence[Format], name: str | None, header: Header, wanted: Wanted) -> Choice:
    """Return the format called `name`, or the one of `formats` that the file's columns fit, and its layout.

    Raises DataError where several fit, or none.
    """
    named = [one for one in formats if one.name == name] if name is not None else []
    if wanted.says_which:
        return _by_names(named or formats, header, wanted)
    _refuse_foreign(named or formats, header)
    fitting = _fitting(formats, named, header)
    if not fitting and len(named or formats) == 1:
        return Choice((named or formats)[0])  # its reader says which column is missing
    if not fitting:
        known = "; ".join(f"{one.name}: {' or '.join(_describe(one))}" for one in formats)
        raise DataError(
            f"{header.name}: its columns ({listed(header.columns)}) are those of no format ({known})"
            f"{separator_hint(header) or '; set data.format and data.columns'}"
        )
    chosen = list({choice.format.name: choice for choice in reversed(fitting)}.values())
    if len(chosen) > 1:
        titles = " or ".join(sorted(choice.title for choice in chosen))
        raise DataError(f"{header.name}: its columns ({listed(header.columns)}) fit {titles}; set data.format")
    return fitting[0]


def _refuse_foreign(formats: Sequence[Format], header: Header) -> None:
    """Raise DataError for rows that mean something else than those of the formats with such columns."""
    for foreign in dict.fromkeys(foreign for one in formats for foreign in one.foreign):
        if foreign.found(header.first) and not any(_is_plain(one, header) for one in formats if not one.foreign):
            raise DataError(f"{header.name}: has {foreign.title}; {foreign.remedy}")


def refuse_foreign_row(layout: Format, wanted: Wanted, cells: Cells) -> None:
    """Raise ValueError for a row that means something else than those of its format, as the first row may not."""
    for foreign in () if wanted.says_which else layout.foreign:
        if foreign.found(cells):
            raise ValueError(f"has {foreign.title}; {foreign.remedy}")


def _is_plain(layout: Format, header: Header) -> bool:
    return _lacks_nothing(layout, header, Wanted({}))


def _by_names(formats: Sequence[Format], header: Header, wanted: Wanted) -> Choice:
    """Choose where a recipe names columns or has a template: among the formats that have such roles."""
    able = [one for one in formats if set(wanted.columns) <= set(one.roles)]
    if wanted.template is not None:  # one that a template makes alone fits every file: it has to be named
        able = [one for one in able if one.template_role and (len(formats) == 1 or _required(one, one.template_role))]
    fitting = [one for one in able if _lacks_nothing(one, header, wanted)]
    if len(fitting) > 1:
        raise DataError(
            f"data.columns and data.template fit {' or '.join(one.name for one in fitting)}; set data.format"
        )
    return Choice((fitting or able or list(formats))[0])


def _fitting(formats: Sequence[Format], named: Sequence[Format], header: Header) -> list[Choice]:
    """Return the ways to read the file, those of a format's own columns first."""
    written = [
        Choice(one, layout)
        for one in formats
        for layout in one.layouts
        if (layout.recognised or one in named)
        and set(layout.columns) <= set(header.columns)
        and layout.suits(header.first)
    ]
    plain = [Choice(one) for one in formats if _lacks_nothing(one, header, Wanted({}))]
    # A layout of the same columns looks into the cells, so it knows better.
    replaced = {choice.format.name for choice in plain if any(choice.columns <= other.columns for other in written)}
    known = {column for choice in written if choice.layout for column in choice.layout.also}
    kept = [choice for choice in plain if choice.format.name not in replaced]
    if not named:
        return [*(choice for choice in kept if not choice.columns <= known), *written]
    own = [choice for choice in (*kept, *written) if choice.format in named]
    return own or [choice for choice in written if named[0].name in replaced]


def _required(layout: Format, made: str | None) -> list[str]:
    return [role for role in layout.roles if role not in layout.optional and role != made]


def _lacks_nothing(layout: Format, header: Header, wanted: Wanted) -> bool:
    made = layout.template_role if wanted.template is not None else None
    names = [wanted.columns.get(role, role) for role in _required(layout, made)]
    return all(find_column(name, header.columns, header.first) for name in names)


def _describe(layout: Format) -> list[str]:
    ways = [_required(layout, None), *(list(one.columns) for one in layout.layouts if one.recognised)]
    return list(dict.fromkeys(", ".join(columns) for columns in ways))
