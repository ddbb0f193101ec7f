"""What a row is: columns become texts, prompts and completions, messages or labelled texts."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from string import Formatter
from typing import Any

from peftlab.data.files import Table
from peftlab.errors import DataError, listed, nearest, one_line
from peftlab.recipe.schema import COLUMN_ROLES, TEMPLATE_ROLES, Data

OPTIONAL_ROLES = {"text_pair"}
WHOLE_NUMBER = re.compile(r"-?\d{1,18}")
DEEPEST_MESSAGE = 32


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Completion:
    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Chat:
    messages: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Labelled:
    text: str
    text_pair: str | None
    label: str


Example = Text | Completion | Chat | Labelled


def content_key(example: Example) -> str:
    """Return a text that is equal for, and only for, examples of equal content."""
    return json.dumps(asdict(example), sort_keys=True, ensure_ascii=False, default=repr)


def fingerprint(examples: Sequence[Example]) -> str:
    """Return the sha256 of the examples' content in their order, whatever file format they came from."""
    digest = sha256()
    for example in examples:
        digest.update(content_key(example).encode() + b"\n")
    return digest.hexdigest()


def read_examples(table: Table, section: Data) -> list[Example]:
    """Turn every row of a table into an example of `section.format`. Raises DataError with row and column."""
    roles = _map_roles(table, section)
    template = _parse_template(section.template, table) if section.template is not None else None
    cells = {role: _read_role(table, role, column) for role, column in roles.items()}
    if template is not None:
        role = TEMPLATE_ROLES[section.format]
        cells[role] = _fill_template(template, table)
        _check_filled(cells[role], f"{table.name}: data.template makes the {role}, which")
    if section.format == "classification":
        cells.setdefault("text_pair", [None] * len(table))
    build = {"text": Text, "completion": Completion, "chat": Chat, "classification": Labelled}[section.format]
    return [build(*row) for row in zip(*(cells[role] for role in COLUMN_ROLES[section.format]), strict=True)]


def list_labels(examples: Sequence[Labelled]) -> list[str]:
    """Return the labels that occur, whole numbers in numeric order, else alphabetically."""
    labels = {example.label for example in examples}
    numeric = all(WHOLE_NUMBER.fullmatch(label) for label in labels)
    return sorted(labels, key=(lambda label: (int(label), label)) if numeric else None)


def _map_roles(table: Table, section: Data) -> dict[str, str]:
    """Return the column of every role that is read as it is (the template makes one role)."""
    made = TEMPLATE_ROLES[section.format] if section.template is not None else None
    roles = {}
    for role in COLUMN_ROLES[section.format]:
        column = section.columns.get(role, role)
        if role == made or (role in OPTIONAL_ROLES and role not in section.columns and column not in table.columns):
            continue
        if column not in table.columns:
            raise DataError(_missing_column(table, role, column))
        roles[role] = column
    return roles


def _missing_column(table: Table, role: str, column: str) -> str:
    there = listed(table.columns)
    hint = f"; set data.columns.{role}" if role == column else nearest(column, table.columns)
    return f"{table.name}: has no column {column!r} for {role!r}{hint}; its columns: {there}"


def _read_role(table: Table, role: str, column: str) -> list[Any]:
    convert = {"messages": _check_messages, "label": _as_label}.get(role, _as_text)
    return _convert_cells(table, column, convert, empty_allowed=False)


def _convert_cells(table: Table, column: str, convert: Callable[[Any], Any], *, empty_allowed: bool) -> list[Any]:
    values = table.columns[column]
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


def _as_text(value: Any) -> str:
    if not isinstance(value, str | int | float) or isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"needs text, not {type(value).__name__}{' inf' if isinstance(value, float) else ''}")
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can write half of a pair, which no tokenizer takes
        raise ValueError(f"holds half a character ({text[error.start]!r}) at position {error.start}") from None
    return text


def _as_label(value: Any) -> str:
    if not isinstance(value, str | int):
        raise ValueError(f"a label is a text or a whole number, not {type(value).__name__} {one_line(value, 60)}")
    return _as_text(value).strip()


def _check_messages(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise ValueError(f"needs a list of messages {{role, content}}, not {type(value).__name__}")
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError("each message needs a role and a content")
        if not isinstance(message.get("content"), str):
            raise ValueError(f"the content of a {message['role']!r} message must be text")
        _as_text(message["role"])
        _as_text(message["content"])
    if _depth(value) > DEEPEST_MESSAGE:
        raise ValueError(f"messages are nested deeper than {DEEPEST_MESSAGE} levels")
    return value


def _depth(value: Any) -> int:
    """Return how deep lists and objects lie in one another, without recursion."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, list | dict)]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth


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
            raise DataError(f"data.template: {{{name}}} takes no ':' or '!' behind the name")
        if name not in table.columns:
            hint = f"{nearest(name, table.columns)}; its columns: {listed(table.columns)}"
            raise DataError(f"data.template: {table.name} has no column {name!r}{hint}")
    return [(literal, name) for literal, name, _, _ in pieces]


def _fill_template(pieces: list[tuple[str, str | None]], table: Table) -> list[str]:
    names = {name for _, name in pieces if name is not None}
    cells = {name: _convert_cells(table, name, _as_text, empty_allowed=True) for name in names}
    return [
        "".join(literal + (cells[name][row] if name is not None else "") for literal, name in pieces)
        for row in range(len(table))
    ]
