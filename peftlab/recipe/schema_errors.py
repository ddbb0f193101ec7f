"""Pydantic's errors in plain words: one for each key path, even where several union members failed."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from peftlab.recipe.vocabulary import describe, explain_unknown, explain_value, schema_at
from peftlab.recipe.yaml_source import KeyPath


def find_schema_errors(error: ValidationError, values: dict[str, Any]) -> list[tuple[KeyPath, str]]:
    """Return (key path, message) of every value that does not fit the schema."""
    found: dict[KeyPath, ErrorDetails] = {}
    for entry in error.errors(include_url=False):
        found.setdefault(locate(entry["loc"], entry["type"], values), entry)
    longest = [path for path in found if not any(is_member_error(path, other) for other in found)]
    method = values.get("method")
    method_type = method.get("type") if isinstance(method, dict) else None
    return [(path, explain(path, found[path], values, method_type)) for path in longest]


def locate(location: tuple[str | int, ...], kind: str, values: dict[str, Any]) -> KeyPath:
    """Return the key path of a pydantic location, without the union members and the method's tag in it."""
    if location[0] == "method":
        if kind.startswith("union_tag"):
            return ("method", "type")
        location = (location[0], *location[2:])
    path: list[str | int] = []
    value: Any = values
    for part in location:
        if isinstance(value, dict) and (part in value or kind == "missing"):
            path.append(part)
            value = value.get(part)
        elif isinstance(value, tuple) and isinstance(part, int):
            path.append(part)
            value = value[part]
    return tuple(path)


def is_member_error(path: KeyPath, other: KeyPath) -> bool:
    """Whether `path` is a list that another union member accepted, with the wrong item at `other`."""
    return len(other) > len(path) and other[: len(path)] == path and isinstance(other[len(path)], int)


def explain(path: KeyPath, entry: ErrorDetails, values: dict[str, Any], method_type: Any) -> str:
    kind = entry["type"]
    if kind == "value_error":  # a method's own validator raised it, with its own message
        return str(entry["ctx"]["error"])
    if kind == "extra_forbidden":
        return explain_unknown(path, method_type)
    schema = schema_at(path, method_type) or {}
    if kind in ("missing", "union_tag_not_found"):
        return f"is required: {describe(schema)}"
    return explain_value(path, value_at(path, values), method_type)


def value_at(path: KeyPath, values: Any) -> Any:
    for part in path:
        values = values[part]
    return values
