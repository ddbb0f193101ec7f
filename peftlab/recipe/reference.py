"""The fields of recipes and comparison files as data: what a value may be, the default, the string, who has it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from pydantic import BaseModel

from peftlab.recipe.comparison import Comparison
from peftlab.recipe.json_schema import describe_fields, editor_schema
from peftlab.recipe.vocabulary import JsonSchema, choices, describe

COMPARISON = "comparison"


@dataclass(frozen=True)
class Field:
    """One field that a user can set.

    `kinds` are the values of the section's `type` with which the field exists; empty if it always does.
    """

    path: str
    value: str
    choices: tuple[str, ...]
    required: bool
    default: Any
    text: str
    kinds: tuple[str, ...] = ()

    @property
    def section(self) -> str:
        return self.path.rpartition(".")[0]

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]


@dataclass(frozen=True)
class Section:
    """One section of a file, the string that documents it, and the values of its `type`, if it has one."""

    path: str
    text: str
    kinds: tuple[str, ...] = ()


@cache
def list_fields() -> tuple[Field, ...]:
    """Return every field of a recipe, then of a comparison file (under `comparison.`), in the schema's order.

    A field that several types of a section have is one entry as far as they agree on what it is.
    """
    merged: dict[Field, list[str]] = {}
    for field in [*fields_of(editor_schema(), ""), *fields_of(comparison_schema(), COMPARISON)]:
        merged.setdefault(replace(field, kinds=()), []).extend(field.kinds)
    every = {section.path: section.kinds for section in list_sections()}
    return tuple(
        replace(field, kinds=() if tuple(kinds) == every.get(field.section, ()) else tuple(kinds))
        for field, kinds in merged.items()
    )


@cache
def list_sections() -> tuple[Section, ...]:
    """Return the sections of a recipe and of a comparison file, outer ones first."""
    return (*sections_of(editor_schema(), ""), *sections_of(comparison_schema(), COMPARISON))


@cache
def comparison_schema() -> JsonSchema:
    """Return the JSON Schema of a comparison file, documented as that of a recipe is."""
    schema = Comparison.model_json_schema()
    for model in vars(sys.modules[Comparison.__module__]).values():
        if isinstance(model, type) and issubclass(model, BaseModel):
            definition = schema if model is Comparison else schema["$defs"].get(model.__name__)
            if definition:
                describe_fields(definition, model)
    return schema


def fields_of(
    root: JsonSchema, path: str, section: JsonSchema | None = None, kind: str | None = None
) -> Iterator[Field]:
    """Yield the fields of one section (of the whole file without one) and of the sections inside it."""
    section = root if section is None else section
    for name, schema in section["properties"].items():
        place = f"{path}.{name}".removeprefix(".")
        inner = inner_sections(root, schema)
        if kinds := kinds_of(inner):
            yield type_field(place, kinds, schema.get("default"))
        for definition in inner:
            yield from fields_of(root, place, definition, kind_of(definition))
        if not inner and not (kind and name == "type"):
            yield make_field(section, name, place, kind)


def sections_of(root: JsonSchema, path: str, section: JsonSchema | None = None) -> Iterator[Section]:
    section = root if section is None else section
    for name, schema in section["properties"].items():
        place = f"{path}.{name}".removeprefix(".")
        inner = inner_sections(root, schema)
        if inner:
            yield Section(place, schema.get("description", ""), kinds_of(inner))
        for definition in inner:
            yield from sections_of(root, place, definition)


def inner_sections(root: JsonSchema, schema: JsonSchema) -> list[JsonSchema]:
    """Return the sections that a value may be; a mapping of free names to sections counts as the section."""
    if "properties" in schema:
        return [schema]
    extra = schema.get("additionalProperties")
    members = [*schema.get("oneOf", []), *schema.get("anyOf", []), *([extra] if isinstance(extra, dict) else [])]
    if "$ref" in schema:
        members.append(root["$defs"][schema["$ref"].rsplit("/", 1)[-1]])
    return [section for member in members for section in inner_sections(root, member)]


def kinds_of(sections: Sequence[JsonSchema]) -> tuple[str, ...]:
    return tuple(kind for kind in map(kind_of, sections) if kind)


def kind_of(section: JsonSchema) -> str | None:
    """Return the one value of a section's `type`, None if it has no such field."""
    return section["properties"].get("type", {}).get("const")


def type_field(place: str, kinds: tuple[str, ...], default: Any) -> Field:
    """Return the field that chooses the kind of a section; `default` is the section's own, as a recipe writes it."""
    text = f"Which {place.rpartition('.')[2]}; the other fields depend on it."
    name = default.get("type") if isinstance(default, dict) else default
    return Field(f"{place}.type", f"one of {', '.join(kinds)}", kinds, name is None, name, text)


def make_field(section: JsonSchema, name: str, place: str, kind: str | None) -> Field:
    schema = section["properties"][name]
    default = schema.get("default", "{}" if schema.get("type") == "object" else None)
    return Field(
        path=place,
        value=describe(schema),
        choices=tuple(choices(schema)),
        required=name in section.get("required", []),
        default=tuple(default) if isinstance(default, list) else default,
        text=schema.get("description", ""),
        kinds=(kind,) if kind else (),
    )
