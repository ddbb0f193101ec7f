"""Overrides from the command line: `method.rank=16`, set into a recipe's values before they are checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peftlab.errors import Problem, RecipeError
from peftlab.recipe.vocabulary import options, schema_at
from peftlab.recipe.yaml_source import KeyPath, dotted, parse_yaml

COMMAND_LINE = "command line"


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> tuple[set[KeyPath], list[Problem]]:
    """Set every `key.path=value` into `values`; return the paths that overrides set, and the problems.

    A value is YAML (`run.trackers=[tensorboard]`); for a field that is only text, it is the text as written.
    Whether keys and values fit the schema is checked later, with the whole recipe.
    """
    placed: set[KeyPath] = set()
    given: set[KeyPath] = set()
    problems: list[Problem] = []
    for override in overrides:
        key, equals, text = override.partition("=")
        path = tuple(part.strip() for part in key.split("."))
        if not equals or not all(path):
            fault = f"{override!r} is not an override; write key=value, such as method.rank=16"
            problems.append(Problem("", fault, COMMAND_LINE))
        elif path in given:
            problems.append(Problem(dotted(path), "given twice", COMMAND_LINE))
        else:
            given.add(path)
            try:
                placed |= place_value(values, path, parse_value(text, path))
            except RecipeError as error:
                problems.append(Problem(dotted(path), error.problems[0].message, COMMAND_LINE))
    return placed, problems


def parse_value(text: str, path: KeyPath) -> Any:
    """Return the value of an override. Raises RecipeError if it is not valid YAML, unless the field is only text."""
    schema = schema_at(path, None)
    only_text = schema is not None and {option.get("type") for option in options(schema)} <= {
        "string",
        "null",
    }
    try:
        source = parse_yaml(text, None)
        if source.problems:
            raise RecipeError(source.problems)
    except RecipeError:
        if only_text:
            return text
        raise
    # Keep unquoted text as written: YAML would cut `a #1` at the comment, read `#a` as none, and fold line breaks.
    written = source.value is not None or text.lstrip().startswith("#")
    if only_text and written and text[:1] not in ("'", '"'):
        return text
    return source.value


def place_value(values: dict[str, Any], path: tuple[str, ...], value: Any) -> set[KeyPath]:
    """Set one value, and the sections around it where missing; return the paths that are new or replaced."""
    placed: set[KeyPath] = {path}
    section = values
    for depth, part in enumerate(path[:-1], start=1):
        inner = section.get(part)
        if inner is None:
            inner = section[part] = {}
            placed.add(path[:depth])
        if not isinstance(inner, dict):
            raise RecipeError(f"{dotted(path[:depth])} is a value, not a section, and has no keys")
        section = inner
    section[path[-1]] = value
    return placed
