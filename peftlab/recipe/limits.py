"""What no field may hold, whatever it is for: texts that nothing can read, numbers that nothing can count."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import Any

from peftlab.recipe.schema import Recipe
from peftlab.recipe.yaml_source import KeyPath
from peftlab.secrets import holds_secret

LARGEST_COUNT = 1_000_000_000
LARGEST_NUMBER = 1e30  # what is computed in 32 bits ends at 3e38
MOST_BEAMS = 256  # each is a copy of the whole batch
SMALLER_COUNTS = {("evaluation", "generation", "beams"): MOST_BEAMS}
UNCOUNTED = {("run", "seed")}
COUNTED_FRACTIONS = {("training", "epochs")}
LINES_ALLOWED = {("data", "template")}


def find_excesses(recipe: Recipe) -> list[tuple[KeyPath, str]]:
    """Return (key path, message) of every value that is beyond these limits."""
    return [(path, fault) for path, value in walk(recipe.model_dump()) if (fault := explain_excess(path, value))]


def walk(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Yield every leaf of nested dicts and tuples with its key path."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, tuple) else None
    if inner is None:
        yield path, value
        return
    for key, item in inner:
        yield from walk(item, (*path, key))


def explain_excess(path: KeyPath, value: Any) -> str | None:
    if isinstance(value, str):
        return explain_text(value, lines_allowed=path in LINES_ALLOWED)
    counted = isinstance(value, int) and path not in UNCOUNTED or path in COUNTED_FRACTIONS and value is not None
    if counted and value > (most := SMALLER_COUNTS.get(path, LARGEST_COUNT)):
        return f"must be at most {most:,}"
    if isinstance(value, float) and value > LARGEST_NUMBER:
        return f"must be at most {LARGEST_NUMBER:g}"
    return None


def explain_text(text: str, lines_allowed: bool) -> str | None:
    """Say what is wrong with a text that names something, or with a template."""
    if holds_secret(text):
        return "holds a token, and recipes are copied into every record; leave it to the environment (HF_TOKEN, ...)"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "holds bytes that are no UTF-8 text"
    allowed = "\n\t\r" if lines_allowed else ""
    control = next((c for c in text if unicodedata.category(c) == "Cc" and c not in allowed), None)
    return None if control is None else f"holds the control character {control!r}"
