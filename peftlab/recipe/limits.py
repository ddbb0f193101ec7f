"""Limits that apply to every field: unprintable text, secrets, and numbers that are too large."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import Any

from peftlab.recipe.schema import Recipe
from peftlab.recipe.yaml_source import KeyPath
from peftlab.secrets import contains_secret

LARGEST_COUNT = 1_000_000_000
LARGEST_NUMBER = 1e30  # what is computed in 32 bits ends at 3e38
MOST_BEAMS = 256  # each is a copy of the whole batch
SMALLER_COUNTS: dict[KeyPath, int] = {("evaluation", "generation", "beams"): MOST_BEAMS}
UNCOUNTED: set[KeyPath] = {("run", "seed")}
COUNTED_FRACTIONS: set[KeyPath] = {("training", "epochs")}
# Keys of `data`, and of each of its sources, whose texts may have several lines.
LINES_ALLOWED = {"template"}


def find_limit_errors(recipe: Recipe) -> list[tuple[KeyPath, str]]:
    """Return (key path, message) of every value outside these limits."""
    leaves = list(walk(recipe.model_dump()))
    # Once for all texts: to look for secrets is to read the whole environment.
    secret = contains_secret("\n".join(value for _, value in leaves if isinstance(value, str)))
    return [(path, fault) for path, value in leaves if (fault := explain_limit(path, value, secret))]


def walk(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Yield every leaf of nested dicts and tuples with its key path."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, tuple) else None
    if inner is None:
        yield path, value
        return
    for key, item in inner:
        yield from walk(item, (*path, key))


def explain_limit(path: KeyPath, value: Any, secret: bool) -> str | None:
    """Return what is wrong with a value, None if nothing is; `secret` says that some value contains a secret."""
    if isinstance(value, str) and secret and contains_secret(value):
        return "contains a secret, and run records contain the recipe; use an environment variable (HF_TOKEN, ...)"
    if isinstance(value, str):
        return explain_text(value, lines_allowed=path[0] == "data" and path[-1] in LINES_ALLOWED)
    counted = isinstance(value, int) and path not in UNCOUNTED or path in COUNTED_FRACTIONS and value is not None
    if counted and value > (most := SMALLER_COUNTS.get(path, LARGEST_COUNT)):
        return f"must be at most {most:,}"
    if isinstance(value, float) and value > LARGEST_NUMBER:
        return f"must be at most {LARGEST_NUMBER:g}"
    return None


def explain_text(text: str, lines_allowed: bool) -> str | None:
    """Return what is wrong with a text, None if nothing is; `lines_allowed` accepts line breaks and tabs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "contains bytes that are not valid UTF-8"
    allowed = "\n\t\r" if lines_allowed else ""
    control = next((c for c in text if unicodedata.category(c) == "Cc" and c not in allowed), None)
    return None if control is None else f"contains the control character {control!r}"
