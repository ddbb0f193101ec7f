"""Variables in configurations: OmegaConf's `${key}`, and the keys that YAML's `<<` merges."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MERGE = "<<"
REFERENCE = re.compile(r"\$\{([\w.]+)\}")
DEFAULT = re.compile(r"\$\{oc\.env:\w+,\s*([^}]*)\}")
LIMIT_DEPTH = 10


def resolve(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return flat values in which `${key}` is the value of the key, as OmegaConf does it.

    An environment variable has its default; without one it stays as it is written.
    """
    known = {key: value for key, value in values.items() if isinstance(value, str | int | float)}
    return {key: _replace(value, known, LIMIT_DEPTH) for key, value in values.items()}


def _replace(value: Any, known: Mapping[str, Any], depth: int) -> Any:
    if isinstance(value, tuple | list):
        return tuple(_replace(one, known, depth) for one in value)
    if not isinstance(value, str) or depth == 0:
        return value
    if (whole := REFERENCE.fullmatch(value)) and whole[1] in known:
        return _replace(known[whole[1]], known, depth - 1)
    text = REFERENCE.sub(lambda match: str(known.get(match[1], match[0])), DEFAULT.sub(r"\1", value))
    return text if text == value else _replace(text, known, depth - 1)


def merge(value: Any) -> Any:
    """Return a value in which every dictionary has the keys that `<<` merges into it; its own have priority."""
    if isinstance(value, list | tuple):
        return tuple(merge(one) for one in value)
    if not isinstance(value, dict):
        return value
    own = {key: merge(one) for key, one in value.items()}
    others = own.pop(MERGE, ())
    for other in (others,) if isinstance(others, dict) else others if isinstance(others, tuple) else ():
        own = (other if isinstance(other, dict) else {}) | own
    return own
