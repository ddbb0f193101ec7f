"""The JSON Schema of a recipe that editors complete and check with, documented from the fields' docstrings."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from peftlab.methods import METHODS
from peftlab.optimizers import OPTIMIZERS, SHORT_NAMES
from peftlab.recipe import schema as sections
from peftlab.recipe.vocabulary import json_schema

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def editor_schema() -> dict[str, Any]:
    """Return the schema of a recipe file: every field with its type, default and documentation."""
    schema = {"$schema": DIALECT, **deepcopy(json_schema())}
    schema["title"] = "peftlab recipe"
    models = [model for model in vars(sections).values() if inspect.isclass(model) and issubclass(model, BaseModel)]
    for model in models:
        definition = schema if model is sections.Recipe else schema["$defs"].get(model.__name__)
        if definition:
            describe_fields(definition, model)
    describe_union(schema, schema["properties"]["method"], METHODS, "method")
    training = schema["$defs"][sections.Training.__name__]["properties"]
    names = [*OPTIMIZERS, *SHORT_NAMES]
    describe_union(schema, training["optimizer"], OPTIMIZERS, "optimizer", default=names[0])
    training["optimizer"] = {"anyOf": [{"enum": names}, {**training["optimizer"]}], "default": names[0]}
    describe_fields(schema["$defs"][sections.Training.__name__], sections.Training)
    return schema


def describe_union(
    schema: dict[str, Any], union: dict[str, Any], registry: Mapping[str, Any], noun: str, default: str | None = None
) -> None:
    """Document each kind of a section that has a `type`, and require that type, but for the `default` kind's."""
    for name, reference in union["discriminator"]["mapping"].items():
        kind, definition = registry[name], schema["$defs"][reference.rsplit("/", 1)[-1]]
        describe_fields(definition, kind)
        # The type has a default for Python's sake; a recipe names it.
        required = definition.pop("required", [])
        if names := [*(["type"] if name != default else []), *required]:
            definition["required"] = names
        definition["properties"]["type"].pop("default", None)
        definition["properties"]["type"]["description"] = f"The {noun}: {kind.title}."


def describe_fields(definition: dict[str, Any], model: type[BaseModel]) -> None:
    for name, description in field_docstrings(model).items():
        definition["properties"][model.model_fields[name].alias or name]["description"] = description


def field_docstrings(model: type[BaseModel]) -> dict[str, str]:
    """Return the string beneath each field, of inherited fields too.

    Pydantic's `use_attribute_docstrings` finds the same strings when a class is made; that costs every command
    50 ms, for what only a schema shows.
    """
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if issubclass(base, BaseModel) and base is not BaseModel:
            found |= class_docstrings(sys.modules[base.__module__]).get(base.__name__, {})
    return {name: text for name, text in found.items() if name in model.model_fields}


@cache
def class_docstrings(module: ModuleType) -> dict[str, dict[str, str]]:
    """Return the strings beneath the fields of every class of a module's source; none where it has no file."""
    if getattr(module, "__file__", None) is None:  # a notebook's
        return {}
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    return {node.name: dict(documented_fields(node)) for node in tree.body if isinstance(node, ast.ClassDef)}


def documented_fields(node: ast.ClassDef) -> list[tuple[str, str]]:
    return [
        (ast.unparse(line.target), " ".join(inspect.cleandoc(str(ast.literal_eval(below.value))).split()))
        for line, below in zip(node.body, node.body[1:], strict=False)
        if isinstance(line, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
    ]
