"""What is wrong with a comparison's file, in plain words and at the lines of its keys."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from peftlab.errors import PeftlabError, Problem, nearest
from peftlab.recipe.load import Draft
from peftlab.recipe.overrides import COMMAND_LINE
from peftlab.recipe.schema_errors import place_errors
from peftlab.recipe.section import Section
from peftlab.recipe.vocabulary import JsonSchema, child_schema, describe, explain_mismatch
from peftlab.recipe.yaml_source import KeyPath, Source


def checked_by(parse: Callable[[str], object]) -> Callable[[str], str]:
    """Return a validator of texts that `parse` reads, with the parser's own words as the error."""

    def check(text: str) -> str:
        try:
            parse(text)
        except PeftlabError as error:
            raise ValueError(str(error)) from None
        return text

    return check


def find_file_errors(error: ValidationError, model: type[Section], source: Source, path: Path) -> list[Problem]:
    """Return a problem for every value of the file that does not fit the model."""
    found = place_errors(error, source.value).items()
    return [problem_at(source, path, key, explain(key, entry, whole_schema(model))) for key, entry in found]


def explain(key: KeyPath, entry: ErrorDetails, schema: JsonSchema) -> str:
    kind = entry["type"]
    if kind == "value_error":  # raised by a validator of ours, in its own words
        return str(entry["ctx"]["error"])
    if kind == "extra_forbidden":
        known = keys_at(schema, key[:-1])
        return f"unknown key{nearest(str(key[-1]), known) or '; known here: ' + ', '.join(known)}"
    if kind == "missing":
        return f"is required: {describe(schema_at(schema, key))}"
    if kind == "too_short":
        return "is empty; give at least one"
    return explain_mismatch(schema_at(schema, key), entry["input"])


@cache
def whole_schema(model: type[Section]) -> JsonSchema:
    """Return a model's JSON Schema with its definitions in place of the references to them."""
    schema = model.model_json_schema()
    return _inline(schema, schema.get("$defs", {}))


def _inline(schema: Any, definitions: dict[str, JsonSchema]) -> Any:
    if isinstance(schema, list):
        return [_inline(one, definitions) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inline(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {key: _inline(one, definitions) for key, one in schema.items() if key != "$defs"}


def schema_at(schema: JsonSchema, key: KeyPath) -> JsonSchema:
    """Return the schema of the value at a key path; an empty one, of any value, where there is none."""
    for part in key:
        schema = child_schema(schema, part) or {}
    return schema


def keys_at(schema: JsonSchema, key: KeyPath) -> list[str]:
    """Return the keys of the section at a key path, or of the sections that its value may be."""
    section = schema_at(schema, key)
    return [name for option in section.get("anyOf", [section]) for name in option.get("properties", {})]


def problem_at(source: Source, path: Path, key: KeyPath, message: str) -> Problem:
    """Return the problem with the nearest known line of `key`."""
    return Draft(source.value, str(path), source.lines).problem(key, message)


def relocate(problem: Problem, source: Source, path: Path, name: str) -> Problem:
    """Return a problem of a variant's recipe at the line that set it, where this file did."""
    if problem.file != COMMAND_LINE:
        return problem
    parts = problem.path.split(".")
    for section in (("variants", name, "overrides"), ("overrides",)):
        for length in range(len(parts), 0, -1):
            key: KeyPath = (*section, ".".join(parts[:length]), *parts[length:])
            if key[: len(section) + 1] in source.lines:
                return problem_at(source, path, key, problem.message)
    for outer in (("variants", name), ()):
        if (*outer, parts[0]) in source.lines:
            return problem_at(source, path, (*outer, *parts), problem.message)
    message = f"{problem.path}: {problem.message}" if problem.path else problem.message
    return problem_at(source, path, ("variants", name), message)
