"""Pydantic's errors in plain words: one for each key path, even where several union members failed."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from peftlab.recipe.vocabulary import describe, explain_unknown, explain_value, schema_at
from peftlab.recipe.yaml_source import KeyPath


def find_schema_errors(error: ValidationError, values: dict[str, Any]) -> list[tuple[KeyPath, str]]:
    """Return (key path, message) of every value that does not fit the schema."""
    return [(path, explain(path, entry, values)) for path, entry in place_errors(error, values).items()]


def place_errors(error: ValidationError, values: dict[str, Any]) -> dict[KeyPath, ErrorDetails]:
    """Return pydantic's error for each key path that is wrong: the first one of the longest path."""
    found: dict[KeyPath, ErrorDetails] = {}
    for entry in error.errors(include_url=False):
        found.setdefault(locate(entry, values), entry)
    return {path: found[path] for path in found if not any(is_member_error(path, other) for other in found)}


def locate(entry: ErrorDetails, values: dict[str, Any]) -> KeyPath:
    """Return the key path of an error: pydantic's location without the union members that it names too."""
    path: list[str | int] = []
    value: Any = values
    for place, part in enumerate(entry["loc"], start=1):
        absent = entry["type"] == "missing" and place == len(entry["loc"])
        if isinstance(value, dict) and (part in value or absent):
            path.append(part)
            value = value.get(part)
        elif isinstance(value, tuple) and isinstance(part, int) and part < len(value):
            path.append(part)
            value = value[part]
    if entry["type"].startswith("union_tag"):
        path.append(entry["ctx"]["discriminator"].strip("'"))
    return tuple(path)


def is_member_error(path: KeyPath, other: KeyPath) -> bool:
    """Whether `path` is a list or section that another union member accepted, which is wrong at `other` only."""
    return len(other) > len(path) and other[: len(path)] == path


def explain(path: KeyPath, entry: ErrorDetails, values: dict[str, Any]) -> str:
    kind = entry["type"]
    if kind == "value_error":  # raised by a section's own validator, in its own words
        return str(entry["ctx"]["error"])
    if kind == "extra_forbidden":
        return explain_unknown(path, values)
    # A number at the end is the place that a list of fixed length lacks: the list is wrong, not absent.
    if kind == "union_tag_not_found" or (kind == "missing" and isinstance(entry["loc"][-1], str)):
        return f"is required: {describe(schema_at(path, values) or {})}"
    return explain_value(path, value_at(path, values), values)


def value_at(path: KeyPath, values: Any) -> Any:
    for part in path:
        values = values[part]
    return values
