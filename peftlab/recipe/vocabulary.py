"""What the schema says about a key path: the known keys, what a value may be, and the nearest known name."""

from __future__ import annotations

from functools import cache
from typing import Any

from peftlab.errors import nearest
from peftlab.methods import METHODS
from peftlab.recipe.schema import Recipe
from peftlab.recipe.yaml_source import KeyPath, parse_scalar

JsonSchema = dict[str, Any]
SHOWN_CHARACTERS = 60
UNKNOWN_METHOD: JsonSchema = {"type": "object", "properties": {"type": {"enum": list(METHODS)}}}


@cache
def json_schema() -> JsonSchema:
    """Return the JSON Schema of a recipe, as pydantic makes it."""
    return Recipe.model_json_schema()


def schema_at(path: KeyPath, method_type: Any) -> JsonSchema | None:
    """Return the schema of the value at `path` for a recipe with that `method.type`, None if there is none."""
    schema: JsonSchema | None = json_schema()
    for part in path:
        schema = child_schema(schema, part, method_type) if schema else None
    return schema


def child_schema(schema: JsonSchema, part: str | int, method_type: Any) -> JsonSchema | None:
    if isinstance(part, int):
        return next((resolve(option["items"], method_type) for option in options(schema) if "items" in option), None)
    if part in schema.get("properties", {}):
        return resolve(schema["properties"][part], method_type)
    extra = schema.get("additionalProperties")
    return extra if isinstance(extra, dict) else None


def resolve(schema: JsonSchema, method_type: Any = None) -> JsonSchema:
    """Follow a reference to its definition, and the method's union to the section of `method_type`."""
    if "discriminator" in schema:
        known = isinstance(method_type, str) and method_type in METHODS
        return json_schema()["$defs"][METHODS[method_type].__name__] if known else UNKNOWN_METHOD
    name = schema.get("$ref")
    return json_schema()["$defs"][name.rsplit("/", 1)[-1]] if name else schema


def options(schema: JsonSchema) -> list[JsonSchema]:
    """Return the members of a union, or the schema alone."""
    return [resolve(option) for option in schema.get("anyOf", [schema])]


def known_keys(path: KeyPath, method_type: Any) -> list[str]:
    schema = schema_at(path, method_type)
    return list(schema.get("properties", {})) if schema else []


def choices(schema: JsonSchema) -> list[str]:
    """Return every literal that the value may be."""
    found = []
    for option in options(schema):
        found += option.get("enum", []) or ([option["const"]] if "const" in option else [])
    return [str(choice) for choice in found]


def describe(schema: JsonSchema) -> str:
    """Say in words what a value of this schema is: `a whole number of at least 1, or null`."""
    literals = choices(schema)
    parts = [f"one of {', '.join(literals)}" if len(literals) > 1 else literals[0]] if literals else []
    parts += [describe_one(option) for option in options(schema) if not choices(option)]
    return " or ".join(parts)


def describe_one(schema: JsonSchema) -> str:
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return ("a whole number" if kind == "integer" else "a number") + describe_range(schema)
    if kind == "array":
        return f"a list, each {describe(schema['items'])}"
    if kind == "object":
        keys = list(schema.get("properties", {}))
        return f"a mapping with the keys {', '.join(keys)}" if keys else "a mapping of names to text"
    if kind == "string":
        return "text that is not empty" if schema.get("minLength") else "text"
    return {"boolean": "true or false", "null": "null"}[kind]


def describe_range(schema: JsonSchema) -> str:
    words = {
        "minimum": "of at least",
        "exclusiveMinimum": "greater than",
        "maximum": "of at most",
        "exclusiveMaximum": "below",
    }
    limits = " and ".join(f"{word} {schema[key]:,}" for key, word in words.items() if key in schema)
    return f" {limits}" if limits else ""


def show(value: Any) -> str:
    """Return a value as a recipe writes it, in one short line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        text = "a mapping"
    elif isinstance(value, tuple):
        text = f"[{', '.join(show(item) for item in value)}]"
    else:
        text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 4] + "..." + text[-1]


def explain_value(path: KeyPath, value: Any, method_type: Any) -> str:
    """Say what is wrong with a value: what it must be, what it is, and the nearest literal."""
    schema = schema_at(path, method_type) or {}
    message = f"must be {describe(schema)}, got {show(value)}"
    if isinstance(value, str):
        kinds = {option.get("type") for option in options(schema)}
        if kinds & {"integer", "number"} and isinstance(parse_scalar(value), int | float):
            return f"{message}; without quotes it is a number"
        return message + nearest(value, choices(schema))
    return message


def explain_unknown(path: KeyPath, method_type: Any) -> str:
    """Say that a key is unknown: the nearest known one, where it belongs, or the known ones."""
    key, section = str(path[-1]), path[:-1]
    known = known_keys(section, method_type)
    if section == ("method",) and (owners := [name for name, cls in METHODS.items() if key in cls.model_fields]):
        return f"not a field of method {method_type}, only of {', '.join(owners)}"
    if suggestion := nearest(key, known):
        return f"unknown key{suggestion}"
    if home := home_of(key):
        return f"unknown key; {key!r} belongs under `{home}`"
    return f"unknown key; known here: {', '.join(known)}"


def home_of(key: str) -> str | None:
    """Return the section that has a field of this name."""
    for section in Recipe.model_fields:
        if key in known_keys((section,), None):
            return section
    if key in known_keys(("evaluation", "generation"), None):
        return "evaluation.generation"
    return "method" if any(key in method.model_fields for method in METHODS.values()) else None
