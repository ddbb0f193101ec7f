"""Examples from tables: columns become texts, prompts and completions, messages, labelled texts or tagged words."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from hashlib import sha256
from string import Formatter
from typing import Any

from peftlab.data.files import Table
from peftlab.errors import DataError, listed, nearest
from peftlab.recipe.schema import Data
from peftlab.tasks import find_format
from peftlab.tasks.formats import Example, Format, as_text


def content_key(example: Example) -> str:
    """Return a text that is equal for, and only for, examples of equal content."""
    content = asdict(example)
    if content.get("tools", ...) is None:  # as chats were before they had tools, so that their fingerprints stay
        del content["tools"]
    return json.dumps(content, sort_keys=True, ensure_ascii=False, default=repr)


def fingerprint(examples: Sequence[Example]) -> str:
    """Return the sha256 of the examples' content in their order, whatever file format they came from."""
    digest = sha256()
    for example in examples:
        digest.update(content_key(example).encode() + b"\n")
    return digest.hexdigest()


def read_examples(table: Table, section: Data) -> list[Example]:
    """Turn every row of a table into an example of `section.format`. Raises DataError with row and column."""
    layout = find_format(section.format)
    roles = _map_roles(table, section, layout)
    template = _parse_template(section.template, table) if section.template is not None else None
    cells = {
        role: _convert_cells(table, column, layout.roles[role], nullable=role in layout.nullable)
        for role, column in roles.items()
    }
    if template is not None and layout.template_role is not None:
        cells[layout.template_role] = _fill_template(template, table)
        _check_filled(
            cells[layout.template_role], f"{table.name}: data.template makes the {layout.template_role}, which"
        )
    for role in layout.optional:
        cells.setdefault(role, [None] * len(table))
    return [
        _build(layout, values, table.name, row)
        for row, values in enumerate(zip(*(cells[role] for role in layout.roles), strict=True), start=1)
    ]


def _build(layout: Format, values: Sequence[Any], name: str, row: int) -> Example:
    try:
        return layout.example(*values)
    except ValueError as error:
        raise DataError(f"{name}: row {row}: {error}") from None


def _map_roles(table: Table, section: Data, layout: Format) -> dict[str, str]:
    """Return the column of every role that is read as it is (the template makes one role)."""
    made = layout.template_role if section.template is not None else None
    named = {**section.columns, **({"tools": section.tools} if section.tools is not None else {})}
    roles = {}
    for role in layout.roles:
        column = named.get(role, role)
        if role == made or (role in layout.optional and role not in named and column not in table.columns):
            continue
        if column not in table.columns:
            raise DataError(_missing_column(table, role, column))
        roles[role] = column
    return roles


def _missing_column(table: Table, role: str, column: str) -> str:
    there = listed(table.columns)
    hint = f"; set data.columns.{role}" if role == column else nearest(column, table.columns)
    return f"{table.name}: has no column {column!r} for {role!r}{hint}; its columns: {there}"


def _convert_cells(
    table: Table, column: str, convert: Callable[[Any], Any], *, empty_allowed: bool = False, nullable: bool = False
) -> list[Any]:
    values = table.columns[column]
    if not nullable:
        _check_filled(values, f"{table.name}: column {column!r}", empty_allowed)
    result = []
    for row, value in enumerate(values, start=1):
        try:
            result.append(convert(value))
        except ValueError as error:
            raise DataError(f"{table.name}: column {column!r}, row {row}: {error}") from None
    return result


def _check_filled(values: Sequence[Any], what: str, empty_allowed: bool = False) -> None:
    bad = [row for row, value in enumerate(values, start=1) if _is_null(value, empty_allowed)]
    if bad:
        more = f" (and in {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise DataError(f"{what} is empty in row {bad[0]}{more}: fill or delete such rows")


def _is_null(value: Any, empty_allowed: bool) -> bool:
    if value is None or value != value:  # NaN differs from itself
        return True
    return not empty_allowed and (value == [] or (isinstance(value, str) and not value.strip()))


def _parse_template(template: str, table: Table) -> list[tuple[str, str | None]]:
    """Split a template into (literal, column) pieces. Only `{column}` is known: no attributes, no formats."""
    try:
        pieces = list(Formatter().parse(template))
    except ValueError as error:
        raise DataError(f"data.template: {error}; write a brace itself as {{{{ or }}}}") from None
    for _, name, spec, conversion in pieces:
        if name is None:
            continue
        if spec or conversion:
            raise DataError(f"data.template: {{{name}}} takes no ':' or '!' after the name")
        if name not in table.columns:
            hint = f"{nearest(name, table.columns)}; its columns: {listed(table.columns)}"
            raise DataError(f"data.template: {table.name} has no column {name!r}{hint}")
    return [(literal, name) for literal, name, _, _ in pieces]


def _fill_template(pieces: list[tuple[str, str | None]], table: Table) -> list[str]:
    names = {name for _, name in pieces if name is not None}
    cells = {name: _convert_cells(table, name, as_text, empty_allowed=True) for name in names}
    return [
        "".join(literal + (cells[name][row] if name is not None else "") for literal, name in pieces)
        for row in range(len(table))
    ]
