"""What the schema says about a key path: the known keys, what a value may be, and the nearest known name.

A tagged union (`method`) is followed to the member that the recipe's own values name.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from pydantic import BaseModel

from peftlab.errors import nearest
from peftlab.methods import METHODS
from peftlab.metrics import METRICS
from peftlab.optimizers import OPTIMIZERS
from peftlab.recipe.schema import Recipe
from peftlab.recipe.synonyms import explain_absent, path_of
from peftlab.recipe.yaml_source import KeyPath, parse_scalar
from peftlab.tasks import TASKS

JsonSchema = dict[str, Any]
SHOWN_CHARACTERS = 60


def json_schema() -> JsonSchema:
    """Return the JSON Schema of a recipe, as pydantic makes it, with everything that is registered by now."""
    return _json_schema((*METHODS.values(), *OPTIMIZERS.values()), (*TASKS, *METRICS))


@lru_cache(maxsize=1)
def _json_schema(kinds: tuple[type[BaseModel], ...], names: tuple[str, ...]) -> JsonSchema:
    return Recipe.model_json_schema()


def schema_at(path: KeyPath, values: Any = None) -> JsonSchema | None:
    """Return the schema of the value at `path` in a recipe of these values, None if there is none."""
    schema: JsonSchema | None = json_schema()
    for part in path:
        values = values.get(part) if isinstance(values, dict) else None
        schema = child_schema(schema, part, values) if schema else None
    return schema


def child_schema(schema: JsonSchema, part: str | int, value: Any = None) -> JsonSchema | None:
    if isinstance(part, int):
        return next((item for option in options(schema) if (item := item_schema(option, part))), None)
    for option in options(schema):  # an item of a list may be text or a section
        if part in option.get("properties", {}):
            return resolve(option["properties"][part], value)
    extras = [option.get("additionalProperties") for option in options(schema)]
    return next((extra for extra in extras if isinstance(extra, dict)), None)


def item_schema(schema: JsonSchema, index: int) -> JsonSchema | None:
    """Return the schema of one item of a list or of a tuple of fixed length; None if it cannot have this item."""
    places = schema.get("prefixItems", ())
    item = places[index] if index < len(places) else schema.get("items")
    return resolve(item) if item else None


def resolve(schema: JsonSchema, value: Any = None) -> JsonSchema:
    """Follow a reference to its definition, and a tagged union to the member that `value` names."""
    if "discriminator" in schema:
        tag, known = schema["discriminator"]["propertyName"], members(schema)
        name = value.get(tag) if isinstance(value, dict) else None
        tags_alone = {"type": "object", "properties": {tag: {"enum": list(known)}}}
        return known.get(name, tags_alone) if isinstance(name, str) else tags_alone
    return definition(schema["$ref"]) if "$ref" in schema else schema


def definition(reference: str) -> JsonSchema:
    return json_schema()["$defs"][reference.rsplit("/", 1)[-1]]


def members(schema: JsonSchema) -> dict[str, JsonSchema]:
    """Return the members of a tagged union by their tags, in the union's order; empty where it is none."""
    tags = {reference: tag for tag, reference in schema.get("discriminator", {}).get("mapping", {}).items()}
    return {tags[one["$ref"]]: definition(one["$ref"]) for one in schema.get("oneOf", ()) if one.get("$ref") in tags}


def members_at(path: KeyPath) -> dict[str, JsonSchema]:
    above = schema_at(path[:-1]) or {}
    return members(above.get("properties", {}).get(path[-1], {}))


def options(schema: JsonSchema) -> list[JsonSchema]:
    """Return the members of a union, or the schema alone."""
    return [resolve(option) for option in schema.get("anyOf", [schema])]


def known_keys(path: KeyPath, values: Any = None) -> list[str]:
    schema = schema_at(path, values)
    return [key for option in options(schema) for key in option.get("properties", {})] if schema else []


def choices(schema: JsonSchema) -> list[str]:
    """Return every literal that the value may be."""
    found: list[Any] = []
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
        return describe_list(schema)
    if kind == "object":
        return describe_mapping(schema)
    if kind == "string":
        return "text that is not empty" if schema.get("minLength") else "text"
    return {"boolean": "true or false", "null": "null"}[str(kind)]


def describe_mapping(schema: JsonSchema) -> str:
    if keys := list(schema.get("properties", {})):
        return f"a mapping with the keys {', '.join(keys)}"
    values = schema.get("additionalProperties")
    return f"a mapping of names to {describe(values)}" if isinstance(values, dict) else "a mapping of keys to values"


def describe_list(schema: JsonSchema) -> str:
    if "items" in schema:
        return f"a list, each {describe(schema['items'])}" if schema["items"] else "a list"
    items = [describe(item) for item in schema["prefixItems"]]
    return f"a list of {len(items)}, each {items[0]}" if len(set(items)) == 1 else f"a list: {', '.join(items)}"


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
        return "null" if value is None else str(value).lower()
    if isinstance(value, dict):
        text = "a mapping"
    elif isinstance(value, tuple):
        text = f"[{', '.join(show(item) for item in value)}]"
    else:
        text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 4] + "..." + text[-1]


def explain_value(path: KeyPath, value: Any, values: Any) -> str:
    """Say what is wrong with a value: what it must be, what it is, and the nearest literal."""
    return explain_mismatch(schema_at(path, values) or {}, value)


def explain_mismatch(schema: JsonSchema, value: Any) -> str:
    message = f"must be {describe(schema)}, got {show(value)}"
    if isinstance(value, str):
        kinds = {option.get("type") for option in options(schema)}
        if kinds & {"integer", "number"} and isinstance(parse_scalar(value), int | float):
            return f"{message}; without quotes it is a number"
        return message + nearest(value, choices(schema))
    return message


def explain_unknown(path: KeyPath, values: Any) -> str:
    """Say that a key is unknown: the nearest known one, where it belongs, or the known ones."""
    key, section = str(path[-1]), path[:-1]
    known = known_keys(section, values)
    if section and (owners := [tag for tag, one in members_at(section).items() if key in one["properties"]]):
        return f"not a field of {section[-1]} {tag_at(section, values)}, only of {', '.join(owners)}"
    if instead := explain_absent(key):
        return f"not supported: {instead}"
    if called := path_of(key):
        *place, field = called.split(".")
        if tuple(place) != section:
            return f"unknown key; did you mean {called!r}?"
        if field in known:
            return f"unknown key; did you mean {field!r}?"
    if suggestion := nearest(key, known):
        return f"unknown key{suggestion}"
    if home := home_of(key):
        return f"unknown key; {key!r} belongs under `{home}`"
    return f"unknown key; known here: {', '.join(known)}"


def tag_at(path: KeyPath, values: Any) -> Any:
    """Return what the section at `path` says that it is: its `type`."""
    for part in path:
        values = values[part]
    return values.get("type")


def home_of(key: str) -> str | None:
    """Return the section that has a field of this name."""
    return next((".".join(map(str, path)) for path in sections() if key in keys_within(path)), None)


def keys_within(path: KeyPath) -> list[str]:
    """Return the keys of the section at `path`, of a tagged union those of all its members."""
    members = members_at(path).values()
    return [key for member in members for key in member["properties"]] or known_keys(path)


def sections(outer: KeyPath = ()) -> Iterator[KeyPath]:
    """Yield the path of every section of a recipe, outer ones first, tagged unions last."""
    inner = [(*outer, key) for key in known_keys(outer) if "properties" in (schema_at((*outer, key)) or {})]
    inner.sort(key=lambda path: bool(members_at(path)))
    yield from inner
    for path in inner:
        yield from sections(path)
