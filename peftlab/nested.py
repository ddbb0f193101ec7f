"""Nested dictionaries, such as recipes and metrics, by the dotted paths of their values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of all dictionaries inside by dotted paths; an empty dictionary is a value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Return dotted path to (old, new) for every value in which two trees differ; one that is missing is None."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return {} if old == new else {prefix.rstrip("."): (old, new)}
    found: dict[str, tuple[Any, Any]] = {}
    for key in dict.fromkeys([*old, *new]):
        nested = isinstance(old.get(key), dict) and isinstance(new.get(key), dict)
        found |= differences(old.get(key), new.get(key), f"{prefix}{key}{'.' if nested else ''}")
    return found
